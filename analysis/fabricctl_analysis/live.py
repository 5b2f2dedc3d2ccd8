"""The report on a job that still runs, from its nodes' journals as far as they are written."""

import contextlib
import time
from collections.abc import Mapping, Sequence

from fabricctl.errors import TraceError
from fabricctl.store import journal_reader
from fabricctl_analysis.model import JobFacts, Report
from fabricctl_analysis.rows import Boot, NodeRows, place
from fabricctl_analysis.summarise import summarise

S = 1_000_000_000
# Of each journal: the last that is kept; at 1 Hz on two rails ten minutes and more.
KEPT_BYTES = 2 << 20


class Tail:
    """What is known of one node's journal: its begin, which has the header, and its end."""

    def __init__(self) -> None:
        self.offset = 0  # of what is asked for next
        self._head = b""
        self._tail = bytearray()

    def put(self, piece: bytes, size: int) -> bool:
        """``piece`` was at :attr:`offset` of ``size``; whether there is more to ask for now."""
        if not self._head:
            self._head = piece
        else:
            self._tail += piece
            del self._tail[: max(0, len(self._tail) - 2 * KEPT_BYTES)]
        self.offset += len(piece)
        if size - self.offset > KEPT_BYTES:
            self.offset = size - KEPT_BYTES
            self._tail.clear()
        return bool(piece) and self.offset < size

    def rows(self, node: str) -> NodeRows | None:
        """None as long as there is nothing to tell."""
        try:
            journal = journal_reader.read(self._head + bytes(self._tail))
        except TraceError:
            return None
        said = journal.attributes
        begin_ns = None
        with contextlib.suppress(ValueError):
            begin_ns = int(said.get("begin_real_ns", ""))
        sample_hz = None
        with contextlib.suppress(ValueError):
            sample_hz = float(said.get("sample_hz", ""))
        return place(
            node,
            said.get("rails", "").split(),
            [Boot(journal.tables)],
            sample_hz=sample_hz,
            begin_ns=begin_ns,
            addresses=[word.partition("/")[2] for word in said.get("addresses", "").split()],
        )


def report(job: int, nodes: Sequence[str], tails: Mapping[str, Tail]) -> Report | None:
    """As it stands now; None as long as no node has told anything."""
    known = [rows for name in nodes if (rows := tails[name].rows(name)) is not None]
    begins = [rows.begin_ns for rows in known if rows.begin_ns]
    if not begins:
        return None
    # Only what is still known: a long job is judged by its last minutes.
    first = [int(rows.real_ns["host"][0]) for rows in known if len(rows.real_ns["host"])]
    facts = JobFacts(job, None, None, 0, None, None, None, None, tuple(nodes), "live", 1)
    return summarise(facts, known, max(min(begins), min(first, default=0)), time.time_ns())
