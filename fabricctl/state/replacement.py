"""Programs whose dead are replaced while the others run on (docs/checkpoints.md)::

    def train(checkpoint):
        checkpoint.protect(model=model, optimizer=optimizer)
        for n in range(checkpoint.restore(), steps):
            ...
            checkpoint.step(n + 1)

    state.live(train, "gloo", every_steps=1)

Under `fabricctl run --live` a process of a spare waits in :func:`live`. When one dies, the others
leave ``train`` by an error in the collective that they are in, the groups are made anew with the
spare's process, and all enter ``train`` again, which restores. Elsewhere ``train`` is called once.
"""

import contextlib
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from fabricctl import wire
from fabricctl.errors import DataError, FabricError, NotFoundError, UsageError
from fabricctl.membership import Member
from fabricctl.state import torch_hooks
from fabricctl.state.ckpt.api import SIGNALS, Checkpoint
from fabricctl.state.ckpt.comms import Regroup, step_tasks
from fabricctl.state.ckpt.link import Link
from fabricctl.state.sockets import Sockets

FORM_S = 60.0  # for all to meet in a new group
CALL_S = 60.0  # all processes of a job call at once
SOON_S = 2.0  # who waits longer is a spare
CUT_S = 0.02  # between attempts to get the program out of a collective

Train = Callable[[Checkpoint], Any]


def live(train: Train, backend: str = "gloo", **options: Any) -> Any:
    """Calls ``train(checkpoint)`` within a process group of torch.distributed, again after each
    death; what it returns. ``options`` are :class:`~fabricctl.state.Checkpoint`'s.

    What comes after it in the program is done once, and `fabricctl run` waits for it. A spare that
    was not needed exits with 0 here.
    """
    given = os.environ.get("FABRIC_LIVE", "")
    if not given:
        return _once(train, backend, options)
    early: list[int] = []  # who has joined may be told to save before it has a seat
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, lambda number, _: early.append(number))
    seat: _Seat | None = None
    try:
        seat = _Seat(_call(given))
        for number in SIGNALS:
            signal.signal(number, seat.take_signal)
        seat.signalled = seat.signalled or bool(early)
        gc.collect()
        gc.freeze()  # what is imported by now need not be looked through after each death
        if not seat.is_called(SOON_S):
            _rehearse(backend)
        while True:
            form = seat.wait_form()
            done, result = _generation(seat, form, train, backend, options)
            if done:
                return result  # the connection ends with the process: it is waited for
    except BaseException:
        if seat is not None:
            seat.close()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _once(train: Train, backend: str, options: Mapping[str, Any]) -> Any:
    """Without anybody who would replace the dead."""
    dist = importlib.import_module("torch.distributed")
    if not dist.is_initialized():
        who: dict[str, Any] = {}
        if "RANK" not in os.environ and "SLURM_PROCID" in os.environ:
            who["rank"] = int(os.environ["SLURM_PROCID"])
            who["world_size"] = int(os.environ.get("SLURM_NTASKS", "1"))
        if "MASTER_ADDR" not in os.environ:
            if (processes := int(os.environ.get("WORLD_SIZE") or step_tasks())) > 1:
                raise UsageError(
                    f"state.live: one of {processes} processes, and no MASTER_ADDR: start them by "
                    "`fabricctl run`, torchrun, or with MASTER_ADDR and MASTER_PORT"
                )
            who = {"rank": 0, "world_size": 1, "store": dist.HashStore()}
        dist.init_process_group(backend, **who)
    with Checkpoint("torch", **options) as checkpoint:
        result = train(checkpoint)
    _end_group()
    return result


@dataclass(frozen=True)
class _Form:
    """Who is who in a generation."""

    generation: int
    rank: int
    ranks: int
    host: str
    port: int
    dead: str

    @classmethod
    def of(cls, message: Mapping[str, str]) -> "_Form":
        names = ("generation", "rank", "ranks")
        generation, rank, ranks = (wire.number(message, name) for name in names)
        port, host = wire.number(message, "port"), message.get("host", "")
        return cls(generation, rank, ranks, host, port, message.get("dead", ""))


@dataclass
class _Seat:
    """This process's connection to `fabricctl run`, read by a thread of its own."""

    link: Link
    checkpoint: Checkpoint | None = None
    signalled: bool = False
    moving: bool = False  # the group is to be left after a save
    sockets: Sockets = field(default_factory=Sockets)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _saying: threading.Lock = field(default_factory=threading.Lock)
    _form: _Form | None = None
    _broken: bool = False
    _inside: bool = False
    _word: str = ""  # end, raise, leave, or lost: `fabricctl run` is gone

    def __post_init__(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while True:
                message = self.link.receive()
                kind = message.get("kind", "")
                with self._changed:
                    if kind == "form":
                        self._form, self.moving = _Form.of(message), False
                    elif kind == "broken" and not self._inside:
                        self._form = None  # it was not entered yet, maybe not even told
                        self.say("ready")
                    elif kind == "broken":
                        self._broken = True
                        threading.Thread(target=self._get_out, daemon=True).start()
                    elif kind == "move":
                        self.moving = True
                        if self.checkpoint is not None:
                            self.checkpoint.regroup()
                    elif kind == "signal":
                        self.take_signal(signal.SIGUSR1, None)
                    elif kind in ("end", "raise", "leave"):
                        self._word = self._word or kind
                    self._changed.notify_all()
        except (OSError, FabricError):
            with self._changed:
                self._word = self._word or "lost"
                self._broken = self._broken or self._word == "lost"
                self._changed.notify_all()
            self._get_out()

    def _get_out(self) -> None:
        """Ends what the program is waiting for in a collective, until it has come out."""
        while True:
            with self._changed:
                if not self._inside or not self._broken:
                    return
                self.sockets.cut()
                _abort()
                if self.checkpoint is not None:
                    self.checkpoint.give_up()
                self._changed.wait(CUT_S)

    def say(self, kind: str, **more: object) -> None:
        """To `fabricctl run`; that it is gone is seen by who reads."""
        with self._saying, contextlib.suppress(OSError, FabricError):
            self.link.send({"kind": kind, **{name: str(value) for name, value in more.items()}})

    def is_called(self, wait_s: float) -> bool:
        """Whether there is something to do within that time."""
        with self._changed:
            return bool(self._changed.wait_for(lambda: self._form or self._word, wait_s))

    def wait_form(self) -> _Form:
        """The next generation; ends the process when there will be none."""
        with self._changed:
            while self._form is None and not self._word:
                self._changed.wait()
            if self._form is None:
                sys.exit(0 if self._word == "end" else 1)
            form, self._form = self._form, None
            self._broken, self._inside = False, True
            return form

    def outside(self) -> None:
        """The program has come out."""
        with self._changed:
            self._inside = False
            self._changed.notify_all()

    def wait_word(self) -> str:
        """``broken``, or what else was said to one that has ended or failed."""
        with self._changed:
            while not self._broken and not self._word:
                self._changed.wait()
            return self._word if self._word in ("end", "raise") else "broken"

    def take_signal(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True
        if self.checkpoint is not None:
            self.checkpoint.take_signal(number, frame)

    def close(self) -> None:
        self.link.close()


def _generation(
    seat: _Seat, form: _Form, train: Train, backend: str, options: Mapping[str, Any]
) -> tuple[bool, Any]:
    """From the group's making until all are done, or one has died."""
    done, result, failure = False, None, ""
    leaves: SystemExit | None = None
    try:
        _meet(seat, form, backend)
        seat.checkpoint = Checkpoint("torch", **options)
        if seat.signalled:
            seat.checkpoint.take_signal(signal.SIGUSR1, None)
        if seat.moving:
            seat.checkpoint.regroup()
        result = train(seat.checkpoint)
        done = True
    except SystemExit as error:
        if error.code in (None, 0):
            done, leaves = True, SystemExit(error.code)  # not this one: it holds train's frame
        else:
            seat.say("exit", status=error.code if isinstance(error.code, int) else 1)
            raise
    except Regroup:
        pass
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"[:200]
        seat.say("failed", why=" ".join(failure.split()))
        if seat.wait_word() == "raise":
            raise
    if done:
        if seat.checkpoint is not None:
            seat.checkpoint.wait_copied()  # one that comes after keepers were told to forget stays
        seat.say("done")
        done = seat.wait_word() == "end"
    checkpoint, seat.checkpoint = seat.checkpoint, None
    seat.outside()
    if done and checkpoint is not None:
        with contextlib.suppress(Exception):  # one may die now: there is nothing to lose any more
            if checkpoint.ending:
                checkpoint.close(done=False)
            else:
                checkpoint.forget()
            _end_group()
        if leaves is not None:
            raise leaves
        return True, result
    if checkpoint is not None:
        checkpoint.leave()
    _end_group()
    seat.say("ready")
    return False, None


def _end_group() -> None:
    """What `train` made goes first: it hangs on the model by hooks until it is collected, and a
    DistributedDataParallel that is the last to hold its group ends it under the interpreter's lock,
    for which the group's threads may be waiting (torch 2.13: `Reducer`'s end hangs in their join).
    """
    gc.collect()
    dist = importlib.import_module("torch.distributed")
    with contextlib.suppress(Exception):  # whatever is left of it
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet(seat: _Seat, form: _Form, backend: str) -> None:
    """Makes the process group; all sockets that are new then are the group's."""
    dist = importlib.import_module("torch.distributed")
    os.environ["FABRIC_LAUNCH"] = str(form.generation)
    os.environ["FABRIC_DEAD_NODES"] = form.dead
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(form.rank), str(form.ranks)
    os.environ.setdefault("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    seat.sockets.begin()
    limit = timedelta(seconds=FORM_S)
    if form.rank == 0:
        store = dist.TCPStore(
            form.host, 0, is_master=True, wait_for_workers=False, timeout=limit
        )  # fmt: skip
        seat.say("store", port=store.port)
    else:
        store = dist.TCPStore(form.host, form.port, is_master=False, timeout=limit)
    name = dist.PrefixStore(str(form.generation), store)
    with contextlib.suppress(Exception):  # private: by it torch names groups, also one that broke
        # while it was made; the newcomers, who have not counted that one, would look elsewhere.
        c10d = importlib.import_module("torch.distributed.distributed_c10d")
        c10d._world.group_count = 0
    dist.init_process_group(
        backend, store=name, rank=form.rank, world_size=form.ranks, timeout=limit
    )
    with contextlib.suppress(Exception):  # private: without it FORM_S holds for collectives, too
        c10d = importlib.import_module("torch.distributed.distributed_c10d")
        c10d._set_pg_timeout(c10d._get_default_timeout(c10d.get_backend()))
    seat.sockets.made(dist)
    torch_hooks.begin_again()


def _rehearse(backend: str) -> None:
    """A step in a group of this process alone: what torch does for the first time takes long (it
    imports half of itself then), and who waits has that time."""
    if backend != "gloo":
        return
    with contextlib.suppress(Exception):
        _step_alone(backend)
    _end_group()


def _step_alone(backend: str) -> None:
    torch, dist = (importlib.import_module(name) for name in ("torch", "torch.distributed"))
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    with torch.random.fork_rng(devices=[]):
        layer = torch.nn.Linear(1, 1)
    parallel = torch.nn.parallel.DistributedDataParallel(layer)
    parallel(torch.zeros(1, 1)).sum().backward()
    dist.all_gather_object([None], 0)


def _abort() -> None:
    """NCCL: communicators are aborted; Gloo knows nothing of the kind."""
    with contextlib.suppress(Exception):
        c10d = importlib.import_module("torch.distributed.distributed_c10d")
        if c10d.is_initialized() and "nccl" in str(c10d.get_backend()):
            c10d._abort_process_group()


def _call(given: str) -> Link:
    """Raises :class:`DataError`, :class:`NotFoundError`, OSError."""
    job_dir = os.environ.get("FABRIC_JOB_DIR", "")
    if not job_dir:
        raise NotFoundError("state.live: no job directory: is the job protected?")
    member = Member.read(Path(job_dir) / "envelope", int(Path(job_dir).name))
    host, port, step = [*given.split(" "), "", ""][:3]
    if not port.isdecimal():
        raise DataError(f"FABRIC_LIVE={given[:60]!r}: HOST PORT STEP expected")
    link = Link.call((host, int(port)), member.key, CALL_S, CALL_S)
    link.socket.settimeout(None)
    local = os.environ.get("SLURM_LOCALID", "0")
    link.send({"kind": "join", "step": step, "local": local})
    return link
