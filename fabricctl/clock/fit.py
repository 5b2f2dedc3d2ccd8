"""One edge, one window: offset and drift between two clocks from delays in both directions.

All samples a to b lie above the line ``offset + slope * t``, all samples b to a below it. The
line sought is the middle of the widest band that separates them (the hard-margin SVM of Huygens,
section 4.2), refined by least squares on the samples near its edges. Times are seconds from the
window's reference, in already-corrected time, so that what remains to be found is small.

The steps, for each edge (cfit/fit.c; in numpy they took most of what the whole clock costs):

1. The slope of the widest band. Its width is a concave, piecewise linear function of the slope:
   cutting planes find its top exactly, in 4 to 8 steps.
2. Fewer than five samples near an edge of the band, and a crowd behind them: stamps taken early.
   They are peeled off, at most three times, and put back where no crowd comes out.
3. Two parallel lines by least squares through the samples near the edges; what is known of the
   slope is one more observation.
4. Apart from all that, the highest line below all samples of a direction, at time 0, whatever
   the drift: what the hard bounds are made of.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fabricctl.errors import SystemRefusedError

try:
    from fabricctl.clock import _fit
except ImportError:  # setup.py builds it where there is a compiler
    _fit = None  # type: ignore[assignment]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# struct fit_found of cfit/fit.h
_FOUND = np.dtype(
    [
        ("offset_ns", "<f8"),
        ("slope_ppb", "<f8"),
        ("ceiling_ns", "<f8"),
        ("floor_ns", "<f8"),
        ("sigma_ns", "<f8"),
        ("hard_above_ns", "<f8"),
        ("hard_below_ns", "<f8"),
        ("near_above", "<i8"),
        ("near_below", "<i8"),
        ("used_above", "<i8"),
        ("used_below", "<i8"),
    ]
)


@dataclass(frozen=True)
class Window:
    """Samples of E edges, padded: ``inf`` above and ``-inf`` below where there is none.

    ``above_ns[e, i]`` at ``above_s[e, i]``: received - sent of a packet a to b;
    ``below_ns``: sent - received of a packet b to a.
    """

    above_s: Floats
    above_ns: Floats
    below_s: Floats
    below_ns: Floats

    def mirrored(self) -> "Window":
        """The same samples with the clocks exchanged."""
        return Window(self.below_s, -self.below_ns, self.above_s, -self.above_ns)


@dataclass(frozen=True)
class Fit:
    """What a window says about each edge at time 0; NaN where it says nothing.

    ``ceiling_ns`` and ``floor_ns`` are the lines through the samples near the band's two edges,
    ``offset_ns`` their middle. ``sigma_ns`` is the offset's standard error from the scatter of
    those samples and from how freely they let the slope turn. ``near_above`` and ``near_below``
    count the samples near each edge, ``used_above`` and ``used_below`` all of them.
    ``hard_above_ns`` and ``hard_below_ns`` hold without any assumption on the network or on the
    slope: what the samples of one direction allow at time 0, whatever the drift.
    """

    offset_ns: Floats
    slope_ppb: Floats
    ceiling_ns: Floats
    floor_ns: Floats
    sigma_ns: Floats
    near_above: Ints
    near_below: Ints
    used_above: Ints
    used_below: Ints
    hard_above_ns: Floats
    hard_below_ns: Floats

    @property
    def margin_ns(self) -> Floats:
        return (self.ceiling_ns - self.floor_ns) / 2


def fit_edges(
    window: Window,
    near_ns: float | Floats,
    slope_sigma_ppb: float | Floats = 1e5,
    slope_ppb: float | Floats = 0.0,
) -> Fit:
    """Fits every edge of a window.

    ``near_ns``: samples within this of the band's edge count as undelayed; about four standard
    deviations of the stamps' noise. ``slope_sigma_ppb``: how well the slope is known before
    looking (a Kalman filter knows), around ``slope_ppb``; 1e5 when it is not.
    """
    if _fit is None:
        raise SystemRefusedError(
            "clock: the package was installed without its C part: install gcc and python3-dev, "
            "then install fabricctl again"
        )
    given = np.empty((len(window.above_ns), 3))
    given[:, 0], given[:, 1], given[:, 2] = near_ns, slope_sigma_ppb, slope_ppb
    found = np.frombuffer(
        _fit.fit(
            np.ascontiguousarray(window.above_s, float),
            np.ascontiguousarray(window.above_ns, float),
            np.ascontiguousarray(window.below_s, float),
            np.ascontiguousarray(window.below_ns, float),
            given,
        ),
        _FOUND,
    )
    return Fit(**{name: found[name] for name in _FOUND.names or ()})
