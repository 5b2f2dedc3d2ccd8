"""Each node's clock between and beyond the windows: a two-state filter with holdover.

The states are ``theta_ns`` and its drift. Window solutions come in as measurements; without one
the filter runs on and its uncertainty says how long that can be trusted. Arrays hold one element
a node; functions return new arrays and keep nothing.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FIRST_OFFSET_SIGMA_NS = 1e9
FIRST_DRIFT_SIGMA_PPB = 1e5  # quartz is within 100 ppm
DRIFT_MAX_PPB = 5e5  # beyond which no clock of a computer runs
REOPEN_SIGMAS = 5.0  # a clock that stepped must not be fought with old confidence


@dataclass(frozen=True)
class Clocks:
    """State of N clocks at one instant; ``p_*`` is the covariance, ``reopened`` counts steps."""

    theta_ns: Floats
    drift_ppb: Floats
    p_theta: Floats
    p_cross: Floats
    p_drift: Floats
    missed: NDArray[np.int64]  # windows since the last accepted measurement
    doubted: NDArray[np.int64]  # measurements in a row that the filter could not believe

    @property
    def sigma_ns(self) -> Floats:
        return np.sqrt(self.p_theta)

    @property
    def drift_sigma_ppb(self) -> Floats:
        return np.sqrt(self.p_drift)


def first(nodes: int) -> Clocks:
    """Nothing known yet."""
    zero = np.zeros(nodes)
    return Clocks(
        theta_ns=zero,
        drift_ppb=zero,
        p_theta=np.full(nodes, FIRST_OFFSET_SIGMA_NS**2),
        p_cross=zero,
        p_drift=np.full(nodes, FIRST_DRIFT_SIGMA_PPB**2),
        missed=np.full(nodes, 1 << 30),
        doubted=np.zeros(nodes, np.int64),
    )


def predicted(clocks: Clocks, dt_s: float, wander_ppb: float) -> Clocks:
    """The clocks ``dt_s`` later.

    ``wander_ppb``: how far a drift walks in one second (one standard deviation), the noise that
    drives the filter.
    """
    q = wander_ppb**2
    cross = clocks.p_cross + clocks.p_drift * dt_s
    return replace(
        clocks,
        theta_ns=clocks.theta_ns + clocks.drift_ppb * dt_s,
        p_theta=clocks.p_theta
        + 2 * clocks.p_cross * dt_s
        + clocks.p_drift * dt_s**2
        + q * dt_s**3 / 3,
        p_cross=cross + q * dt_s**2 / 2,
        p_drift=clocks.p_drift + q * dt_s,
    )


def measured(clocks: Clocks, theta_ns: Floats, sigma_ns: Floats) -> Clocks:
    """After a measurement of some clocks (NaN: none of that one).

    One that lies beyond REOPEN_SIGMAS is doubted; two in a row re-open the filter: the clock
    stepped, or its drift did, and waiting would leave it wrong for the rest of the job.
    """
    seen = np.isfinite(theta_ns) & np.isfinite(sigma_ns)
    noise = np.where(seen, sigma_ns, 1.0) ** 2
    error = np.where(seen, theta_ns, clocks.theta_ns) - clocks.theta_ns
    total = clocks.p_theta + noise
    strange = seen & (error**2 > REOPEN_SIGMAS**2 * total)
    doubted = np.where(strange, clocks.doubted + 1, np.where(seen, 0, clocks.doubted))
    reopened = strange & (doubted >= 2)
    clocks = _reopened(clocks, reopened, error)
    total = clocks.p_theta + noise
    taken = seen & (~strange | reopened)
    gain_theta = np.where(taken, clocks.p_theta / total, 0.0)
    gain_drift = np.where(taken, clocks.p_cross / total, 0.0)
    # Not 1 - gain_theta: of a first offset that is known to 1 s nothing would be left of 10 ns.
    rest = np.where(taken, noise / total, 1.0)
    p_theta, p_cross = clocks.p_theta * rest, clocks.p_cross * rest
    return Clocks(
        theta_ns=clocks.theta_ns + gain_theta * error,
        drift_ppb=clocks.drift_ppb + gain_drift * error,
        p_theta=p_theta,
        p_cross=p_cross,
        # Rounding must not leave less than what the two are correlated by.
        p_drift=np.maximum(clocks.p_drift - gain_drift * clocks.p_cross, p_cross**2 / p_theta),
        missed=np.where(taken, 0, clocks.missed + 1),
        doubted=np.where(reopened, 0, doubted),
    )


def measured_before(
    clocks: Clocks, back_s: float, theta_ns: Floats, sigma_ns: Floats, wander_ppb: float
) -> tuple[Clocks, Clocks]:
    """After a measurement of ``theta_ns`` as it was ``back_s`` ago, at a window's centre.

    Returns the clocks then, measured, and the clocks now.
    """
    p_theta = clocks.p_theta - 2 * clocks.p_cross * back_s + clocks.p_drift * back_s**2
    p_cross = clocks.p_cross - clocks.p_drift * back_s
    least = np.maximum(
        p_cross**2 / np.maximum(clocks.p_drift, 1e-9), 1.0
    )  # rounding may leave less
    then = replace(
        clocks,
        theta_ns=clocks.theta_ns - clocks.drift_ppb * back_s,
        p_theta=np.maximum(p_theta, least),
        p_cross=p_cross,
    )
    then = measured(then, theta_ns, sigma_ns)
    return then, predicted(then, back_s, wander_ppb)


def _reopened(clocks: Clocks, which: Bools, error: Floats) -> Clocks:
    """Offset unknown by as much as the surprise, drift as at the beginning: the next two windows
    find both, and until then the clock says how little it knows. A drift that was kept, and wrong,
    would open the filter again and again."""
    return replace(
        clocks,
        p_theta=np.where(which, clocks.p_theta + error**2, clocks.p_theta),
        p_cross=np.where(which, 0.0, clocks.p_cross),
        p_drift=np.where(which, FIRST_DRIFT_SIGMA_PPB**2, clocks.p_drift),
        drift_ppb=np.where(
            which, np.clip(clocks.drift_ppb, -DRIFT_MAX_PPB, DRIFT_MAX_PPB), clocks.drift_ppb
        ),
    )
