import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from fabricctl.cli import main as cli_main

PROGRAM = [sys.executable, "-m", "fabricctl.cli.main"]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *args], capture_output=True, text=True, timeout=30, check=False
    )


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, json; sys.argv = ['fabricctl', '--help']\n"
        "from fabricctl.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    *text, modules = done.stdout.splitlines()
    for name in cli_main.COMMANDS:
        assert any(line.startswith(f"  {name} ") for line in text)
    assert not {"numpy", "h5py", "pandas", "bokeh", "asyncio"} & set(json.loads(modules))


@pytest.mark.parametrize("name", sorted(cli_main.COMMANDS))
def test_each_command_of_the_table_is_there(name: str) -> None:
    command = cli_main.cli.get_command(click.Context(cli_main.cli), name)
    assert isinstance(command, click.Command)


def test_an_unknown_command_is_a_usage_error() -> None:
    done = run("repotr")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "No such command 'repotr'" in done.stderr


def test_an_error_of_ours_is_one_line_and_its_own_status(tmp_path: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "config", "show"],
        env={**os.environ, "FABRICCTL_CONFIG": str(tmp_path / "absent.toml")},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 78
    assert done.stderr == f"fabricctl: {tmp_path}/absent.toml: no such configuration file\n"


def test_a_closed_pipe_is_no_traceback() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{' '.join(PROGRAM)} --help | true; exit ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stderr == ""
