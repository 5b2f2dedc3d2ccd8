"""The agent: samples, watches, tells the other agents, until its allocation ends.

It runs in a process that the node service forked for it, already without privileges.
"""

import contextlib
import gc
import os
import random
import select
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fabricctl import layout
from fabricctl.agent import mesh, samplers, status
from fabricctl.agent.blocks import find_others
from fabricctl.agent.clockwork import Clockwork
from fabricctl.agent.log import NodeLog
from fabricctl.agent.pace import Pace
from fabricctl.agent.peers import Send, View
from fabricctl.agent.record import Assignment, Record, mono_ns
from fabricctl.agent.samplers import Samplers
from fabricctl.agent.steps import StepTracker, family
from fabricctl.agent.survival import Survival
from fabricctl.agent.whereabouts import WATCH_S, Whereabouts
from fabricctl.config import Config
from fabricctl.errors import SystemRefusedError
from fabricctl.paths.events import Follower
from fabricctl.store import schema
from fabricctl.store.schema import Severity
from fabricctl.telemetry import processes
from fabricctl.telemetry.processes import Stepd, StepdScan

CLOCKS_S = 10.0
STATUS_S = 4.0  # docs/envelope.md promises 5
SCAN_S = 2.0  # step daemons and the plugin's marks
FIRST_SCANS_S = 0.5  # at the beginning: jobs of a second have steps, too
FIRST_SCANS = 10
EARLY_NS = 2_000_000
SPOOL_RETRY_S = 1.0
LAST_WAIT_S = 15.0  # at the end, for a full spool to take what is still in memory
END_REASONS = {
    signal.SIGTERM: "stopped",
    signal.SIGUSR1: "the allocation is gone, no epilog came",
    signal.SIGINT: "interrupted",
}
EPILOG_REASON = "the job's epilog ran"


class Ending:
    """Signals that end the agent.

    They are blocked when the agent is forked, so that none is lost before it can take them.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._fd, tell_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(tell_fd, warn_on_full_buffer=False)
        for number in END_REASONS:
            signal.signal(number, self._take)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, END_REASONS)

    def fileno(self) -> int:
        """Readable once a signal came; nobody has to read it."""
        return self._fd

    def _take(self, number: int, _frame: object) -> None:
        self.reason = self.reason or END_REASONS[signal.Signals(number)]


class Agent:
    """One life of one agent."""

    def __init__(self, given: Assignment, config: Config, log: NodeLog) -> None:
        self._given = given
        self._config = config
        self._log = log
        self._start = given.start
        self._rate_hz = self._start.envelope.sample_hz or config.agent.sample_hz
        self._ending = Ending()
        self._survival = Survival(given.files, self._start.job)
        self._scan = StepdScan()
        self._stepds: list[Stepd] = []
        self._steps = StepTracker(resumed=given.life > 0)
        self._family: dict[str, str] = {}
        alone = len(self._start.nodes) == 1
        self._view = View(1, frozenset(), frozenset(), alone)
        self._missed_samples = 0
        self._scans = 0

    def run(self) -> None:
        """Until the allocation ends."""
        gc.disable()
        write_pid(self._given.files, self._start.job)
        self._write_status("starting")
        rails, complaint = samplers.choose_rails(self._config, self._start.node)
        record = self._open_record(rails)
        if record is None:
            return
        self._record = record
        for severity, text in self._given.notes:
            record.note(severity, "node", text)
        if complaint:
            record.tell("rails", complaint)
        self._samplers = Samplers(
            rails, lambda: self._stepds, record, self._start.uid, self._rate_hz
        )
        self._peers = find_others(
            self._start.nodes,
            self._start.node,
            time.monotonic(),
            lambda severity, text: record.note(severity, "peers", text),
            random.Random(os.urandom(8)),  # noqa: S311 - jitter
        )
        self._path_events = Follower(self._given.files.path_events(self._start.job))
        self._ranks = Whereabouts(self._given, rails, record, self._send)
        self._mesh = self._open_mesh()
        self._clock = Clockwork(
            self._given, self._config, rails, mesh.Resolver().address, record.tell
        )
        self._clock_fd: int | None = None
        self._period_ns = int(1e9 / self._rate_hz)
        self._poll = select.epoll()
        for source in (self._ending, self._samplers.watch, self._mesh):
            if source is not None:
                self._poll.register(source.fileno(), select.EPOLLIN)
        try:
            self._loop()
        except Exception as error:
            self._ending.reason = f"an error of the agent: {error!r}"
            raise
        finally:
            self._finish()

    def _open_record(self, rails: list[str]) -> Record | None:
        """Waits for the spool to be writable; None when the allocation ended before.

        An allocation of an instant may have ended already: it still gets its record.
        """
        ended_s: float | None = None
        while True:
            try:
                return Record(self._given, rails, self._rate_hz, self._log)
            except SystemRefusedError as error:
                ended_s = time.monotonic() if self._ending.reason and ended_s is None else ended_s
                if ended_s is not None and time.monotonic() - ended_s > LAST_WAIT_S:
                    return None
                self._log.write(f"agent job={self._start.job}", str(error), Severity.ERROR)
                self._write_status("starting", str(error))
                time.sleep(SPOOL_RETRY_S)
                self._ending.reason = self._ending.reason or self._survival.reason(True)

    def _open_mesh(self) -> mesh.Mesh | None:
        if len(self._start.nodes) == 1:
            return None
        agent = self._config.agent
        candidates = mesh.ports(self._start.job, agent.port_first, agent.port_count)
        # A requeue begins later, a restarted agent has a higher number: what came before is old.
        life = self._given.begin_real_ns + self._given.life
        try:
            return mesh.Mesh(
                self._peers,
                mesh.Identity(self._start.job, life, self._start.envelope.key),
                candidates,
                lambda text, severity: self._record.tell("peers", text, severity),
                self._ranks.receive,
            )
        except OSError as error:
            ports = ", ".join(map(str, candidates))
            problem = f"other nodes are not heard: UDP ports {ports}: {error.strerror}"
            self._record.note(Severity.ERROR, "peers", problem)
            return None

    def _send(self, send: Send) -> bool:
        return self._mesh is not None and self._mesh.send(send)

    def _loop(self) -> None:
        # Samples come just before the work of their second, which then hands them on at once and
        # needs no wake-up of its own: who follows the job would else wait a second for each.
        self._samplers.wait(self._poll, self._period_ns, 0)
        begin_mono_ns = mono_ns()
        self._scan_pace = Pace.every(FIRST_SCANS_S, begin_mono_ns)
        work = [
            (self._scan_pace, self._scan_steps),
            (Pace.every(CLOCKS_S, begin_mono_ns), self._take_clocks),
            (Pace.every(1, begin_mono_ns), self._each_second),
            (Pace.every(STATUS_S, begin_mono_ns), self._show),
            (Pace.every(WATCH_S, begin_mono_ns), self._ranks.watch),
        ]
        due_mono_ns = begin_mono_ns
        while not self._ending.reason:
            wait_s = max(0, due_mono_ns - mono_ns()) / 1e9
            ready, missed = self._samplers.wait(self._poll, self._period_ns, wait_s)
            self._missed_samples += missed
            for fd in ready:
                self._take_in(fd)
            due_mono_ns = int(min(due_mono_ns, self._clock.next_due_s() * 1e9))
            # What is nearly due is done now: another wake-up would cost more than it does.
            now_mono_ns = mono_ns() + EARLY_NS
            if now_mono_ns >= due_mono_ns:
                due_mono_ns = self._work(work, now_mono_ns)

    def _work(self, work: Sequence[tuple[Pace, Callable[[], None]]], now_mono_ns: int) -> int:
        """What is due beside the samples; when the next of it will be."""
        for pace, do in work:
            if pace.take(now_mono_ns) is not None:
                do()
        self._run_clock()
        due_mono_ns = min(pace.due_mono_ns for pace, _ in work)
        due_mono_ns = int(min(due_mono_ns, self._clock.next_due_s() * 1e9))
        if self._mesh is None:
            return due_mono_ns
        self._mesh.run_due()
        return min(due_mono_ns, int(self._peers.next_due_s() * 1e9))

    def _run_clock(self) -> None:
        self._clock.run_due()
        if self._clock.fd != self._clock_fd and self._clock.fd is not None:
            self._clock_fd = self._clock.fd
            self._poll.register(self._clock_fd, select.EPOLLIN)

    def _take_in(self, fd: int) -> None:
        """What came by itself: link events, and other agents' messages."""
        watch, network = self._samplers.watch, self._mesh
        if fd == self._clock_fd:
            self._clock.receive()
        if watch is not None and watch.fileno() == fd:
            self._samplers.take_events()
        elif network is not None and network.fileno() == fd:
            network.receive()
            if not self._view.settled:
                self._look_at_peers()

    def _take_clocks(self) -> None:
        self._samplers.take_clocks()
        gc.collect()  # here, and not whenever a sample happens to be due

    def _show(self) -> None:
        self._write_status("running")

    def _look_at_peers(self) -> None:
        before, self._view = self._view, self._peers.tell_changes(time.monotonic())
        if before != self._view:
            self._write_status("running")

    def _each_second(self) -> None:
        self._look_at_peers()
        self._ending.reason = self._ending.reason or self._survival.reason(not self._stepds)
        if self._missed_samples:
            self._record.tell("agent", f"{self._missed_samples} samples not taken in time")
            self._missed_samples = 0
        self._samplers.put()
        self._put_clock()
        paths = self._path_events.rows()
        self._ranks.note_paths(paths)
        self._record.put(schema.PATH_EVENT, paths)
        self._ranks.sample()
        self._record.flush()

    def _put_clock(self) -> None:
        self._clock.set_missing(tuple(self._view.missing))
        clocks, delays = self._clock.rows()
        self._record.put(schema.JOB_CLOCK, clocks)
        self._record.put(schema.DELAY, delays)

    def _scan_steps(self) -> None:
        self._scans += 1
        if self._scans == FIRST_SCANS:
            self._scan_pace.period_ns = int(SCAN_S * 1e9)
        job = self._start.job
        try:
            # Steps of a heterogeneous job carry its leader's id on every component's nodes.
            jobs = (job, int(self._family.get("het_job", job)))
            self._stepds = [found for found in self._scan.scan() if found.job in jobs]
        except OSError as error:
            self._record.tell("steps", f"step daemons not seen: {error.strerror}")
        marks = _names_in(self._given.files.steps(job))
        if not self._family and (found := family(marks)):
            self._family = found
            self._record.describe(found)
        self._put_steps(self._steps.update(marks, [s.step for s in self._stepds], time.monotonic()))
        if self._steps.unplugged and not self._peers.unplugged:
            names = ", ".join(sorted(self._steps.unplugged))
            self._record.tell("agent", f"steps that the plugin did not see: {names}")
        self._peers.unplugged = bool(self._steps.unplugged)

    def _put_steps(self, events: list[tuple[str, schema.StepEvent]]) -> None:
        rows = [(mono_ns(), time.time_ns(), step, int(event)) for step, event in events]
        self._record.put(schema.STEP, rows)

    def _finish(self) -> None:
        """What an orderly end adds; everything before it is in the journal already."""
        self._samplers.put()
        self._put_clock()
        self._ranks.sample(last=True)
        self._record.flush()
        self._clock.close()
        if self._mesh is not None:
            self._mesh.bye()
            self._mesh.close()
        self._write_status("ending")
        self._samplers.take()
        self._samplers.take_clocks()
        self._samplers.put()
        self._record.put(schema.PATH_EVENT, self._path_events.rows())
        self._samplers.close()
        self._scan_steps()
        self._put_steps(self._steps.finish())
        reason = self._ending.reason
        if self._given.files.request(self._start.job, "stop").exists():
            reason = EPILOG_REASON
        self._record.note(Severity.INFO, "agent", f"ended: {reason}")
        self._record.close(LAST_WAIT_S)

    def _write_status(self, state: str, problem: str = "") -> None:
        record, clock = getattr(self, "_record", None), getattr(self, "_clock", None)
        known = status.Status(
            state=state,
            nodes=len(self._start.nodes),
            protected=self._view.protected,
            missing=self._view.missing,
            unplugged=self._view.unplugged,
            settled=self._view.settled,
            problem=problem or (record.problem if record else ""),
            notice=clock.notice if clock else "",
        )
        try:
            status.write(self._given.files.status(self._start.job), known)
        except OSError as error:
            text = f"status not written: {error.strerror}"
            self._log.write(f"agent job={self._start.job}", text, Severity.ERROR)


def write_pid(files: layout.NodeFiles, job: int) -> None:
    """``agent.pid``: with the start time it names this process and no later one."""
    path = files.agent_pid(job)
    temporary = path.with_name(".agent.pid.new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    pid = os.getpid()
    temporary.write_text(f"{pid} {processes.start_ticks(pid) or 0}\n")
    temporary.chmod(0o644)
    temporary.replace(path)


def _names_in(directory: Path) -> list[str]:
    try:
        return [path.name for path in directory.iterdir()]
    except OSError:
        return []
