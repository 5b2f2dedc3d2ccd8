"""`fabricctl run` where it must not begin."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from fabricctl.cli import run
from fabricctl.cli.main import cli
from fabricctl.errors import UsageError


def test_two_runs_of_a_job_at_once_are_refused(tmp_path: Path) -> None:
    """They would restore each other's checkpoints, and end each other's ranks."""
    with run.alone(tmp_path), pytest.raises(UsageError, match="another"), run.alone(tmp_path):
        pass
    with run.alone(tmp_path):
        pass  # one after the other
    with run.alone(tmp_path / "no tracker here"):
        pass


def test_under_srun_it_would_begin_once_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    with pytest.raises(UsageError, match="in the place of srun"):
        cli(["run", "true"], standalone_mode=False)


def test_options_that_undo_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    with pytest.raises(UsageError, match="--no-track leaves it out"):
        cli(["run", "--nccl", "--no-track", "true"], standalone_mode=False)


def test_the_end_of_the_job_is_asked_for_where_slurm_does_not_tell_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before Slurm 23.11 jobs have no SLURM_JOB_END_TIME."""
    now_s = int(time.time())
    known = SimpleNamespace(start_real_s=now_s, time_limit_s=3600)
    monkeypatch.setattr("fabricctl.slurm.choose.open_slurm", lambda: known)
    known.job = lambda _: known
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    assert run._halt_at(None, 7) is None
    assert run._halt_at(600, 7) == now_s + 3000
    with pytest.raises(UsageError, match="the job ends sooner than that"):
        run._halt_at(3601, 7)
    known.time_limit_s = None
    with pytest.raises(UsageError, match="no time limit"):
        run._halt_at(600, 7)
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(now_s + 900))
    assert run._halt_at(600, 7) == now_s + 300
