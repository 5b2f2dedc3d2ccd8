"""A clock that ``fabric-steer`` may set in tests: tests/c/clock/standin.c, and what it keeps."""

import errno
import mmap
import os
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
STA_PLL, STA_UNSYNC = 0x0001, 0x0040  # linux/timex.h
EPERM = errno.EPERM
_FIELDS = struct.Struct("=3qd5q")
_NAMES = ["raw_ns", "shown_ns", "freq", "drift_ppb", "status", "refuse", "sets", "steps", "phc"]


def build(directory: Path) -> Path:
    """Compiles it; 0.1 s."""
    library = directory / "standin.so"
    source = ROOT / "tests" / "c" / "clock" / "standin.c"
    argv = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(source)]
    subprocess.run(argv, check=True)
    return library


@dataclass
class StandIn:
    """The clock's file; attributes are its fields, to be read and written while it is used."""

    path: Path

    def __post_init__(self) -> None:
        self.path.write_bytes(bytes(_FIELDS.size))
        self.path.chmod(0o666)
        with self.path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _FIELDS.size)
        now_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        self.set(raw_ns=now_ns, shown_ns=time.time_ns(), status=STA_UNSYNC, phc=-1)

    def _values(self) -> dict[str, float]:
        return dict(zip(_NAMES, _FIELDS.unpack_from(self._memory), strict=True))

    def get(self, name: str) -> float:
        return self._values()[name]

    def set(self, **changes: float) -> None:
        _FIELDS.pack_into(self._memory, 0, *(self._values() | changes).values())

    @property
    def freq_ppb(self) -> float:
        """What is set now."""
        return self.get("freq") * 1000 / 65536

    def off_ns(self, job_ns: int, raw_ns: int) -> float:
        """How far it is ahead of job time, which was ``job_ns`` at ``raw_ns``."""
        found = self._values()
        rate = (found["drift_ppb"] + found["freq"] * 1000 / 65536) * 1e-9
        passed_ns = raw_ns - int(found["raw_ns"])
        return int(found["shown_ns"]) + passed_ns + passed_ns * rate - job_ns


def environment(library: Path, clock: StandIn) -> dict[str, str]:
    """For a program that is to see it."""
    return {
        **os.environ,
        "LD_PRELOAD": str(library),
        "STANDIN_CLOCK": str(clock.path),
        "STANDIN_PTP": "/dev/full",
    }
