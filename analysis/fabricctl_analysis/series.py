"""Time series small enough to draw: every bin keeps its mean, lowest and highest value."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ns = NDArray[np.int64]

# Points a plot is drawn from: about one a pixel of a wide screen; more cannot be seen.
BINS = 800


@dataclass(frozen=True)
class Series:
    """Values that hold from ``begin_ns`` to ``end_ns``; NaN where nothing was measured.

    ``low`` and ``high`` are the extremes of what was measured within, equal to ``mean`` as long
    as nothing had to be put together.
    """

    begin_ns: Ns
    end_ns: Ns
    mean: Floats
    low: Floats
    high: Floats


def reduce_series(
    begin_ns: Ns,
    end_ns: Ns,
    values: Floats,
    longest_ns: int,
    apart_ns: Ns | None = None,
    *,
    bins: int = BINS,
    peaks: Floats | None = None,
) -> Series:
    """At most ``bins`` points for drawing.

    An interval longer than ``longest_ns``, or with samples further apart (``apart_ns``, for thinned
    rows), is a gap in measurement: its value becomes NaN. ``peaks`` are the highest values within.
    The mean is weighted with the lengths of the intervals.
    """
    gap = (end_ns - begin_ns if apart_ns is None else apart_ns) > longest_ns
    values = np.where(gap, np.nan, values)
    tops = values if peaks is None else np.where(gap | np.isnan(peaks), values, peaks)
    if len(values) <= bins:
        return Series(begin_ns, end_ns, values, values, tops)
    edges = np.linspace(begin_ns[0], end_ns[-1], bins + 1).astype(np.int64)
    bin_of = np.clip(np.searchsorted(edges, end_ns, side="left") - 1, 0, bins - 1)
    weight = np.where(np.isnan(values), 0.0, (end_ns - begin_ns).astype(np.float64))
    weights = np.bincount(bin_of, weight, bins)
    sums = np.bincount(bin_of, weight * np.nan_to_num(values), bins)
    mean = np.full(bins, np.nan)
    np.divide(sums, weights, out=mean, where=weights > 0)
    low, high = np.full(bins, np.inf), np.full(bins, -np.inf)
    known = ~np.isnan(values)
    np.minimum.at(low, bin_of[known], values[known])
    np.maximum.at(high, bin_of[known], tops[known])
    empty = weights == 0
    low[empty] = high[empty] = np.nan
    return Series(edges[:-1], edges[1:], mean, low, high)


def as_intervals(time_ns: Ns, values: Floats) -> tuple[Ns, Ns, Floats]:
    """Readings of a gauge as intervals that end with them; the first reading has none."""
    return time_ns[:-1], time_ns[1:], values[1:]
