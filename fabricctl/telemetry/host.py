"""The whole node: CPU time, memory and pressure from /proc."""

import os
from collections.abc import Sequence
from pathlib import Path

from fabricctl.store import schema
from fabricctl.telemetry.batch import Batch
from fabricctl.telemetry.source import Complaints, Row, Tell

PROC = Path("/proc")
NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
FILES = ("stat", "meminfo", "pressure/cpu", "pressure/memory", "pressure/io")
# proc(5): the lines that are wanted stand at the beginning of each file.
ENOUGH_BYTES = 512


class HostSource:
    """One row of the ``host`` table a sample; the files stay open."""

    table = schema.HOST

    def __init__(self, tell: Tell, batch: Batch, proc: Path = PROC) -> None:
        self._complaints = Complaints("host", tell)
        self._batch = batch
        self._slots = [batch.add() for _ in FILES]
        self._fds = [self._open(proc, name) for name in FILES]
        for slot, fd in zip(self._slots, self._fds, strict=True):
            batch.set(slot, fd, ENOUGH_BYTES)

    def _open(self, proc: Path, name: str) -> int:
        try:
            # What cannot be opened still gets its place in each sample.
            return os.open(proc / name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._complaints.failed(f"/proc/{name}", error)
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def rows(self) -> Sequence[Row]:
        rows: list[Row] = []
        for readings in zip(*map(self._batch.drain, self._slots), strict=False):
            texts = [self._text(name, got) for name, (_, got) in zip(FILES, readings, strict=True)]
            rows.append((readings[0][0], *parse(texts)))
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
