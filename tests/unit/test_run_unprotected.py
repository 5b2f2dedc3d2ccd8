"""`fabricctl run` where the job should be protected and is not."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from fabricctl.cli import run
from fabricctl.errors import NotFoundError
from fabricctl.launch import unprotected

ENVELOPE = f"v=1;mode=on;key={'0' * 64};spares=1;on_missing=warn"


class BecameError(Exception):
    """The process is another program."""


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Sequence[str], Mapping[str, str]]]:
    """A job of three nodes on a node whose service knows nothing of it."""
    found: list[tuple[Sequence[str], Mapping[str, str]]] = []

    def execvpe(_file: str, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        found.append((argv, environment))
        raise BecameError

    monkeypatch.setattr(os, "execvpe", execvpe)
    monkeypatch.setattr(unprotected, "ANNOUNCED_S", 0.0)
    given = {"JOB_ID": "5", "JOB_NODELIST": "n[1-3]", "NTASKS": "6", "NNODES": "3"}
    for name, value in given.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name in (
        "MASTER_ADDR",
        "MASTER_PORT",
        "SLURM_STEP_NUM_TASKS",
        "SLURM_NTASKS_PER_NODE",
        "FABRIC_MODE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    monkeypatch.setenv("SLURM_SPANK_FABRIC_ENVELOPE", ENVELOPE)
    return found


def config(path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (path / "fabricctl.toml").write_text(text)
    monkeypatch.setenv("FABRICCTL_CONFIG", str(path / "fabricctl.toml"))


def main(*words: str) -> None:
    run.command.main(list(words), standalone_mode=False)


def test_a_job_is_not_lost_because_its_protection_is(
    became: list[tuple[Sequence[str], Mapping[str, str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config(tmp_path, f'[node]\nrun_dir = "{tmp_path}"\n', monkeypatch)
    monkeypatch.setenv("FABRIC_MODE", "on")
    with pytest.raises(BecameError):
        main("--live", "--srun=--cpu-bind=none", "program", "--its", "option")
    argv, environment = became[0]
    placed = ["--nodelist=n[1-2]", "--nodes=2", "--ntasks=4"]  # the spare stays one
    own = ["--cpu-bind=none", "program", "--its", "option"]
    assert argv == ["srun", "--mpi=none", *placed, *own]
    assert environment["MASTER_ADDR"] == "n1"
    said = capsys.readouterr().err
    assert "job 5: not a protected job of yours on this node" in said
    assert "nothing replaces what dies" in said


def test_a_mistake_in_the_sites_file_costs_what_it_sets(
    became: list[tuple[Sequence[str], Mapping[str, str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config(tmp_path, "[node]\nbroken = yes\n", monkeypatch)
    monkeypatch.setenv("FABRIC_MODE", "on")
    with pytest.raises(BecameError):
        main("--spares", "0", "program")
    assert "--ntasks=6" in became[0][0]
    said = capsys.readouterr().err
    assert "fabricctl.toml: not valid TOML" in said and "going on with the defaults" in said


def test_a_job_that_nobody_asked_to_protect_is_told_so(
    became: list[tuple[Sequence[str], Mapping[str, str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config(tmp_path, f'[node]\nrun_dir = "{tmp_path}"\n', monkeypatch)
    with pytest.raises(NotFoundError, match="job 5: not a protected job of yours"):
        main("program")
    assert not became
