"""A rank's block as it is read (track.h, docs/tracker.md).

The file is the job user's own: nothing in it is believed before it was checked, and it is read,
never mapped, because its owner can cut it short at any moment.
"""

import os
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from pathlib import Path

from fabricctl.errors import DataError

MAGIC = b"FBTRACK\0"
VERSION = 1
COMMS, OPS, RING = 64, 256, 512
HOOK_OPS = {
    128: "torch.collective",
    129: "torch.step",
    130: "nccl",
    131: "checkpoint",
    132: "torch.all_reduce",
    133: "torch.broadcast",
    134: "torch.all_gather",
    135: "torch.reduce_scatter",
    136: "torch.all_to_all",
    137: "torch.reduce",
    138: "torch.gather",
    139: "torch.scatter",
    140: "torch.barrier",
    141: "torch.send",
    142: "torch.recv",
    143: "torch.backward",
    144: "ncclAllReduce",
    145: "ncclAllGather",
    146: "ncclReduceScatter",
    147: "ncclBroadcast",
    148: "ncclReduce",
    149: "ncclSend",
    150: "ncclRecv",
}

WORLD, SELF = 1, 2  # ids of the communicators that every MPI program has
NCCL = "NCCL"  # library of the second block of a process

_HEAD = struct.Struct("=8s9I2i3I24s40s6Q")
_NOW = struct.Struct("=4QIiII5Q")
_PHASE = struct.Struct("=32s2Q")
PHASES = 8
_COMM = struct.Struct("=QIiI4x2IQ24x")
_OP = struct.Struct("=4Q")
_RECORD = struct.Struct("=4QIiII16x")
NOW_AT, PHASES_AT, COMMS_AT = 512, 640, 1024
OPS_AT = COMMS_AT + COMMS * _COMM.size
TORN_MOST = 3  # a rank that goes on all the time waits for nobody
RING_AT = OPS_AT + OPS * _OP.size
BYTES = RING_AT + RING * _RECORD.size
_LIST = Path(__file__).parent / "mpi.list"


class State(IntEnum):
    """Life of a rank, as it said itself."""

    STARTING = 0
    RUNNING = 1
    FINALIZED = 2
    ABORTED = 3


@cache
def op_names() -> tuple[str, ...]:
    """The names of MPI's functions by op number: the lines of mpi.list."""
    lines = _LIST.read_text().splitlines()
    return tuple(f"MPI_{line.split()[0]}" for line in lines if line and line[0] != "#")


def op_name(number: int) -> str:
    """For people; an op of a newer library has its number."""
    names = op_names()
    return names[number] if number < len(names) else HOOK_OPS.get(number, f"op {number}")


@dataclass(frozen=True, slots=True)
class Ticks:
    """From a rank's ticks to the node's CLOCK_MONOTONIC."""

    first_ticks: int
    first_mono_ns: int
    last_ticks: int
    last_mono_ns: int

    def ns(self, ticks: int) -> int:
        """A span."""
        took = self.last_ticks - self.first_ticks
        return ticks * (self.last_mono_ns - self.first_mono_ns) // took if took > 0 else 0

    def mono_ns(self, ticks: int) -> int:
        """An instant; 0 for one that never was."""
        return self.last_mono_ns + self.ns(ticks - self.last_ticks) if ticks else 0


@dataclass(frozen=True, slots=True)
class Comm:
    """One communicator: ``rank`` is this rank's place in it."""

    id: int
    size: int
    rank: int
    colls: int
    recent: int  # ops of the last eight collectives, a byte each, the last one lowest


@dataclass(frozen=True, slots=True)
class OpSum:
    """What one operation took so far."""

    op: int
    calls: int
    ns: int
    bytes: int
    most_ns: int


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase that the program marked; ``ns`` of those that have ended."""

    name: str
    entered: int
    ns: int


@dataclass(frozen=True, slots=True)
class Rank:
    """Where one rank stands. Times are the node's CLOCK_MONOTONIC."""

    rank: int
    ranks: int
    pid: int
    start_ticks: int
    launch: int
    step: str
    library: str
    state: State
    calls: int  # grows at the begin and the end of each call; odd: inside
    op: int  # of the call that it is in, or was in last
    peer: int
    comm: int  # id of the communicator
    coll: int  # number of the collective on it; 0: none
    bytes: int
    since_mono_ns: int  # begin of the call, or its end when it is outside
    steps: int
    step_mono_ns: int
    comms: tuple[Comm, ...]
    sums: tuple[OpSum, ...]
    phases: tuple[Phase, ...] = ()
    phase: str = ""  # that it is in
    phase_mono_ns: int = 0  # when that began

    @property
    def inside(self) -> bool:
        """Whether it is in a call."""
        return self.calls % 2 == 1

    def with_gpu(self, gpu: "Rank") -> "Rank":
        """With what the same process's block of NCCL says. Its GPU's place counts while that is in
        an operation, by which the program itself is not held up."""
        inside = gpu if gpu.inside else self
        return replace(
            self,
            calls=(self.calls // 2 + gpu.calls // 2) * 2 + inside.calls % 2,
            op=inside.op,
            peer=inside.peer,
            comm=inside.comm,
            coll=inside.coll,
            bytes=inside.bytes,
            since_mono_ns=inside.since_mono_ns,
            comms=self.comms + gpu.comms,
            sums=self.sums + gpu.sums,
        )


def _with_gpus(ranks: Iterable[Rank]) -> list[Rank]:
    """One for each process: blocks of NCCL (``nccl.c``) joined to the program's own."""
    found: dict[tuple[int, int, int], Rank] = {}
    for rank in sorted(ranks, key=lambda rank: rank.library == NCCL):
        process = (rank.launch, rank.pid, rank.start_ticks)
        host = found.get(process)
        found[process] = rank if host is None else host.with_gpu(rank)
    return list(found.values())


def parse(data: bytes) -> Rank:
    """Raises :class:`DataError` for what is no block of this version, or not whole yet."""
    if len(data) < RING_AT or not data.startswith(MAGIC):
        raise DataError("track: not a rank's block")
    head = _HEAD.unpack_from(data)
    version, size, comms_at, comms, ops_at, ops = head[1:7]
    if version != VERSION:
        raise DataError(f"track: block of version {version}, this side knows {VERSION}")
    if (size, comms_at, comms, ops_at, ops) != (BYTES, COMMS_AT, COMMS, OPS_AT, OPS):
        raise DataError("track: a block that is laid out otherwise")
    pid, rank, ranks, launch, state, _, step, library, start, *pairs = head[9:]
    if not 0 <= rank < ranks or state not in list(State) or pairs[4] % 2:
        raise DataError("track: a block without a rank")
    ticks = Ticks(*pairs[:4])
    now = _NOW.unpack_from(data, NOW_AT)
    calls, enter, end, count, op, peer, comm, coll, _, steps, step_ticks = now[:11]
    phases = tuple(_phases(data, ticks))
    known = tuple(_comms(data))
    return Rank(
        rank=rank,
        ranks=ranks,
        pid=pid,
        start_ticks=start,
        launch=launch,
        step=_text(step),
        library=_text(library),
        state=State(state),
        calls=calls,
        op=op,
        peer=peer,
        comm=_COMM.unpack_from(data, COMMS_AT + (comm % COMMS) * _COMM.size)[0],
        coll=coll,
        bytes=count,
        since_mono_ns=_int63(ticks.mono_ns(enter if calls % 2 else end)),
        steps=steps,
        step_mono_ns=_int63(ticks.mono_ns(step_ticks)),
        comms=known,
        sums=tuple(_sums(data, ticks)),
        phases=tuple(one for one in phases if one.name),
        phase=phases[now[11] - 1].name if 0 < now[11] <= PHASES else "",
        phase_mono_ns=_int63(ticks.mono_ns(now[12])),
    )


def _text(raw: bytes) -> str:
    text = raw.split(b"\0", 1)[0].decode("ascii", "replace")
    return "".join(c if c.isprintable() and c not in ";=" else "?" for c in text)


def _int63(value: int) -> int:
    return min(max(value, 0), (1 << 63) - 1)


def _phases(data: bytes, ticks: Ticks) -> Iterator[Phase]:
    for name, took, entered in _PHASE.iter_unpack(data[PHASES_AT:COMMS_AT]):
        yield Phase(_text(name), min(entered, 1 << 62), _int63(ticks.ns(took)))


def _comms(data: bytes) -> Iterator[Comm]:
    for found in _COMM.iter_unpack(data[COMMS_AT:OPS_AT]):
        name, size, rank, colls, _, freed, recent = found
        if name and not freed:
            yield Comm(name, size, rank, colls, recent)


def _sums(data: bytes, ticks: Ticks) -> Iterator[OpSum]:
    for op, (calls, took, count, most) in enumerate(_OP.iter_unpack(data[OPS_AT:RING_AT])):
        if calls:
            most_ns = min(_int63(ticks.ns(most)), 1 << 62)
            yield OpSum(op, calls, _int63(ticks.ns(took)), count, most_ns)


def read(path: Path) -> bytes:
    """The block's bytes without the ring; raises OSError, also for what is no regular file."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, f"{path}: not a regular file")
        data = os.pread(fd, RING_AT, 0)
        for _ in range(TORN_MOST):
            # Where the rank stands must not be of two calls: it may have gone on while we read.
            now = os.pread(fd, PHASES_AT - NOW_AT, NOW_AT)
            if now[:8] == data[NOW_AT : NOW_AT + 8]:
                break
            data = os.pread(fd, RING_AT, 0)
        return data
    finally:
        os.close(fd)


def calls_of(path: Path) -> tuple[int, int] | None:
    """A rank's ``calls`` and its op alone, at a tenth of the cost; None while it is none."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        data = os.pread(fd, COMMS_AT, 0)
    finally:
        os.close(fd)
    if len(data) < COMMS_AT or not data.startswith(MAGIC):
        return None
    found = _NOW.unpack_from(data, NOW_AT)
    return found[0], found[4]


def read_all(directory: Path, most: int = 4096) -> list[Rank]:
    """Every rank below a directory, by rank; a block that cannot be read is left out.

    ``most``: a directory that belongs to a user may hold any number of files.
    """
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for _, entry in zip(range(most), entries, strict=False)]
    except OSError:
        return []
    found = []
    for name in names:
        if name.endswith(".track"):
            try:
                found.append(parse(read(directory / name)))
            except (OSError, DataError):
                continue
    return sorted(_with_gpus(found), key=lambda rank: (rank.launch, rank.rank))
