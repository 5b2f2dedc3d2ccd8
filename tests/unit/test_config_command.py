import json
import subprocess
import sys
from pathlib import Path

PROGRAM = [sys.executable, "-m", "fabricctl.cli.main", "config"]

FILE = """
[agent]
sample_hz = 5
[partition.gpu]
agent.sample_hz = 20
"""

SHOWN = """\
node.run_dir                   "/run/fabricctl"             default
node.spool_dir                 "/var/spool/fabricctl"       default
node.log_file                  "/var/log/fabricctl.log"     default
node.orphan_check_s            10.0                         default
agent.user                     "fabric"                     default
agent.max_mode                 "on"                         default
agent.sample_hz                5.0                          {file}
agent.port_first               30000                        environment FABRICCTL_AGENT_PORT_FIRST
agent.port_count               400                          default
rails.interfaces               []                           default
paths.enabled                  true                         default
paths.pool4                    "100.64.0.0/10"              default
paths.pool6                    "fd66:6162:7269::/48"        default
paths.device_prefix            "fab"                        default
paths.interval_us              2000                         default
paths.budget_pps               4000                         default
paths.rto_min_ms               4                            default
paths.ready_wait_s             10                           default
paths.hold_s                   1.0                          default
paths.hold_max_s               60.0                         default
paths.port_first               20500                        default
paths.port_count               400                          default
trace.dir                      "/var/lib/fabricctl/traces"  default
trace.collect_wait_s           15.0                         default
trace.keep_parts               false                        default
partition.gpu.agent.sample_hz  20.0                         {file} [partition.gpu]
"""


def run(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *args], env=environ, capture_output=True, text=True, timeout=30, check=False
    )


def test_show_has_every_key_its_value_and_where_it_came_from(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text(FILE)
    done = run("show", FABRICCTL_CONFIG=str(file), FABRICCTL_AGENT_PORT_FIRST="30000")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == SHOWN.format(file=file)


def test_show_for_a_partition_has_its_values(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text(FILE)
    done = run("show", "--partition", "gpu", "--json", FABRICCTL_CONFIG=str(file))
    shown = json.loads(done.stdout)
    assert (shown["version"], shown["file"], shown["partition"]) == (1, str(file), "gpu")
    assert shown["keys"]["agent.sample_hz"] == {
        "value": 20.0,
        "default": 1.0,
        "origin": f"{file} [partition.gpu]",
    }
    assert shown["partitions"] == {"gpu": {"agent.sample_hz": 20.0}}


def test_check_of_a_valid_file(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text(FILE)
    done = run("check", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file}: valid\n", "")


def test_check_of_a_wrong_file_says_why_and_ends_with_78(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text("[agent]\nsamplehz = 5\n")
    done = run("check", str(file))
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == (
        f"fabricctl: {file}: unknown key agent.samplehz; did you mean 'sample_hz'?\n"
    )


def test_check_of_a_file_leaves_the_environment_aside(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text(FILE)
    assert run("check", str(file), FABRICCTL_AGENT_USER="root").returncode == 0
    assert run("check", FABRICCTL_CONFIG=str(file), FABRICCTL_AGENT_USER="root").returncode == 78
