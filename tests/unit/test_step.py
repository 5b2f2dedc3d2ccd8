"""What one srun of `fabricctl run` says, and which status the program has by it."""

import os
import stat
import sys
import time
from pathlib import Path

import pytest

from fabricctl.launch.placement import Placement
from fabricctl.launch.policy import DO_NOT_RESTART
from fabricctl.launch.step import Step

HEAD = "srun: error: "


def status_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str], status: int) -> int:
    """Of an srun that says this and ends so."""
    srun = tmp_path / "srun"
    lines = "".join(f"sys.stderr.write({line!r})\n" for line in said)
    srun.write_text(f"#!{sys.executable}\nimport sys\n{lines}sys.exit({status})\n")
    srun.chmod(srun.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    step = Step(7, 0, Placement(("n1", "n2"), ()), ["app"], environment=dict(os.environ))
    end_s = time.monotonic() + 60
    while (found := step.poll()) is None:
        assert time.monotonic() < end_s
        time.sleep(0.01)
    step.abandon()
    return found


@pytest.mark.parametrize(
    ("said", "status", "is_"),
    [
        # One rank wants no restart; srun kills the others, and its own status is of these.
        ([f"{HEAD}n2: task 1: Exited with exit code 79\n", f"{HEAD}n1: task 0: Killed\n"], 137,
         DO_NOT_RESTART),
        ([f"{HEAD}n2: tasks 1-3,5: Exited with exit code 3\n"], 3, 3),
        # One that was killed comes first: what others say of it is no status.
        ([f"{HEAD}n1: task 0: Killed\n", f"{HEAD}n2: task 1: Exited with exit code 79\n"],
         137, 137),
        ([f"{HEAD}n1: task 0: Segmentation fault (core dumped)\n",
          f"{HEAD}n2: task 1: Exited with exit code 79\n"], 139, 139),
        (["the program: task 1: Exited with exit code 79\n"], 1, 1),
        ([f"{HEAD}n2: task 1: Exited with exit ", "code 79\n"], 137, 79),
        ([], 0, 0),
    ],
)  # fmt: skip
def test_the_status_is_of_the_rank_that_ended_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    said: list[str],
    status: int,
    is_: int,
) -> None:
    assert status_of(tmp_path, monkeypatch, said, status) == is_
    assert capfd.readouterr().err == "".join(said), "everything is handed on"


def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, *options: str) -> Step:
    """One that says something and runs on."""
    srun = tmp_path / "srun"
    srun.write_text(f"#!/bin/sh\nprintf '{said}' >&2\nexec sleep 100\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    placed = Placement(("n1", "n2"), ())
    return Step(7, 0, placed, ["app"], environment=dict(os.environ), options=options)


@pytest.mark.parametrize(
    ("how", "status"),
    [("Killed", 137), ("Exited with exit code 3", 3), ("Segmentation fault (core dumped)", 139)],
)
def test_a_rank_that_ended_badly_is_known_before_srun_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, status: int
) -> None:
    """The others have five seconds for a SIGTERM that they catch."""
    step = running(tmp_path, monkeypatch, f"{HEAD}n2: task 1: {how}\\n")
    end_s = time.monotonic() + 60
    while (found := step.poll(early=True)) is None:
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert (found, step.poll()) == (status, None)
    step.abandon()


def test_where_the_others_may_go_on_a_ranks_end_is_not_the_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said = f"{HEAD}n2: task 1: Killed\\n"
    step = running(tmp_path, monkeypatch, said, "--kill-on-bad-exit=0")
    end_s = time.monotonic() + 60
    while step._words.status is None:
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert step.poll(early=True) is None
    step.abandon()


def test_what_a_rank_writes_without_a_newline_is_seen_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    step = running(tmp_path, monkeypatch, "Continue? ")
    end_s = time.monotonic() + 60
    said = ""
    while said != "Continue? ":
        assert time.monotonic() < end_s
        time.sleep(0.01)
        said += capfd.readouterr().err
    assert step.poll() is None
    step.abandon()
