"""Memory bandwidth by the uncore counters of the memory controllers, where perf allows it:
kernel.perf_event_paranoid 0 or less, or CAP_PERFMON (perf_event_open(2), Documentation/admin-guide/
perf-security.rst). Intel's `uncore_imc*` count lines of 64 bytes."""

import ctypes
import errno
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from fabricctl.telemetry.slow import Reading
from fabricctl.telemetry.sysfiles import number, words

SYS = Path("/sys/bus/event_source/devices")
_SYSCALL = {"x86_64": 298, "aarch64": 241}
_ATTR_BYTES = 112  # PERF_ATTR_SIZE_VER5
_EVENTS = {"cas_count_read": "read_bytes", "cas_count_write": "written_bytes",
           "data_reads": "read_bytes", "data_writes": "written_bytes"}  # fmt: skip
LINE_BYTES = 64
MAX_EVENTS = 128


class MembwReader:
    """Bytes read and written by each memory controller, since the agent began."""

    name, period_s = "membw", 10.0

    def __init__(self, folder: Path = SYS) -> None:
        self._folder = folder
        self._open: dict[tuple[str, str], int] = {}

    def read(self) -> Iterator[Reading]:
        if not self._open:
            self._begin()
        for (unit, figure), fd in self._open.items():
            (count,) = struct.unpack("=Q", os.read(fd, 8))
            yield unit, figure, count * LINE_BYTES

    def _begin(self) -> None:
        units = sorted(self._folder.glob("uncore_imc*"))
        if not units:
            raise OSError(errno.ENOENT, "the memory controllers have no counters here")
        for unit in units:
            kind = number(unit / "type")
            cpus = words(unit / "cpumask").split(",")[0].split("-")[0].strip()
            for event, figure in _EVENTS.items():
                path = unit / "events" / event
                if kind is None or not cpus.isdigit() or not path.exists():
                    continue
                if len(self._open) < MAX_EVENTS:
                    fd = _perf_open(kind, config(words(path)), int(cpus))
                    self._open[unit.name, figure] = fd
        if not self._open:
            raise OSError(errno.ENOENT, "the memory controllers count no reads and writes")

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()


def config(text: str) -> int:
    """`event=0x04,umask=0x03` as the number that the kernel wants."""
    fields = dict(re.findall(r"(event|umask)=(0x[0-9a-fA-F]+|\d+)", text))
    return int(fields.get("event", "0"), 0) | int(fields.get("umask", "0"), 0) << 8


def _perf_open(kind: int, event: int, cpu: int) -> int:
    attributes = struct.pack("=IIQ", kind, _ATTR_BYTES, event)
    buffer = ctypes.create_string_buffer(attributes, _ATTR_BYTES)
    libc = ctypes.CDLL(None, use_errno=True)
    call = _SYSCALL.get(os.uname().machine)
    if call is None:
        raise OSError(errno.ENOSYS, f"perf on {os.uname().machine} is not known")
    fd: int = libc.syscall(call, buffer, -1, cpu, -1, 1 << 3)  # PERF_FLAG_FD_CLOEXEC
    if fd < 0:
        number_of = ctypes.get_errno()
        words_of = os.strerror(number_of)
        if number_of in (errno.EACCES, errno.EPERM):
            words_of += ": kernel.perf_event_paranoid is above 0"
        raise OSError(number_of, words_of)
    return fd
