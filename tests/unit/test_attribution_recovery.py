"""A loss in the network lasts until the connections have recovered, and what only looks like one
is none: what fresh faults in the lab (bench/diagnose) showed to go wrong, each once."""

import numpy as np
import pytest

from fabricctl.store import dtypes, schema
from fabricctl.store.schema import RankState, StallKind
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.evidence import Evidence
from fabricctl_analysis.model import Cause
from fabricctl_analysis.mpi_calls import tracked
from fabricctl_analysis.pace import Pace
from fabricctl_analysis.pieces import Piece, pieces
from fabricctl_analysis.probes import Edge, edges, troubles
from fabricctl_analysis.rows import Boot, NodeRows, place
from fabricctl_analysis.streams import streams
from fabricctl_analysis.told import told
from fabricctl_analysis.windows import Grid

S = 1_000_000_000
BEGIN_NS = 1_790_000_000 * S
NAMES = ("n1", "n2", "n3", "n4")
GRID = Grid(BEGIN_NS, S, 60)


def node(tables: dict[str, np.ndarray]) -> NodeRows:
    clock = dtypes.empty(schema.CLOCK, 2)
    clock["time_mono_ns"], clock["width_ns"] = (0, 600 * S), 100
    clock["time_real_ns"] = clock["time_mono_ns"] + BEGIN_NS
    empty = {table.name: dtypes.empty(table) for table in schema.TABLES}
    return place("n1", ("r0", "r1"), [Boot({**empty, "clock": clock, **tables})])


def at(*seconds: float) -> np.ndarray:
    return np.rint(np.array(seconds) * S).astype(np.int64)


# What ranks do -------------------------------------------------------------------------------


def rank(sums: tuple[float, ...], calls: tuple[int, ...], since: tuple[float, ...]) -> NodeRows:
    """Samples each second from 1 on, and a row of the sums where they grew. ``calls``: returned;
    ``since``: out of one, or in one where that is negative."""
    when = np.arange(1, len(sums) + 1) * S
    fresh = np.flatnonzero(np.diff(calls, prepend=0))
    seen = dtypes.empty(schema.MPI_TIME, len(fresh))
    seen["time_mono_ns"], seen["op"] = when[fresh], b"MPI_Allreduce"
    seen["rank"], seen["launch"] = 0, 0
    seen["time_ns"], seen["calls"] = at(*sums)[fresh], np.array(calls)[fresh]
    stands = dtypes.empty(schema.RANK_POSITION, len(when))
    stands["time_mono_ns"], stands["op"] = when, b"MPI_Allreduce"
    stands["rank"], stands["launch"] = 0, 0
    inside = np.array(since) < 0
    stands["since_mono_ns"] = at(*(abs(one) for one in since))
    stands["calls"] = 2 * np.array(calls) + inside
    return node({"mpi_time": seen, "rank_position": stands})


def test_a_stopped_rank_is_told_by_the_first_look_at_it() -> None:
    """The tracker's verdict comes a second later, and until then it looks like a slow one."""
    rows = dtypes.empty(schema.RANK, 4)
    rows["time_mono_ns"], rows["rank"] = at(1, 20, 24, 50), (7, 7, 7, 7)
    states = (RankState.RUNNING, RankState.STOPPED, RankState.RUNNING, RankState.STOPPED)
    rows["state"] = states
    host = dtypes.empty(schema.HOST, 60)
    host["time_mono_ns"] = at(*range(60))
    first, last = told(node({"rank": rows, "host": host}), 0, GRID)
    assert (first.cause, first.nodes) == ("host_stopped", ("n1",))
    assert first.text == "rank 7 on n1 was stopped by a signal"
    assert first.span == Span(BEGIN_NS + 19 * S, BEGIN_NS + 24 * S)
    assert last.span == Span(BEGIN_NS + 49 * S, BEGIN_NS + 59 * S)


# In a call from 3.5 s to 8.25 s, which the sums hold at 9 s; a fifth of the time else.
LONG = rank(
    sums=(0.2, 0.4, 0.6, 0.7, 0.7, 0.7, 0.7, 0.7, 5.6, 5.8),
    calls=(10, 20, 30, 35, 35, 35, 35, 35, 43, 53),
    since=(0.95, 1.95, 2.95, -3.5, -3.5, -3.5, -3.5, -3.5, 8.95, 9.95),
)


def test_a_long_call_is_where_it_was() -> None:
    """By the sums alone it might lie anywhere from 4 s to 9 s, and others wait for the rank."""
    shares = tracked(LONG, GRID).waiting[0]
    assert shares[1:3] == pytest.approx([0.2, 0.2])
    assert shares[3] == pytest.approx(0.6)  # a tenth before the call, and half a second in it
    assert shares[4:8] == pytest.approx(np.ones(4))
    assert shares[8:10] == pytest.approx([0.4, 0.2])


def test_a_sample_that_is_of_other_calls_than_the_sums_tells_nothing() -> None:
    torn = rank((0.2, 0.4, 0.6, 0.8), (10, 20, 30, 40), (0.95, 1.95, 2.95, 3.95))
    torn.tables["rank_position"]["calls"][2] += 2
    torn.tables["rank_position"]["since_mono_ns"][2] = 0
    assert tracked(torn, GRID).waiting[0][1:4] == pytest.approx([0.2, 0.2, 0.2], abs=0.01)
    torn.tables["rank_position"]["calls"] += 2
    assert tracked(torn, GRID).waiting[0][1:4] == pytest.approx([0.2, 0.2, 0.2], abs=0.01)


@pytest.mark.parametrize("forged", [-(1 << 63), (1 << 63) - 1, 0])
def test_a_forged_begin_of_a_call_adds_no_time(forged: int) -> None:
    rows = rank((0.2, 0.4, 0.6, 0.7, 0.7), (10, 20, 30, 35, 35), (0.9, 1.9, 2.9, -3.5, -3.5))
    rows.tables["rank_position"]["since_mono_ns"] = forged
    shares = tracked(rows, GRID).waiting[0]
    known = shares[~np.isnan(shares)]
    assert len(known) >= 3 and (known >= 0).all() and (known <= 1).all()


# What probes and connections tell --------------------------------------------------------------


def probes(sent: list[int], arrived: list[int]) -> tuple[Span, ...]:
    """Of one edge, a row a second from 1 on."""
    table = dtypes.empty(schema.DELAY, len(sent))
    table["time_mono_ns"] = np.arange(1, len(sent) + 1) * S
    table["rail"], table["peer"], table["inbound"], table["size_class"] = 0, 1, 0, 0
    table["sent"], table["arrived"], table["count"] = sent, arrived, 0
    (edge,) = edges(node({"delay": table}), 0)
    return edge.lost


def test_probes_that_are_told_of_late_are_not_lost() -> None:
    sent = [40, 80, 120, 160, 200, 240]
    assert probes(sent, [40, 80, 108, 148, 200, 240]) == ()
    (lost,) = probes(sent, [40, 80, 108, 148, 188, 228])
    assert (lost.begin_ns - BEGIN_NS, lost.end_ns - BEGIN_NS) == (2 * S, 3 * S)


def test_probes_of_the_last_row_may_be_under_way() -> None:
    assert probes([40, 80, 120], [40, 80, 110]) == ()
    assert len(probes([40, 80, 120], [40, 80, 100])) == 1


def test_most_of_a_few_large_probes_is_a_loss_and_some_of_many_is_none() -> None:
    assert len(probes([2, 4, 10, 12, 14], [2, 4, 6, 8, 10])) == 1
    assert probes([100, 236, 370, 500], [100, 226, 360, 490]) == ()


def test_a_clock_that_begins_anew_loses_nothing() -> None:
    assert probes([40, 80, 120, 10, 50, 90], [40, 80, 118, 10, 50, 90]) == ()


def test_edges_of_a_link_without_carrier_blur_no_other_place() -> None:
    """n1's cable is pulled while n3's link loses: n1's edges all lose too."""
    lost = (Span(BEGIN_NS + 20 * S, BEGIN_NS + 24 * S),)
    owned = [("n1", [Edge(0, peer, lost) for peer in (1, 2, 3)]),
             ("n2", [Edge(0, 2, lost), Edge(0, 3, ())]), ("n3", [Edge(0, 3, lost)])]  # fmt: skip
    cut = np.zeros(60, bool)
    cut[20:24] = True
    (blurred,) = troubles(owned, NAMES, GRID)
    assert blurred.nodes == ("n1", "n3")
    (one,) = troubles(owned, NAMES, GRID, down={("n1", 0): cut})
    assert one.nodes == ("n3",)


def connections(again: np.ndarray, rto_ms: int = 204, out: int = 30_000) -> tuple[Span, ...]:
    """One remote address: two seconds a row, ``rto_ms`` and unacknowledged in rows 5 and 6."""
    table, tcp = dtypes.empty(schema.TCP_FLOW, 12), dtypes.empty(schema.TCP, 24)
    table["time_mono_ns"], tcp["time_mono_ns"] = np.arange(12) * 2 * S, np.arange(24) * S
    table["rail"], table["peer"], table["connections"] = 0, b"10.78.0.12", 1
    table["retransmitted"], table["rtt_us"], table["rto_ms"] = again, 3000, 204
    table["rto_ms"][5:7], table["unacked"][5:7] = rto_ms, 1
    tcp["out_segments"] = np.arange(24) * out
    (found,) = streams(node({"tcp_flow": table, "tcp": tcp}), 0)
    return found.again


def test_segments_that_busy_cores_made_tcp_send_again_are_no_loss() -> None:
    again = np.repeat([0, 7, 13], 4)
    assert connections(again) == ()
    assert len(connections(again, out=100)) == 2


def test_connections_that_wait_for_a_timer_are_told() -> None:
    """Where nothing gets through, next to nothing is sent again."""
    again = np.repeat([0, 2, 3], 4)
    assert connections(again, rto_ms=408) == ()
    (one,) = connections(again, rto_ms=1632)
    assert (one.begin_ns - BEGIN_NS) / S == pytest.approx(10 - 1.428)
    assert (one.end_ns - BEGIN_NS) / S == pytest.approx(12)
    assert connections(again, rto_ms=1 << 31) == ()


# What becomes of it ----------------------------------------------------------------------------


def evidence(
    cause: Cause, node: str, s: tuple[float, float], rail: int | None = 0, by: float = 1.0
) -> Evidence:
    span = Span(BEGIN_NS + int(s[0] * S), BEGIN_NS + int(s[1] * S))
    return Evidence(cause, (node,), rail, span, by, f"{cause} {node}")


def cut(slow: slice, *there: Evidence) -> list[Piece]:
    """A job that stands still for a while, with what was wrong meanwhile."""
    progress = 1 + np.random.default_rng(1).normal(0, 0.01, 60)
    progress[slow] = 0.1
    found = Pace("traffic", progress, progress, 0.01, 0.001, None, np.ones(4), 1e8)
    return list(pieces(found, there, GRID))


def test_packets_that_are_lost_when_a_link_is_back_belong_to_its_loss() -> None:
    (one,) = cut(
        slice(20, 32),
        evidence("link_down", "n1", (20, 24.2)),
        evidence("queueing", "n1", (24.5, 31)),
        evidence("rail_slow", "n1", (21, 25)),
    )
    assert one.cause == "link_down"
    assert set(range(20, 32)) <= set(one.windows)


def test_what_began_elsewhere_or_later_is_another_trouble() -> None:
    down = evidence("link_down", "n1", (20, 24.2))
    for other in (
        evidence("queueing", "n3", (24.5, 31)),
        evidence("queueing", "n1", (24.5, 31), rail=1),
        evidence("queueing", "n1", (26.5, 31)),
    ):
        assert [one.cause for one in cut(slice(20, 32), down, other)] == ["link_down", "queueing"]


def test_ranks_that_come_out_of_their_timers_one_by_one_are_no_slow_ranks() -> None:
    (one,) = cut(
        slice(20, 32),
        evidence("queueing", "n1", (20, 26)),
        evidence("rank_slow", "n2", (22, 23), None),
        evidence("rank_slow", "n3", (26, 29), None),
    )
    assert one.cause == "queueing"
    assert {two.cause for two in one.others} == {"rank_slow"}


def test_a_rank_that_stays_slow_after_a_loss_is_slow() -> None:
    made = cut(
        slice(20, 36),
        evidence("queueing", "n1", (20, 23)),
        evidence("rank_slow", "n3", (23, 36), None),
    )
    assert [one.cause for one in made] == ["queueing", "rank_slow"]


def test_only_what_breaks_connections_explains_what_comes_long_after_it() -> None:
    made = cut(slice(20, 34), evidence("storage", "n1", (20, 27), None))
    assert [one.cause for one in made] == ["storage", "unknown"]
    (one,) = cut(slice(20, 34), evidence("queueing", "n1", (20, 27)))
    assert one.cause == "queueing"


def test_the_newest_trouble_of_a_running_job_is_none_of_the_one_before() -> None:
    """Three seconds of a silent link right after a lost one: the job goes on, its end is not there
    yet, and the stretch began long before."""
    before = evidence("link_down", "n2", (44, 48)), evidence("queueing", "n2", (46, 57))
    first, second = cut(slice(44, 60), *before, evidence("queueing", "n3", (57, 60)))
    assert (first.cause, first.windows[-1]) == ("link_down", 56)
    assert (second.cause, second.windows) == ("queueing", [57, 58, 59])


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("rank 1 on n4 ended without MPI_Finalize", "restart"),
        ("rank 1 on n4 died: killed, or by an error", "restart"),
        ("rank 1 on n4 is stopped by a signal", "host_stopped"),
    ],
)
def test_a_dead_rank_is_no_node_that_stopped_its_processes(text: str, cause: str) -> None:
    """Nobody is to look for a fault of the node, or to leave it out, for it."""
    stall = dtypes.empty(schema.STALL, 1)
    stall["time_mono_ns"], stall["since_mono_ns"], stall["kind"] = 9 * S, 8 * S, StallKind.RANK
    stall["node"], stall["text"] = b"n4", text.encode()
    found = [one for one in told(node({"stall": stall}), 0, GRID) if one.text == text]
    assert [(one.cause, one.nodes) for one in found] == [(cause, ("n4",))]
