"""The whole node: CPU time, memory and pressure from /proc."""

import os
from collections.abc import Sequence
from os import pread
from pathlib import Path
from time import CLOCK_MONOTONIC, clock_gettime_ns

from fabricctl.store import schema
from fabricctl.telemetry.source import Complaints, Row, Tell

PROC = Path("/proc")
NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
FILES = ("stat", "meminfo", "pressure/cpu", "pressure/memory", "pressure/io")
# proc(5): the lines that are wanted stand at the beginning of each file.
ENOUGH_BYTES = 512


class HostSource:
    """One row of the ``host`` table a sample; the files stay open."""

    table = schema.HOST

    def __init__(self, tell: Tell, proc: Path = PROC) -> None:
        self._complaints = Complaints("host", tell)
        self._fds = [self._open(proc, name) for name in FILES]
        self._taken: list[tuple[int, list[bytes]]] = []

    def _open(self, proc: Path, name: str) -> int:
        try:
            return os.open(proc / name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._complaints.failed(f"/proc/{name}", error)
            return -1

    def take(self) -> None:
        time_mono_ns = clock_gettime_ns(CLOCK_MONOTONIC)
        try:
            texts = [pread(fd, ENOUGH_BYTES, 0) if fd >= 0 else b"" for fd in self._fds]
        except OSError:
            texts = [self._read_or_close(at) for at in range(len(FILES))]
        self._taken.append((time_mono_ns, texts))

    def _read_or_close(self, at: int) -> bytes:
        if self._fds[at] < 0:
            return b""
        try:
            return pread(self._fds[at], ENOUGH_BYTES, 0)
        except OSError as error:
            # PSI that is compiled in but switched off opens and then refuses to be read.
            self._complaints.failed(f"/proc/{FILES[at]}", error)
            os.close(self._fds[at])
            self._fds[at] = -1
            return b""

    def rows(self) -> Sequence[Row]:
        taken, self._taken = self._taken, []
        return [(time_mono_ns, *parse(texts)) for time_mono_ns, texts in taken]

    def close(self) -> None:
        for fd in self._fds:
            if fd >= 0:
                os.close(fd)
        self._fds = [-1] * len(FILES)


def parse(texts: Sequence[bytes]) -> Sequence[int | None]:
    """The row's figures from the texts of :data:`FILES`; empty texts are not measured."""
    stat, meminfo, *pressures = texts
    (some_cpu, _), (some_memory, full_memory), (some_io, full_io) = map(
        parse_pressure_us, pressures
    )
    stalls = (some_cpu, some_memory, full_memory, some_io, full_io)
    return (*parse_cpu_ns(stat), *parse_memory_bytes(meminfo), *stalls)


def parse_cpu_ns(stat: bytes) -> Sequence[int | None]:
    """user, nice, system, idle, iowait, irq, softirq, steal of /proc/stat's first line."""
    if not stat.startswith(b"cpu "):
        return (None,) * 8
    try:
        ticks = [int(word) * NS_PER_TICK for word in stat.split(b"\n", 1)[0].split()[1:9]]
    except ValueError:
        return (None,) * 8
    return ticks if len(ticks) == 8 else (None,) * 8


def parse_memory_bytes(meminfo: bytes) -> tuple[int | None, int | None]:
    """MemTotal and MemAvailable."""
    return _kib(meminfo, b"MemTotal:"), _kib(meminfo, b"MemAvailable:")


def _kib(meminfo: bytes, label: bytes) -> int | None:
    at = meminfo.find(label)
    if at < 0:
        return None
    words = meminfo[at + len(label) : at + len(label) + 32].split(None, 1)
    return int(words[0]) * 1024 if words and words[0].isdigit() else None


def parse_pressure_us(text: bytes) -> tuple[int | None, int | None]:
    """Total stall times, some and full, of a pressure file (Documentation/accounting/psi.rst)."""
    return _total(text, b"some"), _total(text, b"full")


def _total(text: bytes, kind: bytes) -> int | None:
    at = text.find(kind)
    at = text.find(b"total=", at) if at >= 0 else -1
    if at < 0:
        return None
    digits = text[at + 6 : at + 30].split(b"\n", 1)[0]
    return int(digits) if digits.isdigit() else None
