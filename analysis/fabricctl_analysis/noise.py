"""The usual ups and downs of a pace: how alike neighbouring windows are, and what follows from it
for sums and for what lies between two windows that are known.

An AR(1) process: of a window's deviation the next has a part, the one after it that part of it.
"""

import numpy as np
from numpy.typing import NDArray

from fabricctl_analysis.series import Floats

Bools = NDArray[np.bool_]

# More alike than that no neighbours are taken to be; where less than that is left of a deviation it
# does not count any more. Of fewer windows nothing is known of it.
MOST_ALIKE, LEAST_LEFT, LEAST_WINDOWS = 0.95, 1e-3, 8


def alike_of(progress: Floats, usual: Bools) -> float:
    """How much of a usual window's deviation its neighbour has as well."""
    if usual.sum() < LEAST_WINDOWS:
        return 0.0
    centred = np.where(usual, progress - progress[usual].mean(), 0.0)
    pairs = int((usual[1:] & usual[:-1]).sum())
    power = float(np.dot(centred, centred)) / usual.sum()
    if not pairs or not power:
        return 0.0
    together = float(np.dot(centred[1:], centred[:-1])) / pairs
    return float(min(max(together / power, 0.0), MOST_ALIKE))


def sum_variance(weights: Floats, alike: float) -> float:
    """Of a weighted sum over windows, in variances of one window."""
    total = float(np.dot(weights, weights))
    lag, left = 1, alike
    while lag < len(weights) and left > LEAST_LEFT:
        total += 2 * left * float(np.dot(weights[lag:], weights[:-lag]))
        lag, left = lag + 1, left * alike
    return total


def between(
    deviations: Floats, usual: Bools, alike: float, first: int, weights: Floats
) -> tuple[float, float]:
    """The weighted sum of the deviations that windows from ``first`` on would have had, as the
    nearest usual ones before and after them let expect (the best linear prediction), and its
    variance, in those of one window."""
    variance = sum_variance(weights, alike)
    end = first + len(weights)
    before, after = np.flatnonzero(usual[:first]), np.flatnonzero(usual[end:])
    near = np.concatenate([before[-1:], after[:1] + end])
    if not len(near) or not alike:
        return 0.0, variance
    shared = alike ** np.abs(near[:, None] - np.arange(first, end)) @ weights
    of_each = np.linalg.solve(alike ** np.abs(near[:, None] - near), shared)
    return float(of_each @ deviations[near]), max(0.0, variance - float(of_each @ shared))
