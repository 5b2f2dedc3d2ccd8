"""When something took effect: the two clock readings around it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Stamp:
    """The effect lies between ``begin`` and ``end``, both read on this machine's clocks.

    The realtime clock is read inside the monotonic readings' bracket; namespaces share it.
    """

    begin_mono_ns: int
    end_mono_ns: int
    begin_real_ns: int
    end_real_ns: int

    @property
    def mono_ns(self) -> int:
        """The middle: wrong by at most half of :attr:`width_ns`."""
        return (self.begin_mono_ns + self.end_mono_ns) // 2

    @property
    def real_ns(self) -> int:
        return (self.begin_real_ns + self.end_real_ns) // 2

    @property
    def width_ns(self) -> int:
        return self.end_mono_ns - self.begin_mono_ns

    def until(self, last: "Stamp") -> "Stamp":
        """From the begin of this to the end of ``last``."""
        return Stamp(self.begin_mono_ns, last.end_mono_ns, self.begin_real_ns, last.end_real_ns)

    @classmethod
    def of(cls, given: Mapping[str, int]) -> "Stamp":
        return cls(**{name: int(given[name]) for name in cls.__dataclass_fields__})


class Stopwatch:
    """Makes a :class:`Stamp`: starts when it is made."""

    def __init__(self) -> None:
        self._begin_mono_ns = time.monotonic_ns()
        self._begin_real_ns = time.time_ns()

    def stop(self) -> Stamp:
        end_real_ns = time.time_ns()
        return Stamp(self._begin_mono_ns, time.monotonic_ns(), self._begin_real_ns, end_real_ns)
