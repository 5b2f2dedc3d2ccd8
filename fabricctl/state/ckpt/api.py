"""Checkpoints for programs: protect, restore, step (docs/checkpoints.md)."""

import contextlib
import json
import math
import mmap
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from fabricctl.errors import DataError, FabricError
from fabricctl.state.ckpt import bytes as raw
from fabricctl.state.ckpt.events import tell
from fabricctl.state.ckpt.items import Item, item_of
from fabricctl.state.ckpt.link import Link
from fabricctl.store.schema import CheckpointEvent

WAIT_SAFE_S = 120.0
ALIGN = 64  # where each item begins in the keeper's memory: the copy is quicker
KEEPER_S = 5.0  # a keeper begins half a second after its job
AGREE_S = 1.0  # how soon all ranks hear of a signal that one of them got
MTBF_S = 6 * 3600.0  # of the whole job, where nobody says better: a big job's day has four
SHARE_MOST = 0.05  # of the run's time that checkpoints may take, whatever the failure rate
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Checkpoint:
    """State of all ranks of a program, saved together and restored together.

    ``comm`` is an mpi4py communicator, ``"torch"`` for torch.distributed, or None for a program of
    one process. ``every_steps`` or ``every_s`` set the interval; else it follows from what a
    checkpoint costs and ``mtbf_s`` (Young 1974: the square root of twice their product).
    ``copies``: on how many other nodes each rank's state is held. ``shared``: a directory of the
    shared file system where every ``shared_every``-th checkpoint goes as well.

    Without a keeper on this node (no protected job) nothing is saved in memory, and ``restore``
    finds only what is in ``shared``.
    """

    def __init__(
        self,
        comm: Any = None,
        *,
        name: str = "main",
        every_steps: int | None = None,
        every_s: float | None = None,
        mtbf_s: float | None = None,
        copies: int = 1,
        shared: str | Path | None = None,
        shared_every: int = 10,
    ) -> None:
        self._comm = comm
        self._rank, self._ranks, self._gather = _adapt(comm)
        self._name = name
        self._every_steps, self._every_s = every_steps, every_s
        self._mtbf_s = mtbf_s or float(os.environ.get("FABRIC_MTBF_S", MTBF_S))
        self._copies = copies
        self._shared = Path(shared) if shared else None
        self._shared_every = shared_every
        self._items: dict[str, Item] = {}
        self._maps: dict[int, mmap.mmap] = {}  # by inode of the keeper's memory
        place = _keeper_socket()
        self._link = None if place is None else _connect(place)
        self._events = place.with_name("events") if place and self._link else None
        self._size = 0
        self._committed: list[int] = []  # steps that all ranks have safe, oldest first
        self._pending: int | None = None
        self._dropped: set[int] = set()  # steps that could not be restored as a whole
        self._saves = 0
        self._begin_s = time.monotonic()
        self._begin_step = self._last_step = 0
        self._next_step: int | None = None
        self._agree_step = 0
        self._cost_s = 0.0
        self._signalled = False
        self._before: dict[int, Any] = {}
        self.stall_s = 0.0  # what saving cost this rank so far
        self.ending = False  # a signal asked for an end: leave the loop

    # Before the loop

    def protect(self, name: str | None = None, thing: Any = None, **things: Any) -> "Checkpoint":
        """What is to be saved; the same names on every start. Raises :class:`DataError`."""
        given = ({name: thing} if name is not None else {}) | things
        for key, value in given.items():
            self._items[key] = item_of(key, value)
        return self

    def restore(self) -> int:
        """Fills what is protected from the newest step that all ranks have; 0: there is none.

        A step of which any rank's part is damaged is passed over on all ranks, for the one before.
        """
        self._catch_signals()
        while True:
            sources = self._find()
            common = set.intersection(*(set(found) for found in self._gather(sorted(sources))))
            if not common:
                return self._restore_shared()
            step = int(max(common))
            good = self._load(step, sources[step])
            if all(self._gather(good)):
                self._committed = [step]
                self._tell(CheckpointEvent.RESTORED, step)
                self._start_at(step)
                return step
            self._forget(step)

    def _tell(self, event: CheckpointEvent, step: int, stall_s: float = 0.0) -> None:
        """Into the job's trace, by rank 0."""
        if self._rank != 0 or self._events is None:
            return
        launch = os.environ.get("FABRIC_LAUNCH", "0")
        numbers = {"step": step, "ranks": self._ranks, "bytes": self._size}
        numbers |= {"launch": int(launch) if launch.isdecimal() else 0}
        tell(self._events, event, {**numbers, "stall_ns": int(stall_s * 1e9)})

    def _start_at(self, step: int) -> None:
        self._begin_s, self._begin_step, self._last_step = time.monotonic(), step, step
        self._next_step = step + (self._every_steps or 1)
        self._agree_step = step + 1

    # In the loop

    def step(self, n: int) -> bool:
        """Iteration ``n`` is done: saves when it is time. True when it did."""
        self._last_step = n
        _track_step(n)
        if n >= self._agree_step:
            self._agree(n)
        if not self.need_checkpoint(n):
            return False
        self.save(n)
        return True

    def need_checkpoint(self, n: int) -> bool:
        """Whether step ``n`` is to be saved; the same on every rank without a message."""
        return self._next_step is None or n >= self._next_step

    def save(self, n: int) -> None:
        """Saves step ``n`` now; all ranks must. Returns after one copy in memory.

        Raises :class:`SystemRefusedError` when the keeper has no room.
        """
        begin_s = time.monotonic()
        self._commit()
        if self._link is not None:
            self._copy_out(n)
            self._pending = n
        self._saves += 1
        if self._shared and (self._saves - 1) % self._shared_every == 0:
            self._save_shared(n)
        took_s = time.monotonic() - begin_s
        self.stall_s += took_s
        self._plan(n, took_s)

    def _plan(self, n: int, took_s: float) -> None:
        """When the next one is due: the slowest rank's cost decides, for all alike."""
        per_step_s = (time.monotonic() - self._begin_s) / max(1, n - self._begin_step)
        told = self._gather((took_s, per_step_s))
        cost_s, step_s = (max(values) for values in zip(*told, strict=True))
        self._tell(CheckpointEvent.SAVED, n, cost_s)
        self._cost_s = cost_s if not self._cost_s else 0.7 * self._cost_s + 0.3 * cost_s
        if self._every_steps:
            steps = self._every_steps
        else:
            wanted_s = self._every_s or max(
                math.sqrt(2 * self._cost_s * self._mtbf_s), self._cost_s / SHARE_MOST
            )
            steps = max(1, round(wanted_s / max(step_s, 1e-9)))
        self._next_step = n + steps
        self._agree_step = n + max(1, min(int(AGREE_S / max(step_s, 1e-9)), steps))

    def _agree(self, n: int) -> None:
        """Whether any rank got a signal: then all save now."""
        step_s = (time.monotonic() - self._begin_s) / max(1, n - self._begin_step)
        told = self._gather((self._signalled, step_s))
        if any(signalled for signalled, _ in told) and not self.ending:
            self.ending = True
            self._next_step = n
        slowest_s = max(each for _, each in told)
        self._agree_step = n + max(1, int(AGREE_S / max(slowest_s, 1e-9)))

    # Saving

    def _commit(self) -> None:
        """The second phase of the save before: every rank's part is safe, so older ones may go."""
        if self._pending is None or self._link is None:
            return
        wait = {"kind": "safe", "step": str(self._pending), "wait_ms": str(int(WAIT_SAFE_S * 1e3))}
        try:
            answer = self._ask(wait)
        except (OSError, FabricError) as error:
            answer = {"state": "no", "why": str(error)}
        told = self._gather((answer.get("state") == "safe", answer.get("why", "")))
        if all(good for good, _ in told):
            self._committed = [*self._committed[-1:], self._pending]
        elif self._rank == 0:
            why = next(why for good, why in told if not good)
            sys.stderr.write(f"fabric: checkpoint: step {self._pending} is not safe: {why}\n")
        self._pending = None

    def _copy_out(self, n: int) -> None:
        views = {name: item.save() for name, item in self._items.items()}
        size = sum(view.nbytes + ALIGN for view in views.values())
        keep = ",".join(map(str, self._committed))
        self._size = size
        answer = self._ask({"kind": "room", "step": str(n), "size": str(size), "keep": keep})
        memory = self._map(int(answer["size"]))
        into, at, manifest = memoryview(memory), 0, []
        for name, view in views.items():
            end = at + view.nbytes
            crc = raw.copy_crc(into[at:end], view)
            manifest.append([name, self._items[name].kind, at, view.nbytes, crc])
            at = end + -end % ALIGN
        assert self._link is not None
        head = self._head({"kind": "filled", "step": str(n), "used": str(at)})
        text = json.dumps(manifest).encode()
        self._link.send({**head, "copies": str(self._copies)}, memoryview(text))
        self._link.told()

    def _map(self, size: int) -> mmap.mmap:
        """The memory whose descriptor comes next; mapped once, it is used again and again."""
        assert self._link is not None
        _, fds, _, _ = socket.recv_fds(self._link.socket, 1, 1)
        if len(fds) != 1:
            raise DataError("checkpoint: the keeper gave no memory")
        try:
            inode = os.fstat(fds[0]).st_ino
            if inode not in self._maps:
                self._maps[inode] = mmap.mmap(
                    fds[0], size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE
                )
            return self._maps[inode]
        finally:
            os.close(fds[0])

    # Restoring

    def _find(self) -> dict[int, list[str]]:
        """Step -> nodes that have this rank's part, of steps that could be whole."""
        if self._link is None:
            return {}
        dead = os.environ.get("FABRIC_DEAD_NODES", "")
        try:
            self._link.send(self._head({"kind": "find", "dead": dead}))
            found = json.loads(self._link.small(self._link.told()))
        except (OSError, FabricError, ValueError) as error:
            sys.stderr.write(f"fabric: checkpoint: rank {self._rank}: {error}\n")
            return {}
        steps: dict[int, list[str]] = {}
        there: dict[int, set[int]] = {}
        for node, rank, ranks, step in found:
            if ranks == self._ranks and step not in self._dropped:
                there.setdefault(int(step), set()).add(rank)
                if rank == self._rank:
                    steps.setdefault(int(step), []).append(str(node))
        return {step: nodes for step, nodes in steps.items() if len(there[step]) == self._ranks}

    def _load(self, step: int, nodes: list[str]) -> bool:
        """From this node first (the keeper lists itself last), else over the network."""
        for node in reversed(nodes):
            try:
                self._load_from(step, node)
                return True
            except (OSError, FabricError, ValueError, KeyError) as error:
                words = f"rank {self._rank}, step {step} on {node}: {error}"
                sys.stderr.write(f"fabric: checkpoint: {words}\n")
        return False

    def _load_from(self, step: int, node: str) -> None:
        assert self._link is not None
        self._link.send(self._head({"kind": "get", "step": str(step), "node": node}))
        answer = self._link.told()
        manifest = json.loads(self._link.small(answer))
        view = memoryview(self._map(int(answer["size"])))
        self._fill(manifest, view)

    def _fill(self, manifest: list[Any], view: memoryview) -> None:
        names = [part[0] for part in manifest]
        if sorted(names) != sorted(self._items):
            raise DataError(
                f"restore: {', '.join(sorted(names))} were saved, "
                f"{', '.join(sorted(self._items))} are protected"
            )
        for name, _, begin, count, crc in manifest:
            if raw.crc(view[begin : begin + count]) != crc:
                raise DataError(f"restore {name!r}: its checksum is wrong")
        for name, _, begin, count, _ in manifest:
            self._items[name].load(view[begin : begin + count])

    def _forget(self, step: int) -> None:
        """A step that cannot be restored as a whole must not be offered again."""
        if self._link is not None:
            with contextlib.suppress(OSError, FabricError):
                self._ask({"kind": "drop", "step": str(step)})
        self._dropped.add(step)

    # The shared file system

    def _shared_file(self, step: int) -> Path:
        assert self._shared is not None
        return self._shared / f"{self._name}.{step}" / f"{self._rank}.part"

    def _save_shared(self, n: int) -> None:
        """One file a rank, then, when all are there, a file that says so."""
        assert self._shared is not None
        path = self._shared_file(n)
        path.parent.mkdir(parents=True, exist_ok=True)
        manifest, data, at = [], [], 0
        for name, item in self._items.items():
            view = item.save()
            manifest.append([name, item.kind, at, view.nbytes, raw.crc(view)])
            data.append(view)
            at += view.nbytes
        text = json.dumps(manifest).encode()
        fresh = path.with_suffix(".new")
        with fresh.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "big") + text)
            for view in data:
                stream.write(view)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(path)
        self._gather(True)
        if self._rank == 0:
            (path.parent / "whole").write_text(f"{self._ranks}\n")

    def _restore_shared(self) -> int:
        steps = []
        if self._shared is not None:
            for mark in self._shared.glob(f"{self._name}.*/whole"):
                with contextlib.suppress(ValueError, OSError):
                    if int(mark.read_text()) == self._ranks:
                        steps.append(int(mark.parent.name.rpartition(".")[2]))
        told = [set(found) for found in self._gather(sorted(steps))]
        for step in sorted(map(int, set.intersection(*told)), reverse=True):
            if all(self._gather(self._load_shared(step))):
                self._tell(CheckpointEvent.RESTORED_SHARED, step)
                self._start_at(step)
                return step
        self._tell(CheckpointEvent.BEGUN, 0)
        self._start_at(0)
        return 0

    def _load_shared(self, step: int) -> bool:
        try:
            data = self._shared_file(step).read_bytes()
            length = int.from_bytes(data[:8], "big")
            self._fill(json.loads(data[8 : 8 + length]), memoryview(data)[8 + length :])
            return True
        except (OSError, ValueError, FabricError, KeyError) as error:
            words = f"rank {self._rank}, step {step} in {self._shared}: {error}"
            sys.stderr.write(f"fabric: checkpoint: {words}\n")
            return False

    # Talking to the keeper

    def _head(self, message: dict[str, str]) -> dict[str, str]:
        who = {"name": self._name, "rank": str(self._rank), "ranks": str(self._ranks)}
        return {**who, **message}

    def _ask(self, message: dict[str, str]) -> dict[str, str]:
        assert self._link is not None
        return self._link.ask(self._head(message))

    # Signals, and the end

    def _catch_signals(self) -> None:
        for number in SIGNALS:
            with contextlib.suppress(ValueError):  # not the main thread
                if signal.getsignal(number) == signal.SIG_DFL:
                    self._before[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signalled = True

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """A program that ended well needs its checkpoints no more; else they are held."""
        self.close(done=kind is None and not self.ending)

    def close(self, *, done: bool) -> None:
        """``done``: the keeper forgets everything; else it holds it for the next start."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        if self._link is None:
            return
        if done:
            self._gather(True)
            with contextlib.suppress(OSError, FabricError):
                self._ask({"kind": "done"})
        elif self._pending is not None:
            self._commit()
        self._link.close()
        self._link = None


def _adapt(comm: Any) -> tuple[int, int, Callable[[Any], list[Any]]]:
    """Rank, number of ranks, and how all of them learn what each has to say."""
    if comm is None:
        return 0, 1, lambda value: [value]
    if comm == "torch":
        import torch.distributed as dist

        def gather(value: Any) -> list[Any]:
            told: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(told, value)
            return told

        return dist.get_rank(), dist.get_world_size(), gather
    return comm.Get_rank(), comm.Get_size(), comm.allgather


def _keeper_socket() -> Path | None:
    """Of this node; None outside of a protected job."""
    given = os.environ.get("FABRIC_KEEPER")
    if given:
        return Path(given)
    job_dir = os.environ.get("FABRIC_JOB_DIR")
    if not job_dir:
        return None
    return Path(job_dir).parents[1] / "track" / Path(job_dir).name / "keeper"


def _connect(given: Path) -> Link | None:
    """To the keeper of this node; None, and a word, where there is none."""
    end_s = time.monotonic() + (KEEPER_S if given.parent.is_dir() else 0.0)
    while True:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            made.connect(str(given))
            return Link.local(made)
        except OSError as error:
            made.close()
            if time.monotonic() >= end_s:
                words = f"no keeper on this node: {given}: {error.strerror}"
                sys.stderr.write(f"fabric: checkpoint: {words}\n")
                return None
        time.sleep(0.05)


def _track_step(n: int) -> None:
    """Tells the tracker, where it is preloaded."""
    import ctypes

    global _tracker  # noqa: PLW0603 - looked up once a process
    if _tracker is None:
        _tracker = getattr(ctypes.CDLL(None), "fabric_track_step", False)
    if _tracker:
        _tracker(ctypes.c_uint64(n))


_tracker: Any = None
