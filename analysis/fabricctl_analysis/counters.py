"""Kernel counters to amounts and rates: resets, holes and missing values never become zeros."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ns = NDArray[np.int64]


@dataclass(frozen=True)
class Increments:
    """What a counter grew by from one reading to the next.

    ``amount`` is NaN where the counter went back (reset: how much was counted is not known).
    A reading that was not measured is left out: the increment then spans two intervals.
    """

    begin_ns: Ns
    end_ns: Ns
    amount: Floats
    resets: int
    not_measured: int  # readings that hold no value
    longest_ns: Ns  # between two samples within: the interval's length unless rows were thinned

    @property
    def total(self) -> float:
        """Sum of what is known, NaN when nothing is; a lower bound when there were resets."""
        known = self.amount[~np.isnan(self.amount)]
        return float(known.sum()) if len(known) else float("nan")

    @property
    def rate_per_s(self) -> Floats:
        """Mean rate over each interval."""
        return self.amount * 1e9 / (self.end_ns - self.begin_ns)


def increments(
    time_ns: Ns, readings: NDArray[np.unsignedinteger], apart_ns: Ns | None = None
) -> Increments:
    """Differences of an unsigned counter whose largest value means "not measured".

    ``time_ns`` is non-decreasing; a second reading of the same instant is left out. ``apart_ns``
    for thinned rows: the longest time between two samples since the row before.
    """
    measured = readings != np.iinfo(readings.dtype).max
    times, values = time_ns[measured], readings[measured].astype(np.uint64)
    fresh = np.ones(len(times), dtype=bool)
    fresh[1:] = np.diff(times) > 0
    times, values = times[fresh], values[fresh]
    lengths = np.diff(times)
    if apart_ns is not None and len(times) > 1:
        # A value left out leaves a longer interval, whose parts are not told apart any more.
        whole = len(times) == len(time_ns)
        lengths = apart_ns[1:] if whole else np.maximum(lengths, apart_ns[measured][fresh][1:])
    before, after = values[:-1], values[1:]
    grew = after >= before
    amount = np.full(len(before), np.nan)
    amount[grew] = (after[grew] - before[grew]).astype(np.float64)
    return Increments(
        times[:-1],
        times[1:],
        amount,
        resets=int((~grew).sum()),
        not_measured=int((~measured).sum()),
        longest_ns=lengths,
    )


def measured_floats(readings: NDArray[np.unsignedinteger]) -> Floats:
    """A gauge as floats, NaN where it was not measured."""
    values = readings.astype(np.float64)
    values[readings == np.iinfo(readings.dtype).max] = np.nan
    return values
