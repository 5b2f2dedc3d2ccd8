"""Waiting, requeues, preemption and suspension: what the accounting adds to a report."""

import json
from datetime import UTC
from pathlib import Path

import pytest
from click.testing import CliRunner

from fabricctl.cli import report as report_command
from fabricctl.errors import SlurmError
from fabricctl_analysis.attempts import attempts_of, cost_node_h
from fabricctl_analysis.build import renderings
from fabricctl_analysis.findings import findings
from fabricctl_analysis.when import When
from tests.support.fakeslurm import FakeSlurm, use
from tests.support.simjobs import BEGIN_NS, Fault, S, Sim
from tests.support.traces import Plan, write

BEGIN_S = BEGIN_NS // S
PREEMPTED = use(1, BEGIN_S - 5000, BEGIN_S - 3600, submit_real_s=BEGIN_S - 6800, state="PREEMPTED",
                node_count=4)  # fmt: skip
AGAIN = use(1, BEGIN_S, BEGIN_S + 300, node_count=4)


def test_waiting_and_preemption_are_told_with_what_they_cost() -> None:
    every = attempts_of([AGAIN, PREEMPTED, use(2, 5, 9)], 1)
    assert [one.waited_s for one in every] == [1800, 3600]
    report = Sim(3, seconds=100).report(every)
    said = {one.kind: one.text for one in findings(report, When(report.whole, UTC))}
    assert "before the first start: 30 min" in said["waited"] and "1 requeue" in said["waited"]
    # This trace is of attempt 0: it told no checkpoint, so all of it is lost.
    assert cost_node_h(report, 0) == (pytest.approx(4 * 1400 / 3600),) * 2
    assert "was preempted for another job after 23 min" in said["preempted"]


def test_a_suspended_job_is_no_mystery_when_the_accounting_knows() -> None:
    fault = Fault("suspended", 0, 100, 40)
    sim = Sim(3, [fault], seconds=300)
    (unknown,) = sim.report().accounts.verdicts  # type: ignore[union-attr]
    assert unknown.cause == "unknown"
    every = attempts_of([use(1, BEGIN_S, BEGIN_S + 300, elapsed_s=260)], 1)
    assert every[0].suspended_s == 40
    (one,) = sim.report(every).accounts.verdicts  # type: ignore[union-attr]
    assert (one.cause, one.nodes) == ("suspended", ())
    assert one.loss_ns / S == pytest.approx(sim.lost_to_s(fault), rel=0.05)


def test_a_trace_s_json_has_the_attempts(tmp_path: Path) -> None:
    path = write(Plan(seconds=20, job=1), tmp_path / "alice")
    said = json.loads(renderings(path, ["json"], usages=[PREEMPTED, AGAIN])["json"])
    first, second = said["attempts"]
    assert (first["state"], first["waited_s"]) == ("PREEMPTED", 1800)
    assert second["lost_low_node_h"] is None
    assert first["lost_high_node_h"] == pytest.approx(4 * 1400 / 3600)
    assert json.loads(renderings(path, ["json"])["json"])["attempts"] == []


def test_the_accounting_is_asked_for_a_job_and_not_for_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fabricctl.cli import find_trace
    from fabricctl.slurm import commands

    path = write(Plan(seconds=20, job=1), tmp_path / "alice")
    slurm = FakeSlurm(the_usage=[PREEMPTED, AGAIN, use(7, 1, 2)])
    monkeypatch.setattr(commands, "CommandSlurm", lambda *_: slurm)
    monkeypatch.setattr(find_trace, "find", lambda *_: path)

    def attempts(*argv: str) -> int:
        done = CliRunner().invoke(report_command.command, [*argv, "--json"])
        assert done.exit_code == 0, done.output
        return len(json.loads(done.stdout)["attempts"])

    assert attempts("1") == 2
    assert attempts("1", "--no-slurm") == attempts(str(path)) == 0
    slurm.broken = True
    assert attempts("1") == 0  # a report all the same
    with pytest.raises(SlurmError):
        slurm.usage(1, 2)
