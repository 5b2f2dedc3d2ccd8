"""Hands the spools of ended allocations to the sealer, until each is in the job's trace.

The sealer is a process of its own: it needs HDF5, which would treble this service's memory, and
a shared file system that hangs must not hang the service.
"""

import contextlib
import os
import random
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from fabricctl import fields, layout
from fabricctl.agent.log import NodeLog
from fabricctl.config import Config
from fabricctl.errors import FieldsError
from fabricctl.node import rootfiles
from fabricctl.node import spool as spools
from fabricctl.store.schema import Severity

AT_ONCE = 2  # spools in the sealer's hands: it is to leave the node to the next job
BACKOFF_S = (2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
MOST_DROPPED = 3  # a sealer that was killed says little of the spool: 30 s are the most
ANSWER_WAIT_S = 200.0  # longer than the sealer gives its own children
NODES_PER_POLL_S = 50  # so many nodes look into one directory of the shared system a second


@dataclass
class _Spool:
    next_s: float
    deadline_s: float  # from then on the trace is made without those who are not there
    nodes: int
    text: str  # the start request, where it is not in the spool yet; empty: it is
    failures: int = 0
    drops: int = 0  # sealers that ended with it in hand
    handed_s: float | None = None


class SealQueue:
    """``fileno`` is -1 while no sealer runs; call :meth:`receive` when it is readable."""

    def __init__(self, config: Config, log: NodeLog) -> None:
        self._config = config
        self._files = layout.NodeFiles(config.node.run_dir)
        self._log = log
        self._spools: dict[Path, _Spool] = {}
        self._socket: socket.socket | None = None
        self._pid = 0
        self._ended: list[int] = []  # sealers that were let go and are not waited for yet

    def __len__(self) -> int:
        return len(self._spools)

    def fileno(self) -> int:
        return self._socket.fileno() if self._socket else -1

    def add(self, spool: Path, nodes: int, text: str, now_s: float) -> None:
        """An allocation of so many nodes is over. ``text``: its start request, when known."""
        spread_s = random.uniform(0, nodes / NODES_PER_POLL_S)  # noqa: S311 - no secret
        deadline_s = now_s + self._config.trace.collect_wait_s + spread_s
        self._spools.setdefault(spool, _Spool(now_s, deadline_s, nodes, text))

    def next_due_s(self) -> float | None:
        """When :meth:`run_due` has something to do."""
        dues = [
            item.next_s if item.handed_s is None else item.handed_s + ANSWER_WAIT_S
            for item in self._spools.values()
        ]
        return min(dues, default=None)

    def run_due(self, now_s: float) -> None:
        """Hands out what is due."""
        self._ended = [pid for pid in self._ended if os.waitpid(pid, os.WNOHANG)[0] == 0]
        handed = [item for item in self._spools.values() if item.handed_s is not None]
        if any(now_s - (item.handed_s or 0) > ANSWER_WAIT_S for item in handed):
            self._log.write("sealer", "does not answer; started again", Severity.ERROR)
            self._drop(now_s, kill=True)
            return
        for path, item in self._spools.items():
            if len(handed) >= AT_ONCE:
                return
            if item.handed_s is None and item.next_s <= now_s:
                if not self._hand(path, item, now_s):
                    return
                handed.append(item)

    def _hand(self, path: Path, item: _Spool, now_s: float) -> bool:
        complete_only = now_s < item.deadline_s
        task = {"spool": path.name, "complete_only": str(int(complete_only))}
        try:
            if item.text and path.is_dir():
                spools.save_start(path, item.text)
                self._files.unsaved(path).unlink(missing_ok=True)
                item.text = ""
            if self._socket is None:
                self._start()
            assert self._socket is not None
            self._socket.send(fields.encode(task).encode())
        except OSError as error:
            self._log.write("sealer", f"cannot be given work: {error.strerror}", Severity.ERROR)
            self._drop(now_s, kill=False)
            item.next_s = now_s + BACKOFF_S[1]
            return False
        item.handed_s = now_s
        return True

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        source = ["--config", str(self._config.source)] if self._config.source else []
        argv = [sys.executable, "-m", "fabricctl.node.sealer", *source]
        with theirs:
            actions = [
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, self._log.fileno(), 2),
            ]
            try:
                self._pid = os.posix_spawn(
                    sys.executable,
                    argv,
                    dict(os.environ),
                    file_actions=actions,
                    setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGPIPE],
                    setpgroup=0,
                )
            except OSError:
                ours.close()
                raise
        self._socket = ours

    def receive(self, now_s: float) -> None:
        """What the sealer has to say."""
        assert self._socket is not None
        while self._socket is not None:
            try:
                data = self._socket.recv(65_536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._drop(now_s, kill=False)
                return
            try:
                self._take(fields.decode(data.decode(errors="replace")), now_s)
            except FieldsError as error:
                self._log.write("sealer", f"says what cannot be read: {error}", Severity.ERROR)

    def _take(self, answer: dict[str, str], now_s: float) -> None:
        path = self._config.node.spool_dir / Path(answer.get("spool", "")).name
        item = self._spools.get(path)
        if item is None:
            return
        item.handed_s = None
        result, text = answer.get("result"), answer.get("text", "")
        poll_s = item.nodes / NODES_PER_POLL_S
        if result == "done":
            self._done(path, text)
        elif result == "waiting":
            item.next_s = now_s + max(1.0, poll_s) * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
            if now_s < item.deadline_s < item.next_s:
                item.next_s = item.deadline_s + 0.05
        else:
            wait_s = max(BACKOFF_S[min(item.failures, len(BACKOFF_S) - 1)], poll_s)
            item.failures += 1
            item.next_s = now_s + wait_s * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
            why = f"{path.name} stays in the spool, next try in {wait_s:g} s: {text}"
            self._log.write("sealer", why, Severity.WARNING)

    def _done(self, path: Path, text: str) -> None:
        try:
            rootfiles.remove_tree(path)
        except OSError as error:
            self._log.write("sealer", f"{path}: {error.strerror}", Severity.ERROR)
        del self._spools[path]
        self._log.write("sealer", f"{path.name}: {text}")

    def _drop(self, now_s: float, kill: bool) -> None:
        """The sealer is gone, or has to go; what it had in hand is tried again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._pid:
            if kill:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._pid, signal.SIGKILL)
            self._ended.append(self._pid)
            self._pid = 0
        for item in self._spools.values():
            if item.handed_s is not None:
                item.handed_s = None
                item.drops += 1
                item.next_s = now_s + BACKOFF_S[min(item.drops, MOST_DROPPED)]

    def close(self) -> None:
        """The sealer ends when its socket does."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
