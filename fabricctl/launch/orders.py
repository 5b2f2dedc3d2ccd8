"""What `fabricctl run` was told to do meanwhile: signals, `job halt` and `job migrate`."""

import signal
from dataclasses import dataclass

OLD_S = 120.0  # for a group to be made, and a spare's process to be there
AGAIN_S = 1.0  # a signal that found no task, because there is none yet, is given again
_NAMES = {signal.SIGTERM: "TERM", signal.SIGINT: "TERM", signal.SIGUSR1: "USR1"}


@dataclass
class Orders:
    """``halt_at_s``: Unix time at which all save and end. Times are those of the caller."""

    halt_at_s: float | None = None
    ends: int = 0  # SIGTERM or SIGINT, which `fabricctl run` itself got
    given: str = ""  # being carried out: now, checkpoint, or from:NODE[:SPARE]
    due: str = ""  # the name of a signal that the ranks are to get
    _next_s: float = float("-inf")
    _given_s: float = 0.0

    def take_signal(self, number: int) -> None:
        """Passed on once; ranks save on these. Slurm's own end follows anyway."""
        self.due, self._next_s = _NAMES.get(signal.Signals(number), "USR2"), float("-inf")
        if self.due == "TERM":
            self.ends = number

    def send(self, name: str) -> None:
        """The ranks get a signal as soon as there are any."""
        self.due, self._next_s = name, float("-inf")

    def is_due(self, now_s: float) -> str:
        """A signal that is to be given now, or "" ; :meth:`sent` when somebody got it."""
        if not self.due or now_s < self._next_s:
            return ""
        self._next_s = now_s + AGAIN_S
        return self.due

    def sent(self) -> None:
        self.due = ""

    def take(self, order: str, now_s: float) -> bool:
        """Whether an order is to be carried out from now on: one to end takes the place of one to
        leave a node, and one to end at once of both."""
        if order.startswith("before:"):
            self.halt_at_s = float(order.removeprefix("before:"))
            return False
        if _strength(order) <= _strength(self.given):
            return False
        self.given, self._given_s = order, now_s
        return True

    def is_old(self, now_s: float) -> bool:
        """Whether what is being carried out was given long ago."""
        return now_s - self._given_s > OLD_S

    @property
    def halts(self) -> bool:
        """Whether the program is to end and not to be started again."""
        return self.given in ("now", "checkpoint")

    @property
    def leaving(self) -> tuple[str, str]:
        """The node that ranks are to leave, and for which spare; both may be ""."""
        if not self.given.startswith("from:"):
            return "", ""
        node, _, to = self.given.removeprefix("from:").partition(":")
        return node, to

    def left(self) -> None:
        """What was to leave a node has left, or cannot."""
        if not self.halts:
            self.given = ""


def _strength(order: str) -> int:
    return {"": 0, "checkpoint": 2, "now": 3}.get(order, 1)
