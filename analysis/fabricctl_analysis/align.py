"""From a node's own clock to the reader's time line.

Rows are stamped with CLOCK_MONOTONIC, which starts at boot and means nothing to another node. The
``clock`` table holds instants read on both CLOCK_MONOTONIC and CLOCK_REALTIME; between two of them
the difference is interpolated. Nodes are therefore aligned as well as their own CLOCK_REALTIME is:
how far apart those are is not measured here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ns = NDArray[np.int64]
Rows = NDArray[np.void]

# The kernel slews by at most 500 ppm (adjtimex(2), MAXFREQ in timex.h); a clock that moved further
# between two readings was stepped.
MAX_SLEW = 500e-6
# What two readings may disagree by without any step, beside their widths: rows that carry both
# times by the way are written by a process that can lose the CPU between the two.
SLACK_NS = 20_000
SLACK_BY_THE_WAY_NS = 50_000_000

# Year 2116: sums and differences of times below it fit 64 bits.
MAX_TIME_NS = 1 << 62

_PAIRED = ("link_event", "note", "step")


@dataclass(frozen=True)
class ClockStep:
    """CLOCK_REALTIME was set between two readings: ``size_ns`` > 0 means forward."""

    begin_real_ns: int
    end_real_ns: int
    size_ns: int


@dataclass(frozen=True)
class NodeClock:
    """Converts one node's CLOCK_MONOTONIC; ``error_ns`` bounds it, None when no width is known."""

    mono_ns: Ns
    offset_ns: Ns  # CLOCK_REALTIME minus CLOCK_MONOTONIC at mono_ns
    error_ns: int | None
    steps: tuple[ClockStep, ...]

    def real(self, mono_ns: Ns) -> Ns:
        """The same instants on CLOCK_REALTIME, in the order given."""
        base = self.offset_ns[0]
        moved = (self.offset_ns - base).astype(np.float64)
        between = np.interp(mono_ns, self.mono_ns, moved)
        real: Ns = mono_ns + base + np.rint(between).astype(np.int64)
        return real


def node_clock(tables: Mapping[str, Rows]) -> NodeClock | None:
    """The clock of one boot of a node, from its readings or, without any, from rows that carry both
    times; None when there are none: such a node cannot be placed on the time line."""
    rows = tables["clock"]
    width: int | None = None
    slack = SLACK_BY_THE_WAY_NS
    if len(rows):
        mono, real = rows["time_mono_ns"], rows["time_real_ns"]
        width = int(rows["width_ns"].max())
        slack = SLACK_NS + 2 * width
    else:
        mono = np.concatenate([tables[name]["time_mono_ns"] for name in _PAIRED])
        real = np.concatenate([tables[name]["time_real_ns"] for name in _PAIRED])
    good = possible(mono) & possible(real)
    mono, real = mono[good], real[good]
    if not len(mono):
        return None
    mono, first = np.unique(mono.astype(np.int64), return_index=True)
    offset = real.astype(np.int64)[first] - mono
    steps, is_step = _steps(mono, offset, slack)
    error = None if width is None else width + _interpolation_error(offset, is_step)
    mono, offset = _hold_before_steps(mono, offset, is_step)
    return NodeClock(mono, offset, error, steps)


def possible(time_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which times can be of a clock; a forged trace may hold any number."""
    return (time_ns >= 0) & (time_ns < MAX_TIME_NS)


def instants(*times_ns: int | None) -> list[int]:
    """Those that are known and can be of a clock; 0 stands for "not known" in a trace."""
    return [at for at in times_ns if at is not None and 0 < at < MAX_TIME_NS]


def _steps(mono: Ns, offset: Ns, slack_ns: int) -> tuple[tuple[ClockStep, ...], NDArray[np.bool_]]:
    moved, passed = np.diff(offset), np.diff(mono)
    is_step = np.abs(moved) > MAX_SLEW * passed + slack_ns
    steps = tuple(
        ClockStep(int(mono[i] + offset[i]), int(mono[i + 1] + offset[i + 1]), int(moved[i]))
        for i in np.flatnonzero(is_step)
    )
    return steps, is_step


def _interpolation_error(offset: Ns, is_step: NDArray[np.bool_]) -> int:
    """Where between two readings the clock moved is not known: at worst all of it at one end."""
    slewed = np.abs(np.diff(offset))[~is_step]
    return int(slewed.max()) if len(slewed) else 0


def _hold_before_steps(mono: Ns, offset: Ns, is_step: NDArray[np.bool_]) -> tuple[Ns, Ns]:
    """Before a step the old offset holds until the reading that shows the new one."""
    at = np.flatnonzero(is_step) + 1
    return np.insert(mono, at, mono[at] - 1), np.insert(offset, at, offset[at - 1])
