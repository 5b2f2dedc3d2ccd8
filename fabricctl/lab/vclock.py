"""The virtual clock of a node: what a lab fault says that it shows.

``/run/fabricctl-lab/clock`` on the node, ``key=value`` lines (:mod:`fabricctl.fields`); no file:
the true clock. With t the true time in nanoseconds on any clock of the machine, and s the seconds
since ``begin_mono_ns`` on CLOCK_MONOTONIC, the node's clock shows t + error(s), where::

    error(s) = offset_ns + drift_ppb * s
             + sum over waves of amplitude_ns * (sin(2 pi s / period_s + phase) - sin(phase))
             + sum of the steps_ns whose time has come

``waves`` are ``amplitude_ns:period_s:phase`` joined by commas, ``steps`` are ``seconds:ns``. The
file tells everything: whoever reads it gets the same error at the same time, in any language.

``/run/fabricctl-lab/system`` is what CLOCK_REALTIME would be on that node, for what sets it
(fabricctl/clock/steer/lab.c): at ``node_ns`` of the node's clock it showed ``system_ns``, and since
then it runs with that clock, sped up by ``freq`` (struct timex: 2^-16 ppm).
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from fabricctl import fields
from fabricctl.errors import DataError

# Periods of the wander, spread evenly on a logarithmic scale: 2 s to 10 minutes, the range in
# which a quartz follows the temperature of its room.
_PERIODS_S = (2.0, 6.3, 20.0, 63.0, 200.0, 600.0)


@dataclass(frozen=True)
class VirtualClock:
    """error_ns > 0: the node's clock is ahead of true time."""

    begin_mono_ns: int
    offset_ns: int = 0
    drift_ppb: float = 0.0
    waves: tuple[tuple[float, float, float], ...] = ()  # amplitude_ns, period_s, phase
    steps: tuple[tuple[float, int], ...] = ()  # seconds after begin, ns

    def error_ns(self, mono_ns: int) -> float:
        """How far the clock is ahead at a true time on CLOCK_MONOTONIC."""
        passed_s = (mono_ns - self.begin_mono_ns) / 1e9
        wander_ns = sum(
            amplitude_ns * (math.sin(2 * math.pi * passed_s / period_s + phase) - math.sin(phase))
            for amplitude_ns, period_s, phase in self.waves
        )
        stepped_ns = sum(step_ns for at_s, step_ns in self.steps if passed_s >= at_s)
        return self.offset_ns + self.drift_ppb * passed_s + wander_ns + stepped_ns

    def text(self) -> str:
        """The file's content."""
        return fields.encode(
            {
                "v": "1",
                "begin_mono_ns": str(self.begin_mono_ns),
                "offset_ns": str(self.offset_ns),
                "drift_ppb": repr(self.drift_ppb),
                "waves": ",".join(f"{a!r}:{p!r}:{phase!r}" for a, p, phase in self.waves),
                "steps": ",".join(f"{at_s!r}:{step_ns}" for at_s, step_ns in self.steps),
            }
        )

    @classmethod
    def parse(cls, text: str) -> "VirtualClock":
        """Raises :class:`DataError` for what :meth:`text` did not write."""
        given = fields.decode(text)
        try:
            if given["v"] != "1":
                raise DataError(f"virtual clock: version {given['v']!r}, this side knows 1")
            waves = [tuple(map(float, item.split(":"))) for item in _items(given["waves"])]
            steps = [item.split(":") for item in _items(given["steps"])]
            return cls(
                begin_mono_ns=int(given["begin_mono_ns"]),
                offset_ns=int(given["offset_ns"]),
                drift_ppb=float(given["drift_ppb"]),
                waves=tuple((amplitude, period, phase) for amplitude, period, phase in waves),
                steps=tuple((float(at_s), int(step_ns)) for at_s, step_ns in steps),
            )
        except (KeyError, ValueError) as error:
            raise DataError(f"virtual clock: {error}") from None


@dataclass(frozen=True)
class SystemClock:
    """What a lab node's CLOCK_REALTIME would show; made when something wants to set it."""

    node_ns: int
    system_ns: int
    freq: int  # of struct timex
    status: int

    @classmethod
    def parse(cls, text: str) -> "SystemClock":
        """Raises :class:`DataError` for what steer/lab.c did not write."""
        given = fields.decode(text)
        try:
            if given["v"] != "1":
                raise DataError(f"system clock: version {given['v']!r}, this side knows 1")
            return cls(*(int(given[key]) for key in ("node_ns", "system_ns", "freq", "status")))
        except (KeyError, ValueError) as error:
            raise DataError(f"system clock: {error}") from None

    def time_ns(self, node: VirtualClock | None, raw_ns: int, mono_ns: int) -> int:
        """What it shows at a true instant; ``node``: how the node's clock errs."""
        error_ns = round(node.error_ns(mono_ns)) if node else 0
        passed_ns = raw_ns + error_ns - self.node_ns
        return self.system_ns + passed_ns + round(passed_ns * self.freq / 65536e6)


def make_clock(options: Mapping[str, float | int | str], begin_mono_ns: int) -> VirtualClock:
    """The clock that a fault's options (:mod:`fabricctl.lab.kinds`) describe."""
    step_ns = int(options["step-ns"])
    return VirtualClock(
        begin_mono_ns=begin_mono_ns,
        offset_ns=int(options["offset-ns"]),
        drift_ppb=float(options["drift-ppb"]),
        waves=wander(float(options["wander-ppb"]), int(options["seed"])),
        steps=((float(options["step-after-s"]), step_ns),) if step_ns else (),
    )


def wander(rms_ppb: float, seed: int) -> tuple[tuple[float, float, float], ...]:
    """Waves whose rate together has the root mean square ``rms_ppb``."""
    if rms_ppb == 0:
        return ()
    phases = random.Random(seed)  # noqa: S311
    # A wave of rate amplitude a has rms a / sqrt(2); its phase amplitude is a / omega.
    rate_ppb = rms_ppb * math.sqrt(2 / len(_PERIODS_S))
    return tuple(
        (rate_ppb * period_s / (2 * math.pi), period_s, phases.uniform(0, 2 * math.pi))
        for period_s in _PERIODS_S
    )


def _items(text: str) -> list[str]:
    return text.split(",") if text else []
