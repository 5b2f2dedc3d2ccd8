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

    What is read with every sample goes through a :class:`~fabricctl.telemetry.batch.Batch`, and
    all else is done once a second for all samples together: a process that wakes 100 times a
    second finds its caches cold, and pays ten times as much. What costs too much to read so
    often, or tells no more, is read when its rows are asked for.
    """

    table: Table

    def rows(self) -> Sequence[Row]:
        """What was read since the last call, oldest first; may be empty. Asked for every second,
        or with each sample where those are rarer."""

    def close(self) -> None:
        """Gives its files back."""


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
