"""What the kernel's log says of hardware and memory (Documentation/ABI/testing/dev-kmsg).

Lines of the patterns below become notes of the job. An agent without CAP_SYSLOG may read it where
kernel.dmesg_restrict is 0.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from fabricctl.store.schema import Severity
from fabricctl.telemetry.slow import Reading
from fabricctl.telemetry.source import Tell

DEVICE = Path("/dev/kmsg")
PATTERNS: tuple[tuple[str, Severity, str], ...] = (
    ("oom", Severity.ERROR, r"Out of memory: Killed|Memory cgroup out of memory"),
    ("xid", Severity.ERROR, r"NVRM: Xid"),
    ("mce", Severity.ERROR, r"\bMachine Check|\[Hardware Error\]|mce: "),
    ("edac", Severity.WARNING, r"EDAC .*(CE|UE) "),
    ("pcie", Severity.ERROR, r"AER: |PCIe Bus Error"),
    ("hung", Severity.WARNING, r"blocked for more than \d+ seconds"),
    ("lockup", Severity.ERROR, r"soft lockup|hard LOCKUP|rcu_\w+ .*stall"),
    ("thermal", Severity.WARNING, r"temperature above threshold|cpu clock throttled"),
    ("nfs", Severity.WARNING, r"nfs: server .* (not responding|OK)"),
    ("lustre", Severity.WARNING, r"Lustre(Error)?: .*(evict|timed out|Connection .* lost)"),
    ("disk", Severity.ERROR, r"I/O error, dev|filesystem read-only|nvme\d+: .*(reset|timeout)"),
    ("link", Severity.WARNING, r"NETDEV WATCHDOG|tx timeout|mlx5_core .*(error|health|fatal)"),
    ("crash", Severity.ERROR, r"\bBUG: |general protection fault|Kernel panic"),
)  # fmt: skip
MAX_RECORD = 8192
MAX_RECORDS = 512  # of one look
MAX_NOTES = 10  # of one look
_FOUND = tuple((name, severity, re.compile(text)) for name, severity, text in PATTERNS)


class KmsgReader:
    """Notes what it finds, and counts it by pattern."""

    name, period_s = "kmsg", 2.0

    def __init__(self, tell: Tell, device: Path = DEVICE) -> None:
        self._tell = tell
        self._device = device
        self._fd = -1
        self._counts: dict[str, int] = {}

    def read(self) -> Iterator[Reading]:
        if self._fd < 0:
            self._fd = os.open(self._device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        told = 0
        for record in self._records():
            name, severity = kind_of(record)
            if name is None:
                continue
            self._counts[name] = self._counts.get(name, 0) + 1
            told += 1
            if told <= MAX_NOTES:
                self._tell("kmsg", f"{name}: {record[:150]}", severity)
        for name, count in self._counts.items():
            yield name, "lines", count

    def _records(self) -> Iterator[str]:
        for _ in range(MAX_RECORDS):
            try:
                raw = os.read(self._fd, MAX_RECORD)
            except BlockingIOError:
                return
            except BrokenPipeError:
                continue  # records were overwritten before we came
            if not raw:
                return
            yield message(raw)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def message(raw: bytes) -> str:
    """The text of one record, `6,339,5140900,-;text`, without what follows it."""
    return raw.partition(b";")[2].split(b"\n", 1)[0].decode("utf-8", "replace").strip()


def kind_of(text: str) -> tuple[str | None, Severity]:
    """Which pattern a line is of."""
    for name, severity, pattern in _FOUND:
        if pattern.search(text):
            return name, severity
    return None, Severity.INFO
