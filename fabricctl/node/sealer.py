"""``python -m fabricctl.node.sealer``: makes journals in the spool into traces.

Started by the node service, as root, with a socket as its standard input: each packet names a
spool directory. For each a child is forked that opens the journals, becomes the job's user for
good, and only then touches the shared directory. Ends after half a minute without work.
"""

import argparse
import logging
import os
import pwd
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fabricctl import config as configuration
from fabricctl import fields, layout
from fabricctl.config import Config
from fabricctl.errors import FabricError, SystemRefusedError
from fabricctl.node import rootfiles, spawn
from fabricctl.node import spool as spools
from fabricctl.records import JobStart
from fabricctl.store import collect, journal, part

IDLE_S = 30.0
CHILD_WAIT_S = 120.0  # a shared file system that takes longer is tried again later
MERGE_WAIT_S = 60.0
LOCK_NODES = 50  # nodes of a larger job wait less: each asks for the lock once a second
PART_MARK = "part"  # in the spool: this node's part is in the shared directory


@dataclass
class _Task:
    spool: str
    pid: int
    deadline_s: float
    killed: bool = False


class Sealer:
    """Takes work from a socket and does each piece in a child."""

    def __init__(self, config: Config, work: socket.socket) -> None:
        self._config = config
        self._work = work
        self._tasks: dict[int, _Task] = {}  # by the descriptor that the child answers on
        self._selector = selectors.DefaultSelector()
        self._selector.register(work, selectors.EVENT_READ)
        self._idle_since_s = time.monotonic()

    def run(self) -> None:
        """Until there is no more work, or no more service."""
        while self._tasks or time.monotonic() - self._idle_since_s < IDLE_S:
            for key, _ in self._selector.select(1.0):
                if key.fileobj is not self._work:
                    self._finish(key.fd)
                elif not self._take():
                    return
            self._kill_late()

    def _take(self) -> bool:
        data = self._work.recv(65_536)
        if not data:
            return False
        task = fields.decode(data.decode())
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            _child(self._config, task, write_fd)
        os.close(write_fd)
        self._tasks[read_fd] = _Task(task["spool"], pid, time.monotonic() + CHILD_WAIT_S)
        self._selector.register(read_fd, selectors.EVENT_READ)
        return True

    def _finish(self, fd: int) -> None:
        """The child has answered, or is gone."""
        task = self._tasks.pop(fd)
        self._selector.unregister(fd)
        answer = os.read(fd, 16_384).decode(errors="replace")
        os.close(fd)
        result, _, text = answer.partition(" ")
        if not result:
            result, text = "failed", "the sealing process died"
        if not task.killed:
            os.waitpid(task.pid, 0)
        if result in ("waiting", "parted"):
            self._mark(task.spool)
        clean = "".join(char if char.isprintable() else "?" for char in text[:1000])
        given = {"spool": task.spool, "result": result, "text": clean}
        self._work.send(fields.encode(given).encode())
        self._idle_since_s = time.monotonic()

    def _mark(self, spool: str) -> None:
        path = self._config.node.spool_dir / spool / PART_MARK
        try:
            rootfiles.write_new(path, b"", 0o600, 0, 0)
        except OSError:
            return  # it is there, or the spool is full: then the part is written once more

    def _kill_late(self) -> None:
        now_s = time.monotonic()
        for task in self._tasks.values():
            if now_s > task.deadline_s and not task.killed:
                # It may hang where no signal reaches it (a dead file server): it is left alone
                # then, its end of the pipe closes whenever it ends.
                task.killed = True
                os.kill(task.pid, signal.SIGKILL)


def _child(config: Config, task: dict[str, str], answer_fd: int) -> None:
    """Seals one spool and says how that went: ``done``, ``waiting``, ``parted`` or ``failed``."""
    try:
        text = seal(config, task["spool"], task.get("complete_only") == "1")
    except FabricError as error:
        text = f"failed {error}"
    except OSError as error:
        text = f"failed {error.filename or ''} {error.strerror}"
    except BaseException as error:
        text = f"failed by an error of ours: {error!r}"
        logging.exception("sealing %s", task["spool"])
    try:
        os.write(answer_fd, text.encode(errors="replace")[:16_000])
    finally:
        os._exit(0)


def seal(config: Config, spool_name: str, complete_only: bool) -> str:
    """What is left to do for one spool; gives a result and a sentence."""
    spool = config.node.spool_dir / spool_name
    parsed = layout.parse_spool(spool)
    if parsed is None or not spool.is_dir():
        return "done is not there"
    owners = (0, spool.stat().st_uid)
    found = [_open_journal(path, owners) for path in spools.journals(spool)]
    if not found and not (spool / "start").exists():
        return "done held nothing"
    # Without a journal (its agent was killed at once) the record still says that it was there.
    start = JobStart.parse(spools.read_start(spool))
    has_part = (spool / PART_MARK).exists()
    _become(start)
    user_dir = collect.ensure_user_dir(config.trace.dir, start.user, start.uid)
    if not has_part:
        _write_part(start, found, user_dir, parsed[1])
    try:
        trace = collect.merge(
            user_dir,
            start.job,
            start.nodes,
            time.time_ns(),
            complete_only,
            keep_parts=config.trace.keep_parts,
            lock_wait_s=MERGE_WAIT_S * min(1.0, LOCK_NODES / len(start.nodes)),
        )
    except FabricError as error:
        return f"parted {error}"
    if trace is None and complete_only:
        return "waiting for other nodes"
    # None: the part is over there, but its trace was removed by its user meanwhile.
    return f"done collected into {trace or 'a trace that is gone'}"


def _open_journal(path: Path, owners: tuple[int, ...]) -> int:
    """Opened by root for the job's user to read: a link to somebody else's file must not do."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if os.fstat(fd).st_uid not in owners:
        raise SystemRefusedError(f"{path}: belongs to neither root nor the agents' user")
    return fd


def _become(start: JobStart) -> None:
    """The job's user, for good."""
    try:
        gid = pwd.getpwuid(start.uid).pw_gid
    except KeyError:  # removed meanwhile; the files still belong to that number
        gid = start.uid
    os.umask(0o077)
    spawn.drop_to(spawn.Identity(start.uid, gid))


def _write_part(start: JobStart, fds: list[int], user_dir: Path, begin_real_ns: int) -> None:
    readable = []
    for fd in fds:
        try:
            readable.append(journal.read(fd))
        except FabricError as error:
            logging.warning("job %d: a journal is lost: %s", start.job, error)
    attributes: dict[str, str | int | float] = {
        "job": start.job,
        "user": start.user,
        "uid": start.uid,
        "cluster": start.cluster,
        "mode": start.envelope.mode,
        "spares": start.envelope.spares,
        "nodes": ",".join(start.nodes),
        "node": start.node,
        "begin_real_ns": begin_real_ns,
    }
    out = layout.part_file(user_dir, start.job, start.node, begin_real_ns)
    part.write_part(readable, attributes, out)


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="fabricctl.node.sealer")
    parser.add_argument("--config", type=Path)
    given = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s sealer: %(message)s")
    os.nice(5)  # the node belongs to the next job by now
    work = socket.socket(fileno=os.dup(0))
    spawn.close_all_but((work.fileno(),))
    Sealer(configuration.load(given.config), work).run()


if __name__ == "__main__":
    main()
