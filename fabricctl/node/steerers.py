"""The node service's side of ``--fabric-clock=ptp|system``: one ``fabric-steer`` a job that may.

Nothing here waits. One that dies is started again and goes on with the lease of the one before;
what a job leaves behind, however it ended, ``fabric-steer restore`` puts back.
"""

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fabricctl import built, layout
from fabricctl.agent import samplers
from fabricctl.agent.log import NodeLog
from fabricctl.clock import steering
from fabricctl.config import Config
from fabricctl.errors import FabricError
from fabricctl.node.spawn import Identity
from fabricctl.paths.keeper import fork_worker, reaped
from fabricctl.records import JobStart
from fabricctl.store.schema import Severity
from fabricctl.telemetry import processes

LAB = Path("/run/fabricctl-lab")  # on no real node; a lab's nodes have a virtual system clock
CAP_SYS_TIME = 25  # linux/capability.h
RESTART_S = (0.2, 1.0, 5.0, 30.0)
STOP_WAIT_S = 3.0
_LEASE_BYTES = 4096
CHECK_S = 1.0  # between looks whether they live


@dataclass
class _Running:
    start: JobStart
    pid: int = 0  # 0: none
    is_child: bool = False  # else an earlier service started it
    attempts: int = 0
    restart_s: float | None = None
    kill_s: float | None = None
    stopping: bool = False


class Steerers:
    """All ``fabric-steer`` of this node. ``now_s`` is time.monotonic()."""

    def __init__(self, config: Config, identity: Identity, log: NodeLog) -> None:
        self._config, self._identity, self._log = config, identity, log
        self._files = layout.NodeFiles(config.node.run_dir)
        self._running: dict[int, _Running] = {}
        self._cleaner = 0  # pid
        self._clean_again = False

    def begin(self, live: Iterable[JobStart], now_s: float) -> None:
        """When the service starts: takes over what lives, puts back what the dead left."""
        if not self._files.steer.is_dir():
            return  # no job of this node ever asked
        held = held_leases(self._files.steer)
        starts = {start.job: start for start in live}
        for job, start in starts.items():
            if start.envelope.clock != "page":
                self.start(start, now_s, pid=held.get(job, 0))
        for path in self._files.steer.glob("*.state"):
            if path.stem not in map(str, starts):
                path.unlink(missing_ok=True)
        self._clean()

    def start(self, start: JobStart, now_s: float, pid: int = 0) -> None:
        """A job begins here; may be said twice."""
        if start.envelope.clock == "page" or start.job in self._running:
            return
        why = self._refusal(start)
        try:
            self._files.steer.mkdir(mode=0o755, exist_ok=True)
            self._files.steer.chmod(0o755)
            if why:
                self._say(start, f"refused: {why}", Severity.WARNING)
                state = self._files.steer_state(start.job)
                steering.write_refused(state, start.job, start.envelope.clock, why)
                return
        except OSError as error:
            self._say(start, f"{error.filename}: {error.strerror}", Severity.ERROR)
            return
        running = self._running[start.job] = _Running(start, pid=pid)
        if not pid:
            self._launch(running, now_s)

    def _refusal(self, start: JobStart) -> str:
        """Why the site, or the job itself, allows none; empty: it may."""
        config, wanted = self._config.for_partition(start.partition), start.envelope.clock
        if wanted not in config.clock.steering:
            partition = f" in partition {start.partition}" if start.partition else ""
            return f"this site does not allow --fabric-clock={wanted}{partition} (clock.steering)"
        if wanted == "system" and not (LAB.is_dir() or may_set_clock()):
            return (
                "the node service's unit leaves it no CAP_SYS_TIME (systemctl edit fabricctl-node)"
            )
        if start.envelope.mode != "on" or config.agent.max_mode != "on":
            return "the job is only observed here"
        if not config.clock.enabled:
            return "this site keeps no job clock (clock.enabled)"
        if len(start.nodes) == 1:
            return "a job of one node has no job clock"
        return ""

    def _launch(self, running: _Running, now_s: float) -> None:
        running.restart_s = None
        running.attempts += 1
        config = self._config.for_partition(running.start.partition)
        try:
            running.pid = fork_worker(
                lambda: _become_steer(running.start, config, self._files, self._identity)
            )
            running.is_child = True
        except OSError as error:
            self._say(running.start, f"not started: {error.strerror}", Severity.ERROR)
            running.restart_s = now_s + RESTART_S[-1]

    def stop(self, job: int, now_s: float) -> None:
        """The job ends here: its clocks are put back."""
        running = self._running.get(job)
        if running is None or running.stopping:
            return
        running.stopping, running.restart_s = True, None
        running.kill_s = now_s + STOP_WAIT_S
        self._signal(running, signal.SIGTERM)

    def forget(self, job: int, now_s: float) -> None:
        """The job's agent has ended; nothing of the job is left."""
        self.stop(job, now_s)
        if job not in self._running:
            self._files.steer_state(job).unlink(missing_ok=True)

    def next_due_s(self, now_s: float) -> float | None:
        """When :meth:`turn` wants to be called at the latest; it is cheap, call it often."""
        dues = [due for r in self._running.values() for due in (r.restart_s, r.kill_s) if due]
        if self._cleaner or any(r.pid for r in self._running.values()):
            dues.append(now_s + CHECK_S)
        return min(dues, default=None)

    def turn(self, now_s: float) -> None:
        """Reaps, restarts, kills what does not end, puts back."""
        for job, running in list(self._running.items()):
            if running.pid and (status := _status(running)) is not None:
                running.pid = 0
                self._ended(running, status, now_s)
            if running.kill_s is not None and now_s >= running.kill_s:
                running.kill_s = None
                self._signal(running, signal.SIGKILL)
            if running.restart_s is not None and now_s >= running.restart_s:
                self._launch(running, now_s)
            if running.stopping and not running.pid:
                del self._running[job]
                self._files.steer_state(job).unlink(missing_ok=True)
                self._clean()
        if self._cleaner and reaped(self._cleaner):
            self._cleaner = 0
            if self._clean_again:
                self._clean()

    def _ended(self, running: _Running, status: int, now_s: float) -> None:
        if running.stopping:
            return
        if status in (steering.REFUSED, steering.LEFT):
            with contextlib.suppress(FabricError):
                state = steering.read_state(self._files.steer_state(running.start.job))
                why = "" if state is None else state.why
                self._say(running.start, f"no clock is steered: {why}", Severity.WARNING)
            self._clean()
            return
        wait_s = RESTART_S[min(running.attempts, len(RESTART_S)) - 1]
        running.restart_s = now_s + wait_s
        self._say(running.start, f"fabric-steer ended; next in {wait_s:g} s", Severity.ERROR)

    def _clean(self) -> None:
        """Puts back what nobody holds, but for jobs that are about to go on with it."""
        if self._cleaner:
            self._clean_again = True
            return
        self._clean_again = False
        keep = [job for job, running in self._running.items() if not running.stopping]
        try:
            self._cleaner = fork_worker(lambda: _restore(self._files.steer, keep))
        except OSError as error:
            self._log.write("clock", f"clocks are not put back: {error.strerror}", Severity.ERROR)

    def _signal(self, running: _Running, number: signal.Signals) -> None:
        if running.pid and (running.is_child or _is_steer(running.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.pid, number)

    def _say(self, start: JobStart, text: str, severity: Severity) -> None:
        who = f"clock job={start.job}"
        self._log.write(who, f"--fabric-clock={start.envelope.clock}: {text}", severity)


def _become_steer(
    start: JobStart, config: Config, files: layout.NodeFiles, identity: Identity
) -> None:
    """Does not return: this process becomes fabric-steer, or ends with the reason in the state."""
    state, wanted = files.steer_state(start.job), start.envelope.clock
    try:
        # To learn which are the rails may take seconds; the system clock has nothing to do with it.
        rails = samplers.choose_rails(config, start.node)[0] if wanted == "ptp" else []
        setting = steering.Setting(
            start.job,
            wanted,
            files.clock(start.job),
            files.steer,
            state,
            files.job_dir(start.job),
            identity.uid,
            identity.gid,
            rails,
            LAB if LAB.is_dir() else None,
        )
        program = str(built.find("clock", steering.NAME))
        memory = os.memfd_create(steering.NAME, 0)
        os.write(memory, setting.text().encode())
        os.lseek(memory, 0, os.SEEK_SET)
        os.dup2(memory, 0)
        os.execv(program, [program, "run"])  # noqa: S606
    except (OSError, FabricError) as error:
        why = str(error)
    sys.stderr.write(f"fabric: steer: {why}\n")
    steering.write_refused(state, start.job, wanted, why[:200].replace("\n", " "))
    os._exit(steering.REFUSED)


def may_set_clock(status: Path = Path("/proc/self/status")) -> bool:
    """Whether this process may set the system's clock; also where nobody can tell."""
    try:
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return bool(int(lines["CapEff"], 16) >> CAP_SYS_TIME & 1)
    except (OSError, KeyError, ValueError):
        return True


def _restore(leases: Path, keep: Iterable[int]) -> None:
    program = str(built.find("clock", steering.NAME))
    lab = str(LAB) if LAB.is_dir() else "-"
    os.execv(program, [program, "restore", str(leases), lab, *map(str, keep)])  # noqa: S606


def _status(running: _Running) -> int | None:
    """How it ended; None: it has not. Of another service's child that is not known."""
    if not running.is_child:
        return None if _is_steer(running.pid) else -1
    try:
        pid, status = os.waitpid(running.pid, os.WNOHANG)
    except ChildProcessError:
        return -1
    return os.waitstatus_to_exitcode(status) if pid else None


def _is_steer(pid: int) -> bool:
    stat = processes.read_stat(pid)
    return stat is not None and stat.comm == steering.NAME and stat.state not in "ZX"


def held_leases(leases: Path) -> dict[int, int]:
    """Job -> pid of every ``fabric-steer`` that holds a lease."""
    found: dict[int, int] = {}
    for path in leases.glob("*.lease"):
        with contextlib.suppress(OSError, ValueError, KeyError), path.open() as stream:
            lines = stream.read(_LEASE_BYTES).splitlines()
            words = dict(line.split("=", 1) for line in lines if "=" in line)
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                if _is_steer(pid := int(words["pid"])):
                    found[int(words["job"])] = pid
    return found
