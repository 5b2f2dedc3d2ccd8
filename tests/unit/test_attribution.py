"""Lost time is found, named, placed and summed; bench/attribution.py does this 600 times."""

from dataclasses import replace
from datetime import UTC

import numpy as np
import pytest

from fabricctl.store import dtypes, schema
from fabricctl_analysis import verdicts
from fabricctl_analysis.compare import compare, side
from fabricctl_analysis.compare import render_text as compare_text
from fabricctl_analysis.findings import findings
from fabricctl_analysis.model import Accounts, Verdict
from fabricctl_analysis.mpi_calls import tracked
from fabricctl_analysis.pace import period_of
from fabricctl_analysis.render_html import render_html
from fabricctl_analysis.render_markdown import render_markdown
from fabricctl_analysis.render_text import render_text
from fabricctl_analysis.rows import Boot, place
from fabricctl_analysis.when import When
from fabricctl_analysis.windows import Grid
from tests.support.simjobs import BEGIN_NS, CAUSE, KINDS, Fault, S, Sim


def accounts(sim: Sim) -> Accounts:
    found = sim.report().accounts
    assert found is not None
    parts = (found.no_step_ns, found.unknown_pace_ns, found.ideal_ns, found.lost_ns)
    assert sum(parts) + found.variation_ns == found.elapsed_ns
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_fault_is_named_placed_and_priced(kind: str) -> None:
    fault = Fault(kind, 2, 150.3, 31.0)
    sim = Sim(KINDS.index(kind), [fault], seconds=300)
    (one,) = accounts(sim).verdicts
    assert one.cause == CAUSE[kind]
    assert one.nodes == (() if kind == "unknown" else ("n2",))
    assert one.loss_ns / S == pytest.approx(sim.lost_to_s(fault), rel=0.05)
    assert one.low_ns < one.loss_ns < one.high_ns
    assert (one.rail == 0) == (kind == "link_down")


def test_two_faults_are_told_apart() -> None:
    faults = [Fault("storage", 1, 60.0, 20.0), Fault("host_stopped", 3, 200.0, 12.0)]
    found = accounts(Sim(1, faults, seconds=300)).verdicts
    assert {(one.cause, one.nodes) for one in found} == {
        ("storage", ("n1",)),
        ("host_stopped", ("n3",)),
    }


def test_clocks_that_are_seconds_apart_do_not_part_cause_and_effect() -> None:
    fault = Fault("host_stopped", 2, 150.3, 12.0)
    sim = Sim(4, [fault], seconds=300, ahead_s=(0.0, 8.0, -9.0, 31.0))
    (one,) = [one for one in accounts(sim).verdicts if one.cause != "start_end"]
    assert (one.cause, one.nodes) == ("host_stopped", ("n2",))
    assert one.loss_ns / S == pytest.approx(sim.lost_to_s(fault), rel=0.05)
    assert abs((one.begin_ns - BEGIN_NS) / S - 150.3) < 3


@pytest.mark.parametrize("noise", [0.005, 0.03, 0.08])
def test_a_healthy_job_lost_nothing(noise: float) -> None:
    found = accounts(Sim(3, noise=noise, seconds=300))
    assert found.verdicts == ()
    assert abs(found.variation_ns) < 0.02 * found.elapsed_ns


def test_iterations_are_found_in_the_traffic() -> None:
    found = accounts(Sim(5, seconds=1200, nodes=2, iteration_s=7.3, noise=0.01))
    assert found.iteration_s == pytest.approx(7.3, rel=0.003)
    assert found.verdicts == ()


def test_iterations_that_the_program_tells_go_before_its_traffic() -> None:
    fault = Fault("storage", 1, 100.2, 40)
    sim = Sim(5, [fault], seconds=300, iteration_s=0.05, told=True)
    found = accounts(sim)
    assert found.signal == "iterations"
    assert found.iteration_s == pytest.approx(0.05, rel=0.02)
    (one,) = found.verdicts
    assert one.cause == "storage"
    assert one.loss_ns / S == pytest.approx(sim.lost_to_s(fault), rel=0.05)


def test_iterations_before_a_checkpoint_are_not_done_again_when_a_program_goes_on_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It tells 5,001 at first, and after it died, by other ranks, what it was at 10 s before."""
    as_told = Sim._positions

    def positions(sim: Sim, nth: int, pace: np.ndarray, at: np.ndarray) -> np.ndarray:
        rows = as_told(sim, nth, pace, at)
        rows["step"] += 5000
        rows["step"][at < 10] = 0
        again = at >= 210
        rows["launch"][again], rows["rank"][again] = 1, 3 - nth
        rows["step"][again] -= np.uint64(10 / sim.iteration_s)
        rows["step"][again & (at < 215)] = 0
        return rows[(at < 200) | again]

    monkeypatch.setattr(Sim, "_positions", positions)
    faults = [Fault("storage", 1, 100.2, 40), Fault("restart", 1, 200, 20)]
    found = accounts(Sim(5, faults, seconds=300, iteration_s=0.05, told=True))
    assert found.signal == "iterations"
    assert found.iteration_s == pytest.approx(0.05, rel=0.02)
    lost = {one.cause: one.loss_ns / S for one in found.verdicts}
    assert lost["storage"] == pytest.approx(112, rel=0.05)
    assert lost["restart"] == pytest.approx(80, rel=0.1)
    assert abs(found.variation_ns) < 0.02 * found.elapsed_ns


@pytest.mark.parametrize(("over", "signal"), [("ports", "traffic"), ("memory", "mpi")])
def test_work_that_no_interface_counts_is_seen(over: str, signal: str) -> None:
    """RDMA goes past the interfaces' counters; within one node nothing is sent at all."""
    fault = Fault("storage", 1, 100.2, 40)
    sim = Sim(5, [fault], seconds=300, over=over)  # type: ignore[arg-type]
    found = accounts(sim)
    assert found.signal == signal
    (one,) = found.verdicts
    assert one.cause == "storage"
    assert one.loss_ns / S == pytest.approx(sim.lost_to_s(fault), rel=0.05)
    assert found.ranks == 4 and found.rank_s(one.loss_ns) == pytest.approx(one.loss_ns / S)


@pytest.mark.parametrize("over", ["ports", "memory"])
def test_iterations_are_found_in_ports_and_in_the_mpi_pattern(over: str) -> None:
    sim = Sim(5, seconds=1200, nodes=2, iteration_s=7.3, noise=0.01, over=over)  # type: ignore[arg-type]
    assert accounts(sim).iteration_s == pytest.approx(7.3, rel=0.003)


def test_a_rank_that_stays_in_a_call_makes_none_meanwhile() -> None:
    """It has no row of times until it returns; the samples of its place tell."""
    seen = dtypes.empty(schema.MPI_TIME, 4)
    seen["time_mono_ns"] = np.array([1, 2, 8, 9]) * S
    seen["op"] = [b"MPI_Allreduce", b"MPI_Allreduce", b"MPI_Allreduce", b"MPI_Test"]
    seen["calls"], seen["rank"], seen["launch"] = [10, 20, 30, 10**9], 3, 0
    where = dtypes.empty(schema.RANK_POSITION, 9)
    where["time_mono_ns"] = np.arange(1, 10) * S
    where["rank"], where["launch"] = 3, 0
    tables = {table.name: dtypes.empty(table) for table in schema.TABLES}
    clock = dtypes.empty(schema.CLOCK, 2)
    clock["time_mono_ns"] = np.array([0, 10 * S])
    clock["time_real_ns"] = clock["time_mono_ns"] + BEGIN_NS
    tables |= {"mpi_time": seen, "rank_position": where, "clock": clock}
    rows = place("n1", ("r0",), [Boot(tables)], sample_hz=1.0)
    found = tracked(rows, Grid(BEGIN_NS, S, 10)).calls
    assert found[1] == pytest.approx(10) and found[7] == pytest.approx(10)
    assert found[2:7] == pytest.approx(np.zeros(5), abs=1e-6)


def test_two_troubles_are_no_iterations() -> None:
    pace = np.ones(600)
    pace[100:110] = pace[210:220] = 0.5
    assert period_of(pace) is None


def test_a_job_without_work_has_no_pace() -> None:
    assert period_of(np.full(100, np.nan)) is None
    assert accounts(Sim(1, seconds=4)).signal == "none"


def test_a_loss_is_a_sentence_with_advice_and_a_button() -> None:
    report = Sim(1, [Fault("storage", 1, 100, 40)], seconds=300).report()
    when = When(report.whole, UTC)
    found = findings(report, when)
    text = " ".join(render_text(report, found, when).split())
    assert "WHERE THE TIME WENT" in text
    assert "waiting for files: n1, 14:14:59.000 to 14:15:41.000: cost 11" in text
    assert "ADVICE - write less often or to a faster file system: the tasks of n1" in text
    assert sum(line.amount_ns for line in verdicts.lines(report.accounts)) == 1200 * S  # type: ignore[arg-type]
    page = render_html(report, found, when)
    assert "Where the time went" in page and ">Show</button>" in page


def test_advice_names_nothing_that_is_not_known() -> None:
    """Where a stall lies nobody knows; on two rails were links down."""
    report = Sim(1, [Fault("stall", 2, 100, 60)], seconds=300).report()
    assert report.accounts is not None
    (one,) = report.accounts.verdicts
    assert "look at n2: its kernel log" in verdicts.advice(report)[0]

    def told(verdict: Verdict) -> list[str]:
        return verdicts.advice(
            replace(report, accounts=replace(report.accounts, verdicts=(verdict,)))
        )

    assert told(replace(one, nodes=())) == []
    (words,) = told(replace(one, cause="link_down", rail=None))
    assert words.startswith("have the cable and the port of the rails of n2 looked at")


def test_accounts_fit_the_screen() -> None:
    faults = [Fault(kind, 1, 60.0 + 40 * nth, 20.0) for nth, kind in enumerate(KINDS)]
    report = Sim(11, faults, seconds=640).report()
    when = When(report.whole, UTC)
    lines = render_text(report, findings(report, when), when).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.split("  ")[0].endswith(": n1") for line in lines) > 5


def test_a_cut_that_cost_nothing_is_told_so() -> None:
    from tests.support import simjobs

    sim = Sim(2, [Fault("link_down", 1, 150.0, 1.0)], seconds=300, noise=0.02)
    before = dict(simjobs._LEFT)
    simjobs._LEFT["link_down"] = 1.0
    try:
        found = accounts(sim)
    finally:
        simjobs._LEFT.update(before)
    assert found.verdicts == ()
    (quiet,) = found.harmless
    assert (quiet.cause, quiet.nodes, quiet.rail) == ("link_down", ("n1",), 0)


def test_two_runs_differ_by_what_one_of_them_lost() -> None:
    fault = Fault("storage", 1, 100.2, 40)
    made = compare(side(Sim(1, seconds=300).report()), side(Sim(2, [fault], seconds=320).report()))
    assert made.seconds == pytest.approx(20)
    assert sum(part.seconds for part in made.parts) == pytest.approx(made.seconds)
    assert made.parts[0].what == "waiting for files: n1"
    assert made.parts[0].seconds == pytest.approx(28, rel=0.05)
    assert "B took 20.00 s longer (+6.7 %):" in compare_text(made)


def test_markdown_has_the_accounts_and_escapes_what_it_was_told() -> None:
    report = Sim(1, [Fault("host_cpu", 0, 100, 40)], seconds=300).report()
    text = render_markdown(report, (), When(report.whole, UTC))
    assert "| CPU taken by others: n0 |" in text
    assert "\n## Advice\n" in text
    assert "\\[" in text.split("\n")[0]
