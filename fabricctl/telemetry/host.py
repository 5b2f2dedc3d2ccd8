"""The whole node: CPU time, memory and pressure from /proc."""

import math
import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from fabricctl.store import schema
from fabricctl.telemetry.batch import Batch
from fabricctl.telemetry.source import Complaints, Row, Tell

PROC = Path("/proc")
NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
FILES = ("stat", "meminfo", "pressure/cpu", "pressure/memory", "pressure/io")
# proc(5): the lines that are wanted stand at the beginning of each file.
ENOUGH_BYTES = 512
# Memory and pressure cost the kernel more than CPU time does and change less.
SELDOM_HZ = 10


class HostSource:
    """One row of the ``host`` table a sample; the files stay open. Above :data:`SELDOM_HZ` a row
    has the memory and pressure that were read last."""

    table = schema.HOST

    def __init__(self, tell: Tell, batch: Batch, rate_hz: float = 1, proc: Path = PROC) -> None:
        self._complaints = Complaints("host", tell)
        self._batch = batch
        self._slots = [batch.add() for _ in FILES]
        self._fds = [self._open(proc, name) for name in FILES]
        self._held = parse_seldom([b""] * (len(FILES) - 1))
        seldom = max(1, math.ceil(rate_hz / SELDOM_HZ))
        for name, slot, fd in zip(FILES, self._slots, self._fds, strict=True):
            batch.set(slot, fd, ENOUGH_BYTES, b"", 1 if name == "stat" else seldom)

    def _open(self, proc: Path, name: str) -> int:
        try:
            # What cannot be opened still gets its place in each sample.
            return os.open(proc / name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._complaints.failed(f"/proc/{name}", error)
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def rows(self) -> Sequence[Row]:
        stats, *others = map(self._batch.drain, self._slots)
        seldom = list(zip(*others, strict=False))
        seldom.reverse()
        ends = [time_mono_ns for time_mono_ns, _ in stats[1:]]
        rows: list[Row] = []
        for (time_mono_ns, got), end_mono_ns in zip_longest(stats, ends):
            # What a sample read beside /proc/stat, it read after it.
            while seldom and (end_mono_ns is None or seldom[-1][0][0] < end_mono_ns):
                texts = [got for _, got in seldom.pop()]
                self._held = parse_seldom(list(map(self._text, FILES[1:], texts)))
            cpu_ns = parse_cpu_ns(self._text("stat", got))
            rows.append((time_mono_ns, *cpu_ns, *self._held))
        return rows

    def _text(self, name: str, got: bytes | int) -> bytes:
        """PSI that is compiled in but switched off opens and then refuses to be read."""
        if isinstance(got, bytes):
            return got
        self._complaints.failed(f"/proc/{name}", OSError(got, os.strerror(got)))
        return b""

    def close(self) -> None:
        for slot, fd in zip(self._slots, self._fds, strict=True):
            self._batch.set(slot, -1)
            os.close(fd)
        self._slots, self._fds = [], []


def parse_seldom(texts: Sequence[bytes]) -> Sequence[int | None]:
    """The row's figures from the texts of :data:`FILES` behind the first; empty ones are not
    measured."""
    meminfo, *pressures = texts
    (some_cpu, _), (some_memory, full_memory), (some_io, full_io) = map(
        parse_pressure_us, pressures
    )
    stalls = (some_cpu, some_memory, full_memory, some_io, full_io)
    return (*parse_memory_bytes(meminfo), *stalls)


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
