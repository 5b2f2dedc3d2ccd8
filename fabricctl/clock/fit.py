"""One edge, one window: offset and drift between two clocks from delays in both directions.

All samples a to b lie above the line ``offset + slope * t``, all samples b to a below it. The
line sought is the middle of the widest band that separates them (the hard-margin SVM of Huygens,
section 4.2), refined by least squares on the samples near its edges. All edges are fitted at once
on padded arrays; times are seconds from the window's centre, in already-corrected time, so that
what remains to be found is small.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

_STEPS = 40  # cutting planes: 4-8 are used, each side moves in every step
DRIFT_MAX_PPB = 5e5  # of two clocks against each other; quartz is within 100 ppm
_CROWD = 5  # samples near an edge below which the edge may stand on early stamps
_PEELS = 3


@dataclass(frozen=True)
class Window:
    """Samples of E edges, padded: ``inf`` above and ``-inf`` below where there is none.

    ``above_ns[e, i]`` at ``above_s[e, i]``: received - sent of a packet a to b;
    ``below_ns``: sent - received of a packet b to a. ``length_s`` is the window's.
    """

    above_s: Floats
    above_ns: Floats
    below_s: Floats
    below_ns: Floats
    length_s: float

    def mirrored(self) -> "Window":
        """The same samples with the clocks exchanged."""
        return Window(self.below_s, -self.below_ns, self.above_s, -self.above_ns, self.length_s)


@dataclass(frozen=True)
class Fit:
    """What a window says about each edge, at its centre; NaN where it says nothing.

    ``ceiling_ns`` and ``floor_ns`` are the lines through the samples near the band's two edges,
    ``offset_ns`` their middle. ``sigma_ns`` is the offset's standard error from the scatter of
    those samples and from how freely they let the slope turn. ``near_above`` and ``near_below``
    count the samples near each edge, ``used_above`` and ``used_below`` all of them.
    ``hard_above_ns`` and ``hard_below_ns`` hold without any assumption on the network or on the
    slope: what the samples of one direction allow at the centre, whatever the drift.
    """

    offset_ns: Floats
    slope_ppb: Floats
    ceiling_ns: Floats
    floor_ns: Floats
    sigma_ns: Floats
    near_above: Ints
    near_below: Ints
    used_above: Ints
    used_below: Ints
    hard_above_ns: Floats
    hard_below_ns: Floats

    @property
    def margin_ns(self) -> Floats:
        return (self.ceiling_ns - self.floor_ns) / 2


def fit_edges(
    window: Window,
    near_ns: float | Floats,
    slope_sigma_ppb: float | Floats = 1e5,
    slope_ppb: float | Floats = 0.0,
) -> Fit:
    """Fits every edge of a window.

    ``near_ns``: samples within this of the band's edge count as undelayed; about four standard
    deviations of the stamps' noise. ``slope_sigma_ppb``: how well the slope is known before
    looking (a Kalman filter knows), around ``slope_ppb``; 1e5 when it is not.
    """
    # Edges without samples are infinite on both sides and end as NaN.
    with np.errstate(invalid="ignore", divide="ignore"):
        return _fit(window, near_ns, slope_sigma_ppb, slope_ppb)


def _fit(
    window: Window,
    near_ns: float | Floats,
    slope_sigma_ppb: float | Floats,
    slope_ppb: float | Floats,
) -> Fit:
    edges = len(window.above_ns)
    near = np.broadcast_to(np.asarray(near_ns, float), (edges,))
    sigma = np.broadcast_to(np.asarray(slope_sigma_ppb, float), (edges,))
    prior = np.broadcast_to(np.asarray(slope_ppb, float), (edges,))
    used_above = np.isfinite(window.above_ns).sum(1)
    used_below = np.isfinite(window.below_ns).sum(1)
    ok = (used_above > 1) & (used_below > 1)
    low, high = prior - 3 * sigma, prior + 3 * sigma
    slope = _widest(window, low, high)
    slope = np.where(ok, slope, np.nan)
    hard_above = np.where(ok, _ceiling(window.above_s, window.above_ns), np.nan)
    hard_below = np.where(ok, -_ceiling(window.below_s, -window.below_ns), np.nan)
    window = _peeled(window, slope, near)
    lines = _refined(window, slope, near, sigma, prior)
    return Fit(
        offset_ns=(lines.ceiling + lines.floor) / 2,
        slope_ppb=lines.slope,
        ceiling_ns=lines.ceiling,
        floor_ns=lines.floor,
        sigma_ns=lines.sigma,
        near_above=lines.near_above,
        near_below=lines.near_below,
        used_above=used_above,
        used_below=used_below,
        hard_above_ns=hard_above,
        hard_below_ns=hard_below,
    )


def _edges_at(window: Window, slope: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Lowest point above and highest below along ``slope``, and the times of both."""
    above = window.above_ns - slope[:, None] * window.above_s
    below = window.below_ns - slope[:, None] * window.below_s
    i, j = above.argmin(1), below.argmax(1)
    rows = np.arange(len(slope))
    return above[rows, i], below[rows, j], window.above_s[rows, i], window.below_s[rows, j]


@dataclass(frozen=True)
class _Tangent:
    """The band's width at a slope and how it changes there (one sample holds each edge)."""

    at: Floats
    width: Floats
    rise: Floats

    def where(self, choose: Bools, other: "_Tangent") -> "_Tangent":
        return _Tangent(
            np.where(choose, other.at, self.at),
            np.where(choose, other.width, self.width),
            np.where(choose, other.rise, self.rise),
        )


def _tangent(window: Window, slope: Floats) -> _Tangent:
    above, below, above_s, below_s = _edges_at(window, slope)
    return _Tangent(slope, above - below, below_s - above_s)


def _widest(window: Window, low: Floats, high: Floats) -> Floats:
    """The slope of the widest band within [low, high].

    The width is a concave, piecewise linear function of the slope; tangents from both sides meet
    above its top, and the tangent there replaces one of them until they meet on it.
    """
    left, right = _tangent(window, low), _tangent(window, high)
    best = np.where(left.rise <= 0, low, high)
    live = (left.rise > 0) & (right.rise < 0) & np.isfinite(left.width)
    for _ in range(_STEPS):
        if not live.any():
            break
        at = _meeting(left, right, live)
        here = _tangent(window, at)
        best = np.where(live, at, best)
        top = left.width + left.rise * (at - left.at)
        done = (here.rise == 0) | (np.abs(top - here.width) < 1e-6 * (1 + np.abs(here.width)))
        left = left.where(live & (here.rise > 0), here)
        right = right.where(live & (here.rise < 0), here)
        live &= ~done
    return best


def _ceiling(at: Floats, delay: Floats) -> Floats:
    """The highest line below all samples, at the centre: their lower convex hull at time 0.

    No clock drifts by more than DRIFT_MAX_PPB, so a side without samples is bounded by that.
    """
    rows = np.arange(len(delay))

    def lowest(slope: Floats) -> tuple[Floats, Floats]:
        level = delay - slope[:, None] * at
        first = level.argmin(1)
        return level[rows, first], -at[rows, first]

    left, right = np.full(len(rows), -DRIFT_MAX_PPB), np.full(len(rows), DRIFT_MAX_PPB)
    (left_level, left_rise), (right_level, right_rise) = lowest(left), lowest(right)
    top = np.where(left_rise <= 0, left_level, np.where(right_rise >= 0, right_level, np.inf))
    live = np.isinf(top)
    for _ in range(_STEPS):
        if not live.any():
            break
        bend = np.where(live, left_rise - right_rise, 1.0)
        middle = (right_level - left_level - right_rise * right + left_rise * left) / bend
        middle = np.where(live, np.clip(middle, left, right), left)
        level, rise = lowest(middle)
        peak = left_level + left_rise * (middle - left)
        done = live & ((rise == 0) | (peak - level < 1e-3 * (1 + np.abs(level))))
        top = np.where(done, np.maximum(peak, level), top)
        ahead = live & (rise > 0)
        left, left_level, left_rise = (
            np.where(ahead, new, old)
            for new, old in ((middle, left), (level, left_level), (rise, left_rise))
        )
        behind = live & (rise < 0)
        right, right_level, right_rise = (
            np.where(behind, new, old)
            for new, old in ((middle, right), (level, right_level), (rise, right_rise))
        )
        live &= ~done
    return top


def _meeting(left: _Tangent, right: _Tangent, live: Bools) -> Floats:
    bend = np.where(live, left.rise - right.rise, 1.0)
    at = (right.width - left.width - right.rise * right.at + left.rise * left.at) / bend
    return np.where(live, np.clip(at, left.at, right.at), left.at)


def _peeled(window: Window, slope: Floats, near: Floats) -> Window:
    """Without samples that stand alone outside a crowd: stamps taken early or late.

    An edge with fewer than five samples near it loses them, at most three times; unless that
    uncovers a crowd they are put back, because on a loaded path few undelayed samples are normal.
    """
    above = _peeled_side(window.above_ns, window.above_s, slope, near)
    below = -_peeled_side(-window.below_ns, window.below_s, -slope, near)
    return Window(window.above_s, above, window.below_s, below, window.length_s)


def _peeled_side(delay: Floats, at: Floats, slope: Floats, near: Floats) -> Floats:
    level = delay - np.where(np.isfinite(slope), slope, 0.0)[:, None] * at
    result, kept = delay, level.copy()
    for _ in range(_PEELS):
        edge = kept.min(1, initial=np.inf)
        close = kept <= (edge + near)[:, None]
        thin = close.sum(1) < _CROWD
        if not thin.any():
            break
        kept = np.where(thin[:, None] & close, np.inf, kept)
        edge = kept.min(1, initial=np.inf)
        crowd = (kept <= (edge + near)[:, None]) & np.isfinite(kept)
        found = thin & (crowd.sum(1) >= _CROWD)
        result = np.where(found[:, None] & ~np.isfinite(kept), np.inf, result)
    return result


@dataclass(frozen=True)
class _Lines:
    slope: Floats
    ceiling: Floats
    floor: Floats
    sigma: Floats
    near_above: Ints
    near_below: Ints


def _refined(
    window: Window, slope: Floats, near: Floats, sigma_ppb: Floats, prior_ppb: Floats
) -> _Lines:
    """Two parallel lines by least squares through the samples near the band's edges.

    The prior on the slope enters as one more observation; without it few samples close together
    in time would turn the line freely.
    """
    above, below = _near(window, slope, near)
    count_a, mean_ta, mean_a = _means(window.above_s, window.above_ns, above)
    count_b, mean_tb, mean_b = _means(window.below_s, window.below_ns, below)
    dt_a, dy_a = _centred(window.above_s, window.above_ns, above, mean_ta, mean_a)
    dt_b, dy_b = _centred(window.below_s, window.below_ns, below, mean_tb, mean_b)
    noise = near / 4
    ridge = (noise / sigma_ppb) ** 2
    stt = (dt_a**2).sum(1) + (dt_b**2).sum(1) + ridge
    sty = (dt_a * dy_a).sum(1) + (dt_b * dy_b).sum(1) + ridge * prior_ppb
    fitted = sty / stt
    rest = ((dy_a - fitted[:, None] * dt_a) ** 2).sum(1)
    rest += ((dy_b - fitted[:, None] * dt_b) ** 2).sum(1)
    # A few samples cannot know their own scatter: the stamps' noise counts as four more.
    variance = (rest + 4 * noise**2) / (count_a + count_b)
    lever = (mean_ta + mean_tb) / 2
    spread = variance * ((1 / count_a + 1 / count_b) / 4 + lever**2 / stt)
    return _Lines(
        slope=np.where(np.isfinite(slope), fitted, np.nan),
        ceiling=mean_a - fitted * mean_ta,
        floor=mean_b - fitted * mean_tb,
        sigma=np.sqrt(spread),
        near_above=count_a,
        near_below=count_b,
    )


def _near(window: Window, slope: Floats, near: Floats) -> tuple[Bools, Bools]:
    k = np.where(np.isfinite(slope), slope, 0.0)[:, None]
    above, below = window.above_ns - k * window.above_s, window.below_ns - k * window.below_s
    top, bottom = above.min(1, initial=np.inf), below.max(1, initial=-np.inf)
    valid = np.isfinite(slope)[:, None]
    close_a = valid & np.isfinite(above) & (above <= (top + near)[:, None])
    close_b = valid & np.isfinite(below) & (below >= (bottom - near)[:, None])
    return close_a, close_b


def _means(at: Floats, delay: Floats, mask: Bools) -> tuple[Ints, Floats, Floats]:
    count = mask.sum(1)
    mean_t = np.where(mask, at, 0.0).sum(1) / count
    mean_y = np.where(mask, delay, 0.0).sum(1) / count
    return count, mean_t, mean_y


def _centred(
    at: Floats, delay: Floats, mask: Bools, mean_t: Floats, mean_y: Floats
) -> tuple[Floats, Floats]:
    dt = np.where(mask, at - mean_t[:, None], 0.0)
    dy = np.where(mask, delay - mean_y[:, None], 0.0)
    return dt, dy
