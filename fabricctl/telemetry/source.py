"""The interface that every source of samples offers to the agent."""

from collections.abc import Sequence
from typing import Protocol

from fabricctl.store.schema import Severity, Table

Row = tuple[int | None, ...]
"""The values of one row in the order of its table's columns; None: could not be measured."""


class Tell(Protocol):
    """Puts a note into the job's record."""

    def __call__(
        self, source: str, text: str, severity: Severity = Severity.WARNING, /
    ) -> None: ...


class Source(Protocol):
    """One thing that is measured. It never raises for what the system does to it: what cannot
    be read is None in the rows, and is told once with the reason.

    Reading and making rows are apart because a process that wakes 100 times a second finds its
    caches cold: what can wait is done once a second for all samples together, at a quarter of
    the cost.
    """

    table: Table

    def take(self) -> None:
        """Reads now."""

    def rows(self) -> Sequence[Row]:
        """What was read since the last call, oldest first; may be empty."""

    def close(self) -> None:
        """Gives its files back."""


class EverySecond:
    """For sources whose reading costs too much, or tells no more, a hundred times a second."""

    PERIOD_NS = 1_000_000_000
    SLACK_NS = 50_000_000  # a sample of once a second that comes early is still due

    def __init__(self) -> None:
        self._last_ns = -self.PERIOD_NS

    def due(self, now_mono_ns: int) -> bool:
        if now_mono_ns - self._last_ns < self.PERIOD_NS - self.SLACK_NS:
            return False
        self._last_ns = now_mono_ns
        return True


class Complaints:
    """Tells each failing thing once, until it works again."""

    def __init__(self, source: str, tell: Tell) -> None:
        self._source = source
        self._tell = tell
        self._broken: set[str] = set()

    def failed(self, what: str, why: object) -> None:
        if what not in self._broken:
            self._broken.add(what)
            reason = why.strerror if isinstance(why, OSError) and why.strerror else why
            self._tell(self._source, f"{what} not measured: {reason}")

    def works(self, what: str) -> None:
        if what in self._broken:
            self._broken.remove(what)
            self._tell(self._source, f"{what} measured again", Severity.INFO)
