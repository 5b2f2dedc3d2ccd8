"""Where packets were lost or queued, from the job clock's probes: each edge of the probe graph is
measured on its own, and a node whose edges all suffer while others do not is where it happens.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fabricctl_analysis import coverage
from fabricctl_analysis.align import Ns
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.evidence import Evidence
from fabricctl_analysis.groups import groups
from fabricctl_analysis.noise import Bools
from fabricctl_analysis.rows import NodeRows
from fabricctl_analysis.windows import Grid

# Between two rows of an edge more than this share of its probes was lost, and it was no chance: so
# many deviations of a binomial above it, and some at all.
LOST, DEVIATIONS, LEAST_LOST = 0.05, 3.0, 2
# Probes of an edge's last row that may be under way still.
UNDER_WAY = 4
# Queued: the slowest in a hundred of a second's probes took so much longer than is usual for the
# edge. Probes are stamped by the kernel, so that busy cores do not delay them: on two cores with a
# load of 7 the usual second has 3 to 100 us, behind a link that is full it has milliseconds.
LATE_NS, LATE_TIMES = 500_000, 10
LEAST_PROBES = 8
# Rows come once a second; what is closer is one stretch of loss.
TOGETHER_NS = 2_500_000_000
# A node is named when so large a share of its edges loses.
ALL = 0.75
# What is said of each kind, and how much it tells of the place.
_KINDS: dict[Literal["lost", "late", "again"], tuple[str, float]] = {
    "lost": ("probes were lost", 1.0),
    "late": ("probes were queued for milliseconds", 0.5),
    "again": ("the job's connections sent again", 0.2),
}


@dataclass(frozen=True)
class Edge:
    """One edge of a node's probe graph on one rail, when it lost packets and when it held them
    up; ``peer`` is a place in the job's list of nodes."""

    rail: int
    peer: int
    lost: tuple[Span, ...]
    late: tuple[Span, ...] = ()
    again: tuple[Span, ...] = ()  # in which the job's own connections sent again
    stream: bool = False  # of the job's own connections, not of probes


def edges(rows: NodeRows, shift_ns: int) -> tuple[Edge, ...]:
    """The edges that this node owns, on the time that all nodes share."""
    table, times = rows.tables["delay"], rows.real_ns["delay"] + shift_ns
    if len(table) < 2:
        return ()
    found: dict[tuple[int, int], tuple[list[Span], list[Span]]] = {}
    # A column of its own is found faster, again and again, than one among the others.
    so_far = [table[name].astype(np.int64) for name in ("sent", "arrived")]
    slow, counted = table["p99_ns"].copy(), table["count"].copy()
    for at in groups(table, ("rail", "peer", "inbound", "size_class")):
        first = table[at[0]]
        lost, late = found.setdefault((int(first["rail"]), int(first["peer"])), ([], []))
        ends = times[at]
        sent, arrived = (column[at] for column in so_far)
        gone, tried = _gone(sent, arrived), np.clip(np.diff(sent), 0, None)
        most = LOST * tried + DEVIATIONS * (LOST * (1 - LOST) * tried) ** 0.5
        lost += _spans(ends, gone > np.maximum(most, LEAST_LOST))
        if first["size_class"] == 0:
            late += _spans(ends, _late(slow[at], counted[at])[1:])
    return tuple(
        Edge(rail, peer, _union(lost), _union(late))
        for (rail, peer), (lost, late) in sorted(found.items())
    )


def _gone(sent: NDArray[np.int64], arrived: NDArray[np.int64]) -> NDArray[np.int64]:
    """Probes between two rows that never arrived, by the sums so far.

    What is missing at the end of a row may be under way, or not told of yet on busy cores: it
    arrives in one of the next. Only what is still missing after all later rows was lost.
    """
    missing = sent - arrived
    gone = np.zeros(max(0, len(sent) - 1), np.int64)
    begun_anew = np.flatnonzero((np.diff(sent) < 0) | (np.diff(arrived) < 0)) + 1
    for first, last in pairwise([0, *begun_anew.tolist(), len(sent)]):
        for_good = missing[first:last].copy()
        if last == len(sent) and last - first > 1:
            for_good[-1] = max(for_good[-1] - UNDER_WAY, min(for_good[-2:]))
        for_good = np.minimum.accumulate(for_good[::-1])[::-1]
        gone[first : last - 1] = np.diff(for_good)
    return gone


def _late(p99_ns: NDArray[np.int64], count: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Rows of one path whose small probes took far longer than is usual for them."""
    counted = count >= LEAST_PROBES
    if not counted.any():
        return counted
    usual = float(np.median(p99_ns[counted]))
    return np.asarray(counted & (p99_ns > max(usual + LATE_NS, LATE_TIMES * usual)))


def _spans(ends: Ns, bad: NDArray[np.bool_]) -> list[Span]:
    """Of the intervals between rows that are bad."""
    return [Span(int(ends[at]), int(ends[at + 1])) for at in np.flatnonzero(bad).tolist()]


def _union(spans: list[Span]) -> tuple[Span, ...]:
    return tuple(coverage.union(sorted(spans, key=lambda span: span.begin_ns), TOGETHER_NS))


def troubles(
    of_nodes: Sequence[tuple[str, Sequence[Edge]]],
    names: Sequence[str],
    grid: Grid,
    silent: Mapping[str, Bools] | None = None,
    down: Mapping[tuple[str, int], Bools] | None = None,
) -> Iterator[Evidence]:
    """Stretches of loss and of queueing with the nodes whose links suffer; ``names``: the job's
    list of nodes; ``silent``: windows in which a node itself stood still and answered nobody;
    ``down``: in which its rail had no carrier, which is why packets were lost there."""
    for kind in _KINDS:
        yield from _of_kind(kind, of_nodes, names, grid, _Excused(silent or {}, down or {}))


@dataclass(frozen=True)
class _Excused:
    """Nodes whose edges lose for a reason that is known: they place nothing in the network."""

    silent: Mapping[str, Bools]
    down: Mapping[tuple[str, int], Bools]

    def at(self, rail: int, window: int) -> set[str]:
        gone = {name for name, quiet in self.silent.items() if quiet[window]}
        return gone | {name for (name, of), cut in self.down.items() if of == rail and cut[window]}


def _of_kind(
    kind: Literal["lost", "late", "again"],
    of_nodes: Sequence[tuple[str, Sequence[Edge]]],
    names: Sequence[str],
    grid: Grid,
    excused: _Excused,
) -> Iterator[Evidence]:
    edges_of: dict[int, list[tuple[str, str]]] = defaultdict(list)
    bad: dict[tuple[int, int], list[tuple[str, str]]] = defaultdict(list)
    for node, owned in of_nodes:
        for edge in owned:
            if edge.peer >= len(names) or edge.stream != (kind == "again"):
                continue
            ends = (node, names[edge.peer])
            edges_of[edge.rail].append(ends)
            for span in getattr(edge, kind):
                touched = grid.touched(span.begin_ns, span.end_ns)
                for window in range(touched.start, touched.stop):
                    bad[edge.rail, window].append(ends)
    found: dict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(list)
    for (rail, window), there in sorted(bad.items()):
        gone = excused.at(rail, window)
        heard = [ends for ends in there if not gone.intersection(ends)]
        if heard:
            degree = Counter(
                end for ends in edges_of[rail] if not gone.intersection(ends) for end in ends
            )
            found[rail, _place(heard, degree)].append(window)
    for (rail, nodes), windows in found.items():
        at = np.array(sorted(set(windows)))
        for group in np.split(at, np.flatnonzero(np.diff(at) > 2) + 1):
            where = " and ".join(nodes[:4]) if nodes else "many nodes: its switch"
            words, strength = _KINDS[kind]
            text = f"{words} on rail r{rail} of {where}"
            span = grid.span(int(group[0]), int(group[-1]))
            yield Evidence("queueing", nodes, rail, span, strength, text)


def _place(there: Sequence[tuple[str, str]], degree: Mapping[str, int]) -> tuple[str, ...]:
    """The nodes that explain the bad edges: those that suffer on all of theirs; without any the
    ends themselves; none when it is most of the rail."""
    counts = Counter(end for ends in set(there) for end in ends)
    whole = [name for name, count in counts.items() if count >= max(2, ALL * degree[name])]
    if len(whole) > max(1, len(degree) / 2):
        return ()
    return tuple(sorted(whole or counts))
