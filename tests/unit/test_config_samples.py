"""The files of site-config/ say what the code does."""

import configparser
import re
from pathlib import Path

import click
import pytest

from fabricctl import layout
from fabricctl.cli.main import cli
from fabricctl.config import Config

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


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=True, interpolation=None, comment_prefixes="#")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(SITE / "systemd" / "fabricctl-node.service")
    return parser


def test_the_unit_runs_a_command_that_exists() -> None:
    program, *words = unit()["Service"]["ExecStart"].split()
    assert program == "/usr/bin/fabricctl"
    command: click.Command = cli
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None, word
        command = found


def test_agents_outlive_the_unit() -> None:
    service = unit()["Service"]
    assert (service["KillMode"], service["Restart"]) == ("process", "always")
    # What would take from agents what they need, or what they leave behind.
    for broken in ("PrivateTmp", "RestrictRealtime", "RuntimeDirectory", "ProtectClock",
                   "ProtectKernelTunables", "CapabilityBoundingSet", "PrivateNetwork"):  # fmt: skip
        assert broken not in service


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
