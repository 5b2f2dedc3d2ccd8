"""Nodes that fail again and again: more often than chance makes of the fleet's own rate. Pure."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

CERTAIN = 0.001  # chance, over all nodes together, that a fleet of equals shows such a one
LEAST = 3  # incidents: two can be one repair that failed


@dataclass(frozen=True)
class Lemon:
    """One node. ``chance``: that any node of a fleet of equals has so many in the period."""

    node: str
    incidents: int
    kinds: Mapping[str, int]
    others: float  # incidents of the others, on average
    chance: float
    last_real_s: int

    @property
    def certain(self) -> bool:
        return self.incidents >= LEAST and self.chance < CERTAIN


def lemons(
    incidents: Iterable[tuple[str, str, int]], nodes: Sequence[str]
) -> list[Lemon]:  # fmt: skip
    """Nodes with incidents, the worst first. ``incidents``: (node, kind, when).

    Each node is held against the rate of all others: incidents that come independently of each
    other are Poisson distributed, and the chance is corrected for looking at every node.
    """
    mine: dict[str, list[tuple[str, int]]] = defaultdict(list)
    known = set(nodes)
    for node, kind, at_s in incidents:
        if node in known:
            mine[node].append((kind, at_s))
    total = sum(map(len, mine.values()))
    found = []
    for node, every in mine.items():
        count = len(every)
        # One is added for what was not seen yet: a rate of zero would make every first a lemon.
        others = (total - count + 1) / max(1, len(known) - 1)
        chance = min(1.0, len(known) * tail(count, others))
        kinds: dict[str, int] = defaultdict(int)
        for kind, _ in every:
            kinds[kind] += 1
        last = max(at_s for _, at_s in every)
        found.append(Lemon(node, count, dict(kinds), (total - count) / max(1, len(known) - 1),
                           chance, last))  # fmt: skip
    return sorted(found, key=lambda each: (each.chance, -each.incidents, each.node))


def tail(count: int, mean: float) -> float:
    """P(X >= count) of a Poisson distribution, summed from above so that small ones stay exact."""
    if count <= 0:
        return 1.0
    term = math.exp(-mean + count * math.log(mean) - math.lgamma(count + 1))
    total, at = term, count
    while at < count + 10_000:
        at += 1
        term *= mean / at
        total += term
        if term < total * 1e-12 and at > mean:
            break
    return min(1.0, total)
