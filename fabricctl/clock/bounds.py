"""How wrong a clock may be: the hard bound, and the statistical one.

Hard: a packet cannot arrive before it was sent, so every edge bounds the difference of two
clocks from both sides by half a round trip, whatever the network did; along a path the bounds
add up. Statistical: the filter's own uncertainty; it assumes that paths are as long in one
direction as in the other but for a declared asymmetry.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fabricctl.clock.solve import Edges

Floats = NDArray[np.float64]

ALL_PAIRS = (
    128  # nodes up to which the mean over all pairs is worth n^3: 10 ms at 128, 0.1 s at 256
)
SIGMAS = 3.3  # 1 reading in 1,000 outside when the filter's model holds
LOOSE = 2.0  # bounded worse than most by this: a queue, not a longer way


@dataclass(frozen=True)
class Hard:
    """Per node how far theta can be beyond the window's solution, in ns; ``gauge``: the weights
    of the clocks whose mean job time is."""

    gauge: Floats
    least_ns: Floats
    most_ns: Floats


def hard(edges: Edges, above_ns: Floats, below_ns: Floats, gauge: Floats) -> Hard:
    """Bounds around the mean of the clocks weighted by ``gauge``.

    ``above_ns`` and ``below_ns`` bound each edge's offset (NaN: not measured), Fit.hard_*. A
    node is bounded by its mean distance from the clocks that count, in large allocations by way of
    the one node that is nearest to the rest; infinite for a node that nothing reaches. A clock
    behind a full port is tied ever so loosely: it loses its weight, or all would be as unsure.
    """
    seen = np.isfinite(above_ns) & np.isfinite(below_ns)
    # reach[i, j]: the most that theta_j - theta_i can be.
    ends = (
        np.r_[edges.a[seen], edges.b[seen]],
        np.r_[edges.b[seen], edges.a[seen]],
        np.r_[above_ns[seen], -below_ns[seen]],
    )
    if edges.nodes <= ALL_PAIRS:
        return _over_all_pairs(gauge, *ends)
    return _over_a_centre(gauge, *ends)


def _over_all_pairs(
    gauge: Floats, source: NDArray[np.int64], target: NDArray[np.int64], most: Floats
) -> Hard:
    nodes = len(gauge)
    reach = np.full((nodes, nodes), np.inf)
    np.fill_diagonal(reach, 0.0)
    np.minimum.at(reach, (source, target), most)
    for via in range(nodes):
        np.minimum(reach, reach[:, via, None] + reach[None, via, :], out=reach)
    counts = gauge > 0
    gauge = _tied(gauge, np.median((reach + reach.T)[:, counts], axis=1))
    counts = gauge > 0
    # Infinite where one of those that job time is made of cannot be reached.
    to = reach[:, counts] @ gauge[counts]
    back = gauge[counts] @ reach[counts]
    return Hard(gauge, -to, back)


def _over_a_centre(
    gauge: Floats, source: NDArray[np.int64], target: NDArray[np.int64], most: Floats
) -> Hard:
    nodes = len(gauge)
    centre = int(np.bincount(source, minlength=nodes).argmax())
    ahead = _distances(nodes, source, target, most, centre)
    behind = _distances(nodes, target, source, most, centre)
    tied = np.isfinite(ahead) & np.isfinite(behind)
    gauge = _tied(gauge, ahead + behind)
    counts = gauge > 0
    to_centre = float(behind[counts] @ gauge[counts])
    from_centre = float(ahead[counts] @ gauge[counts])
    return Hard(
        gauge,
        np.where(tied, -(behind + from_centre), -np.inf),
        np.where(tied, ahead + to_centre, np.inf),
    )


def _tied(gauge: Floats, width_ns: Floats) -> Floats:
    """The weights of those that are bounded about as well as most."""
    counts = gauge > 0
    close = counts & (width_ns <= LOOSE * np.median(width_ns[counts]))
    kept = np.where(close if close.any() else counts, gauge, 0.0)
    return np.asarray(kept / kept.sum())


def _distances(
    nodes: int,
    source: NDArray[np.int64],
    target: NDArray[np.int64],
    length: Floats,
    start: int,
) -> Floats:
    """Bellman-Ford on arrays: as many rounds as the graph is deep, 4-6 on ours."""
    distance = np.full(nodes, np.inf)
    distance[start] = 0.0
    for _ in range(nodes):
        before = distance.copy()
        np.minimum.at(distance, target, distance[source] + length)
        if (distance >= before - 1e-9).all():
            break
    return distance
