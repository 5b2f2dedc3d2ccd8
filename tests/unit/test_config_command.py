import json
import re
import subprocess
import sys
from pathlib import Path

from fabricctl import config

PROGRAM = [sys.executable, "-m", "fabricctl.cli.main", "config"]

FILE = """
[agent]
sample_hz = 5
[partition.gpu]
agent.sample_hz = 20
"""

SHOWN = {
    "node.run_dir": ('"/run/fabricctl"', "default"),
    "agent.max_mode": ('"on"', "default"),
    "agent.sample_hz": ("5.0", "{file}"),
    "agent.port_first": ("30000", "environment FABRICCTL_AGENT_PORT_FIRST"),
    "rails.interfaces": ("[]", "default"),
    "trace.keep_parts": ("false", "default"),
    "partition.gpu.agent.sample_hz": ("20.0", "{file} [partition.gpu]"),
}


def run(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *args], env=environ, capture_output=True, text=True, timeout=30, check=False
    )


def test_show_has_every_key_its_value_and_where_it_came_from(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text(FILE)
    done = run("show", FABRICCTL_CONFIG=str(file), FABRICCTL_AGENT_PORT_FIRST="30000")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [re.split(r" {2,}", row) for row in done.stdout.splitlines()]
    keys = [key for key, _ in config.every_key()]
    assert [row[0] for row in rows] == [*keys, "partition.gpu.agent.sample_hz"]
    shown = {key: (value, origin) for key, value, origin in rows}
    for key, (value, origin) in SHOWN.items():
        assert shown[key] == (value, origin.format(file=file))


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
