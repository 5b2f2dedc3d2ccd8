"""Man pages and completion say what the commands say."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fabricctl.cli.main import COMMANDS, cli
from fabricctl.cli.manual import page, walk


def test_every_command_has_a_page_with_its_options(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["manual", "pages", str(tmp_path)])
    assert done.exit_code == 0
    there = {path.name for path in tmp_path.iterdir()}
    assert {f"fabricctl-{name}.1" for name in COMMANDS} | {"fabricctl.1"} <= there
    assert "fabricctl-maintenance-plan.1" in there
    text = (tmp_path / "fabricctl-maintenance-plan.1").read_text()
    assert "\\-\\-budget" in text and ".SH OPTIONS" in text
    assert "maintenance\\-plan (1)" in (tmp_path / "fabricctl-maintenance.1").read_text()


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["manual", "pages", str(tmp_path / "man1"), "--dry-run"])
    assert str(tmp_path / "man1" / "fabricctl-status.1") in done.output
    assert not (tmp_path / "man1").exists()


def test_no_line_of_a_page_is_a_control_line_by_accident() -> None:
    known = {".TH", ".SH", ".PP", ".TP", ".B", ".BR"}
    for names, each in walk(("fabricctl",), cli):
        for line in page(names, each).splitlines():
            assert line[:1] not in (".", "'") or line.split()[0] in known, (names, line)


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed: apt install man-db")
def test_man_shows_a_page_without_a_warning(tmp_path: Path) -> None:
    assert CliRunner().invoke(cli, ["manual", "pages", str(tmp_path)]).exit_code == 0
    for name in ("fabricctl.1", "fabricctl-usage.1", "fabricctl-job.1"):
        done = subprocess.run(
            ["man", "--warnings", "-l", str(tmp_path / name)],
            capture_output=True, text=True, check=False, timeout=60,
            env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert "OPTIONS" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed(shell: str) -> None:
    done = CliRunner().invoke(cli, ["manual", "completion", shell])
    assert done.exit_code == 0
    assert "_FABRICCTL_COMPLETE" in done.output


def test_a_word_is_completed() -> None:
    environment = {**os.environ, "_FABRICCTL_COMPLETE": "bash_complete",
                   "COMP_WORDS": "fabricctl maint", "COMP_CWORD": "1"}  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "fabricctl.cli.main"], env=environment,
                          capture_output=True, text=True, check=False, timeout=60)  # fmt: skip
    assert done.stdout == "plain,maintenance\n"
