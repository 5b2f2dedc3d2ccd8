"""What a keeper holds: parts (one rank's state at one step) in memory that outlives the rank."""

import mmap
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fabricctl.errors import SystemRefusedError
from fabricctl.state.ckpt import bytes as raw

if TYPE_CHECKING:
    from fabricctl.state.ckpt.parity import Set

SPARED_BYTES = 64 << 20  # of a node's memory, for the program's next step
_MEMINFO = Path("/proc/meminfo")

Key = tuple[str, int, int]  # name of the checkpoint, rank, step


@dataclass(frozen=True)
class Wanted:
    """How safe a part is to be: on other nodes, in a set, on the disk, on the shared file system;
    ``keep``: steps of which copies must not go yet."""

    copies: int = 0
    of: "Set | None" = None
    keep: frozenset[int] = frozenset()
    disk: bool = False
    shared: Path | None = None


@dataclass
class Part:
    """``memory`` is a memfd of the keeper: the rank writes it, the keeper sends it on."""

    name: str
    rank: int
    ranks: int
    step: int
    fd: int
    memory: mmap.mmap
    used: int = 0  # bytes of state; the memory may be larger
    crc: int = 0
    manifest: bytes = b""  # set by :meth:`describe`
    manifest_crc: int = 0
    whole: bool = False  # filled and checked
    wanted: Wanted = field(default_factory=Wanted)
    done: bool = False  # all that was wanted is done, but for the shared file system
    shared: bool = False
    problem: str = ""

    @property
    def view(self) -> memoryview:
        """The state's bytes."""
        return memoryview(self.memory)[: self.used]

    def describe(self, manifest: bytes) -> None:
        """What the state's bytes are."""
        self.manifest, self.manifest_crc = manifest, raw.crc(memoryview(manifest))

    @property
    def described(self) -> bool:
        """Whether its description is what it was."""
        return raw.crc(memoryview(self.manifest)) == self.manifest_crc

    @property
    def good(self) -> bool:
        """Whether every byte is what it was; reads them all."""
        return self.described and raw.crc(self.view) == self.crc

    @property
    def busy(self) -> bool:
        """Whether it may still be written to a file, also where something else went wrong."""
        return self.wanted.shared is not None and not self.shared

    def safe(self, shared: bool = False) -> bool:
        """Whether it is as safe as was asked for; ``shared``: on the shared file system, too."""
        return self.whole and self.done and (self.shared or not shared or not self.wanted.shared)


@dataclass
class Parts:
    """All parts of a keeper, within its quota. Thread-safe."""

    quota_bytes: int
    _parts: dict[Key, Part] = field(default_factory=dict)
    _claimed: int = 0  # by what is no part
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def room(self, key: Key, ranks: int, size: int, keep: set[int]) -> Part:
        """A part to be filled. Memory of a step of the same rank that is not to be kept is used
        again: writing fresh pages takes several times as long.

        Raises :class:`SystemRefusedError` when there is no room.
        """
        name, rank, step = key
        with self._lock:
            self.drop(key)
            old = [
                part
                for part in self._parts.values()
                if part.name == name and part.step not in keep
                # Of a start with another number of ranks: it goes when two steps of this one stand.
                if part.rank == rank or (part.ranks != ranks and part.step < min(keep, default=0))
            ]
            for part in sorted(old, key=lambda part: part.step):
                del self._parts[name, part.rank, part.step]
                fits = size <= len(part.memory) < 2 * size + mmap.PAGESIZE
                if fits and not part.busy and part.rank == rank and key not in self._parts:
                    self._parts[key] = Part(name, rank, ranks, step, part.fd, part.memory)
                else:
                    _free(part)
            if key not in self._parts:
                self._parts[key] = self._new(key, ranks, size)
            return self._parts[key]

    def _new(self, key: Key, ranks: int, size: int) -> Part:
        name, rank, step = key
        taken = self._taken
        size = max(size + -size % mmap.PAGESIZE, mmap.PAGESIZE)
        if taken + size > self.quota_bytes:
            raise SystemRefusedError(
                f"checkpoint of rank {rank}: {size >> 20} MiB do not fit: {taken >> 20} of "
                f"{self.quota_bytes >> 20} MiB are taken on this node (state.memory_share)"
            )
        free = available_bytes()
        if free is not None and size > free - SPARED_BYTES:
            raise SystemRefusedError(
                f"checkpoint of rank {rank}: {size >> 20} MiB do not fit: {free >> 20} MiB of this "
                "node's memory are free, and somebody would be killed for it"
            )
        fd = os.memfd_create(f"fabric-{name}-{rank}", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(fd, 0, size)  # pages are the keeper's, not the job's
            memory = mmap.mmap(fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except OSError as error:
            os.close(fd)
            raise SystemRefusedError(f"checkpoint of rank {rank}: {error.strerror}") from None
        return Part(name, rank, ranks, step, fd, memory)

    @property
    def _taken(self) -> int:
        return self._claimed + sum(len(part.memory) for part in self._parts.values())

    def claim(self, size: int) -> None:
        """Room for something else than parts, given back by a negative size.

        Raises :class:`SystemRefusedError` when there is none.
        """
        with self._lock:
            if size > 0 and self._taken + size > self.quota_bytes:
                raise SystemRefusedError(
                    f"checkpoint: {size >> 20} MiB of parity do not fit: {self._taken >> 20} of "
                    f"{self.quota_bytes >> 20} MiB are taken on this node (state.memory_share)"
                )
            self._claimed += size

    def get(self, name: str, rank: int, step: int, *, whole: bool = True) -> Part | None:
        """None when it is not here, or not whole where it has to be."""
        with self._lock:
            part = self._parts.get((name, rank, step))
            return part if part is not None and (part.whole or not whole) else None

    def drop(self, key: Key) -> None:
        """Forgets a part; one that is not here is no error."""
        with self._lock:
            part = self._parts.pop(key, None)
        if part is not None:
            _free(part)

    def keep_only(self, name: str, rank: int, steps: set[int]) -> None:
        """Forgets a rank's other steps: copies of other nodes' ranks grow old as theirs do."""
        with self._lock:
            for key in [key for key in self._parts if key[:2] == (name, rank)]:
                if key[2] not in steps:
                    self.drop(key)

    def whole(self) -> list[Part]:
        """Every part that may be restored from."""
        with self._lock:
            return [part for part in self._parts.values() if part.whole]

    def clear(self, name: str) -> None:
        """Forgets all of a checkpoint."""
        with self._lock:
            for key in [key for key in self._parts if key[0] == name]:
                self.drop(key)


def available_bytes() -> int | None:
    """Of this machine's memory, before it would swap or kill (proc_meminfo(5), MemAvailable); None
    where the kernel does not say."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable" and value.split()[0].isdecimal():
            return int(value.split()[0]) << 10
    return None


def _free(part: Part) -> None:
    try:
        part.memory.close()
    except BufferError:
        pass  # a thread is sending it: freed with its last view
    os.close(part.fd)
