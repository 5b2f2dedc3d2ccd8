"""Which nodes are slower than their fleet: limits from its own distribution, and floors. Pure.

A node is as good as its best pair: bad luck with one partner, or a partner that is slow itself,
is not its fault, and a slow port is slow with everybody.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fabricctl.fleet.audit.model import Check, Status
from fabricctl.fleet.audit.pairwise import LATE, Link
from fabricctl.units import format_duration

LEAST = 4  # values that make a distribution
FEWEST = 3  # of which one can still be told to be far below the others
CERTAIN = 0.25  # of the median: below it no spread excuses a port that had seven partners
LATENCY_FACTOR = 3.0  # a switch more each way doubles it
SPREADS = 6.0  # robust standard deviations: one in 10^9 of a normal distribution


@dataclass(frozen=True)
class Floors:
    """What the site declared; 0: nothing. ``share``: of the median, the least that may be wrong."""

    bandwidth_bytes_per_s: float = 0.0
    rtt_ns: float = 0.0
    clock_ns: float = 0.0
    share: float = 0.7


def checks(
    links: Sequence[Link], nodes: Iterable[str], rails: Mapping[str, Iterable[str]], floors: Floors
) -> list[Check]:
    """Bandwidth out and in, latency, broken pairs and clocks, for each node and rail."""
    by_rail: dict[str, list[Link]] = defaultdict(list)
    for link in links:
        by_rail[link.rail].append(link)
    found: list[Check] = []
    names = sorted(nodes)
    for rail, mine in sorted(by_rail.items()):
        here = [node for node in names if rail in rails.get(node, ())]
        found += _bandwidth(mine, here, rail, "out", floors)
        found += _bandwidth(mine, here, rail, "in", floors)
        found += _latency(mine, here, rail, floors)
        found += _broken(mine, here, rail)
    found += _clocks(links, names, floors)
    return found


def low_limit(best: Sequence[float], every: Sequence[float], floor: float, share: float) -> float:
    """Below it a node's best is bad: far from the others' bests, in share and in the spread that
    single pairs have, or below the floor."""
    if len(best) < FEWEST:
        return floor
    if len(best) < LEAST:
        return max(floor, CERTAIN * statistics.median(best))
    # The spread of few bests is luck; that of all pairs says how much one measurement wavers.
    middle, spread = statistics.median(best), _spread(every)
    return max(floor, min(share * middle, max(CERTAIN * middle, middle - SPREADS * spread)))


def high_limit(best: Sequence[float], every: Sequence[float], ceiling: float) -> float | None:
    """Above it a node's best is bad; a declared ceiling wins. None: nothing is known."""
    if ceiling:
        return ceiling
    if len(best) < LEAST:
        return None
    middle = statistics.median(best)
    return max(LATENCY_FACTOR * middle, middle + SPREADS * _spread(every))


def _spread(values: Sequence[float]) -> float:
    """What a normal distribution with this median deviation has for a standard deviation."""
    middle = statistics.median(values)
    return 1.4826 * statistics.median(abs(value - middle) for value in values)


def _bandwidth(
    links: Sequence[Link], nodes: Sequence[str], rail: str, way: str, floors: Floors
) -> Iterable[Check]:
    best: dict[str, float] = {}
    every: list[float] = []
    for link in links:
        ends = ((link.node, link.out_bytes_per_s), (link.peer, link.in_bytes_per_s))
        if way == "in":
            ends = ((link.node, link.in_bytes_per_s), (link.peer, link.out_bytes_per_s))
        for node, value in ends:
            if value is not None:
                best[node] = max(best.get(node, 0.0), value)
                every.append(value)
    limit = low_limit(list(best.values()), every, floors.bandwidth_bytes_per_s, floors.share)
    said = f"at least {_mbit(limit)}" if limit else ""
    for node in nodes:
        name = f"bandwidth {way}"
        if node not in best:
            yield Check(node, "fabric", name, "not measured", "no pair of it ran", said, rail)
            continue
        value = best[node]
        status: Status = "ok" if value >= limit else "fail"
        yield Check(node, "fabric", name, status, _mbit(value), said, rail, value,
                    "B/s")  # fmt: skip


def _mbit(bytes_per_s: float) -> str:
    return f"{bytes_per_s * 8 / 1e6:.0f} Mbit/s"


def _latency(
    links: Sequence[Link], nodes: Sequence[str], rail: str, floors: Floors
) -> Iterable[Check]:
    best: dict[str, float] = {}
    for link in links:
        for node in (link.node, link.peer):
            if link.rtt_ns is not None:
                best[node] = min(best.get(node, float("inf")), float(link.rtt_ns))
    every = [float(link.rtt_ns) for link in links if link.rtt_ns is not None]
    limit = high_limit(list(best.values()), every, floors.rtt_ns)
    said = f"at most {format_duration(limit / 1e9)}" if limit else ""
    for node in nodes:
        if node not in best:
            yield Check(node, "fabric", "latency", "not measured", "no pair of it ran", said, rail)
            continue
        value = best[node]
        status: Status = "ok" if limit is None or value <= limit else "fail"
        yield Check(node, "fabric", "latency", status, f"{format_duration(value / 1e9)} there and "
                    "back", said, rail, value, "ns")  # fmt: skip


def _broken(links: Sequence[Link], nodes: Sequence[str], rail: str) -> Iterable[Check]:
    """Connections that were made and broke or stalled, at the node that most have in common."""
    mine: dict[str, list[Link]] = defaultdict(list)
    for link in links:
        for node in (link.node, link.peer) if link.why != LATE else ():
            mine[node].append(link)
    for node in nodes:
        every = mine.get(node, [])
        bad = [link for link in every if link.why]
        status: Status = "fail" if every and 2 * len(bad) > len(every) else "ok"
        said = f"{len(bad)} of {len(every)} failed" if bad else f"{len(every)} ran through"
        if bad:
            said += f": {bad[0].why}"
        yield Check(node, "fabric", "streams", status, said, "run through", rail)


def _clocks(links: Sequence[Link], nodes: Sequence[str], floors: Floors) -> Iterable[Check]:
    """Each node's CLOCK_REALTIME against the middle of the others', by the best pairs of all."""
    offsets, bounds = _offsets(links)
    if len(offsets) < 2:
        return
    middle = statistics.median(offsets.values())
    doubt = statistics.median(bounds.values())  # of the middle itself
    limit = floors.clock_ns
    for node in nodes:
        if node not in offsets:
            yield Check(node, "clock", "error", "not measured", "no pair of it ran")
            continue
        error, bound = offsets[node] - middle, bounds[node] + doubt
        # Only what is beyond doubt is wrong.
        status: Status = "fail" if limit and abs(error) - bound > limit else "ok"
        said = f"{format_duration(abs(error) / 1e9)} {'ahead' if error >= 0 else 'behind'} " \
               f"(+-{format_duration(bound / 1e9)})"  # fmt: skip
        wanted = f"within {format_duration(limit / 1e9)}" if limit else ""
        yield Check(node, "clock", "error", status, said, wanted, "", error, "ns")


def _offsets(links: Sequence[Link]) -> tuple[dict[str, float], dict[str, float]]:
    """Of each node that hangs together with the first: offset, and how far it can be off, along
    the pairs with the shortest round trips (Prim's tree)."""
    edges: dict[str, list[tuple[float, str, float]]] = defaultdict(list)
    for link in links:
        if link.offset_ns is None or link.least_rtt_ns is None:
            continue
        half = link.least_rtt_ns / 2
        edges[link.node].append((half, link.peer, float(link.offset_ns)))
        edges[link.peer].append((half, link.node, -float(link.offset_ns)))
    if not edges:
        return {}, {}
    start = max(edges, key=lambda node: len(edges[node]))
    offsets, bounds = {start: 0.0}, {start: 0.0}
    while True:
        reach = [(half, node, peer, offset) for node in offsets
                 for half, peer, offset in edges[node] if peer not in offsets]  # fmt: skip
        if not reach:
            return offsets, bounds
        half, node, peer, offset = min(reach)
        offsets[peer] = offsets[node] + offset
        bounds[peer] = bounds[node] + half
