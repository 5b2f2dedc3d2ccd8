"""The clock's estimator on a simulated three-tier Clos network, with and without each idea.

Nodes hang 16 to a leaf, 4 leaves and 4 spines to a pod, 4 cores to a spine; 25 Gbit/s links.
Every directed link is a queue of its own, fed by bursts (packets of 1,500 bytes, geometric and
heavy-tailed sizes), so that probes on one link see the same backlog; forward and return path are
chosen by hash and differ. Clocks have an offset, a drift and a wander of their own; stamps have
noise; one-way asymmetry may be added per edge. The estimator sees stamps only.

    python bench/clock_sim.py --nodes 128 --load 0.4 --seconds 20
    python bench/clock_sim.py        # the whole comparison, some minutes
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fabricctl.clock import gates, kalman, peers
from fabricctl.clock.fit import Fit, Window, fit_edges
from fabricctl.clock.solve import Edges, Solution, solve

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PACKET_NS = 480.0  # 1,500 bytes at 25 Gbit/s
HUYGENS_P99_NS = 30.2  # NSDI 2018: 128 servers, two-stage Clos, 99th percentile under load


@dataclass(frozen=True)
class Scenario:
    nodes: int = 128
    seconds: float = 20.0
    edge_load: float = 0.4
    fabric_load: float = 0.4
    asymmetry_ns: float = 0.0
    stamp_noise_ns: float = 10.0
    drift_ppm: float = 30.0
    wander_ppm: float = 0.1
    offset_ms: float = 10.0
    pairs_per_s: float = 100.0
    peers: int = 10
    window_s: float = 1.0
    hop_s: float = 0.5
    saturated: int = 0  # so many receive ports at saturated_load from a third of the run on
    saturated_load: float = 0.99
    burst_ns: float = 40_000.0  # mean; at 25 Gbit/s 83 packets
    congested_start: bool = False  # these from the beginning: no floor can be learned
    seed: int = 1


@dataclass(frozen=True)
class Ideas:
    """What can be left out."""

    band: bool = True  # else the mean of all delays
    refine: bool = True  # else the hull's edges alone
    graph: bool = True  # else a spanning tree
    margin_gate: bool = True
    one_sided: bool = True
    kalman: bool = True  # else the window's own solution, extrapolated by its slope
    prior: bool = True  # the filter's drift bounds the slope


@dataclass
class Errors:
    post: list[Floats] = field(default_factory=list)
    live: list[Floats] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)


class Wander:
    """Offset in ns of N clocks at any time: offset, drift and two slow sinusoids of frequency."""

    def __init__(self, scenario: Scenario, rng: np.random.Generator) -> None:
        n = scenario.nodes
        self.offset = rng.uniform(-1, 1, n) * scenario.offset_ms * 1e6
        self.drift = rng.uniform(-1, 1, n) * scenario.drift_ppm * 1e3
        self.swing = scenario.wander_ppm * 1e3 * rng.dirichlet((1, 1), n)
        self.omega = 2 * np.pi / rng.uniform(30, 100, (n, 2))
        self.phase = rng.uniform(0, 2 * np.pi, (n, 2))

    def theta(self, node: Ints, t_s: Floats) -> Floats:
        angle = self.omega[node] * t_s[..., None] + self.phase[node]
        slow = (self.swing[node] / self.omega[node] * np.sin(angle)).sum(-1)
        return np.asarray(self.offset[node] + self.drift[node] * t_s + slow)


class Fabric:
    """Directed links and the paths over them."""

    def __init__(self, scenario: Scenario, rng: np.random.Generator) -> None:
        n = scenario.nodes
        self.leaves, self.pods = -(-n // 16), -(-n // 64)
        self.spines = self.pods * 4
        self.up, self.down = 0, n
        self.leaf_spine = 2 * n
        self.spine_leaf = self.leaf_spine + self.leaves * 4
        self.spine_core = self.spine_leaf + self.leaves * 4
        self.core_spine = self.spine_core + self.spines * 4
        self.links = self.core_spine + self.spines * 4
        self.load = np.full(self.links, scenario.fabric_load)
        self.load[: 2 * n] = scenario.edge_load
        self.length_ns = rng.uniform(300, 900, self.links)
        self.rng = rng

    def paths(self, source: Ints, target: Ints) -> Ints:
        """Links of each flow, -1 padded: [flow, hop]."""
        leaf_s, leaf_t = source // 16, target // 16
        pod_s, pod_t = source // 64, target // 64
        spine = self.rng.integers(0, 4, len(source))
        core = self.rng.integers(0, 4, len(source))
        path = np.full((len(source), 6), -1)
        path[:, 0], path[:, 5] = self.up + source, self.down + target
        other_leaf, other_pod = leaf_s != leaf_t, pod_s != pod_t
        path[:, 1] = np.where(other_leaf, self.leaf_spine + leaf_s * 4 + spine, -1)
        path[:, 4] = np.where(other_leaf, self.spine_leaf + leaf_t * 4 + spine, -1)
        path[:, 2] = np.where(other_pod, self.spine_core + (pod_s * 4 + spine) * 4 + core, -1)
        path[:, 3] = np.where(other_pod, self.core_spine + (pod_t * 4 + spine) * 4 + core, -1)
        return path


class Queues:
    """Backlog of every link over one stretch of time, in ns of work."""

    def __init__(
        self,
        load: Floats,
        burst_ns: float,
        begin_s: float,
        length_s: float,
        rng: np.random.Generator,
    ) -> None:
        warm_s = 0.02  # queues are empty before; 0.02 s is many bursts long
        self.begin_ns = (begin_s - warm_s) * 1e9
        self.span_ns = (length_s + 2 * warm_s) * 1e9
        counts = rng.poisson(load * self.span_ns / burst_ns)
        link = np.repeat(np.arange(len(load)), counts)
        at = rng.uniform(0, self.span_ns, len(link))
        key = np.sort(link * self.span_ns + at)  # sorted by link, then time
        at = key - link * self.span_ns
        work = self._bursts(len(link), burst_ns, rng)
        total = np.cumsum(work)
        # Lindley: backlog after an arrival = work so far - time - the least of that before.
        first = np.r_[0, np.cumsum(counts)[:-1]]
        busy = total - at
        before = busy - work
        lift = np.repeat(np.arange(len(load)), counts) * -1e15  # makes one minimum a link's own
        least = np.minimum.accumulate(before + lift) - lift
        self.key, self.at, self.backlog = key, at, busy - least
        self.first, self.counts = first, counts

    @staticmethod
    def _bursts(count: int, burst_ns: float, rng: np.random.Generator) -> Floats:
        """Half single packets, else exponential sizes with the mean that burst_ns needs."""
        long = rng.exponential(2 * burst_ns - PACKET_NS, count)
        return np.where(rng.random(count) < 0.5, PACKET_NS, long)

    def wait(self, link: Ints, t_ns: Floats) -> Floats:
        """What a packet that comes to ``link`` at ``t_ns`` waits."""
        at = t_ns - self.begin_ns
        i = np.searchsorted(self.key, link * self.span_ns + at) - 1
        own = (i >= 0) & (i >= self.first[link])
        i = np.maximum(i, 0)
        return np.where(own, np.maximum(self.backlog[i] - (at - self.at[i]), 0.0), 0.0)


@dataclass(frozen=True)
class Stamps:
    """One direction of all edges: [edge, probe], local ns of both ends, and the true time."""

    sent_ns: Floats
    received_ns: Floats
    true_s: Floats


class World:
    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.rng = np.random.default_rng(scenario.seed)
        names = [f"n{i:05}" for i in range(scenario.nodes)]
        index = {name: i for i, name in enumerate(names)}
        pairs = peers.edges(scenario.seed, 0, names, peers=scenario.peers)
        self.a = np.array([index[a] for a, _ in pairs])
        self.b = np.array([index[b] for _, b in pairs])
        self.clocks = Wander(scenario, self.rng)
        self.fabric = Fabric(scenario, self.rng)
        self.forward = self.fabric.paths(self.a, self.b)
        self.back = self.fabric.paths(self.b, self.a)
        # Cables are as long in both directions; what differs is asymmetry_ns, told apart.
        total = self._length(self.forward)
        self.length_f = self.length_b = total
        half = self.rng.uniform(-1, 1, len(self.a)) * scenario.asymmetry_ns
        self.length_f, self.length_b = total + half, total - half

    def _length(self, path: Ints) -> Floats:
        return np.asarray(np.where(path >= 0, self.fabric.length_ns[path], 0.0).sum(1))

    def load_at(self, t_s: float) -> Floats:
        load = self.fabric.load.copy()
        s = self.scenario
        if s.saturated and (s.congested_start or t_s > s.seconds / 3):
            load[self.fabric.down : self.fabric.down + s.saturated] = s.saturated_load
        return load

    def stretch(self, begin_s: float, length_s: float) -> tuple[Stamps, Stamps]:
        """Probes of ``length_s`` from ``begin_s`` on, both directions."""
        queues = Queues(self.load_at(begin_s), self.scenario.burst_ns, begin_s, length_s, self.rng)
        count = round(self.scenario.pairs_per_s * length_s)
        step = length_s / count
        shape = (len(self.a), count)
        due = begin_s + np.arange(count) * step
        forth = due + self.rng.random(shape) * step
        back = due + self.rng.random(shape) * step
        return (
            self._send((self.a, self.b), self.forward, self.length_f, queues, forth),
            self._send((self.b, self.a), self.back, self.length_b, queues, back),
        )

    def _send(
        self, ends: tuple[Ints, Ints], path: Ints, length: Floats, queues: Queues, true_s: Floats
    ) -> Stamps:
        source, target = ends
        shape, rng = true_s.shape, self.rng
        now = true_s * 1e9
        for hop in range(path.shape[1]):
            link = np.broadcast_to(path[:, hop, None], shape)
            waits = queues.wait(np.maximum(link, 0), now)
            now = now + np.where(link >= 0, waits, 0.0)
        now = now + length[:, None]
        sent = true_s * 1e9 + self.clocks.theta(source[:, None], true_s)
        received = now + self.clocks.theta(target[:, None], now * 1e-9)
        noise = self.scenario.stamp_noise_ns
        return Stamps(
            sent + rng.normal(0, noise, shape), received + rng.normal(0, noise, shape), true_s
        )


def corrected(local_ns: Floats, at: kalman.Clocks, node: Ints, now_ns: float) -> Floats:
    """Local readings in job time by the clocks' model at ``now_ns`` of job time."""
    job = local_ns - at.theta_ns[node][:, None]
    return job - at.drift_ppb[node][:, None] * 1e-9 * (job - now_ns)


def window_of(
    history: list[tuple[Stamps, Stamps]], world: World, clocks: kalman.Clocks, now_s: float
) -> Window:
    """The last stretches as seen by clocks whose model holds for ``now_s``, around the centre."""
    s = world.scenario
    centre_ns = (now_s - s.window_s / 2) * 1e9
    sides = []
    for side, (source, target) in enumerate(((world.a, world.b), (world.b, world.a))):
        sent = np.concatenate([stretch[side].sent_ns for stretch in history], axis=1)
        received = np.concatenate([stretch[side].received_ns for stretch in history], axis=1)
        sent = corrected(sent, clocks, source, now_s * 1e9)
        received = corrected(received, clocks, target, now_s * 1e9)
        sides.append(((sent - centre_ns) * 1e-9, received - sent))
    (above_s, above), (below_s, below) = sides
    return Window(above_s, above, below_s, -below)


def mean_fit(window: Window) -> Fit:
    """The estimate without any idea: least squares over all delays."""
    everything = np.full(len(window.above_ns), 1e12)
    return fit_edges(window, everything)


def fitted(window: Window, world: World, clocks: kalman.Clocks, ideas: Ideas) -> Fit:
    if not ideas.band:
        return mean_fit(window)
    near = 4 * np.sqrt(2) * world.scenario.stamp_noise_ns
    sigma = 1e5
    if ideas.prior:
        sigma = np.hypot(clocks.drift_sigma_ppb[world.a], clocks.drift_sigma_ppb[world.b])
        sigma = np.clip(3 * sigma, 100.0, 1e5)
    fit = fit_edges(window, near, sigma)
    if not ideas.refine:
        hull = (fit.hard_above_ns + fit.hard_below_ns) / 2
        fit = replace(fit, offset_ns=hull)
    return fit


def tree_only(world: World, usable: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keeps a breadth-first spanning tree of the usable edges."""
    keep, seen, front = np.zeros(len(usable), bool), {0}, [0]
    while front:
        following = []
        for node in front:
            for e in np.flatnonzero(usable & ((world.a == node) | (world.b == node))):
                other = int(world.b[e] if world.a[e] == node else world.a[e])
                if other not in seen:
                    seen.add(other)
                    keep[e] = True
                    following.append(other)
        front = following
    return keep


def run(scenario: Scenario, ideas: Ideas, world: World | None = None) -> Errors:
    world = world or World(scenario)
    s = scenario
    rules = gates.GateRules(
        excess_ns=150.0 if ideas.margin_gate else np.inf,
        one_sided=ideas.one_sided,
        asymmetry_ns=max(s.asymmetry_ns / 2, 1.0),
    )
    clocks, floors = kalman.first(s.nodes), gates.Floors.unknown(len(world.a))
    errors = Errors()
    history: list[tuple[Stamps, Stamps]] = []
    per_window = round(s.window_s / s.hop_s)
    wander = s.wander_ppm * 1e3 * 2 * np.pi / 40  # of the sinusoids in Wander, ppb in one second
    for now_s in hops(s):
        history = [*history, world.stretch(now_s - s.hop_s, s.hop_s)][-per_window:]
        clocks = kalman.predicted(clocks, s.hop_s, wander)
        if len(history) < per_window:
            continue
        fit = fitted(window_of(history, world, clocks, now_s), world, clocks, ideas)
        gated = gates.gated(fit, floors, rules)
        floors = gates.learned(floors, fit, rules, s.hop_s)
        usable = gated.usable if ideas.graph else tree_only(world, gated.usable)
        edges = Edges(s.nodes, world.a, world.b, gated.offset_ns, gated.sigma_ns, gated.common_ns)
        solution = solve(edges, usable, anchor=1 / clocks.p_theta)
        slope = None
        if not ideas.kalman:
            drifts = Edges(
                s.nodes, world.a, world.b, fit.slope_ppb, gated.sigma_ns, gated.common_ns
            )
            slope = solve(drifts, usable).theta_ns
        clocks, centre = updated(clocks, solution, slope, s, wander)
        if now_s > 4:  # the first windows find 10 ms and 30 ppm
            tally(errors, world, (clocks, centre), now_s)
    return errors


def hops(s: Scenario) -> Iterator[float]:
    for i in range(1, round(s.seconds / s.hop_s) + 1):
        yield i * s.hop_s


def updated(
    clocks: kalman.Clocks, solution: Solution, slope: Floats | None, s: Scenario, wander: float
) -> tuple[kalman.Clocks, kalman.Clocks]:
    """The clocks now and at the window's centre; the measurement was made there."""
    back = s.window_s / 2
    centre = replace(clocks, theta_ns=clocks.theta_ns - clocks.drift_ppb * back)
    overlap = np.sqrt(s.window_s / s.hop_s)
    seen, sigma = centre.theta_ns + solution.theta_ns, solution.sigma_ns
    if slope is not None:  # no filter: what the window says is the clock
        drift = np.where(np.isfinite(slope), clocks.drift_ppb + slope, clocks.drift_ppb)
        now = np.where(np.isfinite(seen), seen, centre.theta_ns)
        variance = np.nan_to_num(sigma**2, nan=1e18)
        centre = replace(centre, theta_ns=now, drift_ppb=drift, p_theta=variance)
        return replace(centre, theta_ns=now + drift * back), centre
    centre, now_clocks = kalman.measured_before(clocks, back, seen, sigma * overlap, wander)
    return now_clocks, centre


def tally(
    errors: Errors, world: World, both: tuple[kalman.Clocks, kalman.Clocks], now_s: float
) -> None:
    clocks, centre = both
    s = world.scenario
    errors.post.append(pairwise(reading(world, centre, now_s - s.window_s / 2, 0.0)))
    ahead = s.hop_s / 2 + 0.25  # the middle of a page's life, and the time to solve and send
    off = reading(world, clocks, now_s, ahead)
    errors.live.append(pairwise(off))
    bound = 3.3 * kalman.predicted(clocks, ahead, s.wander_ppm * 157).sigma_ns + s.asymmetry_ns
    errors.inside.append(float((np.abs(off - np.median(off)) <= bound).mean()))
    errors.held.append(float((clocks.missed > 0).mean()))


def reading(world: World, clocks: kalman.Clocks, model_s: float, ahead_s: float) -> Floats:
    """What every node would say that time is, beyond true time, ``ahead_s`` after ``model_s``.

    All are asked at the same true instant; what they share is no error, as job time is theirs.
    """
    nodes, at_s = np.arange(world.scenario.nodes), model_s + ahead_s
    local = at_s * 1e9 + world.clocks.theta(nodes, np.full(len(nodes), at_s))
    job = local - clocks.theta_ns
    job = job - clocks.drift_ppb * 1e-9 * (job - model_s * 1e9)
    return np.asarray(job - at_s * 1e9)


def pairwise(error: Floats) -> Floats:
    i, j = np.triu_indices(len(error), 1)
    if len(i) > 20_000:
        pick = np.random.default_rng(0).integers(0, len(i), 20_000)
        i, j = i[pick], j[pick]
    return np.abs(error[i] - error[j])


def line(name: str, errors: Errors) -> str:
    cells = []
    for values in (errors.post, errors.live):
        all_ns = np.concatenate(values)
        p50, p99 = np.quantile(all_ns, (0.5, 0.99))
        cells.append(f"{p50:9,.1f} {p99:11,.1f} {all_ns.max():13,.1f}")
    inside, held = np.mean(errors.inside), np.mean(errors.held)
    return f"{name:34}{cells[0]}  |{cells[1]}  | {inside:6.3f} {held:6.3f}"


VARIANTS = {
    "mean, tree": Ideas(False, False, False, False, False, False, False),
    "hull, tree": Ideas(True, False, False, False, False, False, False),
    "band, tree": Ideas(True, True, False, False, False, False, False),
    "band, graph": Ideas(True, True, True, False, False, False, False),
    "+ kalman, prior": Ideas(margin_gate=False, one_sided=False),
    "+ gates": Ideas(one_sided=False),
    "all (gates, one-sided)": Ideas(),
    "all but margin gate": Ideas(margin_gate=False),
    "all but prior": Ideas(prior=False),
    "all but refine": Ideas(refine=False),
    "all but graph": Ideas(graph=False),
    "all but kalman": Ideas(kalman=False),
}


def show(title: str, scenario: Scenario, names: list[str]) -> None:
    print(f"\n{title}: {scenario.nodes} nodes, seed {scenario.seed}")
    print(
        f"{'':34}{'post p50':>9} {'p99':>11} {'max':>13}  |{'live p50':>9} {'p99':>11} {'max':>13}"
        "  | bound   held"
    )
    for name in names:
        print(line(name, run(scenario, VARIANTS[name])), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    base = Scenario()
    parser.add_argument("--nodes", type=int, default=base.nodes)
    parser.add_argument("--seconds", type=float, default=base.seconds)
    parser.add_argument("--load", type=float, default=base.edge_load)
    parser.add_argument("--fabric-load", type=float)
    parser.add_argument("--asymmetry-ns", type=float, default=0.0)
    parser.add_argument("--rate", type=float, default=base.pairs_per_s)
    parser.add_argument("--window", type=float, default=base.window_s)
    parser.add_argument("--hop", type=float, default=base.hop_s)
    parser.add_argument("--burst-us", type=float, default=base.burst_ns / 1e3)
    parser.add_argument("--saturated", type=int, default=0)
    parser.add_argument("--saturated-load", type=float, default=base.saturated_load)
    parser.add_argument("--congested-start", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS))
    given = parser.parse_args()
    fabric = given.load if given.fabric_load is None else given.fabric_load
    scenario = Scenario(
        nodes=given.nodes,
        seconds=given.seconds,
        edge_load=given.load,
        fabric_load=fabric,
        asymmetry_ns=given.asymmetry_ns,
        pairs_per_s=given.rate,
        window_s=given.window,
        hop_s=given.hop,
        saturated=given.saturated,
        seed=given.seed,
        saturated_load=given.saturated_load,
        congested_start=given.congested_start,
        burst_ns=given.burst_us * 1e3,
    )
    show(f"load {given.load:.0%} edge, {fabric:.0%} fabric", scenario, given.only)
    print(f"Huygens published p99: {HUYGENS_P99_NS} ns (128 servers; their network, not this)")


if __name__ == "__main__":
    main()
