"""Sources that are read every ten seconds or more seldom, whatever the rate of the samples.

Each reader is one file of this package. Readers take turns, one a sample, and one that is slow is
read so seldom that it costs less than :data:`SHARE` of a core. Figures go into one table,
``reading``, and only when they changed.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from fabricctl.errors import DataError
from fabricctl.store import schema
from fabricctl.store.schema import Severity
from fabricctl.telemetry.source import Complaints, Tell

Reading = tuple[str, str, int]
"""Of what (`eth0`, `node1`), which figure, its value."""
TextRow = tuple[int | str, ...]
SHARE = 0.001
# Of one reader; what comes later is left out, and said so.
MAX_FIGURES = 256


class Reader(Protocol):
    """One source. ``name`` is the column ``source``."""

    name: str
    period_s: float

    def read(self) -> Iterable[Reading]:
        """Everything that it has now.

        Raises OSError or DataError when it is absent or broken: that is told once. What it gave
        before is kept.
        """

    def close(self) -> None:
        """Gives its files back."""


class SlowSources:
    """All readers of one agent, in turn."""

    def __init__(self, readers: Sequence[Reader], tell: Tell) -> None:
        self._readers, self._tell = readers, tell
        self._seen: set[str] = set()
        self._absent: set[str] = set()
        self._complaints = {reader.name: Complaints(reader.name, tell) for reader in readers}
        self._due_s = {reader.name: 0.0 for reader in readers}
        self._next_s = 0.0
        self._last: dict[tuple[str, str, str], int] = {}
        self._rows: list[TextRow] = []

    def take(self) -> None:
        """Reads the one that has waited longest, if any is due."""
        now_s = time.monotonic()
        if now_s < self._next_s or not self._readers:
            return
        reader = min(self._readers, key=lambda one: self._due_s[one.name])
        begin_s = time.thread_time()
        self._read(reader)
        cost_s = time.thread_time() - begin_s
        self._due_s[reader.name] = now_s + max(reader.period_s, cost_s / SHARE)
        self._next_s = min(self._due_s.values())

    def _read(self, reader: Reader) -> None:
        complaints = self._complaints[reader.name]
        now_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        found: list[Reading] = []
        try:
            for one in reader.read():
                found.append(one)  # what came before something broke is kept
        except (OSError, DataError) as error:
            if reader.name in self._seen:
                complaints.failed(reader.name, error)
            elif reader.name not in self._absent:
                self._absent.add(reader.name)  # a machine without it is as it should be
                why = getattr(error, "strerror", None) or error
                self._tell(reader.name, f"not measured: {why}", Severity.INFO)
        else:
            self._seen.add(reader.name)
            complaints.works(reader.name)
        if len(found) > MAX_FIGURES:
            complaints.failed("the rest", f"{len(found)} figures, of which {MAX_FIGURES} are kept")
        for what, figure, value in found[:MAX_FIGURES]:
            key = (reader.name, what, figure)
            if self._last.get(key) != value and 0 <= value < schema.NOT_MEASURED["Q"]:
                self._last[key] = value
                self._rows.append((now_ns, reader.name, what[:31], figure[:47], value))

    def rows(self) -> list[TextRow]:
        """Rows of the ``reading`` table since the last call."""
        taken, self._rows = self._rows, []
        return taken

    def close(self) -> None:
        for reader in self._readers:
            reader.close()
        self._readers = ()
