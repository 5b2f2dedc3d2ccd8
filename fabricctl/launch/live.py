"""One start of a program whose dead are replaced while the others run on: a step a node, so that
none falls with another, and a connection to every process.
"""

import contextlib
import itertools
import queue
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from fabricctl import hostlist, wire
from fabricctl.errors import FabricError, SlurmError
from fabricctl.launch.placement import Placement
from fabricctl.launch.roster import Action, End, Roster, Send, Start, Tell
from fabricctl.launch.step import OF_ALLOCATION, cancel_named
from fabricctl.state.ckpt.link import Link, keep_alive, listen

JOIN_S = 5.0  # for a caller to say who it is
AGAIN_S = 0.1  # where a caller cannot be taken
TELL_S = 2.0  # for what is to be told to be told, at the end
_SAVE = {"kind": "signal"}
UNKNOWN_MOST = 64  # callers at once that have not shown the job's key yet


@dataclass
class _Srun:
    node: str
    count: int
    process: subprocess.Popen[bytes]
    marked: bool = False  # somebody died in it: its status says nothing
    joined: int = 0  # of its processes
    here: int = 0  # of those, whose connection is open: as long as they live
    seen: bool = False  # its end


class LiveStep:
    """As :class:`~fabricctl.launch.step.Step`; ``placement`` and ``launch`` follow who took whose
    place. ``tell``: into the job's trace, at once."""

    def __init__(
        self,
        job: int,
        launch: int,
        placement: Placement,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        options: Sequence[str] = (),
        key: bytes,
        address: str,
        ports: Sequence[int],
        deaths_most: int,
        tell: Callable[[Tell, int], None],
    ) -> None:
        """Raises :class:`SlurmError`."""
        self._job, self._first = job, launch
        self._name = f"fabric-run-{launch}"
        self._argv, self._options, self._tell = argv, options, tell
        self._told: queue.SimpleQueue[tuple[Tell, int] | None] = queue.SimpleQueue()
        self._given = placement
        self._key = key
        self._lock = threading.RLock()
        self._unknown = threading.Semaphore(UNKNOWN_MOST)
        self._links: dict[int, Link] = {}
        self._sruns: list[_Srun] = []
        self._dead: set[str] = set()
        self._result: End | None = None
        self._said = self._cut_short = self._saves = False
        self._cancels: list[subprocess.Popen[bytes]] = []
        share = Counter(placement.hosts)
        each = max(share.values())
        wanted = {**share, **dict.fromkeys(placement.spares, each)}
        self._roster = Roster(
            list(placement.hosts), placement.spares, dict(wanted), launch, deaths_most,
            time.monotonic,
        )  # fmt: skip
        try:
            self._listener = listen(ports)
        except OSError as error:
            raise SlurmError(f"run --live: no port to listen on: {error.strerror}") from None
        port = self._listener.getsockname()[1]
        self._environment = {k: v for k, v in environment.items() if k not in OF_ALLOCATION}
        self._environment |= {"SLURM_NO_KILL": "set"}
        self._address = f"{address} {port}"
        threading.Thread(target=self._accept, daemon=True).start()
        self._teller = threading.Thread(target=self._tell_all, daemon=True)
        self._teller.start()
        with self._lock:
            for node, count in wanted.items():
                self._start(node, count)

    def _start(self, node: str, count: int) -> None:
        command = [
            "srun",
            f"--jobid={self._job}",
            f"--job-name={self._name}",
            "--overlap",
            "--nodes=1",
            f"--ntasks={count}",
            f"--nodelist={node}",
            "--no-kill",
            "--kill-on-bad-exit=0",
            *self._options,
            *self._argv,
        ]
        null = subprocess.DEVNULL
        given = {**self._environment, "FABRIC_LIVE": f"{self._address} {len(self._sruns)}"}
        try:
            made = subprocess.Popen(command, env=given, start_new_session=True, stdin=null)
        except OSError as error:
            raise SlurmError(f"srun: {error.strerror}") from None
        self._sruns.append(_Srun(node, count, made))

    # What the supervisor asks

    @property
    def placement(self) -> Placement:
        """As it is now."""
        with self._lock:
            hosts = tuple(self._roster.hosts)
        free = dict.fromkeys((*self._given.spares, *self._given.nodes))
        return Placement(hosts, tuple(n for n in free if n not in {*hosts, *self._dead}))

    @property
    def launch(self) -> int:
        """Each generation counts as a start."""
        return self._roster.generation

    @property
    def carries(self) -> bool:
        """Whether the program goes on although something died."""
        return self._result is None or not self._result.status

    @property
    def finished(self) -> bool:
        """Whether all ranks have come to their end: nothing is left to start again from."""
        return self._result is not None and not self._result.status

    @property
    def unused(self) -> bool:
        """Whether its processes have ended well without ever calling `state.live`."""
        return all(one.process.poll() == 0 and not one.joined for one in self._sruns)

    def lost(self, nodes: Collection[str]) -> None:
        """These nodes are dead."""
        with self._lock:
            self._dead |= set(nodes)
            for srun in self._sruns:
                if srun.node in nodes:
                    srun.marked, srun.here = True, 0
                    srun.process.kill()
            short = [node for node in nodes if self.finished and self._roster.has_rank(node)]
            self._do(self._roster.lost(nodes))
        if short:
            self._cut_short = True
            names = hostlist.fold(short)
            words = "died when all steps were done, but its program had not ended"
            sys.stderr.write(f"fabric: run: node {names} {words}\n")

    def leave(self, node: str, to: str) -> bool:
        """The ranks of a node go to a spare, when all have saved; False: not now."""
        with self._lock:
            found = self._roster.leave(node, to)
            self._do(found or [])
            for srun in self._sruns:
                srun.marked |= srun.node == node and found is not None
            return found is not None

    def poll(self, *, early: bool = False) -> int | None:
        """The program's exit status; None while it runs. Of a single death the connection tells,
        ``early`` or not."""
        del early
        with self._lock:
            self._do(self._roster.tick())
            for srun in self._sruns:
                if not srun.seen and srun.process.poll() is not None:
                    srun.seen = True
                    self._do(self._roster.ended(srun.node, max(0, srun.count - srun.joined)))
            # Where somebody died srun may stay, and its status says nothing; processes that live
            # may have more to do after the last step.
            running = [one for one in self._sruns if not one.seen and (not one.marked or one.here)]
            if self._result is None or not self._result.status:
                return None if running else self._status()
            if not self._said:
                self._said = True
                sys.stderr.write(f"fabric: run: not live any more: {self._result.why}\n")
            return self._result.status

    def _status(self) -> int:
        """All have ended: by themselves, or before they called us."""
        found = [one.process.returncode for one in self._sruns if not one.marked]
        if self.finished:
            found.append(int(self._cut_short))
        worst = max((code if code >= 0 else 128 - code for code in found), default=1)
        return worst or (0 if self._result is not None or not self._roster.over else 1)

    def cancel(self, number: str = "KILL") -> bool:
        """As :meth:`Step.cancel`. That they shall save is said to the processes, not signalled:
        one that still begins, in the place of a dead one, would be ended by a signal."""
        if number in ("USR1", "TERM"):
            with self._lock:
                self._saves = True
                self._do([Send(who, _SAVE) for who in self._links])
            return True
        begun = cancel_named(self._job, self._name, number)
        self._cancels += begun
        return bool(begun)

    def abandon(self) -> None:
        """As :meth:`Step.abandon`."""
        with self._lock:
            self._roster.over = True
            links = list(self._links.values())
        with contextlib.suppress(OSError):  # its thread would hold the port for as long as we live
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for link in links:
            link.close()
        self._told.put(None)
        self._teller.join(TELL_S)
        for srun in self._sruns:
            with contextlib.suppress(ProcessLookupError):
                srun.process.kill()
            srun.process.wait()

    # Processes

    def _accept(self) -> None:
        told: str | None = ""
        for who in itertools.count():
            try:
                made, _ = self._listener.accept()
            except OSError as error:
                if self._roster.over:
                    return
                if error.strerror != told:  # such as "Too many open files", until some are closed
                    told = error.strerror
                    sys.stderr.write(f"fabric: run: a process cannot join: {told}\n")
                time.sleep(AGAIN_S)
                continue
            self._unknown.acquire()
            made.settimeout(JOIN_S)
            threading.Thread(target=self._talk, args=(who, made), daemon=True).start()

    def _talk(self, who: int, made: socket.socket) -> None:
        try:
            link = Link.answer(made, self._key)
            first = link.receive(JOIN_S)
            local, step = wire.number(first, "local"), wire.number(first, "step")
            with self._lock:
                srun = self._sruns[step]
        except (OSError, FabricError, IndexError):
            made.close()
            return
        finally:
            self._unknown.release()
        made.settimeout(None)
        keep_alive(made)
        with self._lock:
            if srun.seen:  # killed as it joined; it was counted with those that never did
                link.close()
                return
            self._links[who] = link
            srun.joined += 1
            srun.here += 1
            if self._saves:
                self._do([Send(who, _SAVE)])
            self._do(self._roster.join(who, srun.node, local))
        try:
            while True:
                self._hear(who, link.receive())
        except (OSError, FabricError):
            pass  # it is gone
        with self._lock:
            self._links.pop(who).close()
            srun.here = max(0, srun.here - 1)  # 0: its node is lost
            srun.marked |= not self._roster.over
            self._do(self._roster.gone(who))

    def _hear(self, who: int, message: Mapping[str, str]) -> None:
        """Raises :class:`DataError` for what no program of ours says."""
        kind, roster = message.get("kind"), self._roster
        with self._lock:
            if kind == "ready":
                self._do(roster.ready(who))
            elif kind == "store":
                self._do(roster.opened(who, wire.number(message, "port")))
            elif kind == "done":
                self._do(roster.done(who))
            elif kind == "failed":
                self._do(roster.failed(who, message.get("why", "")[:200]))
            elif kind == "exit":
                self._do(roster.exits(who, min(wire.number(message, "status"), 255)))

    def _do(self, actions: Sequence[Action]) -> None:
        """Processes first: they wait, and an srun or the trace would hold them up."""
        for action in sorted(actions, key=lambda action: not isinstance(action, Send)):
            if isinstance(action, Send):
                self._send(action)
            elif isinstance(action, Tell):
                self._told.put((action, self._roster.generation))
            elif isinstance(action, Start):
                self._start(action.node, 1)
            else:
                self._result = action

    def _tell_all(self) -> None:
        """By a thread of its own: whom we tell may take its time."""
        while (said := self._told.get()) is not None:
            self._tell(*said)

    def _send(self, action: Send) -> None:
        if action.to in self._links:
            with contextlib.suppress(OSError, FabricError):  # its end is seen by who reads
                self._links[action.to].send(action.message)
