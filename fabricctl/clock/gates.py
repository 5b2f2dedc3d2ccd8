"""Which edges of a window may be believed, and how far.

A congested port is invisible to loops, because it shifts all edges of its node alike; but it
lengthens their round trips. Each edge therefore has a known floor of its margin (half round
trip): what exceeds it is queueing in one direction or the other. If only one direction is
queued, the other one and the floor still give the offset: then the edge is used one-sided.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fabricctl.clock.fit import Fit

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class GateRules:
    """Limits of the gates; the defaults are measured in docs/decisions/0010-clock-estimator.md.

    ``excess_ns``: margin above its floor from which an edge is no longer believed two-sided.
    ``crowd``: samples near an edge of the band that show that direction to be free of queues.
    ``relearn_s``: how long a longer, queue-free path must last to be taken for a new path.
    ``confirmed``: windows that must have found the same floor before it is believed.
    ``asymmetry_ns``: what the path may differ between directions unseen (per stamp source).
    """

    excess_ns: float = 150.0
    crowd: int = 5
    asymmetry_ns: float = 10.0
    relearn_s: float = 30.0
    confirmed: int = 4
    one_sided: bool = True


@dataclass(frozen=True)
class Floors:
    """Per edge: the least margin known (NaN: none yet), how well, how long it has been exceeded.

    ``age`` counts the windows that confirmed it.
    """

    margin_ns: Floats
    age: Ints
    exceeded_s: Floats

    @classmethod
    def unknown(cls, edges: int) -> "Floors":
        return cls(np.full(edges, np.nan), np.zeros(edges, np.int64), np.zeros(edges))


@dataclass(frozen=True)
class Gated:
    """Edges as the solve may use them; ``excess_ns`` is NaN where no floor is known.

    ``common_ns``: the part of ``sigma_ns`` that is queueing, see Edges in solve.py.
    """

    offset_ns: Floats
    sigma_ns: Floats
    common_ns: Floats
    usable: Bools
    one_sided: Bools
    excess_ns: Floats


def learned(
    floors: Floors, fit: Fit, rules: GateRules, dt_s: float, settled: Bools | None = None
) -> Floors:
    """Floors after one more window.

    Down at once beyond the noise, else slowly towards windows near the floor; up only when both
    directions have been free of queues and longer for ``relearn_s``: the path changed.
    ``settled``: edges whose drift is known; a wrong slope makes the band narrower than the path.
    """
    margin = fit.margin_ns
    free = _free(fit, rules) & (margin > 0)
    if settled is not None:
        free &= settled
    new = free & ~np.isfinite(floors.margin_ns)
    excess = margin - floors.margin_ns
    noise = 4 * fit.sigma_ns
    lower = free & (excess < -(noise + 20))
    close = free & (np.abs(excess) <= noise)
    above = free & (excess > noise)
    exceeded = np.where(
        above, floors.exceeded_s + dt_s, np.where(close | lower, 0.0, floors.exceeded_s)
    )
    changed = exceeded >= rules.relearn_s
    gain = 1 / np.minimum(floors.age + 1, 50)
    level = np.where(close, floors.margin_ns + gain * excess, floors.margin_ns)
    unsure = free & ~close & (floors.age < rules.confirmed)
    anew = new | lower | changed | unsure
    level = np.where(anew, margin, level)
    age = np.where(anew, 1, floors.age + close)
    return Floors(level, age, np.where(changed, 0.0, exceeded))


def _free(fit: Fit, rules: GateRules) -> Bools:
    free: Bools = (fit.near_above >= rules.crowd) & (fit.near_below >= rules.crowd)
    return free


def gated(fit: Fit, floors: Floors, rules: GateRules) -> Gated:
    """Applies the gates to a window's fits."""
    excess = fit.margin_ns - floors.margin_ns
    known = floors.age >= rules.confirmed
    over = np.where(known, np.maximum(excess, 0.0), 0.0)
    believed = np.isfinite(fit.offset_ns) & (over <= rules.excess_ns)
    # Without a floor and without a crowd at both edges all of the margin may be queueing.
    queueing = np.where(known, over / 2, np.where(_free(fit, rules), 0.0, fit.margin_ns / 2))
    offset, own = fit.offset_ns, fit.sigma_ns
    above = below = np.zeros(len(offset), bool)
    if rules.one_sided:
        sure = known & (over > 4 * fit.sigma_ns + 10)
        above = sure & (fit.near_above >= rules.crowd) & (fit.near_below < rules.crowd)
        below = sure & (fit.near_below >= rules.crowd) & (fit.near_above < rules.crowd)
        offset = np.where(above, fit.ceiling_ns - floors.margin_ns, offset)
        offset = np.where(below, fit.floor_ns + floors.margin_ns, offset)
    one_sided = above | below
    own = np.where(one_sided, 2 * own, own)
    queueing = np.where(one_sided, 0.0, queueing)
    return Gated(
        offset_ns=offset,
        sigma_ns=np.sqrt(own**2 + queueing**2 + rules.asymmetry_ns**2),
        common_ns=queueing,
        usable=believed | one_sided,
        one_sided=one_sided,
        excess_ns=np.where(known, excess, np.nan),
    )
