"""TCP of the whole node: what was sent again, from /proc/net/snmp and /proc/net/netstat."""

import functools
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
GROUPS = frozenset(group for group, _ in COUNTERS)


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
    names = b""
    for line in text.splitlines():
        group = line.partition(b":")[0].decode("ascii", "replace")
        if group not in GROUPS:
            continue
        if names.partition(b":")[0] != line.partition(b":")[0]:
            names = line
            continue
        words = line.split()
        count, places = _places(names)
        if len(words) == count:
            found |= {(group, n): int(words[at]) for n, at in places if words[at].isdigit()}
        names = b""
    return tuple(found.get(counter) for counter in COUNTERS)


@functools.lru_cache(maxsize=len(GROUPS))
def _places(names: bytes) -> tuple[int, list[tuple[str, int]]]:
    """How many words a line of names has, and which of them the counters of :data:`COUNTERS` are.
    It has up to 150 and stays as it is as long as the kernel runs."""
    group, *rest = words = names.decode("ascii", "replace").split()
    places = [(name, at) for at, name in enumerate(rest, 1) if (group[:-1], name) in COUNTERS]
    return len(words), places
