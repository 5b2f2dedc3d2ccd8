"""Which of the job's TCP connections had to send again, as edges between nodes: what a lossy link
does to the job itself, also where no job clock probes it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fabricctl.store import schema
from fabricctl_analysis import coverage
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.probes import TOGETHER_NS, Edge
from fabricctl_analysis.rows import NodeRows, clean

# A second in which so many segments were sent again; a healthy fabric has one now and then.
LEAST_AGAIN = 5
MAX_PEERS = 4096  # of a node; a forged trace may name any number


@dataclass(frozen=True)
class Stream:
    """The connections to one remote address on one rail, and when they sent again."""

    rail: int
    peer: str
    again: tuple[Span, ...]


def streams(rows: NodeRows, shift_ns: int) -> tuple[Stream, ...]:
    """Of one node, on the time that all nodes share."""
    table, times = rows.tables["tcp_flow"], rows.real_ns["tcp_flow"] + shift_ns
    table, times = (one[table["rail"] != schema.NOT_MEASURED["B"]] for one in (table, times))
    found = []
    keys = table[["rail", "peer"]]
    for key in np.unique(keys)[:MAX_PEERS]:
        mine = np.flatnonzero(keys == key)
        again = np.diff(table["retransmitted"][mine].astype(np.float64))
        at = np.flatnonzero(again >= LEAST_AGAIN)
        spans = [Span(int(times[mine[n]]), int(times[mine[n + 1]])) for n in at.tolist()]
        peer = clean(key["peer"])
        found.append(Stream(int(key["rail"]), peer, tuple(coverage.union(spans, TOGETHER_NS))))
    return tuple(found)


def as_edges(
    found: Sequence[tuple[str, Sequence[Stream]]],
    addresses: Mapping[str, str],
    names: Sequence[str],
) -> Iterator[tuple[str, list[Edge]]]:
    """``addresses``: of rails, and whose they are; ``names``: the job's list of nodes."""
    place = {name: nth for nth, name in enumerate(names)}
    for node, several in found:
        edges = []
        for one in several:
            peer = place.get(addresses.get(one.peer, ""))
            if peer is not None and names[peer] != node:
                edges.append(Edge(one.rail, peer, (), again=one.again, stream=True))
        yield node, edges
