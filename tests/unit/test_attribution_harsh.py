"""What harmed jobs in the lab (bench/diagnose) showed to go wrong, each once."""

from dataclasses import replace

import numpy as np
import pytest

from fabricctl.store import dtypes, schema
from fabricctl.store.schema import CheckpointEvent
from fabricctl_analysis.attribute import _Job, _quiet, _running
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.evidence import Evidence
from fabricctl_analysis.model import Accounts, StepSummary, Verdict
from fabricctl_analysis.pace import Pace, luck, pace, period_of, slow_windows
from fabricctl_analysis.pieces import _settled, telling
from fabricctl_analysis.probes import Edge, troubles
from fabricctl_analysis.program import checkpoints, phases
from fabricctl_analysis.rows import Boot, NodeRows, place
from fabricctl_analysis.streams import as_edges, streams
from fabricctl_analysis.windows import Grid
from tests.support.simjobs import BEGIN_NS, Fault, S, Sim


def accounts(sim: Sim) -> Accounts:
    found = sim.report().accounts
    assert found is not None
    return found


def test_outages_that_come_again_and_again_are_no_iterations() -> None:
    faults = [Fault("host_stopped", n % 4, 10 + 11.0 * n, 6.0) for n in range(8)]
    found = accounts(Sim(1, faults, seconds=110))
    assert found.iteration_s is None
    assert [one.cause for one in found.verdicts] == ["host_stopped"] * 8
    truth = sum(6.0 for _ in faults) * 4
    assert sum(one.loss_ns for one in found.verdicts) / S == pytest.approx(truth, rel=0.05)


def test_steps_that_follow_each_other_are_no_time_without_a_step() -> None:
    """Windows of a minute, as of a long job, and a script that calls srun again and again."""
    ran = [(5.0, 92.0), (92.5, 171.0), (170.0, 290.0), (420.0, None)]
    steps = [
        StepSummary(
            str(nth), ("n1",), BEGIN_NS + int(begin * S), end and BEGIN_NS + int(end * S)
        )
        for nth, (begin, end) in enumerate(ran)
    ]  # fmt: skip
    running = _running(Grid(BEGIN_NS, 60 * S, 10), steps)
    assert running.tolist() == [True] * 4 + [False] * 3 + [True] * 3


def test_what_one_window_lost_is_told_once_whatever_was_wrong_where_nothing_is_known() -> None:
    """Three cuts at once; of the time of the second nothing was measured."""
    progress = np.array([1.0] * 5 + [0.5] * 5 + [1.0] * 20)
    progress[7] = np.nan
    known = Pace("traffic", progress, progress, 0.01, 0.001, None, np.ones(1), 1e8)
    grid = Grid(BEGIN_NS, S, len(progress))
    cuts = [
        Evidence("link_down", ("n1",), rail, Span(BEGIN_NS + int(a * S), BEGIN_NS + int(b * S)),
                 1.0, "down")
        for rail, (a, b) in enumerate([(5, 10), (7.2, 7.8), (8, 10)])
    ]  # fmt: skip
    job = _Job(known, (), grid, np.diff(grid.edges_ns), 1)
    assert [piece.windows for piece in _quiet(cuts, set(), job)] == [[5, 6, 8, 9]]


def test_a_job_that_is_slow_most_of_the_time_is_held_to_its_pace_when_nothing_is_wrong() -> None:
    found = accounts(Sim(2, [Fault("link_down", 1, 30.0, 60.0)], seconds=110))
    (one,) = found.verdicts
    assert (one.cause, one.nodes, one.rail) == ("link_down", ("n1",), 0)
    assert one.loss_ns / S == pytest.approx(0.5 * 60 * 4, rel=0.05)


def rough(seed: int, slow: slice, to: float) -> tuple[np.ndarray, np.ndarray]:
    """The pace of a job on busy cores, and windows in which something was wrong."""
    work = np.random.default_rng(seed).normal(1e8, 2.2e7, (2, 100))
    work[:, slow] *= to
    suspect = np.zeros(100, bool)
    suspect[slow] = True
    return work, suspect


def test_less_proof_is_asked_where_something_was_wrong() -> None:
    work, suspect = rough(4, slice(60, 62), 0.3)
    args = (work, np.zeros_like(work), np.ones(100, bool), 1.0)
    assert slow_windows(pace(*args)) == []
    ((first, last),) = slow_windows(pace(*args, suspect=suspect))
    assert (first, last) == (59, 62)


def test_a_program_that_loads_for_long_varies_by_what_it_does_afterwards() -> None:
    """Fourteen seconds of imports before a minute of work, in most of which something was wrong."""
    work, suspect = rough(5, slice(60, 64), 0.4)
    work, suspect = work[:, 20:], suspect[20:]
    work[:, :14] *= 0.01
    suspect[32:] = True
    found = pace(work, np.zeros_like(work), np.ones(80, bool), 1.0, suspect=suspect)
    assert found.deviation < 0.25
    assert (39, 44) in slow_windows(found)


def drifting(seed: int, alike: float) -> np.ndarray:
    """A pace whose ups and downs of 15 % last, as on a machine that others use too."""
    random = np.random.default_rng(seed)
    found = [random.normal(0, 0.15)]
    for step in random.normal(0, 0.15 * (1 - alike**2) ** 0.5, 119):
        found.append(alike * found[-1] + step)
    return np.clip(1 + np.array(found), 0.1, None)


@pytest.mark.parametrize(("alike", "error"), [(0.0, 0.35), (0.9, 0.35)])
def test_what_neighbours_tell_of_the_pace_is_no_doubt_about_a_loss(
    alike: float, error: float
) -> None:
    """Four windows at half of their pace, which itself is 30 % above or below the usual for ten."""
    suspect = np.zeros(120, bool)
    suspect[59:66] = True
    at = np.arange(59, 66)
    errors, sure, held = [], 0, 0
    for seed in range(60):
        work = np.tile(1e8 * drifting(seed, alike), (4, 1))
        work[:, 60:64] *= 0.5
        found = pace(work, np.zeros_like(work), np.ones(120, bool), 1.0, suspect=suspect)
        added, deviation = luck(found, at)
        loss = float((1 - found.progress[at]).sum()) + added
        errors.append(loss - 2.0)
        sure += loss - 1.96 * deviation > 0
        held += abs(loss - 2.0) <= 1.96 * deviation
    assert np.std(errors) < error
    assert sure >= 54 and held >= 51


def test_what_was_wrong_without_loss_is_no_verdict() -> None:
    work, suspect = rough(8, slice(60, 64), 1.0)
    found = pace(work, np.zeros_like(work), np.ones(100, bool), 1.0, suspect=suspect)
    assert slow_windows(found) == []


def test_a_pause_in_half_of_the_job_does_not_hide_another() -> None:
    faults = [Fault("host_stopped", n % 4, 10 + 13.0 * n, 7.0) for n in range(6)]
    faults.append(Fault("unknown", 0, 92.0, 5.0))
    found = accounts(Sim(3, faults, seconds=110))
    assert [one.cause for one in found.verdicts].count("unknown") == 1


def test_edges_of_a_trouble_do_not_become_verdicts_of_their_own() -> None:
    trouble: list = ["link_down"] * 5 + ["queueing", "rank_slow"]
    assert _settled(trouble) == ["link_down"] * 7
    assert _settled(["storage"] * 2 + ["steal"] * 2) == ["storage"] * 2 + ["steal"] * 2


def evidence(
    nodes: tuple[str, ...], rail: int | None, s: tuple[float, float], by: float = 1.0
) -> Evidence:
    span = Span(int(s[0] * S), int(s[1] * S))
    return Evidence("queueing", nodes, rail, span, by, f"{nodes} {rail}")


def test_what_names_one_node_for_long_places_the_cause() -> None:
    there = [
        evidence(("n4",), 0, (0, 6), 0.5),
        evidence(("n1", "n4"), 0, (1, 3)),
        evidence(("n1", "n2"), 1, (3, 5), 0.5),
    ]
    told, nodes = telling(there, Span(0, 5 * S))
    assert nodes == ("n4",)
    assert {one.rail for one in told} == {0}


def test_what_else_was_wrong_is_told_with_its_place() -> None:
    both = [Fault("host_stopped", 3, 150.0, 20.0), Fault("link_down", 1, 150.0, 20.0)]
    verdicts: tuple[Verdict, ...] = accounts(Sim(5, both, seconds=300)).verdicts
    assert verdicts[0].cause == "link_down"
    assert ("host_stopped", ("n3",)) in {(one.cause, one.nodes) for one in verdicts[0].others}


def node(tables: dict[str, np.ndarray]) -> NodeRows:
    clock = dtypes.empty(schema.CLOCK, 2)
    clock["time_mono_ns"], clock["width_ns"] = (0, 600 * S), 100
    clock["time_real_ns"] = clock["time_mono_ns"] + BEGIN_NS
    empty = {table.name: dtypes.empty(table) for table in schema.TABLES}
    return place("n1", ("r0",), [Boot({**empty, "clock": clock, **tables})])


def spans(rows: NodeRows) -> list[tuple[float, float]]:
    found = list(checkpoints(rows, 0))
    assert all(one.cause == "checkpoint" and one.nodes == () for one in found)
    return [((one.span.begin_ns - BEGIN_NS) / S, (one.span.end_ns - BEGIN_NS) / S) for one in found]


def test_checkpoints_are_known_as_the_program_told_them() -> None:
    told = dtypes.empty(schema.CHECKPOINT, 3)
    told["time_mono_ns"] = (100 * S, 200 * S, 300 * S)
    told["time_real_ns"] = told["time_mono_ns"] + BEGIN_NS
    told["event"] = (CheckpointEvent.SAVED, CheckpointEvent.SAVED, CheckpointEvent.RESTORED_SHARED)
    told["stall_ns"] = (4 * S, 0, 30 * S)  # the second was written beside the work
    assert spans(node({"checkpoint": told})) == [(96, 100), (270, 300)]


def test_checkpoints_are_known_by_the_tracker() -> None:
    """Hours apart, each at its own time: the sum grows only when one has been written."""
    seen = dtypes.empty(schema.MPI_TIME, 3)
    seen["time_mono_ns"] = (100 * S, 400 * S, 401 * S)
    seen["op"], seen["rank"], seen["launch"] = b"checkpoint", 0, 0
    seen["time_ns"] = (3 * S, 8 * S, int(8.01 * S))
    assert spans(node({"mpi_time": seen})) == [(96, 100), (394, 400)]


def test_a_steady_pattern_keeps_its_period_beside_troubles() -> None:
    at = np.arange(400)
    work = 1.0 + 0.8 * np.sin(2 * np.pi * at / 7.5)
    assert period_of(work) == pytest.approx(7.5, rel=0.01)
    holes = np.where((at % 50) < 6, np.nan, work)
    assert period_of(holes) == pytest.approx(7.5, rel=0.01)


def test_a_cause_that_goes_on_somewhere_else_is_two_verdicts() -> None:
    both = [Fault("storage", 1, 60.0, 20.0), Fault("storage", 3, 81.0, 20.0)]
    found = accounts(Sim(6, both, seconds=200)).verdicts
    assert {(one.cause, one.nodes) for one in found} == {("storage", ("n1",)), ("storage", ("n3",))}
    assert all(one.loss_ns / S == pytest.approx(20 * 0.7 * 4, rel=0.1) for one in found)


def test_a_phase_with_a_pace_of_its_own_is_named() -> None:
    """As the tracker would tell it: eval from 100 to 140, at another pace."""
    seen = dtypes.empty(schema.PHASE, 600)
    at = np.arange(600)
    seen["time_mono_ns"] = at // 2 * S
    seen["name"] = np.where(at % 2, b"eval", b"train")
    seen["entered"] = 1
    in_eval = np.clip(at // 2 - 100, 0, 40)
    seen["time_ns"] = np.where(at % 2, in_eval, at // 2 - in_eval) * S
    rows = node({"phase": seen})
    (one,) = phases(rows, 0, Grid.over(Span(BEGIN_NS, BEGIN_NS + 300 * S), S))
    begin, end = ((t - BEGIN_NS) / S for t in (one.span.begin_ns, one.span.end_ns))
    assert (one.cause, one.nodes, begin, end) == ("phase", (), 100, 140)
    assert one.text == "the program was in its phase eval"


def flow(name: str, lossy: set[str]) -> NodeRows:
    """Connections to the three others on both rails; ``lossy`` nodes' rail 0 sends again."""
    others = [f"n{n}" for n in range(1, 5) if f"n{n}" != name]
    parts = []
    for rail in range(2):
        for other in others:
            rows = dtypes.empty(schema.TCP_FLOW, 60)
            rows["time_mono_ns"] = np.arange(60) * S
            rows["rail"], rows["peer"] = rail, f"10.7{8 + rail}.0.{other[1:]}".encode()
            hit = rail == 0 and bool({name, other} & lossy)
            rows["retransmitted"] = np.clip(np.arange(60) - 20, 0, 10) * 50 * hit
            parts.append(rows)
    made = node({"tcp_flow": np.sort(np.concatenate(parts), order="time_mono_ns", kind="stable")})
    return replace(made, name=name, addresses=(f"10.78.0.{name[1:]}", f"10.79.0.{name[1:]}"))


def test_the_jobs_own_connections_place_a_loss_where_nobody_probes() -> None:
    names = [f"n{n}" for n in range(1, 5)]
    nodes = [flow(name, {"n3"}) for name in names]
    of = {text: rows.name for rows in nodes for text in rows.addresses}
    edges = as_edges([(rows.name, streams(rows, 0)) for rows in nodes], of, names)
    grid = Grid.over(Span(BEGIN_NS, BEGIN_NS + 60 * S), S)
    (one,) = troubles(list(edges), names, grid)
    assert (one.cause, one.nodes, one.rail) == ("queueing", ("n3",), 0)
    assert "connections sent again on rail r0 of n3" in one.text
    assert abs((one.span.begin_ns - BEGIN_NS) / S - 20) <= 1


def test_addresses_of_nobody_and_forged_ones_are_left_out() -> None:
    rows = flow("n1", {"n2"})
    of = {"10.78.0.2": "n1", "10.78.0.3": "stranger"}
    ((name, edges),) = as_edges([("n1", streams(rows, 0))], of, ["n1", "n2"])
    assert (name, edges) == ("n1", [])


@pytest.mark.parametrize("seconds", [1, 2, 3, 5, 8])
def test_a_job_of_a_moment_has_accounts_too(seconds: int) -> None:
    found = accounts(Sim(1, seconds=seconds))
    assert found.elapsed_ns == seconds * 4 * S and found.verdicts == ()


def test_connections_do_not_blur_the_place_that_probes_know() -> None:
    names = [f"n{n}" for n in range(1, 5)]
    lost = (Span(BEGIN_NS + 20 * S, BEGIN_NS + 30 * S),)
    probes = [("n1", [Edge(0, 1, ()), Edge(0, 2, lost), Edge(0, 3, ())]),
              ("n2", [Edge(0, 2, lost), Edge(0, 3, ())]), ("n3", [Edge(0, 3, lost)])]  # fmt: skip
    streams_of = [(n, [Edge(0, p, (), again=lost, stream=True) for p in range(4)]) for n in names]
    grid = Grid.over(Span(BEGIN_NS, BEGIN_NS + 60 * S), S)
    found = list(troubles([*probes, *streams_of], names, grid))
    (one,) = [evidence for evidence in found if "probes" in evidence.text]
    assert one.nodes == ("n3",)
    _, nodes = telling(found, one.span)
    assert nodes == ("n3",)
