"""A time line in a dozen characters."""

import numpy as np

from fabricctl_analysis.coverage import Span
from fabricctl_analysis.model import RailSummary
from fabricctl_analysis.series import Floats, Series

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.-:=+*#"
DOWN, UNKNOWN = "x", "?"


def traffic(rail: RailSummary, whole: Span, bins: int) -> Floats:
    """Mean bytes a second, both directions together, in equal parts of the job; NaN: unknown."""
    return binned(rail.series["rx"], whole, bins) + binned(rail.series["tx"], whole, bins)


def binned(series: Series, whole: Span, bins: int) -> Floats:
    """Mean over each of ``bins`` equal parts, by what was measured of it."""
    edges = np.linspace(whole.begin_ns, whole.end_ns, bins + 1)
    if not len(series.mean):
        return np.full(bins, np.nan)
    known = ~np.isnan(series.mean)
    length = (series.end_ns - series.begin_ns).astype(np.float64)
    knots = np.column_stack([series.begin_ns, series.end_ns]).ravel().astype(np.float64)
    amount = _running(np.where(known, length * np.nan_to_num(series.mean), 0.0))
    measured = _running(np.where(known, length, 0.0))
    amounts = np.diff(np.interp(edges, knots, amount))
    times = np.diff(np.interp(edges, knots, measured))
    mean = np.full(bins, np.nan)
    np.divide(amounts, times, out=mean, where=times > 0)
    return mean


def _running(values: Floats) -> Floats:
    """Sums before and after each interval, in the order of the knots."""
    after = np.cumsum(values)
    return np.column_stack([after - values, after]).ravel()


def sparkline(values: Floats, highest: float, rail: RailSummary, whole: Span, blocks: str) -> str:
    """One character a value; a part of the job in which the rail was down shows ``x``."""
    bins = len(values)
    chars = []
    for nth, value in enumerate(values):
        begin = whole.begin_ns + whole.length_ns * nth // bins
        end = whole.begin_ns + whole.length_ns * (nth + 1) // bins
        if _down_within(rail, begin, end):
            chars.append(DOWN)
        elif np.isnan(value):
            chars.append(UNKNOWN)
        else:
            level = int(value / highest * len(blocks)) if highest > 0 else 0
            chars.append(blocks[min(max(level, 0), len(blocks) - 1)])
    return "".join(chars)


def _down_within(rail: RailSummary, begin_ns: int, end_ns: int) -> bool:
    """Whether the rail was down for sure at some time of that part."""
    for down in rail.link.downs:
        up_ns = rail.measured_end_ns if down.end_ns is None else down.end_ns - down.end_error_ns
        if down.begin_ns < end_ns and max(up_ns, down.begin_ns) >= begin_ns:
            return True
    return False
