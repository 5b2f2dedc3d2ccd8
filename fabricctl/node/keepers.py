"""Keepers of checkpoints: one a protected job, forked as the job's user, ended or held when it is
over (fabricctl/state/ckpt/keeper.py)."""

import contextlib
import ctypes
import hashlib
import os
import pwd
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fabricctl import layout
from fabricctl.agent.log import NodeLog
from fabricctl.config import Config
from fabricctl.errors import DataError, FabricError
from fabricctl.membership import Member
from fabricctl.node import rootfiles, spawn
from fabricctl.node.script import Script
from fabricctl.records import JobStart
from fabricctl.state import groups
from fabricctl.state.ckpt.assignment import Assignment
from fabricctl.state.ckpt.keeper import Keeper, memory_total
from fabricctl.store.schema import Severity
from fabricctl.telemetry import interfaces, processes

KEEPER_COMM = "fabric-keeper"
FIRST_S = 0.5
RESTART_S = (1.0, 5.0, 30.0)
SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # the job ended; it is back
LOOK_S = 5.0  # between looks of a keeper whether its job is still there
CHECK_S = 1.0  # between looks whether keepers that an earlier service started live


@dataclass
class _Held:
    start: JobStart
    pid: int = 0
    attempts: int = 0
    restart_s: float | None = None
    ending: bool = False


class Keepers:
    """All keepers of this node. ``now_s`` is time.monotonic()."""

    def __init__(self, config: Config, log: NodeLog) -> None:
        self._config = config
        self._log = log
        self._files = layout.NodeFiles(config.node.run_dir)
        self._held: dict[int, _Held] = {}
        self._dropped: set[int] = set()  # pids of keepers that were killed

    def start(self, start: JobStart, now_s: float) -> None:
        """A job begins here; may be said twice. One that was held for its requeue is taken over."""
        config = self._config.for_partition(start.partition)
        wanted = start.envelope.mode == "on" and config.agent.max_mode == "on"
        if not (wanted and config.state.enabled and config.state.memory_share > 0):
            return
        held = self._held.get(start.job)
        if held is not None and held.start.envelope.key == start.envelope.key:
            held.ending = False
            self._signal(held, signal.SIGUSR2)
            return
        if held is not None:
            self._drop(held)
        # Not at once: agents go first, and a job of an instant needs none.
        self._held[start.job] = _Held(start, restart_s=now_s + FIRST_S)

    def is_anothers(self, start: JobStart) -> bool:
        """Whether what is held under the job's number is an earlier job's: numbers begin again when
        they have come to their end, and when slurmctld has lost its state."""
        held = self._held.get(start.job)
        return held is not None and held.start.envelope.key != start.envelope.key

    def _drop(self, held: _Held) -> None:
        """An earlier job of the same number: nobody can come back for what it had saved."""
        self._signal(held, signal.SIGKILL)
        if held.pid:
            self._dropped.add(held.pid)
        text = "a new job has the number: what the one before it had saved is given up"
        self._log.write(f"node job={held.start.job}", text, Severity.WARNING)

    def adopt(self, start: JobStart, now_s: float) -> None:
        """One that an earlier service of this node may have started."""
        self.start(start, now_s)
        held = self._held.get(start.job)
        if held is not None and (pid := self._living(start)):
            held.pid, held.restart_s = pid, None

    def _living(self, start: JobStart) -> int:
        """The pid of a keeper that an earlier service started; 0: none."""
        for stat in processes.all_stats():
            mine = stat.comm == KEEPER_COMM and processes.owner(stat.pid) == start.uid
            if mine and stat.state not in "ZX":
                with contextlib.suppress(OSError):
                    with open(f"/proc/{stat.pid}/cmdline", "rb") as stream:  # noqa: PTH123
                        title = stream.read(200).split(b"\0")[0].decode(errors="replace")
                    if title == f"{KEEPER_COMM}: job {start.job}":
                        return stat.pid
        return 0

    def stop(self, job: int) -> None:
        """The job ended here: its keeper goes, or holds what was not finished for a while."""
        held = self._held.get(job)
        if held is not None and not held.ending:
            held.ending, held.restart_s = True, None
            self._signal(held, signal.SIGTERM)

    def held(self, job: int) -> bool:
        """Whether the job's directory is still in use."""
        held = self._held.get(job)
        return held is not None and bool(held.pid)

    def next_due_s(self) -> float | None:
        """When :meth:`turn` wants to be called at the latest."""
        dues = [held.restart_s for held in self._held.values() if held.restart_s is not None]
        if self._dropped or any(held.ending for held in self._held.values()):
            dues.append(time.monotonic() + CHECK_S)
        return min(dues, default=None)

    def turn(self, now_s: float) -> list[int]:
        """Reaps and restarts; jobs whose keeper is gone for good."""
        over = []
        self._dropped = {pid for pid in self._dropped if not _ended(pid)}
        for job, held in list(self._held.items()):
            if held.pid and _ended(held.pid):
                held.pid = 0
                if not held.ending:
                    wait_s = RESTART_S[min(held.attempts, len(RESTART_S)) - 1]
                    held.restart_s = now_s + wait_s
                    text = f"keeper ended, its checkpoints are lost here; next in {wait_s:g} s"
                    self._log.write(f"node job={job}", text, Severity.ERROR)
            if held.restart_s is not None and now_s >= held.restart_s:
                self._launch(held, now_s)
            if held.ending and not held.pid:
                del self._held[job]
                over.append(job)
        if over:
            self._clean_disk()
        return over

    def _clean_disk(self) -> None:
        """Away with what jobs that nobody holds any more left on the disk."""
        root = self._config.state.disk_dir
        held = {disk_place(self._config, one.start) for one in self._held.values()}
        for path in Path(root).glob("*") if root else ():
            try:
                # Not its mtime, which its owner may have set to next century.
                unused_s = time.time() - path.lstat().st_ctime
                if path not in held and unused_s > self._config.state.hold_s:
                    rootfiles.remove_tree(path)
            except OSError as error:
                text = f"checkpoints on the disk are not removed: {path}: {error.strerror}"
                self._log.write("node", text, Severity.ERROR)

    def _launch(self, held: _Held, now_s: float) -> None:
        held.restart_s = None
        held.attempts += 1
        sys.stdout.flush()
        sys.stderr.flush()
        # Blocked over the fork: the job may end before the keeper could wait for its signals.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._log.write("node", f"no keeper: {error.strerror}", Severity.ERROR)
            held.restart_s = now_s + RESTART_S[-1]
            return
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            held.pid = pid
            return
        status = 70  # EX_SOFTWARE
        try:
            config = self._config.for_partition(held.start.partition)
            _become_keeper(held.start, config, self._files, self._log)
            status = 0
        except BaseException:
            lines = traceback.format_exc().strip().splitlines()
            who = f"keeper job={held.start.job}"
            self._log.write(who, "ends by an error: " + " | ".join(lines[-6:]), Severity.ERROR)
        finally:
            os._exit(status)

    def _signal(self, held: _Held, number: signal.Signals) -> None:
        if held.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(held.pid, number)


def disk_place(config: Config, start: JobStart) -> Path | None:
    """The job's directory on the node's disk; None: the site has none. The job's secret is in its
    name, so that no later job of the same number gets it."""
    if not config.state.disk_dir:
        return None
    digest = hashlib.sha256(b"disk" + start.envelope.key).hexdigest()[:16]
    return Path(config.state.disk_dir) / f"{start.job}-{digest}"


def _make_disk(config: Config, start: JobStart, gid: int, log: NodeLog) -> Path | None:
    """As root. What fails costs the level on disk, not the keeper."""
    place = disk_place(config, start)
    if place is None:
        return None
    try:
        place.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        rootfiles.make_dir(place, 0o700, start.uid, gid)
        os.utime(place)
        return place
    except OSError as error:
        text = f"no checkpoints on the disk: {place}: {error.strerror}"
        log.write(f"keeper job={start.job}", text, Severity.WARNING)
        return None


def _groups(config: Config, start: JobStart, log: NodeLog) -> Mapping[str, Mapping[str, str]]:
    """What cannot be read costs the distance of copies, not the keeper."""
    try:
        return groups.read(config.state.groups_file, start.nodes)
    except (OSError, DataError) as error:
        log.write(f"keeper job={start.job}", f"no failure groups: {error}", Severity.WARNING)
        return {}


def _ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return processes.start_ticks(pid) is None  # an earlier service's child


def _become_keeper(start: JobStart, config: Config, files: layout.NodeFiles, log: NodeLog) -> None:
    """This process is the keeper until the job's end, and longer while it has to hold."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1) if log.fileno() == 2 else (0, 1, 2):
        os.dup2(null, fd)
    spawn.close_all_but((log.fileno(),))
    ctypes.CDLL(None).prctl(15, KEEPER_COMM.encode(), 0, 0, 0)  # PR_SET_NAME
    spawn.set_title(f"{KEEPER_COMM}: job {start.job}")
    with contextlib.suppress(OSError):  # a user's memory is not to be spared as the service's is
        Path("/proc/self/oom_score_adj").write_text("0")
    entry = pwd.getpwuid(start.uid)
    disk = _make_disk(config, start, entry.pw_gid, log)
    falls_with = _groups(config, start, log)

    def nodes_now() -> Sequence[str]:
        return Member.here(files, start.job).nodes

    def is_there() -> bool:
        """The job itself, not another of the same number."""
        with contextlib.suppress(FabricError, OSError):
            return Member.here(files, start.job).key == start.envelope.key
        return False

    def groups_of(nodes: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
        return _groups(config, replace(start, nodes=tuple(nodes)), log)

    spawn.drop_to(spawn.Identity(start.uid, entry.pw_gid))
    quota = int(config.state.memory_share * memory_total())
    keeper = Keeper(
        Assignment(
            job=start.job,
            uid=start.uid,
            key=start.envelope.key,
            node=start.node,
            nodes=start.nodes,
            socket=files.keeper(start.job),
            quota_bytes=quota,
            port_first=config.state.port_first,
            port_count=config.state.port_count,
            resolve=interfaces.lookup,
            disk=disk,
            groups=falls_with,
            nodes_now=nodes_now,
            groups_of=groups_of,
        )
    )
    threading.Thread(target=keeper.serve, daemon=True).start()
    running = threading.Event()
    if config.state.script_lost_s and len(start.nodes) > 1:
        script = Script(files, start, config, log)
        threading.Thread(target=script.watch, args=(running.is_set,), daemon=True).start()
    _hold_on(keeper, config.state.hold_s, is_there, running)
    keeper.end()


def _hold_on(
    keeper: Keeper, hold_s: float, is_there: Callable[[], bool], running: threading.Event
) -> None:
    """Until the job ended (it is ``running`` till then), and then while there is something to hold
    and time to hold it.

    The service says when; should it die before it does, the job's directory is gone."""
    end_s: float | None = None
    now_s = time.monotonic()
    while True:
        running.set() if end_s is None else running.clear()
        wait_s = LOOK_S if end_s is None else min(LOOK_S, max(0.0, end_s - now_s))
        found = signal.sigtimedwait(SIGNALS, wait_s)
        now_s = time.monotonic()
        # That it is back may be heard before that it ended: of two the lower number comes first.
        late = end_s is not None and now_s >= end_s and is_there()
        if late or (found is not None and found.si_signo == signal.SIGUSR2):
            end_s = None  # the job was requeued and is back
        elif end_s is None and (found is not None or not is_there()):
            end_s = now_s + hold_s
        if end_s is not None and (keeper.empty or now_s >= end_s):
            return
