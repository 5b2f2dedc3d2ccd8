"""What a controller of maintenance makes of what the one before, or a command, has left."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from fabricctl.cli.main import cli
from fabricctl.errors import UsageError
from fabricctl.fleet.maintenance import commands, controller
from fabricctl.fleet.maintenance.controller import Controller
from fabricctl.fleet.maintenance.journal import Files, Journal, standings
from fabricctl.fleet.maintenance.plan import Plan
from fabricctl.slurm.commands import check_node_change
from tests.support.fakeslurm import FakeSlurm, job, node

PLAN = Plan(name="m", nodes=("n1", "n2"), command=("true",), budget=1)


@pytest.fixture(autouse=True)
def no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller.signal, "signal", lambda *_: None)


def made(directory: Path, plan: Plan = PLAN) -> Files:
    files = Files(directory / "maintenance", plan.name)
    files.create(plan)
    return files


def ended(path: Path) -> None:
    deadline = time.monotonic() + 30
    while commands.outcome(path) != "ok":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_last_words_of_any_command_are_a_reason_that_slurm_takes(tmp_path: Path) -> None:
    """Colours and tabs ended the controller: Slurm is never given such a reason."""
    (tmp_path / "log").write_bytes(b"one\n\x1b[31merror:\tno \xff\x00 disk\x1b[0m\n")
    (tmp_path / "status").write_text("3\n")
    words = commands.last_words(tmp_path)
    assert words == "status 3:  [31merror: no \ufffd  disk [0m"
    check_node_change("n1", "drain", f"fabric: maintenance m: failed: {words}")


def test_jobs_of_a_node_that_is_drained_again_are_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(PLAN, nodes=("n1",), migrate=True)
    files = made(tmp_path, plan)
    slurm = FakeSlurm({"n1": node("n1", "MIXED", cpus_allocated=2)})
    told = tmp_path / "told"
    monkeypatch.setattr(controller, "LEAVE", ("sh", "-c", f"echo told >> {told}"))

    def paused(_wish: str) -> None:
        ended(files.work / "n1.leave")
        files.ask_for("pause")

    for _ in range(2):
        files.ask_for("run")
        here = Controller(plan, files, slurm, lambda _: None, 0.1)
        monkeypatch.setattr(here, "_wait", paused)
        assert here.run() == "paused"
        here.journal.close()
    assert told.read_text() == "told\ntold\n"


def test_a_suspended_job_is_waited_for_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds no CPU: to Slurm its node is IDLE+DRAIN (tried on 22.05)."""
    plan = replace(PLAN, nodes=("n1",), command=("touch", str(tmp_path / "done")))
    slurm = FakeSlurm({"n1": node("n1")}, [job(7, "SUSPENDED", "n1")])
    here = Controller(plan, made(tmp_path, plan), slurm, lambda _: None, 0.1)
    looks = iter(range(3))

    def turn(_wish: str) -> None:
        if here.journal.standings["n1"].state != "draining":
            ended(tmp_path / "maintenance" / "m" / "work" / "n1.1")
            return
        assert "DRAIN" in slurm.the_nodes["n1"].flags and not (tmp_path / "done").exists()
        if next(looks) == 2:
            slurm.the_jobs.clear()

    monkeypatch.setattr(here, "_wait", turn)
    assert here.run() == "done"
    assert next(looks, None) is None and (tmp_path / "done").exists()
    here.journal.close()


def test_a_node_that_came_back_while_there_was_no_controller_is_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = made(tmp_path, replace(PLAN, nodes=("n1",)))
    slurm = FakeSlurm({"n1": node("n1", "IDLE", "DRAIN", reason="fabric: maintenance m")})
    with monkeypatch.context() as before:
        before.setattr("time.time", lambda: 1_790_000_000.0)  # long ago
        journal = Journal(files, PLAN)
        for state in ("begun", "draining", "working", "verifying"):
            journal.write("n1", state)  # type: ignore[arg-type]
        journal.close()
    here = Controller(replace(PLAN, nodes=("n1",)), files, slurm, lambda _: None, 0.1)
    assert here.run() == "done"
    assert "DRAIN" not in slurm.the_nodes["n1"].flags
    here.journal.close()


def test_a_node_that_is_tried_again_has_to_boot_again(tmp_path: Path) -> None:
    """That of the try before counted: a node about to reboot was given back to jobs."""
    journal = Journal(made(tmp_path), PLAN)
    first = ("begun", "draining", "working", "verifying", "failed")
    again = ("begun", "draining", "working", "verifying")
    begun_s = []
    for states in (first, again):
        for state in states:
            journal.write("n1", state)  # type: ignore[arg-type]
        begun_s.append(journal.standings["n1"].begun_real_s)
    journal.close()
    assert 0.0 < begun_s[0] < begun_s[1]
    assert journal.standings["n1"].runs == 2
    told = standings(PLAN, (tmp_path / "maintenance" / "m" / "journal").read_text())
    assert abs(told["n1"].begun_real_s - begun_s[1]) < 0.01


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    slurm = FakeSlurm({name: node(name) for name in PLAN.nodes})
    monkeypatch.setattr("fabricctl.slurm.choose.open_slurm", lambda _=None: slurm)
    monkeypatch.setenv("FABRICCTL_FLEET_DIR", str(tmp_path))
    return slurm


@pytest.mark.usefixtures("site")
def test_what_stopped_for_its_failures_is_failed_and_not_under_way(tmp_path: Path) -> None:
    journal = Journal(made(tmp_path), PLAN)
    journal.write("n1", "failed", "its command failed")
    journal.close()
    said = CliRunner().invoke(cli, ["maintenance", "status", "m"]).stdout
    assert "Maintenance m is failed" in said
    dry = ["maintenance", "start", "m", "--dry-run"]
    assert CliRunner().invoke(cli, dry).stdout == "nothing to do now\n"
    assert CliRunner().invoke(cli, [*dry, "--retry"]).stdout == "n1: would be waiting\n"


@pytest.mark.usefixtures("site")
def test_an_abort_that_another_controller_keeps_from_its_work_says_so(tmp_path: Path) -> None:
    made(tmp_path)
    lock = made(tmp_path, replace(PLAN, name="other")).take_lock()
    assert lock is not None
    done = CliRunner().invoke(cli, ["maintenance", "abort", "m"])
    assert isinstance(done.exception, UsageError)
    assert "the controller of other is at work" in str(done.exception)
    assert CliRunner().invoke(cli, ["maintenance", "abort", "other"]).exit_code == 0
    os.close(lock)
    assert CliRunner().invoke(cli, ["maintenance", "abort", "m"]).exit_code == 0
