"""The files of site-config/ say what the code does."""

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from fabricctl import layout
from fabricctl.cli.main import cli
from fabricctl.config import Config
from fabricctl.lab import units

ROOT = Path(__file__).parents[2]
SITE = ROOT / "site-config"


def lines(name: str, comment: str = "#") -> list[str]:
    text = (SITE / name).read_text()
    return [line for line in text.splitlines() if line.strip() and not line.startswith(comment)]


def plugin_arguments() -> set[str]:
    """The table of keys in the plugin's source."""
    source = (ROOT / "spank_plugin" / "args.c").read_text()
    table = source[source.index("} known[] = {") :]
    return set(re.findall(r'\{"(\w+)", "', table[: table.index("};")]))


def test_every_argument_of_the_plugin_is_explained_with_its_default() -> None:
    text = (SITE / "plugstack.conf.d" / "fabric.conf").read_text()
    explained = dict(re.findall(r"^#   (\w+)=(\S*) ", text, re.MULTILINE))
    assert set(explained) == plugin_arguments()
    assert explained["run_dir"] == str(Config().node.run_dir)


def test_the_plugstack_line_uses_arguments_that_exist() -> None:
    (line,) = lines("plugstack.conf.d/fabric.conf")
    kind, file, *arguments = line.split()
    assert kind in ("optional", "required")
    assert file == "/usr/lib/slurm/fabric.so"  # where make -C spank_plugin install puts it
    makefile = (ROOT / "spank_plugin" / "Makefile").read_text()
    assert "prefix ?= /usr\nlibdir ?= $(prefix)/lib\n" in makefile
    assert "$(DESTDIR)$(libdir)/slurm/fabric.so" in makefile
    assert {argument.partition("=")[0] for argument in arguments} <= plugin_arguments()


def test_slurm_conf_runs_the_scripts_that_are_there() -> None:
    settings = dict(line.split("=", 1) for line in lines("slurm.conf.d/fabric.conf"))
    assert settings == {
        "Prolog": "/etc/slurm/prolog.d/*",
        "Epilog": "/etc/slurm/epilog.d/*",
        "PrologFlags": "Alloc",
    }
    for name in ("prolog/fabric-prolog", "epilog/fabric-epilog"):
        assert (ROOT / name).is_file()
        assert name in (SITE / "slurm.conf.d" / "fabric.conf").read_text()


UNITS = ("fabricctl-node.service", "fabricctl-push.service", "fabricd.service")
PRIVILEGED = ("setns", "unshare", "mount", "ptrace", "reboot", "init_module", "kexec_load")


def unit(name: str = UNITS[0]) -> dict[str, str]:
    """The settings of one unit; of one that is given twice the last."""
    return dict(line.split("=", 1) for line in lines(f"systemd/{name}") if "=" in line)


@pytest.mark.parametrize("name", UNITS)
def test_the_unit_runs_a_command_that_exists(name: str) -> None:
    program, *words = unit(name)["ExecStart"].split()
    assert program == "/usr/bin/fabricctl"
    command: click.Command = cli
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None, word
        command = found


def test_agents_outlive_the_unit() -> None:
    service = unit()
    assert (service["KillMode"], service["Restart"]) == ("process", "always")
    # What would take from agents what they need, or what they leave behind.
    for broken in ("PrivateTmp", "RestrictRealtime", "RuntimeDirectory", "ProtectClock",
                   "ProtectKernelLogs", "ProtectHome", "PrivateDevices",
                   "ProtectProc", "PrivateNetwork", "MemoryDenyWriteExecute"):  # fmt: skip
        assert broken not in service
    assert service["ReadWritePaths"] == "/proc/sys/net"  # fabric-pathd's, else read-only


@pytest.mark.parametrize(("name", "most"), list(zip(UNITS, (4.8, 1.6, 1.6), strict=True)))
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_is_as_closed_as_it_was(name: str, most: float) -> None:
    """`systemd-analyze security`: 10 is open, 0 is closed; an ordinary service has 9.6."""
    given = f"--threshold={most * 10:.0f}"
    argv = ["systemd-analyze", "security", "--offline=true", given, str(SITE / "systemd" / name)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr


def test_who_needs_no_right_has_none() -> None:
    for name in UNITS[1:]:
        assert unit(name)["User"] == Config().agent.user
        assert unit(name)["CapabilityBoundingSet"] == ""
        assert units.sandbox(SITE / "systemd" / name).capabilities == ()


def test_every_right_of_the_node_service_is_one_that_its_unit_explains() -> None:
    text = (SITE / "systemd" / UNITS[0]).read_text()
    given = set(re.findall(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE))
    names = {word.removeprefix("CAP_") for words in given for word in words.split()}
    table = re.findall(r"^#   ([A-Z_]+(?: [A-Z_]+)*)  +", text, re.MULTILINE)
    assert {name for words in table for name in words.split()} == names
    assert "SYS_ADMIN" not in names and len(names) == len(
        units.sandbox(SITE / "systemd" / UNITS[0]).capabilities
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_no_unit_lets_its_service_mount_or_trace() -> None:
    for name in UNITS:
        calls = units.sandbox(SITE / "systemd" / name).calls
        assert "read" in calls and not set(PRIVILEGED) & set(calls)
    assert {"bpf", "setresuid"} <= set(units.sandbox(SITE / "systemd" / UNITS[0]).calls)
    assert "setresuid" not in calls


@pytest.mark.parametrize("name", ["tmpfiles.d/fabricctl.conf", "sysusers.d/fabricctl.conf"])
def test_files_name_their_own_place(name: str) -> None:
    assert (SITE / name).read_text().startswith(f"# /etc/{name},")


def test_directories_are_those_of_the_defaults() -> None:
    config = Config()
    files = layout.NodeFiles(config.node.run_dir)
    rows = [line.split() for line in lines("tmpfiles.d/fabricctl.conf")]
    assert {row[1]: row[2:5] for row in rows} == {
        str(path): ["0711", "root", "root"]
        for path in (config.node.run_dir, files.requests, config.node.spool_dir)
    }
    assert f"#d {config.trace.dir} 1777" in (SITE / "tmpfiles.d/fabricctl.conf").read_text()


def test_the_agents_user_is_that_of_the_defaults() -> None:
    ((kind, user, *_),) = [line.split() for line in lines("sysusers.d/fabricctl.conf")]
    assert (kind, user) == ("u", Config().agent.user)
