"""From a trace that the store wrote to the report, against the truth it was made of."""

import os
import signal
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest

from fabricctl.errors import TraceError
from fabricctl.store import schema
from fabricctl.store.schema import Severity
from fabricctl.store.trace import open_trace
from fabricctl_analysis import node_parts, summarise
from fabricctl_analysis.build import renderings, report_of
from fabricctl_analysis.findings import findings
from fabricctl_analysis.guard import Limits, guarded
from fabricctl_analysis.load import load
from fabricctl_analysis.model import Report
from fabricctl_analysis.summarise import Grids
from fabricctl_analysis.when import When
from tests.support.traces import BEGIN_REAL_NS, Cut, Plan, write

S = 1_000_000_000


def report(plan: Plan, tmp_path: Path) -> Report:
    return report_of(write(plan, tmp_path / plan.user))


def sentences(made: Report) -> list[str]:
    return [one.text for one in findings(made, When(made.whole, UTC))]


def test_an_undisturbed_job_has_nothing_to_say(tmp_path: Path) -> None:
    made = report(Plan(), tmp_path)
    assert sentences(made) == []
    assert made.unmeasured == ()
    assert made.coverage > 0.98
    assert [node.name for node in made.nodes] == ["n1", "n2", "n3", "n4"]


def test_a_cut_is_told_with_rail_node_length_and_clock_times(tmp_path: Path) -> None:
    made = report(Plan(cuts=[Cut("n2", 0, 20.124, 23.14)]), tmp_path)
    assert sentences(made) == [
        "Rail r0 of n2 was without carrier 3.02 s, 14:13:40.124 to 14:13:43.140."
    ]


def test_nodes_that_booted_at_other_times_share_a_time_line(tmp_path: Path) -> None:
    cuts = [Cut("n1", 0, 20, 23), Cut("n4", 0, 20, 23)]
    made = report(Plan(cuts=cuts), tmp_path)
    begins = {rail.link.downs[0].begin_ns for rail in made.rails if rail.link.downs}
    assert begins == {BEGIN_REAL_NS + 20 * S}


def test_the_same_rail_of_many_nodes_is_told_as_one(tmp_path: Path) -> None:
    cuts = [Cut(node, 1, 20.0 + nth / 100, 23) for nth, node in enumerate(("n1", "n2", "n3", "n4"))]
    made = report(Plan(cuts=cuts), tmp_path)
    (sentence,) = sentences(made)
    assert sentence.startswith("Rail r1 of n[1-4] was without carrier")


def test_a_flapping_rail_is_summed_up(tmp_path: Path) -> None:
    cuts = [Cut("n3", 0, at, at + 0.5) for at in range(10, 30, 4)]
    (sentence,) = sentences(report(Plan(cuts=cuts), tmp_path))
    assert sentence.startswith("Rail r0 of n3 went down 5 times, 2.50 s in all")


def test_an_outage_that_samples_alone_saw_is_told_with_its_bounds(tmp_path: Path) -> None:
    (sentence,) = sentences(report(Plan(cuts=[Cut("n3", 1, 30.5, 31.2, told=False)]), tmp_path))
    assert "less than 2.00 s, between 14:13:50.100 and 14:13:52.100" in sentence


def test_an_outage_between_two_samples_is_told_from_the_counter(tmp_path: Path) -> None:
    (sentence,) = sentences(report(Plan(cuts=[Cut("n1", 1, 41.5, 41.7, told=False)]), tmp_path))
    assert "changed carrier 2 times between" in sentence
    assert "how long it was down is not known" in sentence


def test_a_rail_still_down_at_the_end_is_told_so(tmp_path: Path) -> None:
    (sentence,) = sentences(report(Plan(cuts=[Cut("n1", 0, 50, None)]), tmp_path))
    assert "from 14:14:10.000 on, still so at its last sample, 14:14:19.100" in sentence


def test_a_node_without_a_trace_is_missed(tmp_path: Path) -> None:
    made = report(Plan(without_trace=["n4"]), tmp_path)
    assert sentences(made)[0].startswith("n4 was not measured at all")
    assert [(one.nodes, one.what) for one in made.unmeasured] == [(("n4",), "everything")]
    assert made.coverage < 0.75


def test_time_between_two_lives_of_an_agent_is_not_measured(tmp_path: Path) -> None:
    made = report(Plan(away={"n3": (40, 50)}), tmp_path)
    (gap,) = made.unmeasured
    assert gap.span is not None and gap.span.length_ns == pytest.approx(11 * S)
    assert gap.why == "the agent was away and began anew"
    (n3,) = [node for node in made.nodes if node.name == "n3"]
    assert n3.agent_lives == 2


def test_traffic_over_a_gap_is_counted_and_not_drawn(tmp_path: Path) -> None:
    plan = Plan(away={"n1": (20, 40)})
    (rail, *_) = report(plan, tmp_path).rails
    (whole, *_) = report(Plan(user="bob"), tmp_path).rails
    assert rail.counters["rx_bytes"].value == whole.counters["rx_bytes"].value
    assert sum(value != value for value in rail.series["rx"].mean) == 1


def test_totals_and_peaks_stand_for_the_kernel_s_counters(tmp_path: Path) -> None:
    (rail, *_) = report(Plan(), tmp_path).rails
    received, peak = rail.counters["rx_bytes"].value, rail.peaks["rx"].value
    assert received == pytest.approx(59 * 1e8, rel=0.01)
    assert peak == pytest.approx(1e8 + 1e7, rel=0.01)


def test_a_counter_reset_makes_a_lower_bound(tmp_path: Path) -> None:
    made = report(Plan(reset_at_s={"n1": 30}), tmp_path)
    assert made.rails[0].counters["rx_bytes"].at_least
    assert not made.rails[2].counters["rx_bytes"].at_least
    assert any("reset" in one.why for one in made.unmeasured)


def test_what_no_reading_gave_is_listed_and_has_no_value(tmp_path: Path) -> None:
    psi = [f"psi_{name}_us" for name in ("cpu_some", "memory_some", "memory_full",
                                         "io_some", "io_full")]  # fmt: skip
    made = report(Plan(not_measured=[*psi, "rx_errors", "carrier", "carrier_changes"]), tmp_path)
    assert made.nodes[0].figures["psi_cpu_some"].value is None
    assert made.rails[0].counters["rx_errors"].value is None
    whats = {one.what: one.nodes for one in made.unmeasured}
    assert whats["CPU pressure (PSI)"] == ("n1", "n2", "n3", "n4")
    assert whats["rail r0 rx_errors"] == ("n1", "n2", "n3", "n4")
    assert whats["rail r1 carrier"] == ("n1", "n2", "n3", "n4")


def test_errors_and_notes_are_findings_and_information_is_not(tmp_path: Path) -> None:
    notes = [
        ("n1", 3.0, Severity.WARNING, "host", "pressure not measured: no such file"),
        ("n2", 3.0, Severity.WARNING, "host", "pressure not measured: no such file"),
        ("n2", 4.0, Severity.INFO, "agent", "hello"),
    ]
    made = report(Plan(errors=[("n1", 0, "rx_errors", 7)], notes=notes), tmp_path)
    found = sentences(made)
    assert "Rail r0 of n1 counted 7 receive errors." in found
    assert any(text.startswith("n[1-2] at 14:13:23.000, host: pressure") for text in found)
    assert not any("hello" in text for text in found)


def test_a_clock_that_was_set_is_a_finding(tmp_path: Path) -> None:
    made = report(Plan(clock_step={"n2": (30.0, 7 * S)}), tmp_path)
    (sentence,) = [text for text in sentences(made) if "clock" in text]
    assert sentence.startswith("The clock of n2 was set forward by 7.00 s")


@pytest.mark.parametrize("by_ns", [-60 * S - S // 2, -5 * S, 3600 * S])
def test_what_was_counted_holds_where_the_clock_was_set(by_ns: int, tmp_path: Path) -> None:
    """Set back, the node had some seconds twice: their samples lay among each other."""
    plan = Plan(nodes=("n1", "n2"), seconds=200, cuts=[Cut("n2", 1, 180.0, 182.0)])
    whole = report(plan, tmp_path / "never")
    made = report(replace(plan, clock_step={"n2": (100.0, by_ns)}), tmp_path / "set")
    for rail, same in zip(made.rails, whole.rails, strict=True):
        for name, figure in same.counters.items():
            assert rail.counters[name].value == figure.value, name
        assert rail.peaks["rx"].value == pytest.approx(same.peaks["rx"].value, rel=0.01)
        assert (len(rail.link.downs), rail.link.changes) == (
            len(same.link.downs), same.link.changes
        )  # fmt: skip
    for node, same_node in zip(made.nodes, whole.nodes, strict=True):
        for name, figure in same_node.figures.items():
            assert node.figures[name].value == pytest.approx(figure.value, rel=0.02), name
    assert made.accounts is not None and whole.accounts is not None
    assert abs(made.accounts.variation_ns) < 5 * S


def test_steps_span_their_nodes(tmp_path: Path) -> None:
    batch, first = report(Plan(), tmp_path).steps
    assert (batch.step, batch.nodes, batch.end_ns) == ("batch", ("n1",), None)
    assert (first.step, len(first.nodes)) == ("0", 4)


def test_a_job_of_less_than_a_sample_is_no_error(tmp_path: Path) -> None:
    made = report(Plan(seconds=0.05), tmp_path)
    assert not any(node.measured for node in made.nodes)
    assert {one.nodes[0] for one in made.unmeasured} == {"n1", "n2", "n3", "n4"}


def test_frames_carry_node_units_and_both_times(tmp_path: Path) -> None:
    frames = load(write(Plan(not_measured=["rx_dropped"]), tmp_path / "alice"))
    rail = frames["rail"]
    assert list(rail["node"].unique()) == ["n1", "n2", "n3", "n4"]
    assert rail["time_s"].min() == pytest.approx(0.1)
    assert rail["time_real"].iloc[0].value == BEGIN_REAL_NS + S // 10
    assert rail["rx_dropped"].isna().all() and rail["rx_bytes"].notna().all()
    assert set(frames["step"]["step"]) == {"batch", "0"}
    assert len(frames["note"]) == 0


def test_all_nodes_of_a_wide_job_are_shifted_to_one_clock_whoever_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first node never had job time."""
    nodes = tuple(f"n{nth}" for nth in range(7))
    plan = Plan(nodes=nodes, seconds=20, clock_from_s=1.0, clock_lost={"n0": (0.0, 99.0)})
    path = write(plan, tmp_path / "alice")
    monkeypatch.setattr(node_parts, "WORTH_NODES", 1)
    for processes in (1, 3):
        monkeypatch.setattr(node_parts.os, "sched_getaffinity", lambda _, n=processes: range(n))
        with open_trace(path) as trace:
            grids = Grids(trace.job.begin_real_ns, trace.job.end_real_ns)
            parts = node_parts.parts_of(trace, None, grids, nodes)
        assert [part.shift_ns for part in parts] == [0, 0, *(-n * S // 1000 for n in range(1, 6))]


def test_wide_jobs_are_read_by_several_processes_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [f"n{nth}" for nth in range(8)]
    plan = Plan(nodes=nodes, seconds=20, cuts=[Cut("n5", 0, 8, 12)], every_table=True)
    path = write(plan, tmp_path / "alice")
    data = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        chunk = file["nodes/n6/host"].id.get_chunk_info(0)
    data[chunk.byte_offset + 40] ^= 0xFF  # told by a worker
    path.write_bytes(data)
    alone = renderings(path, ["json", "text"])
    monkeypatch.setattr(node_parts, "WORTH_NODES", 2)
    monkeypatch.setattr(node_parts.os, "sched_getaffinity", lambda _: range(3))
    assert renderings(path, ["json", "text"]) == alone
    assert "damaged" in alone["text"]


def test_a_reader_that_dies_takes_the_report_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a crash in HDF5 would: it is told in one line by who waits (guard.py)."""
    path = write(Plan(nodes=[f"n{at}" for at in range(1, 7)], seconds=5), tmp_path / "alice")
    monkeypatch.setattr(node_parts, "WORTH_NODES", 2)
    monkeypatch.setattr(node_parts.os, "sched_getaffinity", lambda _: range(2))
    monkeypatch.setattr(node_parts, "_read", lambda *_: os.kill(os.getpid(), signal.SIGSEGV))
    with pytest.raises(TraceError, match="reading it ended with SIGSEGV"):
        guarded(path, lambda: renderings(path, ["text"]), Limits.of(path))
    monkeypatch.setattr(node_parts, "_read", lambda *_: TraceError("no such page"))
    with pytest.raises(TraceError, match="no such page"):
        guarded(path, lambda: renderings(path, ["text"]), Limits.of(path))


def test_a_step_ends_when_the_agent_of_that_time_saw_it_end() -> None:
    """One that was started later tells of all that it does not find, and one that ends with a step
    running calls it over."""
    begin, end = int(schema.StepEvent.BEGIN), int(schema.StepEvent.END)
    told = {
        "seen": [(begin, 10), (end, 20), (end, 90)],
        "lost": [(begin, 10), (end, 90)],
        "left": [(begin, 10), (end, 50), (begin, 60), (end, 70)],
        "runs": [(begin, 10), (end, 50), (begin, 60)],
    }
    steps = tuple((name, event, at) for name, rows in told.items() for event, at in rows)
    part = SimpleNamespace(summary=SimpleNamespace(name="n1"), steps=steps)
    found = {each.step: (each.begin_ns, each.end_ns) for each in summarise._steps([part])}  # type: ignore[list-item]
    assert found == {"seen": (10, 20), "lost": (10, 90), "left": (10, 70), "runs": (10, None)}
