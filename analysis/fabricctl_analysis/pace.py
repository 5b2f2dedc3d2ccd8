"""How fast the job went in each window, against its usual pace, and when it went slower.

The pace of a node is what it did in a window over what it usually does in one (the median of the
job's running windows); the job's is the mean over its nodes, by their usual work. Iterations longer
than a window make the work come in bursts: the pace is then smoothed over one iteration.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fabricctl_analysis.noise import Bools, alike_of, between, sum_variance
from fabricctl_analysis.series import Floats

Signal = Literal["iterations", "traffic", "mpi", "cpu", "none"]

# Fewer windows than this have no usual pace.
MIN_WINDOWS = 8
# The usual pace is taken from windows in which nothing was wrong when so many of them are such.
LEAST_CLEAN = 0.2
# A program works from the first to the last window in which it does this share of what it does in
# its better ones.
AT_WORK = 0.5
# Work below this is no sign of progress: heartbeats of a launcher, an idle task.
LEAST_BYTES_PER_S, LEAST_CORES = 100_000.0, 0.05
# A window is slow when it lost more than this share, and more than so many deviations of the
# usual windows: of 100,000 normal ones at 5 deviations none is.
LEAST_LOSS, DEVIATIONS = 0.12, 5.0
# Where something was wrong at the time as well, chance needs both: of 100,000 such windows that are
# not slow 135 are taken for slow.
SUSPECT_DEVIATIONS, SUSPECT_STANDSTILL = 3.0, 0.6
# Windows are looked at one by one and this many together: noise hides less of what lasts.
SCALES = (1, 5, 15)
# A pace that varies by its own size tells no more than whether the job stands still.
STANDSTILL = 0.3
# Repeats are looked for among lags up to this share of the job; this much of the power must repeat.
MAX_PERIOD, MIN_REPEAT = 1 / 2, 0.4
_MAD = 1.4826  # of a normal distribution: deviation over median absolute deviation
_MEDIAN_ERROR = 1.2533  # of a normal distribution: error of the median over that of the mean


@dataclass(frozen=True)
class Pace:
    """``progress``: 1 is the usual pace, 0 a standstill, NaN not measured or not running.

    ``deviation`` of one usual window, ``error`` of the usual pace itself, both relative;
    ``period`` of iterations in windows, None when none were found.
    """

    signal: Signal
    progress: Floats
    smooth: Floats
    deviation: float
    error: float
    period: float | None
    weights: Floats  # share of each node in the job's usual work
    usual: float  # work of a window at the usual pace, all nodes together
    alike: float = 0.0  # how much of a window's deviation the next one has as well (AR(1))
    clean: Bools | None = None  # windows that show the usual pace; None: all that are known
    usual_at: Bools | None = None  # those of them that are not slow: the usual pace is theirs
    pattern: float | None = None  # iterations that the MPI calls show where the work does not

    @property
    def known(self) -> Bools:
        return ~np.isnan(self.progress)


def pace(
    moved: Floats,
    cpu: Floats,
    running: Bools,
    window_s: float,
    told: Floats | None = None,
    *,
    calls: Floats | None = None,
    suspect: Bools | None = None,
) -> Pace:
    """``moved`` (bytes), ``cpu`` (cores), ``told`` (iterations) and ``calls`` (of MPI) of nodes by
    windows; ``running``: a step was there; ``suspect``: something was wrong, so that the usual pace
    and the pattern of the work are taken from the others, when there are enough. What the program
    told goes before what its traffic shows, and that before its calls."""
    usual_at = running if suspect is None else running & ~suspect
    if usual_at.sum() < max(MIN_WINDOWS, running.sum() * LEAST_CLEAN):
        usual_at = running
    by_calls = None if calls is None else _pace_by("mpi", calls, running, usual_at, 0.0)
    for signal, work, least in (
        ("iterations", told, 0.0),
        ("traffic", moved, LEAST_BYTES_PER_S * window_s),
        ("mpi", calls, 0.0),
        ("cpu", cpu, LEAST_CORES),
    ):
        if work is None:
            continue
        found = by_calls
        if signal != "mpi":
            found = _pace_by(signal, work, running, usual_at, least)  # type: ignore[arg-type]
        if found is not None:
            pattern = found.period or (by_calls.period if by_calls else None)
            return replace(found, pattern=pattern)
    empty = np.full(moved.shape[1], np.nan)
    return Pace("none", empty, empty, np.nan, np.nan, None, np.zeros(len(moved)), np.nan)


def _pace_by(
    signal: Signal, work: Floats, running: Bools, usual_at: Bools, least: float
) -> Pace | None:
    usable = np.where(running, work, np.nan)
    usual = np.array([_usual(row[usual_at]) for row in usable])
    taking_part = usual > least
    if not taking_part.any():
        return None
    usable, usual = usable[taking_part], usual[taking_part]
    measured = ~np.isnan(usable)
    share = np.where(measured, usual[:, None], 0.0).sum(axis=0)
    progress = np.full(work.shape[1], np.nan)
    np.divide(np.nansum(usable, axis=0), share, out=progress, where=share > usual.sum() / 2)
    known = progress[~np.isnan(progress)]
    if len(known) < MIN_WINDOWS:
        return None
    period = period_of(np.where(usual_at, progress, np.nan))
    smooth = _smoothed(progress, period)
    usual_at = _at_work(smooth, usual_at)
    scale, usual_there = _usual_pace(progress, smooth, usual_at)
    progress, smooth = progress / scale, smooth / scale
    values = progress[usual_there]
    deviation = float(np.std(values)) if len(values) > 1 else np.nan
    alike = alike_of(progress, usual_there)
    spread = sum_variance(usual_there.astype(np.float64), alike) ** 0.5
    weights = np.zeros(len(work))
    weights[taking_part] = usual / usual.sum()
    return Pace(
        signal=signal,
        progress=progress,
        smooth=smooth,
        deviation=deviation,
        error=_MEDIAN_ERROR * deviation * spread / max(1, len(values)),
        period=period,
        weights=weights,
        usual=float(usual.sum()) * scale,
        alike=alike,
        clean=usual_at & ~np.isnan(progress),
        usual_at=usual_there,
    )


def _usual(work: Floats) -> float:
    """The median of the windows in which something was done, 0 when that is less than a fifth."""
    known = work[~np.isnan(work)]
    busy = known[known > 0]
    if len(busy) < max(MIN_WINDOWS / 2, len(known) / 5):
        return 0.0
    middle = float(np.median(busy))
    # Bursts: most windows are nearly idle and the mean is what a window usually does.
    return max(middle, float(busy.mean())) if middle < busy.mean() / 2 else middle


def _at_work(smooth: Floats, usual_at: Bools) -> Bools:
    """Without what comes before the program works and after it has: a program that loads for a
    while would else seem to vary by all of its pace."""
    seen = usual_at & ~np.isnan(smooth)
    if not seen.any():
        return usual_at
    much = AT_WORK * float(np.percentile(smooth[seen], 75))
    at = np.flatnonzero(seen & (smooth >= much))
    working = np.zeros(len(smooth), dtype=bool)
    working[at[0] : at[-1] + 1] = True
    return usual_at & working


def _usual_pace(progress: Floats, smooth: Floats, usual_at: Bools) -> tuple[float, Bools]:
    """That of the usual windows, and which they are: those that are not slow."""
    there = ~np.isnan(smooth) & usual_at
    there = there if there.sum() >= MIN_WINDOWS / 2 else ~np.isnan(smooth)
    scale, usual = float(np.median(smooth[there])), there
    for _ in range(4):
        values = smooth[usual]
        scale = float(np.median(values)) or 1.0
        limit = scale * _limit(values / scale)
        again = there & (smooth > limit)
        if again.sum() < MIN_WINDOWS / 2 or (again == usual).all():
            break
        usual = again
    # The median tells the slow windows apart; the usual pace itself is the mean of the others, so
    # that what they are above and below it adds up to nothing.
    return scale * (float(np.mean(progress[usual] / scale)) or 1.0), usual


def _smoothed(progress: Floats, period: float | None) -> Floats:
    """Mean over one iteration around each window."""
    if period is None or period < 1.5:
        return progress
    # Exactly one iteration wide, also by parts of a window: any other width beats with the bursts.
    known = ~np.isnan(progress)
    at = np.arange(len(progress) + 1, dtype=np.float64)
    middle = at[:-1] + 0.5
    ends = (np.clip(middle - period / 2, 0, at[-1]), np.clip(middle + period / 2, 0, at[-1]))
    amount, share = (
        np.subtract(*(np.interp(end, at, np.concatenate([[0.0], np.cumsum(values)]))
                      for end in reversed(ends)))
        for values in (np.nan_to_num(progress), known.astype(np.float64))
    )  # fmt: skip
    smooth = np.full(len(progress), np.nan)
    np.divide(amount, share, out=smooth, where=known & (share > 0))
    return smooth


def period_of(progress: Floats) -> float | None:
    """Length of an iteration in windows, from the pattern of the work alone.

    The autocorrelation finds the repeat; the same over many iterations its length.
    """
    known = ~np.isnan(progress)
    if known.sum() < 4 * MIN_WINDOWS:
        return None
    values = np.where(known, progress - np.nanmean(progress), 0.0)
    size = 1 << (2 * len(values) - 1).bit_length()
    power = np.abs(np.fft.rfft(values, size)) ** 2
    alike = np.fft.irfft(power)[: max(3, int(len(values) * MAX_PERIOD))]
    if alike[0] <= 0:
        return None
    alike = alike / alike[0] * len(values) / (len(values) - np.arange(len(alike)))
    peaks = 1 + np.flatnonzero((alike[1:-1] > alike[:-2]) & (alike[1:-1] >= alike[2:]))
    strong = np.array([p for p in peaks if alike[p] > MIN_REPEAT and _repeats(alike, int(p))])
    if not len(strong):
        return None
    first = int(strong[alike[strong] > 0.6 * alike[strong].max()][0])
    return _refined(alike, first)


def _repeats(alike: Floats, lag: int) -> bool:
    """Two troubles that far apart look like a repeat once; iterations do again and again."""
    more = [
        float(alike[max(0, n * lag - n) : n * lag + n + 1].max())
        for n in (2, 3)
        if n * lag + n < len(alike)
    ]
    return len(more) == 2 and min(more) > alike[lag] / 2


def _refined(alike: Floats, first: int) -> float:
    """The repeat seen over 1, 2, 4, 8... iterations: its length is known ever better."""
    best, times = float(first), 1
    while best > 1.5 and best * times * 2 + best / 2 < len(alike) - 1:
        times *= 2
        low, high = int(best * times - best / 3), int(best * times + best / 3) + 2
        at = low + int(np.argmax(alike[low:high]))
        if alike[at] < MIN_REPEAT / 2 or not 0 < at < len(alike) - 1:
            break
        before, here, after = alike[at - 1 : at + 2].tolist()
        bend = before - 2 * here + after
        off = 0.5 * (before - after) / bend if bend < 0 else 0.0
        best = (at + min(max(off, -0.5), 0.5)) / times
    return best


def slow_windows(found: Pace) -> list[tuple[int, int]]:
    """First and last window of each slow stretch, with the window on each side that may have part
    of it; stretches that come that close are one."""
    slow = np.flatnonzero(_slow(found))
    period = found.period or 0.0
    known = np.flatnonzero(found.known)
    if period > 1 and len(known):  # at the ends less than an iteration is seen: no verdict there
        inside = (slow > known[0] + period) & (slow < known[-1] - period)
        slow = slow[inside]
    if not len(slow):
        return []
    # At a third of the pace bursts come every third iteration, with what looks like pauses between.
    cuts = np.flatnonzero(np.diff(slow) > max(3.0, 1.2 * period)) + 1
    last = len(found.smooth) - 1
    around = 1 + round(period / 4)
    return [
        (max(0, int(group[0]) - around), min(last, int(group[-1]) + around))
        for group in np.split(slow, cuts)
    ]


def _slow(found: Pace) -> Bools:
    """Windows that are slow by themselves, or among neighbours that together are: where nothing
    was wrong, and with less proof where something was."""
    slow = np.zeros(len(found.smooth), dtype=bool)
    clean = found.known if found.clean is None or not found.clean.any() else found.clean
    if not clean.any():
        return slow
    suspect = found.known & ~clean
    for width in SCALES:
        if width > found.known.sum() / 4:
            break
        usual = _mean_around(np.where(clean, found.smooth, np.nan), width)
        usual = usual[~np.isnan(usual)]
        for there in (clean, suspect):
            mean = _mean_around(np.where(there, found.smooth, np.nan), width)
            limit = _limit(usual) if len(usual) else 0.0
            if there is suspect and width == 1:
                limit = _limit(usual, SUSPECT_DEVIATIONS, SUSPECT_STANDSTILL)
            with np.errstate(invalid="ignore"):
                together = there & (mean < limit)
            # Of a stretch that is slow as a whole, from its first to its last window below the
            # usual.
            near = np.convolve(together, np.ones(width), "same") > 0 if width > 1 else together
            slow |= there & near & (found.smooth < (1 + limit) / 2)
    return slow


def _limit(values: Floats, deviations: float = DEVIATIONS, standstill: float = STANDSTILL) -> float:
    """What usual windows do not go below. Noise may add or, on a crowded machine, multiply: then
    the pace varies a lot and still never comes near a standstill."""
    adds = 1 - deviations * _spread(values)
    positive = values[values > 0]
    multiplies = 0.0
    if len(positive) > len(values) / 2:
        logs = np.log(positive)
        multiplies = float(np.exp(min(0.0, np.median(logs)) - deviations * _spread(logs)))
    return min(1 - LEAST_LOSS, max(adds, min(multiplies, standstill)))


def _mean_around(values: Floats, width: int) -> Floats:
    """NaN where less than half of the windows around are known: means of fewer vary more."""
    known = ~np.isnan(values)
    kernel = np.ones(width)
    mean = np.full(len(values), np.nan)
    counts = np.convolve(known.astype(float), kernel, "same")
    sums = np.convolve(np.nan_to_num(values), kernel, "same")
    np.divide(sums, counts, out=mean, where=known & (counts >= width / 2))
    return mean


def _spread(values: Floats) -> float:
    return _MAD * float(np.median(np.abs(values - np.median(values))))


def luck(found: Pace, windows: Sequence[int] | NDArray[np.intp]) -> tuple[float, float]:
    """Windows' worth of work that the usual ups and downs of the pace added to what was done in
    ``windows`` (one or more), as far as the usual windows before and after them tell, and the
    standard error of the loss there."""
    at = np.asarray(windows, dtype=np.intp)
    progress = found.progress[at]
    known = ~np.isnan(progress)
    first = int(at.min())
    # Noise is a share of what was done: a standstill has none.
    weights = np.zeros(int(np.ptp(at)) + 1)
    weights[at[known] - first] = np.clip(progress[known], 0, 1)
    usual = found.usual_at
    if usual is None or found.period is not None:  # work in bursts tells nothing of what is near
        usual = np.zeros(len(found.progress), dtype=bool)
    added, variance = between(found.progress - 1, usual, found.alike, first, weights)
    done = float(progress[known].sum())
    # Where within an iteration the loss began and ended is not seen: anywhere, at both ends.
    edges = 2 * found.period**2 / 3 if found.period is not None else 0.0
    noise = found.deviation**2 * variance
    return added, (noise + (done * found.error) ** 2 + edges) ** 0.5
