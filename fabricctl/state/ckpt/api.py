"""Checkpoints for programs: protect, restore, step (docs/checkpoints.md)."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

from fabricctl.errors import DataError, FabricError, SystemRefusedError, UsageError
from fabricctl.state import torch_hooks
from fabricctl.state.ckpt import client, partfile, sets
from fabricctl.state.ckpt.client import Client, Found
from fabricctl.state.ckpt.comms import MAIN, Regroup, adapt, track_step
from fabricctl.state.ckpt.events import tell
from fabricctl.state.ckpt.interval import interval
from fabricctl.state.ckpt.items import Fill, Item, item_of
from fabricctl.state.ckpt.link import RefusedError
from fabricctl.state.ckpt.shared import SharedLevel
from fabricctl.state.ckpt.sources import Sources, Step
from fabricctl.store.schema import CheckpointEvent

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
Answer = TypeVar("Answer")


class Checkpoint:
    """State of all ranks of a program, saved together and restored together.

    ``comm`` is an mpi4py communicator, ``"torch"`` for torch.distributed, or None for a program of
    one process. ``every_steps`` or ``every_s`` set the interval; else it follows from what a
    checkpoint costs and ``mtbf_s`` (Young 1974: the square root of twice their product).

    ``scheme``: ``partner`` holds ``copies`` of each rank's state on other nodes, ``single`` none,
    ``xor`` and ``rs`` add parity in sets of ``set_size`` ranks that survives one or ``losses``
    lost members; no two members share what ``apart`` names: node, switch or power.
    ``disk_every``: every so many checkpoints also go to the node's disk, ``shared``: a directory
    of the shared file system where every ``shared_every``-th goes, the ``shared_keep`` newest stay.

    Without a keeper on this node (no protected job) nothing is saved in memory, and ``restore``
    finds only what is in ``shared``.
    """

    def __init__(
        self,
        comm: Any = None,
        *,
        name: str = MAIN,
        every_steps: int | None = None,
        every_s: float | None = None,
        mtbf_s: float | None = None,
        scheme: str = "partner",
        copies: int = 1,
        losses: int = 2,
        set_size: int = sets.SIZE,
        apart: str = "node",
        disk_every: int = 0,
        shared: str | Path | None = None,
        shared_every: int = 10,
        shared_keep: int = 2,
    ) -> None:
        self._comm = comm
        self._rank, self._ranks, self._gather = adapt(comm, name)
        self._name = partfile.called(name)
        self._interval = interval(every_steps, every_s, mtbf_s)
        self._scheme = sets.scheme(scheme, copies, losses, set_size, apart)
        self._members: list[tuple[int, str]] | None = None  # of this rank's set, with their nodes
        if disk_every < 0:
            raise UsageError(f"checkpoint: disk_every={disk_every}: 0 (never) at least")
        self._disk_every = disk_every
        root = Path(shared).absolute() if shared else None
        self._shared = SharedLevel(root, name, shared_every, shared_keep)
        self._items: dict[str, Item] = {}
        me = self._rank, self._ranks
        self._sources = Sources(*me, self._gather, self._items, self._shared)
        self._keeper = client.of_this_node(name, self._rank, self._ranks)
        place = client.keeper_socket()
        self._events = place.with_name("events") if place and self._keeper else None
        self._committed: list[int] = []  # steps that all ranks have safe, oldest first
        self._pending: int | None = None
        self._sharing: int | None = None  # the last step on its way to the shared file system
        self._unsafe = ""  # why what was saved last is not as safe as it should be
        self._size = self._saves = 0
        self._talk_s = 0.0  # the last save's word to the others; the last to come waits for nobody
        self._serial = ""  # tells apart what this start saves
        self._begin_s, self._begin_step = time.monotonic(), 0
        self._met = self._signalled = self._regroup = False
        self._regroup_at: int | None = None  # the step that all ranks have agreed upon
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
        A step that another number of ranks saved is taken where all that is protected is
        :class:`~fabricctl.state.Share` or :class:`~fabricctl.state.Same`.
        """
        self._catch_signals()
        self._meet()
        while True:
            found = self._find()
            common = set.intersection(*(set(mine) for mine in self._gather(sorted(found))))
            if not common:
                return self._restore_shared()
            step = self._sources.best_first(common)[0]
            if self._fill(self._load(step, found[step])):
                n: int = step[0]
                self._committed = [n]
                self._tell(CheckpointEvent.RESTORED, n)
                self._start_at(n)
                return n
            self._forget(step)

    def _meet(self) -> None:
        """All ranks learn where each is, and which are a set."""
        if self._met:
            return
        self._met = True
        me = None
        if self._keeper is not None:
            with contextlib.suppress(OSError, FabricError, ValueError, KeyError):
                me = self._asked(Client.who)
        told = self._gather((me, time.time_ns()))
        self._serial = str(told[0][1])
        without = [rank for rank, (who, _) in enumerate(told) if who is None]
        if without and self._keeper is not None:
            # One rank that cannot save makes every step worthless, and would not take part in what
            # the others tell each other of it.
            if self._rank == next(rank for rank, (who, _) in enumerate(told) if who is not None):
                words = f"no step is kept in memory: no keeper for rank {without[0]}"
                client.warn(f"{words}, {len(without)} of {self._ranks} in all")
            self._keeper.link.close()
            self._keeper = None
        if not self._scheme.losses:
            return
        if not without:
            self._members = sets.set_of(self._rank, [who for who, _ in told], self._scheme)
        if self._members is None:
            self._scheme = sets.Scheme(copies=self._scheme.losses)
            if self._rank == 0:
                words = f"no sets can be made of {self._ranks} ranks here"
                client.warn(f"{words}: {self._scheme.copies} copies on other nodes instead")

    def _tell(self, event: CheckpointEvent, step: int, stall_s: float = 0.0) -> None:
        """Into the job's trace, by rank 0."""
        if self._rank != 0 or self._events is None:
            return
        launch = os.environ.get("FABRIC_LAUNCH", "0")
        numbers = {"launch": int(launch) if launch.isdecimal() else 0, "step": step}
        numbers |= {"ranks": self._ranks, "bytes": self._size, "stall_ns": int(stall_s * 1e9)}
        tell(self._events, event, numbers)

    def _start_at(self, step: int) -> None:
        self._begin_s, self._begin_step = time.monotonic(), step
        self._interval.start_at(step)
        if self._comm == "torch":
            torch_hooks.step_to(step)

    # In the loop

    def step(self, n: int) -> bool:
        """Iteration ``n`` is done: saves when it is time. True when it did.

        Raises :class:`Regroup` under :func:`fabricctl.state.live`, which calls the program again.
        """
        track_step(n)
        if n >= self._interval.agree_step:
            self._agree(n)
        if not self.need_checkpoint(n):
            return False
        self.save(n)
        if self._regroup_at == n:
            with contextlib.suppress(Exception):  # the others may have left by now
                self._commit()
            raise Regroup
        return True

    def need_checkpoint(self, n: int) -> bool:
        """Whether step ``n`` is to be saved; the same on every rank without a message."""
        return self._interval.due(n)

    def save(self, n: int) -> None:
        """Saves step ``n`` now; all ranks must. Returns after one copy in memory.

        Raises :class:`SystemRefusedError` when a keeper has no room, on all ranks; whatever else
        kept one of them from saving is raised there.
        """
        begin_s = time.monotonic()
        self._meet()
        before, (safe, why) = self._pending, self.wait_copied()
        share = self._shared.due(self._saves)
        failure: Exception | None = None
        try:
            self._put(n, share)
        except Exception as error:  # the others wait for a word
            failure = error
        self._saves += 1
        if share and self._rank == 0:
            self._shared.thin()
        took_s = time.monotonic() - begin_s
        told = self._gather((took_s, self._talk_s, self._step_s(n), safe, failure is None))
        took, talk, steps, safe_on, saved = zip(*told, strict=True)
        self._talk_s = time.monotonic() - begin_s - took_s
        if before is not None:
            self._settle(before, all(safe_on), why)
        if not all(saved):
            self._pending = None if all(safe_on) else before
            names = ", ".join(str(rank) for rank, good in enumerate(saved) if not good)
            words = f"checkpoint: step {n} is not saved: rank {names[:60]} could not"
            try:
                raise failure or SystemRefusedError(words)
            finally:
                del failure  # its frames hold all that was to be saved
        if self._keeper is not None:
            self._pending = n
            self._sharing = n if share else self._sharing
        self.stall_s += took_s + min(talk)
        cost_s, step_s = max(took) + min(talk), max(steps)
        self._tell(CheckpointEvent.SAVED, n, cost_s)
        self._interval.saved(n, cost_s, step_s)

    def _put(self, n: int, share: bool) -> None:
        """This rank's part into the keeper's memory, else the shared file system if it is due."""
        if self._keeper is not None:
            wanted = self._wanted(n, share)
            self._size = self._asked(lambda keeper: keeper.fill(n, self._items, wanted))
        elif share:
            who = self._rank, self._ranks, n
            self._shared.save(who, self._items, f"{self._serial}.{self._saves}")

    def _asked(self, question: Callable[[Client], Answer]) -> Answer:
        """Of the keeper, or of the new one where it has died: what it held is with its partner.

        Raises :class:`RefusedError`, :class:`SystemRefusedError` when there is none."""
        assert self._keeper is not None
        try:
            return question(self._keeper)
        except RefusedError:
            raise
        except (OSError, DataError) as error:
            client.warn(f"rank {self._rank}: the keeper of this node is gone: {error}")
            self._keeper.link.close()
        fresh = client.of_this_node(self._name, self._rank, self._ranks)
        if fresh is None:
            raise SystemRefusedError(f"checkpoint of rank {self._rank}: no keeper on this node")
        self._keeper = fresh
        return question(fresh)

    def _step_s(self, n: int) -> float:
        return (time.monotonic() - self._begin_s) / max(1, n - self._begin_step)

    def _wanted(self, n: int, share: bool) -> dict[str, Any]:
        """How safe step ``n`` is to be."""
        serial = f"{self._serial}.{self._saves}"
        of, pending = None, [] if self._pending is None else [self._pending]
        if self._members is not None:
            of = {
                "name": self._name,
                "step": n,
                "ranks": self._ranks,
                "losses": self._scheme.losses,
                "members": self._members,
                "serial": serial,
            }
        return {
            "copies": self._scheme.copies,
            "set": of,
            "serial": serial,
            "keep": [*self._committed, *pending][-2:],  # others may not have that safe yet
            "disk": bool(self._disk_every) and self._saves % self._disk_every == 0,
            "shared": str(self._shared.root) if share else "",
        }

    def _agree(self, n: int) -> None:
        """Whether any rank got a signal: then all save now."""
        told = self._gather((self._signalled, self._regroup, self._step_s(n)))
        if any(signalled for signalled, *_ in told) and not self.ending:
            self.ending = True
            self._interval.next_step = n
        elif any(regroup for _, regroup, _ in told) and not self.ending:
            self._regroup_at = self._interval.next_step = n
        self._interval.agreed(n, max(each for *_, each in told))

    def _commit(self) -> None:
        """Where no other save follows that would."""
        safe, why = self.wait_copied()
        if self._pending is not None:
            self._settle(self._pending, all(self._gather(safe)), why)
            self._pending = None

    def wait_copied(self) -> tuple[bool, str]:
        """Until what this rank saved last is as safe as it will be: whether it is, and why not."""
        if self._pending is None or self._keeper is None:
            return True, ""
        return self._keeper.safe(self._pending)

    def _settle(self, step: int, safe: bool, why: str) -> None:
        """The second phase of a save: where every rank's part is safe, older ones may go."""
        told = "" if safe else next(filter(None, self._gather(why)), "nobody says why")
        if safe:
            self._committed = [*self._committed[-1:], step]
        if told != self._unsafe and self._rank == 0:  # each trouble once, not at each save
            client.warn(f"step {step} is " + (f"not safe: {told}" if told else "safe again"))
        self._unsafe = told

    # Restoring

    def _find(self) -> dict[Step, list[Found]]:
        """What can be had of each step that could be whole."""
        if self._keeper is None:
            return {}
        try:
            dead = os.environ.get("FABRIC_DEAD_NODES", "")
            return self._sources.usable(self._asked(lambda keeper: keeper.find(dead)))
        except (OSError, FabricError, ValueError) as error:
            client.warn(f"rank {self._rank}: {error}")
            return {}

    def _load(self, step: Step, found: list[Found]) -> Fill | None:
        assert self._keeper is not None
        return self._sources.load(self._keeper, step, found)

    def _fill(self, fill: Fill | None) -> bool:
        """Only when all ranks can: who begins anew must have what it began with. A step that was
        done again, and not by all ranks, is another on each of them."""
        told = self._gather((fill is not None, sorted(self._sources.saves)))
        if fill is None or not all(good for good, _ in told):
            return False
        if len({save for _, saves in told for save in saves}) > 1:
            if self._rank == 0:
                client.warn("ranks have parts of different saves of one step: it is passed over")
            return False
        fill()
        return True

    def _forget(self, step: Step) -> None:
        """A step that cannot be restored as a whole must not be offered again."""
        if self._keeper is not None and step[1] == self._ranks:
            self._keeper.drop(step[0])
        self._sources.dropped.add(step)

    def _restore_shared(self) -> int:
        whole: list[Step] = self._shared.whole() if self._rank == 0 else []
        listed = [(int(step), int(ranks)) for step, ranks in self._gather(whole)[0]]
        for step in self._sources.best_first(listed):
            if self._fill(self._sources.load_shared(step)):
                self._tell(CheckpointEvent.RESTORED_SHARED, step[0])
                self._start_at(step[0])
                return step[0]
        self._tell(CheckpointEvent.BEGUN, 0)
        self._start_at(0)
        return 0

    # Signals, and the end

    def _catch_signals(self) -> None:
        for number in SIGNALS:
            with contextlib.suppress(ValueError):  # not the main thread
                if signal.getsignal(number) == signal.SIG_DFL:
                    self._before[number] = signal.signal(number, self.take_signal)

    def take_signal(self, _number: int, _frame: FrameType | None) -> None:
        """All ranks save soon, and :attr:`ending` becomes true on all."""
        self._signalled = True

    def regroup(self) -> None:
        """All ranks save soon, and :meth:`step` raises :class:`Regroup` on all."""
        self._regroup = True

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """A program that ended well, also by sys.exit(0), needs its checkpoints no more; else they
        are held. Where one rank failed the others are not asked: they may never answer."""
        if kind is not None and not (isinstance(error, SystemExit) and error.code in (None, 0)):
            self.leave()
        else:
            self.close(done=not self.ending)

    def close(self, *, done: bool) -> None:
        """All ranks must. ``done``: the keeper forgets everything; else it holds it for the next
        start, and what is on its way to the shared file system is waited for."""
        if self._keeper is not None:
            self._commit()  # a copy that comes after its keeper was told to forget would stay
            if done:
                if self._met:  # else nothing was saved, and not all may have a keeper
                    self._gather(True)
                self.forget()
            elif self._sharing is not None:
                good, why = self._keeper.safe(self._sharing, shared=True)
                if not good:
                    client.warn(f"step {self._sharing} is not on the shared level: {why}")
                self._gather(good)
                if self._rank == 0:
                    self._shared.thin()
        self.leave()

    def give_up(self) -> None:
        """By another thread: the group is broken, whoever waits for copies need not any more."""
        if (keeper := self._keeper) is not None:
            keeper.given_up = True

    def forget(self) -> None:
        """All ranks are known to have ended well: keepers need not hold anything."""
        if self._keeper is not None:
            with contextlib.suppress(OSError, FabricError):
                self._keeper.ask("done", everywhere=int(self._rank == 0))
        self._tell(CheckpointEvent.DONE, max(self._committed, default=0))
        self.leave()

    def leave(self) -> None:
        """Without a word to the other ranks; the keeper holds what it has."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        if self._keeper is not None:
            self._keeper.link.close()
            self._keeper = None
