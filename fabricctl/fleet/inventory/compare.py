"""What is not as declared, or not as on the node's peers. Pure."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from fabricctl.fleet.inventory.store import Seen

Kind = Literal["missing", "different", "not visited"]
# Each node has its own: nothing that peers could agree on.
_OWN = re.compile(r"\.(serial|mac|uuid|guid|cable)$|^gpu\.\d+\.pci$")
MIN_PEERS = 3  # of two that differ nobody knows which is wrong


@dataclass(frozen=True)
class Deviation:
    """One value that is not as it should be, and since when that has been known."""

    node: str
    key: str
    kind: Kind
    expected: str
    found: str | None
    since_real_s: int | None
    source: str  # declared, or: 7 of 8 peers


def against_declared(
    declared: Mapping[str, Mapping[str, str]],
    now: Mapping[str, Mapping[str, Seen]],
    gone: Mapping[tuple[str, str], int],
    nodes: Collection[str] | None = None,
) -> list[Deviation]:
    """``gone``: (node, key) -> when a value that is no more was found to be missing.

    A node that was never visited is said once: not known is not missing.
    """
    found: list[Deviation] = []
    for node, values in declared.items():
        if nodes is not None and node not in nodes:
            continue
        if node not in now:
            found.append(Deviation(node, "", "not visited", "", None, None, "declared"))
            continue
        for key, expected in values.items():
            seen = now[node].get(key)
            if seen is None:
                since = gone.get((node, key))
                found.append(Deviation(node, key, "missing", expected, None, since, "declared"))
            elif seen.value != expected:
                found.append(
                    Deviation(node, key, "different", expected, seen.value, seen.first_real_s,
                              "declared")
                )  # fmt: skip
    return found


def against_peers(
    groups: Mapping[str, Collection[str]], now: Mapping[str, Mapping[str, Seen]]
) -> list[Deviation]:
    """Where three quarters of a group agree and a node does not. ``groups``: name -> nodes that
    should be alike."""
    found: list[Deviation] = []
    for members in groups.values():
        here = [node for node in members if node in now]
        if len(here) < MIN_PEERS:
            continue
        keys = {key for node in here for key in now[node] if not _OWN.search(key)}
        for key in sorted(keys):
            counts = Counter(now[node][key].value if key in now[node] else None for node in here)
            value, count = counts.most_common(1)[0]
            if count == len(here) or count * 4 < len(here) * 3:
                continue
            for node in here:
                seen = now[node].get(key)
                if (seen.value if seen else None) == value:
                    continue
                source = f"{count} of {len(here)} peers"
                if value is None:
                    continue  # one has more than the others: nothing is missing there
                found.append(
                    Deviation(node, key, "different" if seen else "missing", value,
                              seen.value if seen else None, seen.first_real_s if seen else None,
                              source)
                )  # fmt: skip
    return sorted(set(found), key=lambda each: (each.node, each.key))
