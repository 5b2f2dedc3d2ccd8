"""Where jobs lie on the fabric, what that costs them, and what topology the fabric shows. Pure."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fabricctl import hostlist
from fabricctl.slurm.topology import Switch

GAP = 1.25  # times: a step between round trips below it is noise
MEMBERS = 0.9  # share of a group's own pairs that must be near, else it is none


@dataclass(frozen=True)
class Lie:
    """How a set of nodes lies. ``fewest``: switches that so many nodes need at least here."""

    leaves: Mapping[str, tuple[str, ...]]  # switch -> nodes; "" those that no switch has
    fewest: int
    across: float  # share of the pairs of nodes that cross switches
    across_best: float  # the same, were they placed as well as an empty cluster lets them


def leaf_of(switches: Sequence[Switch]) -> dict[str, str]:
    """Node -> its leaf switch."""
    return {node: each.name for each in switches if not each.level for node in each.nodes}


def most_under_one(switches: Sequence[Switch]) -> int:
    """Nodes of the largest leaf switch; 0 where nothing is known of switches."""
    return max(Counter(leaf_of(switches).values()).values(), default=0)


def lie(nodes: Sequence[str], switches: Sequence[Switch]) -> Lie:
    """Of a job's nodes, against the best that this fabric has."""
    leaf = leaf_of(switches)
    groups: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        groups[leaf.get(node, "")].append(node)
    sizes = sorted(Counter(leaf.values()).values(), reverse=True)
    best: list[int] = []
    left = len(nodes)
    for size in sizes:
        if left <= 0:
            break
        best.append(min(size, left))
        left -= size
    if left > 0:
        best.append(left)
    return Lie({name: tuple(mine) for name, mine in sorted(groups.items())}, len(best),
               _across([len(mine) for mine in groups.values()]), _across(best))  # fmt: skip


def _across(sizes: Sequence[int]) -> float:
    total = sum(sizes)
    pairs = total * (total - 1) / 2
    return 0.0 if not pairs else 1 - sum(size * (size - 1) / 2 for size in sizes) / pairs


def spares(
    nodes: Collection[str], free: Collection[str], switches: Sequence[Switch], count: int
) -> list[str]:
    """Free nodes to be spares of a job, in failure groups that hold least of it.

    What takes a switch down must not take the ranks and their spares together; among equals the
    next one comes from another group than the one before.
    """
    leaf = leaf_of(switches)
    load = Counter(leaf.get(node, "") for node in nodes)
    chosen: list[str] = []
    taken: Counter[str] = Counter()
    rest = hostlist.expand(hostlist.fold(set(free) - set(nodes)))
    while rest and len(chosen) < count:
        best = min(rest, key=lambda node: (load[leaf.get(node, "")], taken[leaf.get(node, "")]))
        chosen.append(best)
        taken[leaf.get(best, "")] += 1
        rest.remove(best)
    return chosen


def hint(count: int, usable: Collection[str], switches: Sequence[Switch]) -> tuple[int, int] | None:
    """``(fewest switches for so many usable nodes, free nodes of the largest)``; None: no topology
    or not enough nodes."""
    leaf = leaf_of(switches)
    sizes = sorted(Counter(leaf[node] for node in usable if node in leaf).values(), reverse=True)
    total = 0
    for at, size in enumerate(sizes, 1):
        total += size
        if total >= count:
            return at, sizes[0]
    return None


def groups_of(rtts: Iterable[tuple[str, str, float]]) -> list[list[str]] | None:
    """Nodes that lie behind one switch, by the round trips of pairs; None: no structure is seen.

    The largest step in the sorted round trips parts near from far; groups are what near pairs hold
    together, and are believed only where the pairs within them are near indeed.
    """
    best: dict[tuple[str, str], float] = {}
    for a, b, rtt in rtts:
        key = (min(a, b), max(a, b))
        best[key] = min(best.get(key, math.inf), rtt)
    values = sorted(best.values())
    neighbours = enumerate(itertools.pairwise(values))
    steps = [(high / low, at) for at, (low, high) in neighbours if low > 0]
    if not steps:
        return None
    step, at = max(steps)
    if step < GAP:
        return None
    limit = values[at]
    parent: dict[str, str] = {node: node for pair in best for node in pair}

    def root(node: str) -> str:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for (a, b), rtt in best.items():
        if rtt <= limit:
            parent[root(a)] = root(b)
    groups: dict[str, list[str]] = defaultdict(list)
    for node in sorted(parent):
        groups[root(node)].append(node)
    near = [rtt <= limit for (a, b), rtt in best.items() if root(a) == root(b)]
    if len(groups) < 2 or sum(near) < MEMBERS * len(near):
        return None
    return sorted(groups.values())


def topology_conf(groups: Sequence[Sequence[str]], prefix: str = "leaf") -> str:
    """Slurm's topology.conf of two levels."""
    lines = ["# By `fabricctl place --topology`, from measured round trips: check it before use."]
    names = [f"{prefix}{at}" for at in range(1, len(groups) + 1)]
    lines += [f"SwitchName={name} Nodes={hostlist.fold(group)}"
              for name, group in zip(names, groups, strict=True)]  # fmt: skip
    lines.append(f"SwitchName=spine Switches={hostlist.fold(names)}")
    return "\n".join(lines) + "\n"
