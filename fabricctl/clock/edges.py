"""The edges that this node owns: samples in, one report an edge and window out.

The owner of an edge gets the stamps of both ends. It keeps a filter of its own for each edge, so
that samples are fitted in already-corrected time without knowing anybody's clock model: the
peer's stamps are corrected by the node's own model plus the edge's last known offset.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fabricctl.clock import gates, kalman
from fabricctl.clock.fit import Fit, Window, fit_edges
from fabricctl.clock.probing import HARDWARE, SAMPLE

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Stamps taken in software scatter by tens of ns around the undelayed path, and drag a tail of
# cache misses and interrupts; 200 ns won against 50, 100 and 400 on recorded links
# (docs/decisions/0010-clock-estimator.md).
NEAR_NS = 200.0
ENOUGH = 5  # samples of one kind of stamps, each way, and an eighth of all: it is used alone
SETTLED_DRIFT_PPB = 500.0  # an error of 125 ns at the ends of a window: less than NEAR_NS

# What an edge says about a window. ``offset_ns``: theta_b - theta_a at the window's reference;
# ``hard_*``: bounds of it beyond offset_ns, whatever the network does.
REPORT = np.dtype(
    [
        ("a", "<u4"),
        ("b", "<u4"),
        ("rail", "u1"),
        ("usable", "u1"),
        ("one_sided", "u1"),
        ("near", "u1"),  # samples near the emptier edge of the band, at most 255
        ("offset_ns", "<f8"),
        ("slope_ppb", "<f4"),
        ("sigma_ns", "<f4"),
        ("common_ns", "<f4"),
        ("hard_above_ns", "<f4"),
        ("hard_below_ns", "<f4"),
        ("excess_ns", "<f4"),
    ]
)

Arrays = TypeVar("Arrays", kalman.Clocks, gates.Floors)
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True)
class Model:
    """A node's clock around one instant of job time; see the package for theta's sign."""

    at_job_ns: int
    theta_ns: float
    drift_ppb: float

    def since_ns(self, node_ns: Ints) -> Floats:
        """Job time of readings of node time, in ns after ``at_job_ns``."""
        passed = (node_ns - self.at_job_ns).astype(float) - self.theta_ns
        return np.asarray(passed / (1 + self.drift_ppb * 1e-9))


@dataclass(frozen=True)
class Span:
    """A window: the ``length_s`` before ``end_ns`` of job time. What is said of it is said of the
    instant ``reference_s`` before its end, the same for windows of all lengths."""

    end_ns: int
    length_s: float
    reference_s: float

    @property
    def begin_ns(self) -> int:
        return self.end_ns - round(self.length_s * 1e9)

    @property
    def reference_ns(self) -> int:
        return self.end_ns - round(self.reference_s * 1e9)


class OwnedEdges:
    """All edges that one node owns."""

    def __init__(self, me: int, rules: gates.GateRules, near_ns: float = NEAR_NS) -> None:
        self._me = me
        self._rules = rules
        self._near_ns = near_ns
        self._keys: list[tuple[int, int]] = []  # (rail, peer)
        self._clocks = kalman.first(0)
        self._floors = gates.Floors.unknown(0)
        self._samples = np.empty(0, SAMPLE)
        self._last_end_ns = 0
        self._reference_ns = 0
        self._residual = np.empty(0)  # of each edge, beyond the mesh's solution
        self._kind = np.empty(0, np.int64)  # of each edge: which ends the NICs stamp, own end 2
        self._error_ns = np.empty(0)  # of each edge: of the stamps used in the last window
        self._reported: dict[int, Ints] = {}  # edges of the last reports, by the window's end

    def set_edges(self, keys: Sequence[tuple[int, int]]) -> None:
        """``(rail, peer)`` of each; what is known of those that stay is kept."""
        old = {key: at for at, key in enumerate(self._keys)}
        source = np.array([old.get(key, -1) for key in keys], np.int64)
        self._clocks = _rearranged(self._clocks, source, kalman.first(len(keys)))
        self._floors = _rearranged(self._floors, source, gates.Floors.unknown(len(keys)))
        self._residual = _kept(self._residual, source, np.full(len(keys), np.nan))
        self._kind = _kept(self._kind, source, np.zeros(len(keys), np.int64))
        self._error_ns = _kept(self._error_ns, source, np.zeros(len(keys)))
        self._reported.clear()
        self._keys = list(keys)

    def floors(self) -> dict[tuple[int, int], float]:
        """Half the least round trip known of each edge, by ``(rail, peer)``."""
        known = zip(self._keys, self._floors.margin_ns.tolist(), strict=True)
        return {key: margin for key, margin in known if np.isfinite(margin)}

    def learn_residuals(self, end_ns: int, residuals_ns: Floats) -> None:
        """What the solution said of the edges reported for the window that ended then."""
        edges = self._reported.get(end_ns)
        if edges is not None and len(edges) == len(residuals_ns):
            self._residual[edges] = residuals_ns

    def offsets_of(self, samples: NDArray[np.void], own: Model) -> Floats:
        """theta_peer - theta_own at each sample by the mesh's solution, NaN where not known."""
        edge = self._edge_of(samples)
        inbound = samples["inbound"] == 1
        mine = np.where(inbound, samples["received_ns"], samples["sent_ns"])
        at_s = (own.since_ns(mine) - (self._reference_ns - own.at_job_ns)) * 1e-9
        if not self._keys:
            return np.full(len(samples), np.nan)
        offset = self._clocks.theta_ns[edge] + self._clocks.drift_ppb[edge] * at_s
        return np.where(edge >= 0, offset - self._residual[edge], np.nan)

    def add(self, samples: NDArray[np.void]) -> None:
        """Samples from the engine; only the smallest ones tell time.

        Of a pair the second: the first of an isolated pair meets colder caches.
        """
        good = samples[(samples["size_class"] == 0) & (samples["seq"] % 2 == 1)]
        # As bytes: numpy takes ten times as long to join records field by field.
        self._samples = np.frombuffer(self._samples.tobytes() + good.tobytes(), SAMPLE)

    def fit(self, span: Span, own: Model, wander_ppb: float) -> NDArray[np.void]:
        """Reports (:data:`REPORT`) on a window."""
        end_ns = span.end_ns
        # Less than nothing where a beginner found that it was ahead of the others.
        passed_s = min(max((end_ns - self._last_end_ns) * 1e-9, 0.0), 60.0)
        self._last_end_ns, self._reference_ns = end_ns, span.reference_ns
        self._forget_before(span.begin_ns, own)
        # The edges' filters stand at the window's reference.
        self._clocks = kalman.predicted(self._clocks, passed_s, wander_ppb * np.sqrt(2))
        window = self._window(span, own)
        sigma = np.clip(3 * self._clocks.drift_sigma_ppb, 100.0, 1e5)
        fit = fit_edges(window, self._near_ns, sigma)
        gated = gates.gated(fit, self._floors, self._rules)
        before = self._clocks
        settled = before.drift_sigma_ppb < SETTLED_DRIFT_PPB
        self._floors = gates.learned(self._floors, fit, self._rules, passed_s, settled)
        overlap = np.sqrt(max(span.length_s / max(passed_s, 1e-3), 1.0))
        seen = np.where(gated.usable, before.theta_ns + gated.offset_ns, np.nan)
        self._clocks = kalman.measured(before, seen, gated.sigma_ns * overlap)
        said = np.isfinite(fit.offset_ns)
        self._reported = {**dict(list(self._reported.items())[-3:]), end_ns: np.flatnonzero(said)}
        return self._reports(fit, gated, before)[said]

    def _forget_before(self, begin_ns: int, own: Model) -> None:
        inbound = self._samples["inbound"] == 1
        mine = np.where(inbound, self._samples["received_ns"], self._samples["sent_ns"])
        self._samples = self._samples[own.since_ns(mine) >= begin_ns - own.at_job_ns]

    def _window(self, span: Span, own: Model) -> Window:
        """Samples of both directions, padded, in corrected time."""
        samples = self._samples
        edge = self._edge_of(samples)
        inbound = samples["inbound"] == 1
        mine = np.where(inbound, samples["received_ns"], samples["sent_ns"])
        theirs = np.where(inbound, samples["sent_ns"], samples["received_ns"])
        at_s = (own.since_ns(mine) - (span.reference_ns - own.at_job_ns)) * 1e-9
        known = (edge >= 0) & self._alike(samples, edge)
        offset = self._clocks.theta_ns[edge] + self._clocks.drift_ppb[edge] * at_s
        # received - sent outbound, sent - received inbound: both are theirs - mine.
        beyond = (theirs - mine).astype(float) - offset
        known &= at_s <= span.reference_s
        edges = len(self._keys)
        above = _padded(edge, at_s, beyond, known & ~inbound, (edges, np.inf))
        below = _padded(edge, at_s, beyond, known & inbound, (edges, -np.inf))
        return Window(*above, *below)

    def _alike(self, samples: NDArray[np.void], edge: Ints) -> NDArray[np.bool_]:
        """Samples of the best kind of stamps that an edge has enough of, both ways.

        Between the NIC's stamp and the kernel's lie microseconds: of two kinds, one in each
        direction, they would look like an offset. Floors are those of one kind.
        """
        by_nic = samples["sent_source"] == HARDWARE, samples["received_source"] == HARDWARE
        if not (by_nic[0].any() or by_nic[1].any() or self._kind.any()):
            return np.ones(len(samples), bool)
        outbound = samples["inbound"] == 0
        kind = np.where(outbound, 2 * by_nic[0] + by_nic[1], by_nic[0] + 2 * by_nic[1])
        edges, known = len(self._keys), edge >= 0
        counts = np.zeros((edges, 2, 4), np.int64)
        np.add.at(counts, (edge[known], outbound[known].astype(int), kind[known]), 1)
        both, before = counts.min(axis=1), self._kind
        enough = np.maximum(counts.sum(axis=(1, 2)) / 8, ENOUGH)
        self._kind = np.where(both.any(axis=1), both.argmax(axis=1), before)
        for better in range(1, 4):
            self._kind[both[:, better] >= enough] = better
        same = np.where(self._kind == before, np.arange(edges), -1)
        self._floors = _rearranged(self._floors, same, gates.Floors.unknown(edges))
        used = known & (kind == self._kind[edge])
        self._error_ns = np.zeros(edges)
        np.maximum.at(self._error_ns, edge[used], samples["error_ns"][used])
        return np.asarray(used)

    def _edge_of(self, samples: NDArray[np.void]) -> Ints:
        """Place of each sample's edge, -1 where we own none such (any more)."""
        if not self._keys:
            return np.full(len(samples), -1)
        own = np.array([rail << 32 | peer for rail, peer in self._keys])
        order = np.argsort(own)
        wanted = samples["rail"].astype(np.int64) << 32 | samples["peer"]
        place = order[np.minimum(np.searchsorted(own[order], wanted), len(own) - 1)]
        return np.where(own[place] == wanted, place, -1)

    def _reports(self, fit: Fit, gated: gates.Gated, before: kalman.Clocks) -> NDArray[np.void]:
        """A row an edge; meaningless where the fit says nothing."""
        # A single stamp may be early by its noise, and a NIC's by the error of its node time.
        slack = self._near_ns + self._error_ns
        table = np.zeros(len(self._keys), REPORT)
        table["a"] = self._me
        table["b"] = [peer for _, peer in self._keys]
        table["rail"] = [rail for rail, _ in self._keys]
        table["usable"], table["one_sided"] = gated.usable, gated.one_sided
        table["near"] = np.minimum(np.minimum(fit.near_above, fit.near_below), 255)
        table["offset_ns"] = before.theta_ns + gated.offset_ns
        table["slope_ppb"] = before.drift_ppb + fit.slope_ppb
        table["sigma_ns"], table["common_ns"] = gated.sigma_ns, gated.common_ns
        table["hard_above_ns"] = fit.hard_above_ns - gated.offset_ns + slack
        table["hard_below_ns"] = fit.hard_below_ns - gated.offset_ns - slack
        table["excess_ns"] = gated.excess_ns
        return table


def _padded(
    edge: Ints, at_s: Floats, value: Floats, chosen: NDArray[np.bool_], shape: tuple[int, float]
) -> tuple[Floats, Floats]:
    """Rows of one edge each, filled up to the longest; ``shape``: edges, and what fills."""
    edges, fill = shape
    edge, at_s, value = edge[chosen], at_s[chosen], value[chosen]
    order = np.argsort(edge, kind="stable")
    edge, at_s, value = edge[order], at_s[order], value[order]
    counts = np.bincount(edge, minlength=edges)
    place = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    width = max(int(counts.max(initial=0)), 2)
    times, values = np.zeros((edges, width)), np.full((edges, width), fill)
    times[edge, place], values[edge, place] = at_s, value
    return times, values


def _rearranged(old: Arrays, source: Ints, fresh: Arrays) -> Arrays:
    """``fresh`` with the rows of ``old`` that ``source`` names (-1: none)."""
    names = [item.name for item in fields(old)]
    kept = {name: _kept(getattr(old, name), source, getattr(fresh, name)) for name in names}
    return type(fresh)(**kept)


def _kept(old: NDArray[Number], source: Ints, fresh: NDArray[Number]) -> NDArray[Number]:
    values = fresh.copy()
    values[source >= 0] = old[source[source >= 0]]
    return values
