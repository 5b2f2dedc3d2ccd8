"""What was measured, as intervals: the rest is not known, and never taken for fine."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ns = NDArray[np.int64]

# Two samples further apart than this many periods lack at least one between them; the slack is
# what a busy machine delays a timer by.
GAP_PERIODS = 2.5
GAP_SLACK_NS = 100_000_000


@dataclass(frozen=True)
class Span:
    """An interval on one clock, both ends known."""

    begin_ns: int
    end_ns: int

    @property
    def length_ns(self) -> int:
        return self.end_ns - self.begin_ns


def sampling_period_ns(time_ns: Ns) -> int | None:
    """The usual distance of samples, None for fewer than two."""
    return int(np.median(np.diff(time_ns))) if len(time_ns) > 1 else None


def gap_limit_ns(period_ns: int) -> int:
    return int(period_ns * GAP_PERIODS) + GAP_SLACK_NS


def measured_spans(time_ns: Ns, limit_ns: int, apart_ns: Ns | None = None) -> list[Span]:
    """Intervals in which samples follow each other closer than ``limit_ns``; ``apart_ns`` for
    thinned rows: the longest time between two samples since the row before."""
    if not len(time_ns):
        return []
    ends = np.flatnonzero((np.diff(time_ns) if apart_ns is None else apart_ns[1:]) > limit_ns)
    begins = np.concatenate([[0], ends + 1])
    ends = np.concatenate([ends, [len(time_ns) - 1]])
    return [Span(int(time_ns[b]), int(time_ns[e])) for b, e in zip(begins, ends, strict=True)]


def union(spans: Iterable[Span], limit_ns: int = 0) -> list[Span]:
    """Spans that overlap, or are no further apart than ``limit_ns``, as one."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda one: one.begin_ns):
        if found and span.begin_ns - found[-1].end_ns <= limit_ns:
            found[-1] = Span(found[-1].begin_ns, max(found[-1].end_ns, span.end_ns))
        else:
            found.append(span)
    return found


def gaps(spans: list[Span], whole: Span, limit_ns: int) -> list[Span]:
    """What ``spans`` leave uncovered of ``whole``, edges included when they exceed the limit."""
    inner = [Span(a.end_ns, b.begin_ns) for a, b in pairwise(spans)]
    if not spans:
        return [whole] if whole.length_ns > 0 else []
    edges = [Span(whole.begin_ns, spans[0].begin_ns), Span(spans[-1].end_ns, whole.end_ns)]
    found = [edges[0], *inner, edges[1]]
    return [gap for gap in found if gap.length_ns > limit_ns]
