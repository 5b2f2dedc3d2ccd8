"""From what pairs of nodes saw of each other to whose fault it is. Pure."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from fabricctl.fleet.audit.model import Check, Status
from fabricctl.fleet.audit.probes import Pair
from fabricctl.units import format_duration

LOSS_LIMIT = 0.02  # of a node's probes on a rail
LOSS_LEAST = 4  # probes: less is chance
RTT_FACTOR = 10.0  # times the median of all pairs of the rail
RTT_FLOOR_NS = 2_000_000  # less is not told: scheduling of busy hosts


def checks(
    pairs: Sequence[Pair], nodes: Iterable[str], rails: Mapping[str, Iterable[str]]
) -> list[Check]:
    """For each node and rail: reach, loss, large packets, round trip.

    A pair that is bad is the fault of the node that most bad pairs have in common; what is left is
    the pair's own. ``rails``: node -> rails that it has an address on.
    """
    found: list[Check] = []
    by_rail: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_rail[pair.rail].append(pair)
    silent = {node for node in nodes if not any(pair.node == node for pair in pairs)}
    for rail, mine in sorted(by_rail.items()):
        here = sorted(node for node in nodes if rail in rails.get(node, ()) and node not in silent)
        whole = [pair for pair in mine if pair.peer not in silent]
        known: set[str] = set()  # guilty of something on this rail: dead paths to them are theirs
        for kind in ("loss", "large", "round trip", "reach"):
            guilty, values = _guilty(kind, whole, known)
            known |= guilty
            for node in here:
                status: Status = "fail" if node in guilty else "ok"
                said = values.get(node, "fine")
                found.append(Check(node, "fabric", kind, status, said, _LIMITS[kind], rail))
    return found


_LIMITS = {
    "reach": "answers",
    "loss": f"below {100 * LOSS_LIMIT:g} %",
    "large": f"below {100 * LOSS_LIMIT:g} % more than of small ones",
    "round trip": f"below {RTT_FACTOR:g} times the rail's median",
}


def _guilty(
    kind: str, pairs: Sequence[Pair], known: Collection[str]
) -> tuple[set[str], dict[str, str]]:
    """The nodes at fault, and what was seen of them. ``known``: those of other kinds.

    A rail that comes and goes answers some and, by the luck of who asks for its address when, not
    a single probe of others: those are not at fault.
    """
    left = list(pairs)
    guilty: set[str] = set()
    values: dict[str, str] = {}
    while True:
        # Anew each time: what a node lost with a guilty one says nothing of its other pairs.
        bad = _bad(kind, left)
        shares = _shares(kind, left, bad)
        if not shares:
            return guilty, values
        node, (share, value) = max(
            shares.items(), key=lambda item: (item[1][0], item[0] in known, item[0])
        )
        if share < 0.5:
            break
        guilty.add(node)
        values[node] = value
        left = [pair for pair in left if node not in (pair.node, pair.peer)]
    for pair in left:  # one path alone: both ends are told. Of losses a few may be chance.
        if pair in bad and kind == "reach" and not {pair.node, pair.peer} & set(known):
            for node in (pair.node, pair.peer):
                guilty.add(node)
                values[node] = f"{pair.node} to {pair.peer}: {_said(kind, [pair])}"
    return guilty, values


def _shares(
    kind: str, pairs: Sequence[Pair], bad: set[Pair]
) -> dict[str, tuple[float, str]]:  # fmt: skip
    """Node -> share of its pairs that are bad, and what they saw together; only with bad ones."""
    mine: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        mine[pair.node].append(pair)
        mine[pair.peer].append(pair)
    found = {}
    for node, every in mine.items():
        here = [pair for pair in every if pair in bad]
        if here:
            found[node] = (len(here) / len(every), _said(kind, here))
    return found


def _bad(kind: str, pairs: Sequence[Pair]) -> set[Pair]:
    alive = [pair for pair in pairs if pair.small_answered]
    if kind == "reach":
        return {pair for pair in pairs if not pair.small_answered}
    if kind == "round trip":
        times = sorted(pair.rtt_ns for pair in alive if pair.rtt_ns is not None)
        limit = max(RTT_FLOOR_NS, RTT_FACTOR * times[len(times) // 2]) if times else 0
        return {pair for pair in alive if (pair.rtt_ns or 0) > limit}
    # Few probes a pair: what a node loses in all tells, and then those pairs of it that lost any.
    bad: set[Pair] = set()
    for node in {end for pair in alive for end in (pair.node, pair.peer)}:
        mine = [pair for pair in alive if node in (pair.node, pair.peer)]
        small = sum(pair.small_sent - pair.small_answered for pair in mine)
        lost = sum(_lost(kind, pair) for pair in mine)
        sent = sum(pair.small_sent if kind == "loss" else pair.large_sent for pair in mine)
        # What is lost of large ones beyond the small ones must be more than chance makes of it.
        chance = 0.0 if kind == "loss" else 3 * math.sqrt(max(0, lost) + 2 * small)
        if lost >= LOSS_LEAST and lost > LOSS_LIMIT * sent + chance:
            bad |= {pair for pair in mine if _lost(kind, pair) > 0}
    return bad


def _lost(kind: str, pair: Pair) -> int:
    small = pair.small_sent - pair.small_answered
    if kind == "loss":
        return small
    return pair.large_sent - pair.large_answered - small


def _said(kind: str, pairs: Sequence[Pair]) -> str:
    if kind == "reach":
        return f"{len(pairs)} paths without an answer"
    if kind == "round trip":
        most = max(pair.rtt_ns or 0 for pair in pairs)
        return f"up to {format_duration(most / 1e9)}"
    lost = sum(_lost(kind, pair) for pair in pairs)
    sent = sum(pair.small_sent if kind == "loss" else pair.large_sent for pair in pairs)
    return f"{lost} of {sent} lost"
