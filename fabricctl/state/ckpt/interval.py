"""When the next checkpoint is due, from what one costs and how often the job fails."""

import math
import os
from dataclasses import dataclass

from fabricctl.errors import UsageError

AGREE_S = 1.0  # how soon all ranks hear of a signal that one of them got
MTBF_S = 6 * 3600.0  # of the whole job, where nobody says better: a big job's day has four
SHARE_MOST = 0.05  # of the run's time that checkpoints may take, whatever the failure rate
_NEWEST = 0.3  # the newest cost's weight in the usual one


@dataclass
class Interval:
    """``every_steps`` or ``every_s`` set it; else it is the square root of twice the cost times
    ``mtbf_s`` (Young 1974). All ranks tell it the same numbers, so all have the same plan."""

    every_steps: int | None
    every_s: float | None
    mtbf_s: float
    next_step: int | None = None  # None: the first step is saved
    agree_step: int = 0  # when signals are asked for next
    _cost_s: float = 0.0

    def start_at(self, step: int) -> None:
        self.next_step = step + (self.every_steps or 1)
        self.agree_step = step + 1

    def due(self, n: int) -> bool:
        return self.next_step is None or n >= self.next_step

    def saved(self, n: int, cost_s: float, step_s: float) -> None:
        """Step ``n`` was, and the slowest rank's cost and time of a step were these."""
        older_s = self._cost_s or cost_s
        self._cost_s = (1 - _NEWEST) * older_s + _NEWEST * cost_s
        if self.every_steps:
            steps = self.every_steps
        else:
            wanted_s = self.every_s or max(
                math.sqrt(2 * self._cost_s * self.mtbf_s), self._cost_s / SHARE_MOST
            )
            steps = max(1, round(wanted_s / max(step_s, 1e-9)))
        self.next_step = n + steps
        self.agree_step = n + max(1, min(int(AGREE_S / max(step_s, 1e-9)), steps))

    def agreed(self, n: int, step_s: float) -> None:
        """All ranks were asked for signals at step ``n``."""
        self.agree_step = n + max(1, int(AGREE_S / max(step_s, 1e-9)))


def interval(every_steps: int | None, every_s: float | None, mtbf_s: float | None) -> Interval:
    """From what a program says; raises :class:`UsageError`."""
    given = mtbf_s if mtbf_s is not None else os.environ.get("FABRIC_MTBF_S") or MTBF_S
    try:
        mtbf_s = float(given)
    except ValueError:
        raise UsageError(f"checkpoint: FABRIC_MTBF_S={given!r}: seconds are wanted") from None
    for name, value in (("every_steps", every_steps), ("every_s", every_s), ("mtbf_s", mtbf_s)):
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"checkpoint: {name}={value}: more than 0, or None for the default")
    return Interval(every_steps, every_s, mtbf_s)
