"""Where packets were lost, from the job clock's probes: each edge of the probe graph is measured on
its own, and a node whose edges all lose while others do not is where it happens.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fabricctl_analysis import coverage
from fabricctl_analysis.activity import Grid
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.evidence import Evidence
from fabricctl_analysis.rows import NodeRows

# Between two rows of an edge: more than this share, and more probes than are under way at a time.
LOST, UNDER_WAY = 0.05, 4
# Rows come once a second; what is closer is one stretch of loss.
TOGETHER_NS = 2_500_000_000
# A node is named when so large a share of its edges loses.
ALL = 0.75


@dataclass(frozen=True)
class Edge:
    """One edge of a node's probe graph on one rail, and when it lost packets; ``peer`` is a place
    in the job's list of nodes."""

    rail: int
    peer: int
    lost: tuple[Span, ...]


def edges(rows: NodeRows, shift_ns: int) -> tuple[Edge, ...]:
    """The edges that this node owns, on the time that all nodes share."""
    table, times = rows.tables["delay"], rows.real_ns["delay"] + shift_ns
    if len(table) < 2:
        return ()
    order = np.lexsort((times, table["size_class"], table["inbound"], table["peer"], table["rail"]))
    table, times = table[order], times[order]
    same = np.ones(len(table) - 1, dtype=bool)
    for name in ("rail", "peer", "inbound", "size_class"):
        same &= table[name][1:] == table[name][:-1]
    sent, arrived = (np.diff(table[name].astype(np.int64)) for name in ("sent", "arrived"))
    missing = sent - arrived
    lossy = np.flatnonzero(same & (sent > 0) & (missing > np.maximum(LOST * sent, UNDER_WAY)))
    spans: dict[tuple[int, int], list[Span]] = {
        (int(rail), int(peer)): []
        for rail, peer in np.unique(np.stack([table["rail"], table["peer"]]), axis=1).T
    }
    for at in lossy.tolist():
        key = (int(table["rail"][at]), int(table["peer"][at]))
        spans[key].append(Span(int(times[at]), int(times[at + 1])))
    return tuple(
        Edge(rail, peer, tuple(coverage.union(found, TOGETHER_NS)))
        for (rail, peer), found in spans.items()
    )


def losses(
    of_nodes: Iterable[tuple[str, Sequence[Edge]]], names: Sequence[str], grid: Grid
) -> Iterator[Evidence]:
    """Stretches of loss with the nodes whose links lose; ``names``: the job's list of nodes."""
    degree: dict[tuple[int, str], int] = defaultdict(int)
    lossy: dict[tuple[int, int], list[tuple[str, str]]] = defaultdict(list)
    for node, owned in of_nodes:
        for edge in owned:
            if edge.peer >= len(names):
                continue
            ends = (node, names[edge.peer])
            for end in ends:
                degree[edge.rail, end] += 1
            for span in edge.lost:
                touched = grid.touched(span.begin_ns, span.end_ns)
                for window in range(touched.start, touched.stop):
                    lossy[edge.rail, window].append(ends)
    found: dict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(list)
    for (rail, window), there in sorted(lossy.items()):
        found[rail, _place(rail, there, degree)].append(window)
    for (rail, nodes), windows in found.items():
        at = np.array(sorted(set(windows)))
        for group in np.split(at, np.flatnonzero(np.diff(at) > 2) + 1):
            where = " and ".join(nodes[:4]) if nodes else "many nodes: its switch"
            text = f"probes were lost on rail r{rail} of {where}"
            span = grid.span(int(group[0]), int(group[-1]))
            yield Evidence("queueing", nodes, rail, span, 1.0, text)


def _place(
    rail: int, there: Sequence[tuple[str, str]], degree: dict[tuple[int, str], int]
) -> tuple[str, ...]:
    """The nodes that explain the lossy edges: those that lose on all of theirs; without any the
    ends themselves; none when it is most of the rail."""
    counts: dict[str, int] = defaultdict(int)
    for ends in set(there):
        for end in ends:
            counts[end] += 1
    whole = [n for n, count in counts.items() if count >= max(2, ALL * degree[rail, n])]
    nodes = sum(1 for known, _ in degree if known == rail)
    if len(whole) > max(1, nodes / 2):
        return ()
    return tuple(sorted(whole or counts))
