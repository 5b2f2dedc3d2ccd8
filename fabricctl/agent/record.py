"""The job's record as the agent keeps it: rows and notes in the journal, words in the log."""

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import fabricctl
from fabricctl import hostlist, layout
from fabricctl.agent.log import NodeLog
from fabricctl.errors import DataError
from fabricctl.records import JobStart
from fabricctl.store import schema
from fabricctl.store.journal import JournalWriter
from fabricctl.store.schema import Severity
from fabricctl.telemetry.flows import rail_addresses
from fabricctl.telemetry.source import Row

MAX_NOTES_PER_MINUTE = 60  # a source that flickers must not fill the spool with words


@dataclass(frozen=True)
class Assignment:
    """What the node service gives to an agent."""

    start: JobStart
    files: layout.NodeFiles
    spool: Path
    life: int  # counts the agents of this allocation on this node, from 0
    begin_real_ns: int  # of the allocation on this node
    notes: tuple[tuple[Severity, str], ...] = ()  # what the service has to say in the record
    nic_clocks: Mapping[int, int] = field(default_factory=dict)  # open devices /dev/ptpN by N

    @property
    def journal(self) -> Path:
        return self.spool / f"{self.life}.journal"


def mono_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


class Record:
    """One journal and the log beside it. What a disk refuses shows in :attr:`problem`."""

    def __init__(
        self, assignment: Assignment, rails: Sequence[str], rate_hz: float, log: NodeLog
    ) -> None:
        """Raises :class:`~fabricctl.errors.SystemRefusedError` when the spool is not writable."""
        self._log = log
        self._who = f"agent job={assignment.start.job}"
        self._journal = JournalWriter(assignment.journal, attributes(assignment, rails, rate_hz))
        self._notes_left, self._minute = MAX_NOTES_PER_MINUTE, 0
        self._lost_rows = 0
        self._last_problem = ""

    @property
    def problem(self) -> str:
        """Why nothing can be written just now; empty: it can."""
        return self._journal.problem or ""

    def put(self, table: schema.Table, rows: Sequence[Row | tuple[int | str, ...]]) -> None:
        for row in rows:
            self._journal.append(table, *row)

    def describe(self, attributes: Mapping[str, str]) -> None:
        """Attributes of the job that came to light after the journal was begun."""
        self._journal.describe(attributes)

    def note(self, severity: Severity, source: str, text: str) -> None:
        """Into the job's record and the node's log."""
        self._log.write(f"{self._who} {source}", text, severity)
        minute = mono_ns() // 60_000_000_000
        if minute != self._minute:
            self._minute, self._notes_left = minute, MAX_NOTES_PER_MINUTE
        self._notes_left -= 1
        if self._notes_left >= 0:
            row = (mono_ns(), time.time_ns(), int(severity), source, text)
            self._journal.append(schema.NOTE, *row)

    def tell(self, source: str, text: str, severity: Severity = Severity.WARNING, /) -> None:
        """:meth:`note` as the sources of samples know it."""
        self.note(severity, source, text)

    def flush(self) -> None:
        """To be called once a second: what was flushed survives a kill."""
        if not self.problem and self._journal.lost_rows > self._lost_rows:
            lost = self._journal.lost_rows - self._lost_rows
            self._lost_rows = self._journal.lost_rows
            self.note(Severity.ERROR, "agent", f"{lost} rows lost: {self._last_problem}")
        self._journal.flush()
        if self.problem:
            self._last_problem = self.problem
            self._log.write(self._who, self.problem, Severity.ERROR)

    def close(self, wait_s: float = 0.0) -> None:
        """Waits so long for a full spool to have room for what is still in memory."""
        self.flush()
        deadline_s = time.monotonic() + wait_s
        while self.problem and time.monotonic() < deadline_s:
            time.sleep(0.5)
            self.flush()
        self._journal.close()


def attributes(assignment: Assignment, rails: Sequence[str], rate_hz: float) -> dict[str, str]:
    """The journal's header (JOB_ATTRIBUTES and NODE_ATTRIBUTES of the schema)."""
    start = assignment.start
    return {
        "job": str(start.job),
        "user": start.user,
        "uid": str(start.uid),
        "cluster": start.cluster,
        "mode": start.envelope.mode,
        "spares": str(start.envelope.spares),
        "nodes": hostlist.fold(start.nodes),
        "node": start.node,
        "hostname": socket.gethostname(),
        "boot_id": boot_id(),
        "agent_version": fabricctl.__version__,
        "rails": " ".join(rails),
        "addresses": _addresses(rails),
        "sample_hz": f"{rate_hz:g}",
        "begin_real_ns": str(assignment.begin_real_ns),
    }


def _addresses(rails: Sequence[str]) -> str:
    """As the attribute has them; none when the kernel does not tell."""
    try:
        return " ".join(f"{rail}/{text}" for text, rail in rail_addresses(list(rails)).items())
    except (OSError, DataError):
        return ""


def boot_id() -> str:
    """Of the running kernel (random(4))."""
    fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64).decode("ascii", "replace").strip()
    finally:
        os.close(fd)
