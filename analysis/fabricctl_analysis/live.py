"""The report on a job that still runs, from its nodes' journals as far as they are written."""

import contextlib
from collections.abc import Collection, Sequence

import numpy as np

from fabricctl.errors import TraceError
from fabricctl.store import journal_reader
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.model import JobFacts, Report
from fabricctl_analysis.rows import Boot, NodeRows, place
from fabricctl_analysis.summarise import MIN_WINDOW_NS, Grids, summarise

S = 1_000_000_000
# Of each journal: the last that is kept; at 1 Hz on two rails ten minutes and more.
KEPT_BYTES = 2 << 20
# A node that told nothing for so long is not waited for: it stands still itself. Agents tell once a
# second, or with each sample where those are rarer; with a load of 25 on two cores samples were
# late by 19 ms at most. One whose agent answers lives, and tells a little later.
SILENT_PERIODS, ANSWERING_PERIODS = 1.7, 5.0
# Nodes sample at instants of their own: not each of them is worth another report.
WORTH_NS = S // 2


class Tail:
    """What is known of one node's journal: its begin, which has the header, and its end."""

    def __init__(self) -> None:
        self.offset = 0  # of what is asked for next
        self._head = b""
        self._tail = bytearray()
        self._read: tuple[int, NodeRows | None] = (0, None)  # at which offset

    def put(self, piece: bytes, size: int) -> bool:
        """``piece`` was at :attr:`offset` of ``size``; whether there is more to ask for now."""
        if size < self.offset:  # the agent was started again, and writes another one
            self.offset, self._head, self._read = 0, b"", (0, None)
            self._tail.clear()
            return size > 0
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
        if self._read[0] != self.offset:
            self._read = (self.offset, self._rows(node))
        return self._read[1]

    def _rows(self, node: str) -> NodeRows | None:
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


class Live:
    """A job as it runs: the tails of its nodes' journals, and until when it was judged."""

    def __init__(self, job: int, nodes: Sequence[str]) -> None:
        self.tails = {node: Tail() for node in nodes}
        self.until_ns = 0
        self._job = job

    def report(self, answering: Collection[str] = ()) -> Report | None:
        """As it stands now; None when nobody has told anything since the last one. ``answering``:
        nodes whose agents live."""
        known = [rows for name, tail in self.tails.items() if (rows := tail.rows(name)) is not None]
        whole = judged(known, answering)
        if whole is None or whole.end_ns < self.until_ns + WORTH_NS:
            return None
        self.until_ns = whole.end_ns
        nodes = tuple(self.tails)
        facts = JobFacts(self._job, None, None, 0, None, None, None, None, nodes, "live", 1)
        return summarise(facts, known, whole.begin_ns, whole.end_ns)


def judged(known: Sequence[NodeRows], answering: Collection[str] = ()) -> Span | None:
    """What of a running job can be judged: up to where all nodes that go on are known, in whole
    windows, so that the last one is known no less than the others."""
    begins = [rows.begin_ns for rows in known if rows.begin_ns]
    line = Grids(None, None)
    last, first, patience = [], [], []
    for rows in known:
        times = rows.real_ns["host"]
        if len(times):
            shift_ns = line.shift_ns(rows)
            first.append(int(times[0]) + shift_ns)
            last.append(int(times[-1]) + shift_ns)
            patience.append(ANSWERING_PERIODS if rows.name in answering else SILENT_PERIODS)
    if not begins or not last:
        return None
    rates = [rows.sample_hz for rows in known if rows.sample_hz and rows.sample_hz > 0]
    period_ns = int(S / rates[0]) if rates else S
    told_ns, late_ns = np.array(last), np.array(patience) * max(period_ns, S)
    end_ns = int(told_ns[told_ns > told_ns.max() - late_ns].min())
    # Only what is still known: a long job is judged by its last minutes.
    begin_ns = max(min(begins), min(first))
    width_ns = max(period_ns, MIN_WINDOW_NS)
    windows = (end_ns - begin_ns) // width_ns
    return Span(end_ns - windows * width_ns, end_ns) if windows > 0 else None
