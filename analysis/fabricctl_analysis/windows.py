"""Equal parts of the job's time, and what of a counter or of intervals lies in each.

A window of which less than half was measured has NaN: not zero, and never taken for a stall.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fabricctl_analysis.counters import Increments
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.series import Floats

MAX_WINDOWS = 100_000
FOREVER_NS = 1 << 62


@dataclass(frozen=True)
class Grid:
    """``count`` windows of ``width_ns`` from ``begin_ns`` on; the last may reach beyond the job."""

    begin_ns: int
    width_ns: int
    count: int

    @classmethod
    def over(cls, whole: Span, period_ns: int) -> "Grid":
        """No finer than the samples and than what is good for."""
        width = max(period_ns, -(-whole.length_ns // MAX_WINDOWS), 1_000_000)
        return cls(whole.begin_ns, width, max(1, -(-whole.length_ns // width)))

    @property
    def edges_ns(self) -> NDArray[np.int64]:
        return self.begin_ns + np.arange(self.count + 1, dtype=np.int64) * self.width_ns

    def span(self, first: int, last: int) -> Span:
        """From the begin of one window to the end of another."""
        at = self.begin_ns + first * self.width_ns
        return Span(at, self.begin_ns + (last + 1) * self.width_ns)

    def touched(self, begin_ns: int, end_ns: int) -> slice:
        """The windows that share time with an interval."""
        first = (begin_ns - self.begin_ns) // self.width_ns
        last = -(-(end_ns - self.begin_ns) // self.width_ns)
        return slice(min(max(0, first), self.count), min(max(0, last, first + 1), self.count))


def windowed(counter: Increments, grid: Grid, limit_ns: int) -> Floats:
    """What a counter grew by in each window, as if all of the window had been measured."""
    known = (counter.longest_ns <= limit_ns) & ~np.isnan(counter.amount)
    if not known.any():
        return np.full(grid.count, np.nan)
    knots = np.column_stack([counter.begin_ns, counter.end_ns]).ravel().astype(np.float64)
    length = (counter.end_ns - counter.begin_ns).astype(np.float64)
    amounts = _binned(knots, np.where(known, np.nan_to_num(counter.amount), 0.0), grid)
    share = _binned(knots, np.where(known, length, 0.0), grid) / grid.width_ns
    result = np.full(grid.count, np.nan)
    np.divide(amounts, share, out=result, where=share >= 0.5)
    return result


def shares(spans: Sequence[Span], grid: Grid) -> Floats:
    """Share of each window that the spans, which do not overlap, cover."""
    if not spans:
        return np.zeros(grid.count)
    knots = np.array([(span.begin_ns, span.end_ns) for span in spans], np.float64).ravel()
    lengths = np.array([span.length_ns for span in spans], np.float64)
    covered: Floats = np.clip(_binned(knots, lengths, grid) / grid.width_ns, 0.0, 1.0)
    return covered


def _binned(knots: Floats, amounts: Floats, grid: Grid) -> Floats:
    after = np.cumsum(amounts)
    running = np.column_stack([after - amounts, after]).ravel()
    return np.diff(np.interp(grid.edges_ns.astype(np.float64), knots, running))
