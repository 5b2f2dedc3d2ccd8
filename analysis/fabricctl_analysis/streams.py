"""Which of the job's TCP connections had to send again, as edges between nodes: what a lossy link
does to the job itself, also where no job clock probes it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fabricctl.store import schema
from fabricctl_analysis import coverage
from fabricctl_analysis.align import Ns, Rows
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.evidence import RESENT
from fabricctl_analysis.probes import TOGETHER_NS, Edge
from fabricctl_analysis.rows import NodeRows, clean
from fabricctl_analysis.series import Floats

# Between two rows so many segments were sent again, and a share of those sent that no healthy
# fabric has (RESENT): where busy cores acknowledge late, TCP sends some again without any loss.
LEAST_AGAIN = 5
# A retransmission timer that is so many times what it usually is, and what the round trip makes it
# at most (RFC 6298, 2.2: three times the first one), has run out twice and doubled (5.5).
BACKED_OFF, OF_ROUND_TRIP = 4, 3
MOST_TIMER_MS = 120_000  # net/tcp.h: TCP_RTO_MAX; more is forged
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
    sent = _sent(rows)
    on_rails = table["rail"] != schema.NOT_MEASURED["B"]
    table, times, sent = (one[on_rails] for one in (table, times, sent))
    found = []
    keys = table[["rail", "peer"]]
    for key in np.unique(keys)[:MAX_PEERS]:
        mine = np.flatnonzero(keys == key)
        again = np.diff(table["retransmitted"][mine].astype(np.float64))
        at = np.flatnonzero(again >= np.maximum(LEAST_AGAIN, RESENT * np.diff(sent[mine])))
        spans = [Span(int(times[mine[n]]), int(times[mine[n + 1]])) for n in at.tolist()]
        spans += _timers(times[mine], table[mine])
        spans.sort(key=lambda one: one.begin_ns)
        peer = clean(key["peer"])
        found.append(Stream(int(key["rail"]), peer, tuple(coverage.union(spans, TOGETHER_NS))))
    return tuple(found)


def _timers(times: Ns, table: Rows) -> list[Span]:
    """When connections waited for a timer that had backed off: where nothing gets through they send
    a segment or two in all. All timers before this one took nearly as long as it takes itself."""
    timer_ms, usual_ms = table["rto_ms"].astype(np.float64), float(np.median(table["rto_ms"]))
    least_ms = BACKED_OFF * np.maximum(usual_ms, OF_ROUND_TRIP * table["rtt_us"] / 1e3)
    waiting = (table["unacked"] > 0) & (timer_ms >= least_ms) & (timer_ms <= MOST_TIMER_MS)
    before_ns = ((timer_ms - usual_ms) * 1e6).astype(np.int64)
    return [Span(int(times[n] - before_ns[n]), int(times[n])) for n in np.flatnonzero(waiting)]


def _sent(rows: NodeRows) -> Floats:
    """For each row of ``tcp_flow``, segments sent so far to one remote address, if the node's
    connections share what it sends: each one's own is not counted."""
    table, times = rows.tables["tcp"], rows.real_ns["tcp"]
    instants, which, flows = np.unique(
        rows.real_ns["tcp_flow"], return_inverse=True, return_counts=True
    )
    if len(table) < 2 or not len(instants):
        return np.zeros(len(which))
    so_far = np.interp(instants, times, table["out_segments"].astype(np.float64))
    grown = np.clip(np.diff(so_far, prepend=so_far[0]), 0, None)
    return np.asarray(np.cumsum(grown / flows)[which])


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
