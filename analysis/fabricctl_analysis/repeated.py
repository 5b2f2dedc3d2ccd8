"""Findings that come again and again, as one each: for people, who read the begin of a list.

The JSON report has every one of them.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from fabricctl_analysis.model import Finding, Severity
from fabricctl_analysis.names import folded
from fabricctl_analysis.when import When
from fabricctl_analysis.windows import FOREVER_NS

# Of one kind; more are told by how many they are and by the worst of them.
MANY = 4
# Sums of the whole job: told wherever a list is cut.
SUMS = ("ettr", "saved")
_NAMES = 60  # characters of a list of nodes

_WORDS = {
    "host_silent": "a host stood still",
    "stall": "ranks waited",
    "restart": "the program or a node of it died",
    "gap": "nodes were not measured",
    "link_down": "a rail was down",
    "link_flapping": "a rail flapped",
    "link_missed": "a rail changed its carrier unseen",
    "errors": "a rail counted errors",
    "note": "a node noted something",
    "clock_step": "a clock was set",
    "clock_lost": "a node had no job time",
    "moved": "a rail was left",
    "paths_off": "link failover was not at work",
}


def readable(found: Sequence[Finding], when: When) -> list[Finding]:
    """In the order given; the first of many of one kind stands for all, with how many they are,
    from when to when, where, and the worst, which is the longest."""
    of_kind: dict[tuple[Severity, str], list[Finding]] = defaultdict(list)
    for one in found:
        of_kind[one.severity, one.kind].append(one)
    return [one for same in of_kind.values() for one in _told(same, when)]


def first(found: Sequence[Finding], most: int) -> list[Finding]:
    """At most so many, and the job's sums among them."""
    if len(found) <= most:
        return list(found)
    sums = [one for one in found if one.kind in SUMS]
    others = [one for one in found if one.kind not in SUMS]
    return [*others[: max(0, most - len(sums))], *sums[:most]]


def _told(same: Sequence[Finding], when: When) -> Iterator[Finding]:
    if len(same) <= MANY or same[0].kind in SUMS:
        yield from same
        return
    worst = max(same, key=_length_ns)
    nodes = tuple(dict.fromkeys(name for one in same for name in one.nodes))
    rails = {one.rail for one in same}
    begins = [one.begin_ns for one in same if one.begin_ns is not None]
    ends = [one.end_ns for one in same if one.end_ns is not None]
    text = f"{len(same)} times {_WORDS.get(worst.kind, worst.kind.replace('_', ' '))}"
    if nodes:
        names = folded(nodes)
        text += f" ({names})" if len(names) <= _NAMES else f" ({len(nodes)} nodes)"
    if begins:
        text += f", {when.clock(min(begins), 1)} to {when.clock(max([*begins, *ends]), 1)}"
    text += f". The {'longest' if _length_ns(worst) else 'first'}: {worst.text}"
    yield Finding(
        worst.severity, worst.kind, nodes, rails.pop() if len(rails) == 1 else None,
        min(begins, default=None), max(ends, default=None), text,
    )  # fmt: skip


def _length_ns(one: Finding) -> int:
    """What has no end lasts longest, what has no time not at all."""
    if one.begin_ns is None:
        return 0
    return FOREVER_NS if one.end_ns is None else one.end_ns - one.begin_ns
