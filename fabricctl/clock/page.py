"""The clock page: job time for programs, in shared memory (cpage/page.h, docs/clock.md).

Reading costs a clock_gettime and no system call. What a program gets is an interval: the hard
bound holds whatever the network does, ``likely_ns`` when paths are as long there as back.
"""

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fabricctl.errors import ClockError

try:
    from fabricctl.clock import _page
    from fabricctl.clock._page import Reading
except ImportError:  # setup.py builds it where there is a compiler
    _page = None  # type: ignore[assignment]

Ints = NDArray[np.int64]

UNSYNCHRONISED, SYNCHRONISED, HOLDOVER = range(3)
STATUS_NAMES = ("unsynchronised", "synchronised", "holding over")
MAGIC, VERSION = 0x50434246, 1
_HEAD = struct.Struct("=IHHII")
_BODY = struct.Struct("=4I4q4dq4d2dq3dqQ")
ROW = np.dtype(
    [
        ("raw_ns", "<i8"),
        ("mono_ns", "<i8"),
        ("real_ns", "<i8"),
        ("tsc", "<u8"),
        ("job_ns", "<i8"),
        ("likely_ns", "<f8"),
    ]
)
CLOCKS = {"raw": "raw_ns", "mono": "mono_ns", "real": "real_ns", "tsc": "tsc"}


@dataclass(frozen=True)
class Body:
    """struct page_body of cpage/page.h, field by field."""

    status: int = UNSYNCHRONISED
    job: int = 0
    node: int = 0
    stamps: int = 0  # where they come from: into SOURCES of probing.py; 0: not said
    raw0_ns: int = 0
    job0_ns: int = 0
    raw1_ns: int = 0
    job1_ns: int = 0
    rate_before: float = 0.0
    rate0: float = 0.0
    rate1: float = 0.0
    slew_ns: float = 0.0
    state_raw_ns: int = 0
    p_theta: float = 0.0
    p_cross: float = 0.0
    p_drift: float = 0.0
    wander2: float = 0.0
    sigmas: float = 0.0
    asymmetry_ns: float = 0.0
    hard_raw_ns: int = 0
    hard_least_ns: float = -np.inf
    hard_most_ns: float = np.inf
    hard_drift_ppb: float = 0.0
    holdover_raw_ns: int = 0
    rows: int = 0

    def pack(self) -> bytes:
        return _BODY.pack(*self.__dict__.values())

    @classmethod
    def read(cls, memory: mmap.mmap) -> "Body":
        return cls(*_BODY.unpack_from(memory, _page.BODY_OFFSET))

    def job_ns(self, raw_ns: int) -> int:
        """Job time at ``raw_ns``; the same as page_job_ns of cpage/page.h."""
        since = raw_ns - self.raw1_ns
        if since >= 0:
            return self.job1_ns + since + int(since * self.rate1)
        since = raw_ns - self.raw0_ns
        return self.job0_ns + since + int(since * (self.rate_before if since < 0 else self.rate0))


def check_built() -> None:
    """Raises :class:`ClockError` when the package was installed without its C part."""
    if _page is None:
        raise ClockError(
            "clock: the package was installed without its C part: install gcc and python3-dev, "
            "then install fabricctl again"
        )
    if (_BODY.size, ROW.itemsize) != (
        _page.BODY_BYTES,
        (_page.PAGE_BYTES - _page.ROWS_OFFSET) // _page.ROWS,
    ):
        raise ClockError("clock: the C part is of another version: install fabricctl again")


class ClockPage:
    """A page to read from. Raises :class:`ClockError` when there is none."""

    def __init__(self, path: Path) -> None:
        check_built()
        self._path = path
        try:
            with path.open("rb") as file:
                self._memory = mmap.mmap(file.fileno(), _page.PAGE_BYTES, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise ClockError(f"clock: no job clock at {path}: {error}") from None
        magic, version, *_ = _HEAD.unpack_from(self._memory)
        if (magic, version) != (MAGIC, VERSION):
            raise ClockError(f"clock: {path} is not a clock page of version {VERSION}")

    @property
    def path(self) -> Path:
        return self._path

    def now(self, within_ns: int | None = None) -> "Reading":
        """Job time now.

        Raises :class:`ClockError` while there is none, or when the interval is wider than
        ``within_ns`` to either side.
        """
        reading = _page.now(self._memory)
        if reading is None:
            raise ClockError(f"clock: no job time yet ({self._path})")
        if within_ns is not None:
            check_width(reading, within_ns)
        return reading

    def at(self, raw_ns: int) -> "Reading":
        """What :meth:`now` says at that instant of CLOCK_MONOTONIC_RAW, which is about now."""
        reading = _page.at(self._memory, raw_ns)
        if reading is None:
            raise ClockError(f"clock: no job time yet ({self._path})")
        return reading

    def body(self) -> Body:
        return Body.read(self._memory)

    def rows(self) -> NDArray[np.void]:
        """Readings of all clocks, one a second, oldest first."""
        count = self.body().rows
        ring = np.frombuffer(self._memory, ROW, _page.ROWS, _page.ROWS_OFFSET).copy()
        if count <= len(ring):
            return ring[:count]
        # The oldest may be overwritten while it is read.
        return np.roll(ring, -(count % len(ring)))[2:]

    def to_job(self, stamps: ArrayLike, clock: str) -> tuple[Ints, NDArray[np.float64]]:
        """Past stamps of this node in job time, with their likely errors, both in ns.

        ``clock``: ``raw``, ``mono``, ``real`` (CLOCK_MONOTONIC_RAW, _MONOTONIC, _REALTIME, ns) or
        ``tsc``. Stamps before the oldest row (17 minutes) are refused with :class:`ClockError`, and
        those of a clock that was set back by a second or more since then. Within two seconds of
        CLOCK_REALTIME being set its stamps are as unsure as the step was long.
        """
        if clock not in CLOCKS:
            raise ClockError(f"clock: no clock {clock!r}; there are {', '.join(CLOCKS)}")
        rows = np.append(self.rows(), self._instant())
        given = np.asarray(stamps, np.uint64 if clock == "tsc" else np.int64).astype(np.int64)
        known = rows[CLOCKS[clock]].astype(np.int64)
        if len(rows) < 2 or not known[-1]:
            raise ClockError(f"clock: nothing known yet to convert {clock} with")
        if (np.diff(known) <= 0).any():
            raise ClockError(f"clock: {clock} was set back in the {len(rows)} s that are kept")
        if given.size and int(given.min()) < int(known[0]):
            raise ClockError(f"clock: {clock} stamps older than the {len(rows)} s that are kept")
        at = np.clip(np.searchsorted(known, given, side="right") - 1, 0, len(rows) - 2)
        span = (known[at + 1] - known[at]).astype(float)
        passed = (given - known[at]).astype(float)
        job_span = (rows["job_ns"][at + 1] - rows["job_ns"][at]).astype(float)
        # The difference of the two clocks is small and interpolated; the rest stays exact.
        if clock == "tsc":
            job = rows["job_ns"][at] + np.rint(passed * (job_span / span)).astype(np.int64)
        else:
            extra = np.rint(passed * ((job_span - span) / span)).astype(np.int64)
            job = rows["job_ns"][at] + (given - known[at]) + extra
        error = np.maximum(rows["likely_ns"][at], rows["likely_ns"][at + 1])
        if clock == "real":  # both are steered alike: what they are apart changes by steps alone
            stepped = np.abs(np.diff(rows["real_ns"] - rows["mono_ns"])).astype(float)
            # Of a step back there are two of the same time, in the seconds beside it, too.
            beside = np.maximum(np.r_[0.0, stepped[:-1]], np.r_[stepped[1:], 0.0])
            error = error + np.maximum(stepped, beside)[at]
        return job, error

    def _instant(self) -> NDArray[np.void]:
        """This instant as a row."""
        raw_ns, mono_ns, real_ns, tsc, width_ns = _page.instant()
        reading = self.at(raw_ns)
        likely_ns = reading.likely_ns + width_ns / 2
        row = (raw_ns, mono_ns, real_ns, tsc, reading.time_ns, likely_ns)
        return np.array([row], ROW)

    def close(self) -> None:
        self._memory.close()


def check_width(reading: "Reading", within_ns: int) -> None:
    """Raises :class:`ClockError` when job time may be further off than the caller can bear."""
    early = reading.time_ns - reading.earliest_ns
    worst = max(early, reading.latest_ns - reading.time_ns)
    if worst > within_ns:
        name = STATUS_NAMES[reading.status]
        raise ClockError(f"clock: {name}, known to {worst} ns only; {within_ns} were asked for")


@dataclass(frozen=True)
class Line:
    """The clock's best line: job time at an instant of CLOCK_MONOTONIC_RAW, and its rate."""

    raw_ns: int
    job_ns: int
    rate: float  # job seconds per second, less 1

    def at(self, raw_ns: int) -> int:
        since = raw_ns - self.raw_ns
        return self.job_ns + since + int(since * self.rate)


START_NS = 200_000  # a page takes effect so long after it is written: readers overlap
SLEW_NS = 100_000_000  # a correction is spread over this, or longer to stay below SLEW_MAX
SLEW_MAX = 1e-3


class PageWriter:
    """Writes one node's page, so that job time runs on without a step whatever happens."""

    def __init__(self, path: Path, job: int, node: int) -> None:
        check_built()
        self._memory = _opened(path)
        self._body = Body.read(self._memory)
        self._job, self._node = job, node
        if self._body.job != job:
            self._body = Body(job=job, node=node)
            _page.write(self._memory, self._body.pack())

    def write(self, line: Line, bounds: Body) -> None:
        """Follows ``line`` from now on; ``bounds`` has the fields from state_raw_ns on."""
        body = self._following(line, bounds)
        while _page.instant()[0] >= body.raw0_ns:  # held up: readers are past where it begins
            body = self._following(line, bounds)
        self._body = body
        _page.write(self._memory, body.pack())

    def _following(self, line: Line, bounds: Body) -> Body:
        raw_ns = _page.instant()[0]
        raw0_ns, old = raw_ns + START_NS, self._body
        job0_ns, rate_before = line.at(raw0_ns), line.rate
        if old.status != UNSYNCHRONISED:
            job0_ns = old.job_ns(raw0_ns)
            rate_before = old.rate1 if raw0_ns >= old.raw1_ns else old.rate0
        off_ns = line.at(raw0_ns) - job0_ns
        length_ns = max(SLEW_NS, round(abs(off_ns) / SLEW_MAX))
        raw1_ns = raw0_ns + length_ns
        job1_ns = line.at(raw1_ns)
        changes = {
            "job": self._job,
            "node": self._node,
            "raw0_ns": raw0_ns,
            "job0_ns": job0_ns,
            "raw1_ns": raw1_ns,
            "job1_ns": job1_ns,
            "rate_before": rate_before,
            "rate0": (job1_ns - job0_ns - length_ns) / length_ns,
            "rate1": line.rate,
            "slew_ns": float(abs(off_ns)),
            "rows": old.rows,
        }
        return Body(**{**bounds.__dict__, **changes})

    def add_row(self) -> None:
        """Keeps this instant for conversions; once a second."""
        reading = _page.now(self._memory)
        if reading is None:
            return
        raw_ns, mono_ns, real_ns, tsc, width_ns = _page.instant()
        likely_ns = reading.likely_ns + width_ns / 2
        row = np.array((raw_ns, mono_ns, real_ns, tsc, self._body.job_ns(raw_ns), likely_ns), ROW)
        place = _page.ROWS_OFFSET + self._body.rows % _page.ROWS * ROW.itemsize
        self._memory[place : place + ROW.itemsize] = row.tobytes()
        self._body = Body(**{**self._body.__dict__, "rows": self._body.rows + 1})
        _page.write(self._memory, self._body.pack())

    def close(self) -> None:
        self._memory.close()


def _opened(path: Path) -> mmap.mmap:
    """The page's memory: of an agent that died before, or a new one under its final name."""
    for _ in range(2):
        try:
            with path.open("r+b") as file:
                memory = mmap.mmap(file.fileno(), _page.PAGE_BYTES)
            magic, version, *_ = _HEAD.unpack_from(memory)
            if (magic, version) == (MAGIC, VERSION):
                return memory
            memory.close()
        except (OSError, ValueError):
            pass
        try:
            _make(path)
        except OSError as error:
            raise ClockError(f"clock: page not made at {path}: {error.strerror}") from None
    raise ClockError(f"clock: {path} cannot be used as a clock page")


def _make(path: Path) -> None:
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.fchmod(descriptor, 0o644)  # the job's programs read it, whatever the agent's umask
        os.ftruncate(descriptor, _page.PAGE_BYTES)
        with mmap.mmap(descriptor, _page.PAGE_BYTES) as memory:
            _page.begin(memory)
            _page.write(memory, Body().pack())
    finally:
        os.close(descriptor)
    temporary.replace(path)
