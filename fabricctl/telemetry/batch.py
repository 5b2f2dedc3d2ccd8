"""All reads of one sample in one call, kept until they are wanted (``csrc/batch.c``)."""

import os
import select
from dataclasses import dataclass, field
from time import CLOCK_MONOTONIC, clock_gettime_ns
from typing import Protocol

Reading = tuple[int, bytes | int]
"""When it was there (CLOCK_MONOTONIC, ns), and what was read or the errno of what failed."""


class Batch(Protocol):
    """Slots that are read together, in the order in which they were added."""

    def add(self) -> int:
        """A slot; idle until it is set."""

    def set(
        self, slot: int, fd: int, limit: int = 0, request: bytes = b"", every: int = 1, /
    ) -> None:
        """What to read: at most ``limit`` bytes from a file's beginning, or the answer to a
        ``request`` sent to a socket; ``fd`` -1: nothing. The descriptor stays the caller's.
        ``every``: a file only at each so many samples, the next one first."""

    def take(self) -> None:
        """Reads every slot now."""

    def wait(self, epoll: int, period_ns: int, timeout_s: float, /) -> tuple[list[int], int, int]:
        """Takes a sample at once and then at every ``period_ns``, without drift over all calls,
        until a descriptor in ``epoll`` is ready or the time is over, at most a minute: those that
        are ready, samples taken, and samples whose time passed while nobody waited."""

    def drain(self, slot: int, /) -> list[Reading]:
        """What was read since the last call, oldest first."""


@dataclass
class _Slot:
    fd: int = -1
    limit: int = 0
    request: bytes = b""
    every: int = 1
    left: int = 0
    kept: list[Reading] = field(default_factory=list)


class PlainBatch:
    """Without a compiler: the same, at three times the cost."""

    def __init__(self) -> None:
        self._slots: list[_Slot] = []
        self._due_ns = 0

    def add(self) -> int:
        self._slots.append(_Slot())
        return len(self._slots) - 1

    def set(
        self, slot: int, fd: int, limit: int = 0, request: bytes = b"", every: int = 1, /
    ) -> None:
        known = self._slots[slot]
        known.fd, known.limit, known.request = fd, limit, request
        known.every, known.left = every, 0

    def take(self) -> None:
        for slot in self._slots:
            if slot.fd < 0:
                continue
            slot.left -= 1
            if slot.left >= 0:
                continue
            slot.left = slot.every - 1
            try:
                got: bytes | int = _read(slot)
            except OSError as error:
                got = error.errno or 0
            slot.kept.append((clock_gettime_ns(CLOCK_MONOTONIC), got))

    def wait(self, epoll: int, period_ns: int, timeout_s: float, /) -> tuple[list[int], int, int]:
        now_ns = clock_gettime_ns(CLOCK_MONOTONIC)
        left_s = min(timeout_s, max(0, self._due_ns - now_ns) / 1e9)
        with select.epoll.fromfd(os.dup(epoll)) as own:
            ready = [fd for fd, _ in own.poll(left_s)]
        now_ns = clock_gettime_ns(CLOCK_MONOTONIC)
        if now_ns < self._due_ns:
            return ready, 0, 0
        begin_ns = self._due_ns or now_ns
        missed = (now_ns - begin_ns) // period_ns
        self._due_ns = begin_ns + (missed + 1) * period_ns
        self.take()
        return ready, 1, missed

    def drain(self, slot: int, /) -> list[Reading]:
        known = self._slots[slot]
        kept, known.kept = known.kept, []
        return kept


def _read(slot: _Slot) -> bytes:
    if not slot.request:
        return os.pread(slot.fd, slot.limit, 0)
    os.write(slot.fd, slot.request)
    return os.read(slot.fd, slot.limit)


def new() -> Batch:
    try:
        from fabricctl.telemetry import _batch
    except ImportError:
        return PlainBatch()
    return _batch.Batch()
