"""Jobs leave a node for spares of theirs, or are left in peace."""

import time
from dataclasses import replace

import pytest

from fabricctl.fleet.maintenance import leave as module
from fabricctl.fleet.maintenance.decide import Outcome, decide
from fabricctl.fleet.maintenance.journal import Standing
from fabricctl.fleet.maintenance.leave import leave
from fabricctl.fleet.maintenance.plan import Plan
from fabricctl.slurm.model import Step
from tests.support.fakeslurm import FakeSlurm, job, node


def step(number: str, *nodes: str) -> Step:
    return Step(7, number, "ranks", nodes, len(nodes), 1)


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A job on four nodes: its script on n1, ranks on n1 to n3, n4 the spare."""
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    return FakeSlurm({f"n{at}": node(f"n{at}") for at in range(1, 6)}, [job(7, nodes="n[1-4]")],
                     the_steps=[step("batch", "n1"), step("0", "n1", "n2", "n3")])  # fmt: skip


def test_ranks_go_to_the_spare_and_slurm_gets_the_node_back(slurm: FakeSlurm) -> None:
    told = []

    def order(*words: object) -> str:
        told.append(words)
        slurm.the_steps = [step("batch", "n1"), step("1", "n1", "n3", "n4")]
        return ""

    assert leave("n2", slurm, order, 5) == [(7, "")]
    assert told == [("alice", 7, "n2")]
    assert slurm.changes == [("n2", "release", "7")]


def test_between_two_starts_nothing_is_taken_from_the_job(slurm: FakeSlurm) -> None:
    """The step of before has ended, the new one is not there yet, or lies on the node again."""
    for steps in ([step("batch", "n1")], [step("0", "n1", "n3")],
                  [step("1", "n1", "n2", "n3")]):  # fmt: skip
        slurm.the_steps = [step("batch", "n1"), step("0", "n1", "n2", "n3")]

        def order(*_: object, then: list[Step] = steps) -> str:
            slurm.the_steps = then
            return ""

        ((_, why),) = leave("n2", slurm, order, 0.05)
        assert "did not leave within 0.05 s" in why
    assert slurm.changes == []


def test_who_cannot_leave_is_not_asked_to(slurm: FakeSlurm) -> None:
    def never(*_: object) -> str:
        raise AssertionError("it was told")

    assert leave("n1", slurm, never, 1) == [(7, "its script runs there")]
    assert leave("n4", slurm, never, 1) == [(7, "it has no ranks there now")]
    assert leave("n5", slurm, never, 1) == []
    slurm.the_jobs = [job(7, nodes="n2")]
    assert leave("n2", slurm, never, 1) == [(7, "it has no other node")]
    slurm.the_jobs = [job(7, "COMPLETING", nodes="n[1-4]")]
    assert leave("n2", slurm, never, 1) == []


def test_a_job_that_refuses_or_ends_is_left_in_peace(slurm: FakeSlurm) -> None:
    begin_s = time.monotonic()
    said = leave("n2", slurm, lambda *_: "job 7: not a protected job of yours", 60)
    assert said == [(7, "job 7: not a protected job of yours")]

    def ends(*_: object) -> str:
        slurm.the_jobs = []
        return ""

    assert leave("n2", slurm, ends, 60) == [(7, "")]

    def completes(*_: object) -> str:
        slurm.the_jobs, slurm.the_steps = [job(7, "COMPLETED", nodes="n[1-4]")], []
        return ""

    slurm.the_jobs = [job(7, nodes="n[1-4]")]
    slurm.the_steps = [step("0", "n1", "n2")]
    assert leave("n2", slurm, completes, 60) == [(7, "")]
    assert slurm.changes == [] and time.monotonic() - begin_s < 30


@pytest.mark.parametrize(
    ("migrate", "outcome", "does"),
    [(True, "absent", "leave"), (True, "running", None), (True, "failed", None),
     (True, "lost", None), (False, None, None)],
)  # fmt: skip
def test_a_drained_node_with_jobs_has_them_leave_once(
    migrate: bool, outcome: Outcome | None, does: str | None
) -> None:
    plan = Plan(name="m", nodes=("n1",), command=("do",), budget=1, migrate=migrate)
    busy = node("n1", "MIXED", "DRAIN", reason=plan.reason, cpus_allocated=2)
    standings = {"n1": Standing("draining")}
    outcomes = {"n1": outcome} if outcome else {}
    steps = decide(plan, standings, {"n1": busy}, outcomes, wish="run", now_s=1.0)
    assert [each.do for each in steps] == ([does] if does else [])
    empty = replace(busy, state="IDLE", cpus_allocated=0)
    steps = decide(plan, standings, {"n1": empty}, outcomes, wish="run", now_s=1.0)
    # Its own process may still run: the command waits for it no longer than for the jobs.
    assert [(each.state, each.do) for each in steps] == [("working", "work")]
