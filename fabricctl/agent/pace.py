"""Points in time at even distances, without drift."""

from dataclasses import dataclass


@dataclass
class Pace:
    """``due_mono_ns``: the next point."""

    period_ns: int
    due_mono_ns: int

    @classmethod
    def every(cls, period_s: float, begin_mono_ns: int) -> "Pace":
        return cls(int(period_s * 1e9), begin_mono_ns)

    def take(self, now_mono_ns: int) -> int | None:
        """None when it is not time yet, else how many points passed unused before this one."""
        if now_mono_ns < self.due_mono_ns:
            return None
        missed = (now_mono_ns - self.due_mono_ns) // self.period_ns
        self.due_mono_ns += (missed + 1) * self.period_ns
        return missed
