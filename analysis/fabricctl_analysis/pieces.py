"""Slow stretches of a job in pieces of one explanation each: one cause, one place."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise, takewhile
from typing import TypeVar

import numpy as np

from fabricctl_analysis.coverage import Span
from fabricctl_analysis.evidence import ORDER, Evidence
from fabricctl_analysis.model import Cause
from fabricctl_analysis.pace import Pace, slow_windows
from fabricctl_analysis.windows import Grid

# What is queued when a trouble ends takes some windows.
AFTER = 2
SURE = ("restart", "link_down", "host_stopped", "path")
# After these nothing may get through for as long again as they lasted: a stream whose
# retransmission timer had backed off sends next when it has run out (RFC 6298, 5.5).
LASTING = (*SURE, "queueing")
# What such a trouble does to the network: where it was, and from then on.
SYMPTOMS = ("queueing", "rail_slow")

_Label = TypeVar("_Label")


@dataclass(frozen=True)
class Piece:
    """Windows of one slow stretch that have one explanation."""

    cause: Cause
    windows: list[int]
    evidence: list[Evidence]
    others: list[Evidence]  # of other causes, at the same time


def pieces(found: Pace, evidence: Sequence[Evidence], grid: Grid) -> Iterator[Piece]:
    at = _by_window(evidence, grid)
    known = np.flatnonzero(found.known)
    for first, last in slow_windows(found):
        edge: Cause | None = None
        if first <= known[0] + 1 or last >= known[-1] - 1:
            edge = "start_end"
        yield from _cut(first, last, at, found, edge)


def _by_window(evidence: Sequence[Evidence], grid: Grid) -> dict[int, list[Evidence]]:
    at: dict[int, list[Evidence]] = defaultdict(list)
    for one in evidence:
        touched = grid.touched(one.span.begin_ns, one.span.end_ns)
        for window in range(touched.start, touched.stop):
            at[window].append(one)
    for trouble, end_ns in _outlasted(evidence, grid):
        touched = grid.touched(trouble.span.end_ns, end_ns)
        for window in range(touched.start, touched.stop):
            if trouble not in at[window]:
                at[window].append(trouble)
    return at


def _outlasted(evidence: Sequence[Evidence], grid: Grid) -> Iterator[tuple[Evidence, int]]:
    """Troubles whose symptoms go on when they have ended, and until when: packets under way are
    lost, connections wait for their timers. That is no other trouble."""
    troubles = [one for one in evidence if one.cause in SURE]
    for symptom in (one for one in evidence if one.cause in SYMPTOMS):
        for one in troubles:
            begun_ns = symptom.span.begin_ns
            early_ns = one.span.begin_ns - AFTER * grid.width_ns
            late_ns = one.span.end_ns + grid.width_ns
            if (
                early_ns <= begun_ns <= late_ns
                and symptom.span.end_ns > one.span.end_ns
                and _same_place(one, symptom)
            ):
                yield one, symptom.span.end_ns


def _same_place(one: Evidence, other: Evidence) -> bool:
    rails = {one.rail, other.rail}
    both = set(one.nodes) & set(other.nodes) or not one.nodes or not other.nodes
    return bool(both) and (len(rails) == 1 or None in rails)


def _cut(
    first: int, last: int, at: dict[int, list[Evidence]], found: Pace, edge: Cause | None
) -> Iterator[Piece]:
    """One slow stretch in pieces of one cause each."""
    # Smoothing over an iteration shows a loss that much before and after it happened.
    lead = 1 + round((found.period or 0) / 2)
    causes = [_best(at.get(window, [])) for window in range(first, last + 1)]
    if edge is not None:  # what was there for a moment does not explain how a step begins or ends
        nothing = causes.count(None)
        causes = [
            cause if cause in SURE or causes.count(cause) >= nothing else None for cause in causes
        ]
    causes = _settled(_spread(causes, lead, at, first))
    for begin, end in _runs(causes):
        cause = causes[begin] or edge or "unknown"
        for first_of, last_of in _places(first + begin, first + end - 1, cause, at):
            windows = [w for w in range(first_of, last_of + 1) if found.known[w]]
            near = range(first_of - lead, last_of + 2)
            there = {id(one): one for w in near for one in at.get(w, [])}.values()
            mine = [one for one in there if one.cause == cause]
            if windows:
                yield Piece(cause, windows, mine, [one for one in there if one.cause != cause])


def _places(
    first: int, last: int, cause: Cause, at: dict[int, list[Evidence]]
) -> Iterator[tuple[int, int]]:
    """A stretch of one cause, cut where it goes on somewhere else."""
    names: list[str | None] = []
    for window in range(first, last + 1):
        weights: dict[str, float] = defaultdict(float)
        there = [one for one in at.get(window, ()) if one.cause == cause]
        for one in [one for one in there if one.rail is not None] or there:
            for name in one.nodes:
                weights[name] += one.strength / len(one.nodes)
        before = names[-1] if names else None
        most = max(weights.values(), default=0.0)
        heaviest = [name for name, weight in weights.items() if weight >= most]
        names.append(before if before in heaviest or not heaviest else heaviest[0])
    known = next((name for name in names if name is not None), None)
    names = _settled([name or known for name in names])
    for begin, end in _runs(names):
        yield first + begin, first + end - 1


def _runs(labels: Sequence[object]) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of equal labels."""
    changes = [n for n in range(1, len(labels)) if labels[n] != labels[n - 1]]
    yield from pairwise([0, *changes, len(labels)])


def _settled(labels: list[_Label]) -> list[_Label]:
    """Without runs of one or two windows beside a longer one: the begin and end of a trouble look
    like another for a moment."""
    while True:
        runs = [(labels[begin], end - begin) for begin, end in _runs(labels)]
        settled: list[_Label] = []
        for nth, (label, length) in enumerate(runs):
            near = [runs[n] for n in (nth - 1, nth + 1) if 0 <= n < len(runs)]
            longest = max(near, key=lambda run: run[1], default=(label, 0))
            short = length <= AFTER and longest[1] > length and label not in SURE
            settled += [longest[0] if short else label] * length
        if settled == labels:
            return settled
        labels = settled


def _best(there: Sequence[Evidence]) -> Cause | None:
    causes = {one.cause for one in there if one.strength > 0}
    return next((cause for cause in ORDER if cause in causes), None)


def _spread(
    causes: list[Cause | None], lead: int, at: dict[int, list[Evidence]], first: int
) -> list[Cause | None]:
    """A cause explains what follows it for a while, and the windows just before it.

    While connections come out of their timers one rank goes on before another, and is waited for:
    that is part of what stopped them, as long as it takes no longer than they may need.
    """
    spread = list(causes)
    left, current = 0, None
    for nth, cause in enumerate(causes):
        late = _run(at, cause, count(first + nth)) if cause == "rank_slow" else 0
        if cause is not None and not (current in LASTING and 0 < late <= left):
            left, current = AFTER, cause
            if cause in LASTING:
                left = max(left, _run(at, cause, range(first + nth, -1, -1)))
        elif left > 0:
            spread[nth], left = current, left - 1
    for nth in range(len(spread) - 1, -1, -1):
        ahead = [cause for cause in spread[nth + 1 : nth + 1 + lead] if cause is not None]
        if spread[nth] is None and ahead:
            spread[nth] = ahead[0]
    return spread


def _run(at: dict[int, list[Evidence]], cause: Cause, windows: Iterable[int]) -> int:
    """How many of the windows have evidence of a cause before the first that has none."""
    return sum(1 for _ in takewhile(partial(_has, at, cause), windows))


def _has(at: dict[int, list[Evidence]], cause: Cause, window: int) -> bool:
    return any(one.cause == cause for one in at.get(window, ()))


def telling(evidence: Sequence[Evidence], span: Span) -> tuple[list[Evidence], tuple[str, ...]]:
    """The evidence that places the cause, and the nodes: what knows the rail goes before what does
    not, what was there for most of the time before what was for a moment, and what names one node
    before what names some."""
    exact = [one for one in evidence if one.rail is not None] or list(evidence)
    of_rail: dict[int | None, float] = defaultdict(float)
    for one in exact:
        of_rail[one.rail] += _weight(one, span)
    heaviest = max(of_rail.values(), default=0.0)
    exact = [one for one in exact if of_rail[one.rail] >= heaviest / 2]
    weights: dict[str, float] = defaultdict(float)
    for one in exact:
        for name in one.nodes:
            weights[name] += _weight(one, span) / len(one.nodes)
    most = max(weights.values(), default=0.0)
    names = tuple(name for name, weight in weights.items() if weight >= most / 2)
    mine = [one for one in exact if not one.nodes or set(one.nodes) & set(names)]
    return mine, names


def _weight(one: Evidence, span: Span) -> float:
    shared = min(one.span.end_ns, span.end_ns) - max(one.span.begin_ns, span.begin_ns)
    return one.strength * max(shared, 1)
