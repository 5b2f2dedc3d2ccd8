"""The node that solves: reports of all nodes in, an answer to each out.

It keeps nothing that matters: every window is solved from its own reports, which carry each
node's prediction of itself. Any other node that gets the same reports finds the same answers, so
two nodes solve side by side and the death of one is not noticed (docs/clock.md).
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fabricctl.clock import bounds
from fabricctl.clock.edges import NEAR_NS, REPORT
from fabricctl.clock.solve import Edges, Solution, solve

Floats = NDArray[np.float64]

NEAR_WANTED = (6, 13)  # samples near the band's edge: probe more below, less above
# Pairs a second. At 18 a node of 10 peers and two rails takes 1 % of a core; live readings err by
# 15 to 30 % more than at 25 (bench/clock_faults.py).
RATE_LIMITS = (18.0, 200.0)
LATE_WINDOWS = 2  # settled nodes report every other window
KEPT_WINDOWS = 4
SAME_NS = 10_000.0  # settled clocks are some 10 ns apart, those that have just begun some us
FASTER, SLOWER = 1.2, 1 / 1.05  # from one window to the next


@dataclass(frozen=True)
class NodeReport:
    """One node on one window: its own prediction at the window's centre, and its edges.

    ``base``: a number that names the time it follows; at its start ``own``: its clock is that."""

    node: int
    window: int  # number of the window: its end in job time, in hops
    theta_ns: float
    p_theta: float
    settled: bool
    edges: NDArray[np.void]
    base: int = 0
    own: bool = True


@dataclass(frozen=True)
class Answer:
    """``theta_ns``: beyond the node's prediction; ``least_ns`` and ``most_ns``: how far the node's
    clock may be from that whatever the network did. NaN and infinite where not solved.
    ``residuals_ns``: what each edge of the node's report says beyond the solution. ``base`` names
    the time that this is about, ``agreed``: most of the living follow it already."""

    node: int
    window: int
    theta_ns: float
    sigma_ns: float
    least_ns: float
    most_ns: float
    rate: float
    residuals_ns: Floats
    base: int = 0
    agreed: bool = True


@dataclass
class _Open:
    """Who reported a window, and who is awaited because it has reported lately."""

    awaited: set[int]
    told: set[int] = field(default_factory=set)
    settled: bool = False  # somebody among them


class Solver:
    """Collects the reports of one window after the other.

    ``alive``: nodes of the allocation that are not known to be dead; only their majority is
    solved, so that a job never has two times, whoever reports to whom. ``rate``: pairs of probes
    a second as they are sent now.
    """

    def __init__(self, nodes: int, hop_s: float, rate: float) -> None:
        self._nodes = self.alive = nodes
        self._hop_s = hop_s
        self.rate = rate
        self._heard: dict[int, dict[int, NodeReport]] = {}  # by node, the last few by window
        self._last = np.full(nodes, -(1 << 40))  # the newest window that each node reported
        self._open: dict[int, _Open] = {}  # the last few windows
        self._solved = self._newest = -1
        self.last: Solution | None = None

    def add(self, report: NodeReport, now_window: int) -> bool:
        """True when everybody who reported lately has done so for this window.

        ``now_window``: this node's own; a report far from it is of a node that has not found
        the job's time yet.
        """
        if abs(report.window - now_window) > 2:
            return False
        window, node = report.window, report.node
        self._newest = max(self._newest, window)
        oldest = self._newest - KEPT_WINDOWS
        if window <= oldest:
            return False
        if window not in self._open:
            lately = set(np.flatnonzero(self._last >= window - LATE_WINDOWS).tolist())
            self._open = {w: of for w, of in self._open.items() if w > oldest}
            self._open[window] = _Open(lately)
        kept = {w: r for w, r in self._heard.get(node, {}).items() if w > oldest}
        self._heard[node] = {**kept, window: report}
        self._last[node] = max(self._last[node], window)
        reported = self._open[window]
        reported.told.add(node)
        reported.awaited.discard(node)
        reported.settled |= report.settled
        return not reported.awaited and self.waiting() == window

    def waiting(self) -> int | None:
        """The newest window that can be solved and was not.

        Most of the living must have told their predictions for it: a solver that hears the others
        late would else follow its own clock alone, and another solver another one. Beginners do
        not solve between two windows of those who know job time.
        """
        for window in sorted(self._open, reverse=True):
            reported = self._open[window]
            if window <= self._solved or 2 * len(reported.told) <= self.alive:
                continue
            near = (w for w in self._open if w > window - KEPT_WINDOWS)
            if reported.settled or not any(self._open[w].settled for w in near):
                return window
        return None

    def _reports(self, window: int) -> list[NodeReport]:
        """Of that window, and of those who are late the last before it."""
        found = []
        for of in self._heard.values():
            before = [w for w in of if window - LATE_WINDOWS <= w <= window]
            if before:
                found.append(of[max(before)])
        return found

    def solve(self) -> list[Answer]:
        """Answers to all who reported that window; none when no majority is tied together."""
        window = self.waiting()
        if window is None:
            return []
        reports = _possible(self._reports(window), self._nodes)
        # A late node's prediction is of another instant than the others'.
        timely = [report for report in reports if report.window == window]
        anchored = _anchor(timely, self._nodes)
        if anchored is None:
            return []
        base, anchor = anchored
        theta = np.full(self._nodes, np.nan)
        for report in reports:
            theta[report.node] = report.theta_ns
        table = self._table(reports, window)
        edges = _edges(table, theta, self._nodes)
        agreed = 2 * sum(report.base == base for report in timely) > self.alive
        solution = solve(
            edges,
            table["usable"] == 1,
            anchor=anchor,
            alive=self.alive,
        )
        self.last = solution
        if not solution.solved.any():
            return []  # and tried again when one more has reported
        self._solved = window
        hard = _hard(edges, table, solution)
        unsure_ns = _unsure_ns(solution, self.alive)
        theta = solution.theta_ns - float(hard.gauge @ np.nan_to_num(solution.theta_ns))
        ends = np.cumsum([len(r.edges) for r in reports])[:-1]  # as _table puts them
        own = dict(
            zip((r.node for r in reports), np.split(solution.residual_ns, ends), strict=True)
        )
        self._adapt(table)
        return [
            Answer(
                r.node,
                window,
                float(theta[r.node]),
                float(solution.sigma_ns[r.node]),
                float(hard.least_ns[r.node]) - unsure_ns,
                float(hard.most_ns[r.node]) + unsure_ns,
                self.rate,
                own[r.node],
                base,
                agreed,
            )
            for r in timely
        ]

    def _table(self, reports: list[NodeReport], window: int) -> NDArray[np.void]:
        """All edges, those of a late node carried forward by their slope."""
        table = _joined(reports)
        late = np.array([window - r.window for r in reports], float)
        late = np.repeat(late, [len(r.edges) for r in reports])
        table["offset_ns"] += table["slope_ppb"] * late * self._hop_s
        # What the slope says is likely, never certain.
        for name in ("hard_above_ns", "hard_below_ns"):
            table[name] = np.where(late > 0, np.nan, table[name])
        return table

    def _adapt(self, table: NDArray[np.void]) -> None:
        """Probes as often as the samples near the floor need; slowly, to keep the load even."""
        if not len(table):
            return
        typical = float(np.quantile(table["near"], 0.25))
        low, high = NEAR_WANTED
        factor = FASTER if typical < low else SLOWER if typical > high else 1.0
        self.rate = float(np.clip(self.rate * factor, *RATE_LIMITS))


def _joined(reports: list[NodeReport]) -> NDArray[np.void]:
    # As bytes: numpy takes ten times as long to join records field by field.
    return np.frombuffer(b"".join(r.edges.tobytes() for r in reports), REPORT).copy()


def _possible(reports: list[NodeReport], nodes: int) -> list[NodeReport]:
    """Without those that no node of ours writes: of edges that are another's, or not of numbers."""
    table = _joined(reports)
    sender = np.repeat([r.node for r in reports], [len(r.edges) for r in reports])
    total = table["offset_ns"] + table["slope_ppb"] + table["sigma_ns"] + table["common_ns"]
    mine = (table["a"] == sender) & (table["b"] < nodes)
    refused = set(sender[~(mine & np.isfinite(total) & (table["sigma_ns"] > 0))].tolist())
    return [report for report in reports if report.node not in refused]


def _anchor(reports: list[NodeReport], nodes: int) -> tuple[int, Floats] | None:
    """The time that most of those who are settled follow, and how much each clock counts in it:
    theirs by how sure they are.

    While none is settled one node's clock is job time, the first that follows nobody else: solvers
    that know of different nodes then still find the same answers. None without such a node:
    anybody else's clock would be another time under the same name.
    """
    anchor = np.zeros(nodes)
    bases = Counter(report.base for report in reports if report.settled)
    if bases:
        base = min(bases, key=lambda base: (-bases[base], base))
        for report in reports:
            if report.settled and report.base == base:
                anchor[report.node] = 1 / report.p_theta
        return base, anchor
    first = min((r for r in reports if r.own), key=lambda r: r.node, default=None)
    if first is None:
        return None
    anchor[first.node] = 1 / first.p_theta
    return first.base, anchor


def _unsure_ns(solution: Solution, alive: int) -> float:
    """How far off job time may be in another window, beyond what edges' slack covers.

    It is the mean of the clocks that count, which differ from window to window. Of two windows in
    which most of the living count and say the same, one clock at least counts in both; where
    fewer do, while they begin or hear of each other late, nobody can tell.
    """
    off_ns = np.abs(solution.theta_ns[solution.gauge > 0])
    same_ns = off_ns[off_ns <= SAME_NS]
    if 2 * len(same_ns) <= alive:
        return float("inf")
    return max(0.0, float(same_ns.max()) - NEAR_NS)


def _edges(table: NDArray[np.void], theta: Floats, nodes: int) -> Edges:
    a, b = table["a"].astype(np.int64), table["b"].astype(np.int64)
    return Edges(
        nodes=nodes,
        a=a,
        b=b,
        offset_ns=table["offset_ns"] - (theta[b] - theta[a]),  # NaN: the other end is silent
        sigma_ns=table["sigma_ns"].astype(float),
        common_ns=table["common_ns"].astype(float),
    )


def _hard(edges: Edges, table: NDArray[np.void], solution: Solution) -> bounds.Hard:
    """Hard bounds around the solution. Edges that contradict it beyond their own bounds lie."""
    theta = np.nan_to_num(solution.theta_ns)
    beyond = edges.offset_ns - (theta[edges.b] - theta[edges.a])
    # Where an owner's clock was wrong so were the instants that its edges speak of.
    slip = np.abs(theta[edges.a] * table["slope_ppb"]) * 1e-9
    above = beyond + table["hard_above_ns"] + slip
    below = beyond + table["hard_below_ns"] - slip
    possible = (above >= 0) & (below <= 0) & solution.solved[edges.a] & solution.solved[edges.b]
    above, below = np.where(possible, above, np.nan), np.where(possible, below, np.nan)
    return bounds.hard(edges, above, below, solution.gauge)
