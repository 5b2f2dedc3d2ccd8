"""TCP of the whole node: what was sent again, from /proc/net/snmp and /proc/net/netstat."""

import os
from collections.abc import Sequence
from pathlib import Path
from time import CLOCK_MONOTONIC, clock_gettime_ns

from fabricctl.store import schema
from fabricctl.telemetry.source import Complaints, Row, Tell

PROC_NET = Path("/proc/net")
FILES = ("snmp", "netstat")
MAX_BYTES = 16_384  # the two have 2 and 5 KB
# Group and name of each column of the table, in its order
# (Documentation/networking/snmp_counter.rst).
COUNTERS = (
    ("Tcp", "OutSegs"),
    ("Tcp", "InSegs"),
    ("Tcp", "RetransSegs"),
    ("TcpExt", "TCPTimeouts"),
    ("TcpExt", "TCPLostRetransmit"),
)


class TcpSource:
    """One row of the ``tcp`` table a second; the files stay open."""

    table = schema.TCP

    def __init__(self, tell: Tell, folder: Path = PROC_NET) -> None:
        self._complaints = Complaints("tcp", tell)
        self._folder = folder
        self._fds = {name: self._open(name) for name in FILES}

    def _open(self, name: str) -> int:
        try:
            return os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._complaints.failed(str(self._folder / name), error)
            return -1

    def rows(self) -> Sequence[Row]:
        time_mono_ns = clock_gettime_ns(CLOCK_MONOTONIC)
        text = b"".join(map(self._read, FILES))
        return [(time_mono_ns, *parse(text))] if text else []

    def _read(self, name: str) -> bytes:
        fd = self._fds[name]
        if fd < 0:
            return b""
        try:
            return os.pread(fd, MAX_BYTES, 0)
        except OSError as error:
            self._complaints.failed(str(self._folder / name), error)
            return b""

    def close(self) -> None:
        for fd in self._fds.values():
            if fd >= 0:
                os.close(fd)
        self._fds = dict.fromkeys(FILES, -1)


def parse(text: bytes) -> tuple[int | None, ...]:
    """The counters of :data:`COUNTERS`; each group is a line of names and one of values."""
    found: dict[tuple[str, str], int] = {}
    heads: dict[str, list[str]] = {}
    for line in text.decode("ascii", "replace").splitlines():
        group, _, rest = line.partition(":")
        words = rest.split()
        if group in heads and len(words) == len(heads[group]):
            names = heads.pop(group)
            found |= {
                (group, name): int(value)
                for name, value in zip(names, words, strict=True)
                if value.isdigit()
            }
        else:
            heads[group] = words
    return tuple(found.get(counter) for counter in COUNTERS)
