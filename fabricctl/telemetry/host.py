"""The whole node: CPU time, memory and pressure from /proc."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from fabricctl.store import schema
from fabricctl.telemetry.source import Complaints, Row, Tell

PROC = Path("/proc")
NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
PRESSURES = ("cpu", "memory", "io")
# proc(5): the lines that are wanted stand at the beginning of each file.
ENOUGH_BYTES = 512


class HostSource:
    """One row of the ``host`` table a sample; the files stay open."""

    table = schema.HOST

    def __init__(self, tell: Tell, proc: Path = PROC) -> None:
        self._complaints = Complaints("host", tell)
        names = ("stat", "meminfo", *(f"pressure/{name}" for name in PRESSURES))
        self._fds = {name: self._open(proc, name) for name in names}

    def _open(self, proc: Path, name: str) -> int | None:
        try:
            return os.open(proc / name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._complaints.failed(f"/proc/{name}", error)
            return None

    def _read(self, name: str) -> bytes | None:
        fd = self._fds[name]
        if fd is None:
            return None
        try:
            return os.pread(fd, ENOUGH_BYTES, 0)
        except OSError as error:
            # PSI that is compiled in but switched off opens and then refuses to be read.
            self._complaints.failed(f"/proc/{name}", error)
            os.close(fd)
            self._fds[name] = None
            return None

    def sample(self) -> Sequence[Row]:
        time_mono_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        cpu = parse_cpu_ns(self._read("stat"))
        memory = parse_memory_bytes(self._read("meminfo"))
        some_cpu, _ = parse_pressure_us(self._read("pressure/cpu"))
        some_memory, full_memory = parse_pressure_us(self._read("pressure/memory"))
        some_io, full_io = parse_pressure_us(self._read("pressure/io"))
        stalls = (some_cpu, some_memory, full_memory, some_io, full_io)
        return [(time_mono_ns, *cpu, *memory, *stalls)]

    def close(self) -> None:
        for fd in self._fds.values():
            if fd is not None:
                os.close(fd)
        self._fds = dict.fromkeys(self._fds)


def parse_cpu_ns(stat: bytes | None) -> Sequence[int | None]:
    """user, nice, system, idle, iowait, irq, softirq, steal of /proc/stat's first line."""
    if stat is None or not stat.startswith(b"cpu "):
        return (None,) * 8
    try:
        ticks = [int(word) * NS_PER_TICK for word in stat.split(b"\n", 1)[0].split()[1:9]]
    except ValueError:
        return (None,) * 8
    return ticks if len(ticks) == 8 else (None,) * 8


def parse_memory_bytes(meminfo: bytes | None) -> tuple[int | None, int | None]:
    """MemTotal and MemAvailable."""
    if meminfo is None:
        return None, None
    return _kib(meminfo, b"MemTotal:"), _kib(meminfo, b"MemAvailable:")


def _kib(meminfo: bytes, label: bytes) -> int | None:
    at = meminfo.find(label)
    if at < 0:
        return None
    words = meminfo[at + len(label) : at + len(label) + 32].split(None, 1)
    return int(words[0]) * 1024 if words and words[0].isdigit() else None


def parse_pressure_us(text: bytes | None) -> tuple[int | None, int | None]:
    """Total stall times, some and full, of a pressure file (Documentation/accounting/psi.rst)."""
    if text is None:
        return None, None
    return _total(text, b"some"), _total(text, b"full")


def _total(text: bytes, kind: bytes) -> int | None:
    at = text.find(kind)
    at = text.find(b"total=", at) if at >= 0 else -1
    if at < 0:
        return None
    digits = text[at + 6 : at + 30].split(b"\n", 1)[0]
    return int(digits) if digits.isdigit() else None
