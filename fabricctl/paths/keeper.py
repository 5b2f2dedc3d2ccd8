"""The node service's side: one fabric-pathd per protected job, started, watched and ended.

Nothing here waits: what may take its time runs in the forked child (:mod:`.launch`) or in
fabric-pathd itself, which removes what it made when it gets SIGTERM. One that dies is started
again; traffic stays on its routes meanwhile.
"""

import contextlib
import fcntl
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fabricctl.config import Config
from fabricctl.errors import FabricError
from fabricctl.paths import verbs
from fabricctl.paths.files import PathsFiles, rail_names, read_state
from fabricctl.records import JobStart
from fabricctl.store.schema import Severity

RESTART_S = (0.2, 1.0, 5.0, 30.0)  # between attempts; fabric-pathd's own guardian comes first
STOP_WAIT_S = 3.0  # it needs some ms to remove its routes
PORTS_S = 0.2  # between looks at InfiniBand and RoCE ports, where there are any
LOOK_S = 2.0  # between looks whether one that is no child of ours lives
SWEEP_S = 2.0  # what was killed with its guardian is cleaned after that


class Log(Protocol):
    """fabricctl.agent.log.NodeLog, or anything like it."""

    def write(self, who: str, text: str, severity: Severity = ...) -> None: ...


@dataclass
class _Running:
    start: JobStart
    pid: int = 0  # our child; 0: none
    attempts: int = 0
    restart_s: float | None = None
    kill_s: float | None = None
    look_s: float | None = None  # one lives that an earlier service, or a dead guardian, left
    stopping: bool = False
    forgotten: bool = False  # its directories go for good once it has ended


class PathsKeeper:
    """All fabric-pathd of this node. ``now_s`` is time.monotonic()."""

    def __init__(self, config: Config, log: Log) -> None:
        self._config = config
        self._log = log
        self._files = PathsFiles(config.node.run_dir)
        self._running: dict[int, _Running] = {}
        self._sweeper = 0  # pid
        self._sweep_s: float | None = None
        self._ports = verbs.Watch()
        self._ports_s = 0.0

    def begin(self, live: Iterable[JobStart], now_s: float) -> None:
        """When the service starts: clean up after the dead, take over what lives, start what
        should."""
        config = self._config
        every = (config, *map(config.for_partition, config.partitions))
        if any(each.paths.enabled for each in every):
            self._files.make_node()
        else:
            self._files.remove_node()  # steps wait for nothing where there is none
        living = set(living_leases(self._files.leases))
        for start in live:
            self.start(start, now_s)
            living.add(start.job)
        for job in set(self._files.jobs()) - living:
            self._files.remove(job)
        self._sweep_s = now_s

    def start(self, start: JobStart, now_s: float) -> None:
        """A job begins here; may be said twice. Nothing is done for one that is only observed."""
        config = self._config.for_partition(start.partition)
        if start.job in self._running:
            return
        if config.agent.max_mode != "on" or not config.paths.enabled:
            self._files.write_unwanted(start.job)
            return
        if start.envelope.mode != "on":
            return
        running = self._running[start.job] = _Running(start)
        self._launch(running, now_s)

    def stop(self, job: int, now_s: float) -> None:
        """The job ends here: fabric-pathd removes what is its own and goes."""
        running = self._running.get(job)
        if running is None or running.stopping:
            return
        running.stopping, running.restart_s, running.look_s = True, None, None
        running.kill_s = now_s + STOP_WAIT_S
        self._signal(running, signal.SIGTERM)

    def forget(self, job: int, now_s: float) -> None:
        """The job's directories go; call it once the agent has read the last events."""
        self.stop(job, now_s)
        self._sweep_s = self._sweep_s or now_s + SWEEP_S
        self._files.remove(job)
        if job in self._running:  # one that was just being started may yet make them
            self._running[job].forgotten = True

    def next_due_s(self) -> float | None:
        """When :meth:`turn` wants to be called at the latest; it is cheap, call it often."""
        times = [(r.restart_s, r.kill_s, r.look_s) for r in self._running.values()]
        dues = [due for each in times for due in each if due]
        dues += [self._sweep_s] if self._sweep_s is not None else []
        dues += [self._ports_s] if self._ports.ports and self._running else []
        return min(dues, default=None)

    def turn(self, now_s: float) -> None:
        """Reaps, restarts, kills what does not end, sweeps."""
        for job, running in list(self._running.items()):
            if running.pid and reaped(running.pid):
                running.pid = 0
                self._ended(running, now_s)
            if running.look_s is not None and now_s >= running.look_s:
                self._ended(running, now_s)
            if running.kill_s is not None and now_s >= running.kill_s:
                running.kill_s = None
                self._signal(running, signal.SIGKILL)
                self._sweep_s = self._sweep_s or now_s
            if running.restart_s is not None and now_s >= running.restart_s:
                self._launch(running, now_s)
            if running.stopping and not running.pid and not self._pids(running):
                del self._running[job]
                if running.forgotten:
                    self._files.remove(job)
        self._turn_sweep(now_s)
        self._turn_ports(now_s)

    def _turn_ports(self, now_s: float) -> None:
        """What is started from here on keeps off a port that was lost."""
        if not self._ports.ports or not self._running or now_s < self._ports_s:
            return
        self._ports_s = now_s + PORTS_S
        changes = self._ports.turn()
        if not changes:
            return
        for running in self._running.values():
            state = {}
            with contextlib.suppress(FabricError):
                state = read_state(self._files.state(running.start.job))
            variables = verbs.environment(self._ports.ports, rail_names(state))
            self._files.change_env(running.start.job, variables)
            for change in changes:
                words = "active again" if change.active else "lost: what uses it must start again"
                text = f"InfiniBand or RoCE port {change.port} is {words}"
                self._files.add_event(running.start.job, "port", text)
                severity = Severity.WARNING if not change.active else Severity.INFO
                self._say(running, text, severity)

    def alive(self, job: int) -> bool:
        """Whether a fabric-pathd of the job holds its lease."""
        return any(found == job for found in living_leases(self._files.leases))

    def _launch(self, running: _Running, now_s: float) -> None:
        running.restart_s = None
        running.attempts += 1
        keep = set(self._running)
        config = self._config.for_partition(running.start.partition)
        try:
            running.pid = fork_worker(lambda: _become_pathd(running.start, config, keep))
        except OSError as error:
            self._say(running, f"not started: {error.strerror}", Severity.ERROR)
            running.restart_s = now_s + RESTART_S[-1]

    def _ended(self, running: _Running, now_s: float) -> None:
        running.look_s = None
        if running.stopping:
            return
        if self.alive(running.start.job):
            running.look_s = now_s + LOOK_S
            return
        try:
            state = read_state(self._files.state(running.start.job))
        except FabricError:
            state = {}
        if state.get("state") == "off":
            self._say(running, f"off: {state.get('why', '')}", Severity.WARNING)
            return
        wait_s = RESTART_S[min(running.attempts - 1, len(RESTART_S) - 1)]
        running.restart_s = now_s + wait_s
        self._say(running, f"fabric-pathd ended; next in {wait_s:g} s", Severity.ERROR)

    def _pids(self, running: _Running) -> list[int]:
        """Its guardian by the lease, its worker by the state, as far as they live."""
        job = running.start.job
        found = [pid for pid, found in lease_pids(self._files.leases).items() if found == job]
        with contextlib.suppress(FabricError, ValueError):
            found.append(int(read_state(self._files.state(job)).get("pid", "")))
        return [pid for pid in dict.fromkeys(found) if is_pathd(pid)]

    def _signal(self, running: _Running, number: signal.Signals) -> None:
        for pid in {running.pid, *self._pids(running)} - {0}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _turn_sweep(self, now_s: float) -> None:
        if self._sweeper and reaped(self._sweeper):
            self._sweeper = 0
        if self._sweep_s is None or now_s < self._sweep_s or self._sweeper:
            return
        self._sweep_s = None
        keep = {job for job, running in self._running.items() if not running.stopping}
        with contextlib.suppress(OSError):
            self._sweeper = fork_worker(lambda: _sweep(self._files, keep, self._config))

    def _say(self, running: _Running, text: str, severity: Severity) -> None:
        self._log.write(f"paths job={running.start.job}", text, severity)


def _become_pathd(start: JobStart, config: Config, keep: Collection[int]) -> None:
    from fabricctl.paths import launch  # what it imports, the node service need not carry

    launch.become_pathd(start, config, keep)


def _sweep(files: PathsFiles, keep: Collection[int], config: Config) -> None:
    from fabricctl.paths import launch

    with contextlib.suppress(FabricError):  # without the executable nothing was ever made
        launch.clean(files, keep)
    if files.leases.is_dir():
        files.set_node_env(launch.node_env(config))


def fork_worker(work: Callable[[], None]) -> int:
    """A child that does ``work`` and ends; its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 70  # EX_SOFTWARE
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.setsid()
        os.chdir("/")
        os.umask(0o022)
        os.closerange(3, min(os.sysconf("SC_OPEN_MAX"), 65_536))
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def reaped(pid: int) -> bool:
    """Whether our child has ended (and is gone then)."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


def is_pathd(pid: int) -> bool:
    """Whether the process is a fabric-pathd, and not a later one with its number."""
    try:
        comm = Path(f"/proc/{pid}/comm").read_text().strip()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return comm == "fabric-pathd" and state not in "ZX"


def lease_pids(leases: Path) -> dict[int, int]:
    """pid -> job of every lease, held or not."""
    found: dict[int, int] = {}
    for path in leases.glob("*.lease"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            words = dict(line.split("=", 1) for line in path.read_text().splitlines())
            found[int(words["pid"])] = int(words["job"])
    return found


def living_leases(leases: Path) -> list[int]:
    """Jobs whose lease somebody holds."""
    found: list[int] = []
    for path in leases.glob("*.lease"):
        with contextlib.suppress(OSError, ValueError), path.open() as stream:
            job = int(stream.readline().partition("=")[2])
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(job)
    return found


def stop_all(run_dir: Path, wait_s: float) -> list[int]:
    """Ends every fabric-pathd of ``run_dir``; the jobs that had one."""
    files = PathsFiles(run_dir)
    pids = {pid: job for pid, job in lease_pids(files.leases).items() if is_pathd(pid)}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    end_s = time.monotonic() + wait_s
    while any(is_pathd(pid) for pid in pids) and time.monotonic() < end_s:
        time.sleep(0.02)
    return sorted(set(pids.values()))
