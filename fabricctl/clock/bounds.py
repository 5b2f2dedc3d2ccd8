"""How wrong a clock may be: the hard bound, and the statistical one.

Hard: a packet cannot arrive before it was sent, so every edge bounds the difference of two
clocks from both sides by half a round trip, whatever the network did; along a path the bounds
add up. Statistical: the filter's own uncertainty; it assumes that paths are as long in one
direction as in the other but for a declared asymmetry.
"""

import numpy as np
from numpy.typing import NDArray

from fabricctl.clock.solve import Edges

Floats = NDArray[np.float64]

ALL_PAIRS = (
    128  # nodes up to which the mean over all pairs is worth n^3: 10 ms at 128, 0.1 s at 256
)
SIGMAS = 3.3  # 1 reading in 1,000 outside when the filter's model holds


def hard(edges: Edges, above_ns: Floats, below_ns: Floats, gauge: Floats) -> tuple[Floats, Floats]:
    """Per node ``(least, most)`` that theta can be beyond the window's model, both in ns.

    ``above_ns`` and ``below_ns`` bound each edge's offset (NaN: not measured), Fit.hard_*. Job
    time being the mean of clocks weighted by ``gauge``, a node is bounded by its mean distance
    from those;
    in large allocations by way of the one node that is nearest to the rest. Infinite for a node
    that nothing reaches.
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
) -> tuple[Floats, Floats]:
    nodes, counts = len(gauge), gauge > 0
    reach = np.full((nodes, nodes), np.inf)
    np.fill_diagonal(reach, 0.0)
    np.minimum.at(reach, (source, target), most)
    for via in range(nodes):
        np.minimum(reach, reach[:, via, None] + reach[None, via, :], out=reach)
    # Infinite where one of those that job time is made of cannot be reached.
    to = reach[:, counts] @ gauge[counts]
    back = gauge[counts] @ reach[counts]
    return -to, back


def _over_a_centre(
    gauge: Floats, source: NDArray[np.int64], target: NDArray[np.int64], most: Floats
) -> tuple[Floats, Floats]:
    nodes, counts = len(gauge), gauge > 0
    centre = int(np.bincount(source, minlength=nodes).argmax())
    ahead = _distances(nodes, source, target, most, centre)
    behind = _distances(nodes, target, source, most, centre)
    tied = np.isfinite(ahead) & np.isfinite(behind)
    to_centre = float(behind[counts] @ gauge[counts])
    from_centre = float(ahead[counts] @ gauge[counts])
    return np.where(tied, -(behind + from_centre), -np.inf), np.where(
        tied, ahead + to_centre, np.inf
    )


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
