"""All edges of a window, all nodes' clocks: weighted least squares over the probe graph.

Each node's clock is measured by several neighbours and each loop of edges must sum to zero; the
solve averages the errors out ("network effect", Huygens section 4.3) and shows which edges
contradict the rest. The Laplacian is never formed: conjugate gradient needs about ten products on
a random regular graph of any size, because its spectral gap does not shrink.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

_ITERATIONS = 400  # 10 on a regular graph; a long chain of nodes needs more
_TOLERANCE = 1e-8  # relative: clocks 10 ms apart are known to 0.1 ns
_REJECT = 4.0  # standard deviations; 1 of 16,000 good edges is lost
ANCHOR_NS = 200.0  # surer than this all clocks count the same: an average of few could err together
_FAR = 5.0  # standard deviations
_ROUNDS = 4  # solve and reject; each round drops the worst first


@dataclass(frozen=True)
class Edges:
    """E measured edges between nodes 0..nodes-1; see the package for ``offset_ns``'s sign.

    ``sigma_ns`` is the edge's own standard error, ``common_ns`` the part of it that all edges of
    a node may share (queueing at its port): averaging does not make that one smaller.
    """

    nodes: int
    a: Ints
    b: Ints
    offset_ns: Floats
    sigma_ns: Floats
    common_ns: Floats


@dataclass(frozen=True)
class Solution:
    """Every node's clock against the weighted mean of the largest connected part.

    ``theta_ns`` is NaN for a node that no accepted edge ties to it, and for all nodes when that
    part is not most of those alive: such a window is refused. ``sigma_ns`` is the
    standard error, ``used`` the edges that were kept, ``residual_ns`` what each edge says beyond
    the solution (NaN where an end is not solved). ``gauge``: the weights of that mean.
    """

    theta_ns: Floats
    gauge: Floats
    sigma_ns: Floats
    used: Bools
    residual_ns: Floats

    @property
    def solved(self) -> Bools:
        return np.isfinite(self.theta_ns)


def solve(
    edges: Edges,
    usable: Bools,
    anchor: Floats | None = None,
    alive: int | None = None,
    guess_ns: Floats | None = None,
) -> Solution:
    """Solves for all nodes, dropping edges that contradict the others.

    ``usable``: edges that passed the gates. ``anchor``: how much each node's clock counts in
    job time, which is their weighted mean: one over its variance before the window, so that
    nobody who comes, goes or steps moves it. ``alive``: nodes that should be there. A node left
    without edges is not solved rather than guessed. An edge is only rejected where both ends
    keep others: a bridge has no witness.
    """
    used = usable & np.isfinite(edges.offset_ns) & (edges.sigma_ns > 0)
    theta = np.zeros(edges.nodes) if guess_ns is None else np.nan_to_num(guess_ns)
    weight = np.zeros(len(used))
    weight[used] = 1 / edges.sigma_ns[used] ** 2
    residual = np.full(len(used), np.nan)
    for round_ in range(_ROUNDS):
        theta = _least_squares(edges, np.where(used, weight, 0.0), theta)
        residual = edges.offset_ns - (theta[edges.b] - theta[edges.a])
        if round_ == _ROUNDS - 1:
            break
        bad = _outliers(edges, used, residual)
        if not bad.any():
            break
        used = used & ~bad
    part = largest_part(edges, used)
    if 2 * part.sum() <= (edges.nodes if alive is None else alive):
        part = np.zeros(edges.nodes, bool)
    theta, gauge = _anchored(theta, part, anchor)
    sigma = _sigma(edges, np.where(used, weight, 0.0), residual, used)
    both = part[edges.a] & part[edges.b]
    return Solution(
        theta_ns=theta,
        gauge=gauge,
        sigma_ns=np.where(part, sigma, np.nan),
        used=used & both,
        residual_ns=np.where(both, residual, np.nan),
    )


def _anchored(theta: Floats, part: Bools, anchor: Floats | None) -> tuple[Floats, Floats]:
    """Job time is what most of the sure clocks say: one that errs, however sure it is of itself,
    is far from the weighted median and has no part in the mean around it."""
    if not part.any():
        return np.full(len(theta), np.nan), np.zeros(len(theta))
    weight = np.where(part, 1.0 if anchor is None else np.minimum(anchor, ANCHOR_NS**-2), 0.0)
    if not weight.any():  # nobody who counts is tied to the others: the first one does
        weight[np.flatnonzero(part)[0]] = 1.0
    order = np.argsort(theta)
    sums = np.cumsum(weight[order])
    middle = theta[order[np.searchsorted(sums, sums[-1] / 2)]]
    if anchor is not None:
        near = np.abs(theta - middle) <= _FAR * np.sqrt(1 / np.maximum(weight, 1e-300))
        weight = np.where(near, weight, 0.0)
    mean = float((weight * theta).sum() / weight.sum())
    return np.where(part, theta - mean, np.nan), weight / weight.sum()


def _product(edges: Edges, weight: Floats, theta: Floats) -> Floats:
    flow = weight * (theta[edges.b] - theta[edges.a])
    into = np.bincount(edges.b, flow, edges.nodes) - np.bincount(edges.a, flow, edges.nodes)
    return np.asarray(into)


def _least_squares(edges: Edges, weight: Floats, guess: Floats) -> Floats:
    """Conjugate gradient, preconditioned by the diagonal; the mean is left as it falls."""
    offset = np.where(weight > 0, edges.offset_ns, 0.0)
    flow = weight * offset
    right = np.bincount(edges.b, flow, edges.nodes) - np.bincount(edges.a, flow, edges.nodes)
    degree = _degree(edges, weight)
    inverse = np.where(degree > 0, 1 / np.where(degree > 0, degree, 1.0), 0.0)
    theta = guess.copy()
    rest = right - _product(edges, weight, theta)
    step = inverse * rest
    power = float(rest @ step)
    goal = _TOLERANCE**2 * max(float(right @ (inverse * right)), 1e-12)
    for _ in range(_ITERATIONS):
        if power <= goal:
            break
        image = _product(edges, weight, step)
        curve = float(step @ image)
        if curve <= 0:
            break
        length = power / curve
        theta += length * step
        rest -= length * image
        scaled = inverse * rest
        power, before = float(rest @ scaled), power
        step = scaled + power / before * step
    return theta


def _degree(edges: Edges, weight: Floats) -> Floats:
    total = np.bincount(edges.a, weight, edges.nodes) + np.bincount(edges.b, weight, edges.nodes)
    return np.asarray(total)


def _outliers(edges: Edges, used: Bools, residual: Floats) -> Bools:
    """Edges whose residual is far beyond their own error and that of the crowd.

    Of a node's bad edges only the worst goes in a round: one false edge bends its neighbours.
    """
    scaled = np.where(used, np.abs(residual) / edges.sigma_ns, 0.0)
    if used.any():
        # 1.4826 turns a median absolute deviation into a standard deviation.
        scaled /= max(1.4826 * float(np.median(scaled[used])), 1.0)
    worst = np.zeros(edges.nodes)
    np.maximum.at(worst, edges.a, scaled)
    np.maximum.at(worst, edges.b, scaled)
    count = _degree(edges, used.astype(float))
    witness = (count[edges.a] > 2) & (count[edges.b] > 2)
    is_worst = scaled >= 0.5 * np.maximum(worst[edges.a], worst[edges.b])
    bad: Bools = used & witness & (scaled > _REJECT) & is_worst
    return bad


def _sigma(edges: Edges, weight: Floats, residual: Floats, used: Bools) -> Floats:
    """Standard error: the node's own edges, scaled up where their residuals exceed their claims.

    On a random regular graph the exact inverse exceeds one over the node's weights by 1/peers.
    """
    degree = _degree(edges, weight)
    count = _degree(edges, used.astype(float))
    misfit = _degree(edges, np.where(used, weight * np.nan_to_num(residual) ** 2, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.maximum(misfit / np.maximum(count - 1, 1), 1.0)
        common = _degree(edges, weight * np.where(used, edges.common_ns, 0.0)) / degree
        sigma = np.sqrt(excess / degree * (1 + 1 / count) + common**2)
    return np.where(degree > 0, sigma, np.nan)


def largest_part(edges: Edges, used: Bools) -> Bools:
    """Nodes of the largest connected part of the accepted edges (a lone node is none)."""
    label = np.arange(edges.nodes)
    a, b = edges.a[used], edges.b[used]
    while len(a):
        low = np.minimum(label[a], label[b])
        before = label.copy()
        np.minimum.at(label, a, low)
        np.minimum.at(label, b, low)
        label = label[label]
        if (label == before).all():
            break
    touched = np.zeros(edges.nodes, bool)
    touched[a] = touched[b] = True
    if not touched.any():
        return touched
    sizes = np.bincount(label[touched], minlength=edges.nodes)
    part: Bools = touched & (label == sizes.argmax())
    return part
