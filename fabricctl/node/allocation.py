"""One allocation on this node: its directories and the life of its agent."""

import contextlib
import os
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from fabricctl import fields, hostlist, layout
from fabricctl.agent.log import NodeLog
from fabricctl.agent.record import Assignment, Record
from fabricctl.agent.status import Status
from fabricctl.config import Config
from fabricctl.errors import FabricError
from fabricctl.node import rootfiles, spawn
from fabricctl.node import spool as spools
from fabricctl.records import JobStart
from fabricctl.store.schema import Severity

# An agent needs a tenth of a second to end, but with a full spool it waits LAST_WAIT_S for room.
STOP_WAIT_S = 20.0
BACKOFF_S = (0.2, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # between lives of an agent that keeps dying
STABLE_S = 60.0  # an agent that lived that long starts again at once
CLEAN_ENDS = ("ended", "ended with status 0")
RETRY_S = 4.0  # when the system has no room to start one; the status stays younger than 15 s


@dataclass
class Allocation:
    """``pidfd`` >= 0: an agent lives."""

    start: JobStart
    text: str  # the start request as it came
    begin_real_ns: int
    spool: Path
    pid: int = 0
    pidfd: int = -1
    is_child: bool = False
    started_s: float = 0.0
    restart_s: float | None = 0.0  # when to start the next agent; None: one lives, or none shall
    deaths: int = 0
    kill_s: float | None = None  # when SIGKILL follows
    ending: bool = False
    problem: str = ""
    notes: list[tuple[Severity, str]] = field(default_factory=list)
    off: str = ""  # why the site wants no agent for it: told to the user, and nothing is kept

    @property
    def job(self) -> int:
        return self.start.job

    @property
    def over(self) -> bool:
        """No agent lives and none will."""
        return self.ending and self.pidfd < 0


class Keeper:
    """Makes, adopts, restarts and ends the agents of allocations."""

    def __init__(self, config: Config, identity: spawn.Identity, log: NodeLog) -> None:
        self._config = config
        self._identity = identity
        self._log = log
        self.files = layout.NodeFiles(config.node.run_dir)

    # Beginning

    def new(self, start: JobStart, text: str, written_real_ns: int) -> Allocation:
        """An allocation that began when its request was written: that may be a while ago, and
        its trace has to meet those of the other nodes. Nothing is made on the disk yet."""
        now_real_ns = time.time_ns()
        begin_real_ns = min(written_real_ns, now_real_ns)
        waited_s = (now_real_ns - begin_real_ns) / 1e9
        spool = layout.spool(self._config.node.spool_dir, start.job, begin_real_ns)
        made = Allocation(self._allowed(start), text, begin_real_ns, spool)
        if waited_s > 2:
            note = f"the start request waited {waited_s:.0f} s for the node service"
            made.notes.append((Severity.WARNING, note))
        if self._is_off(start):
            made.off = f"partition {start.partition} is not protected here (agent.max_mode is off)"
        elif made.start != start:
            note = f"the job asked for on; partition {start.partition} is only observed here"
            made.notes.append((Severity.WARNING, f"{note} (agent.max_mode)"))
        return made

    def _is_off(self, start: JobStart) -> bool:
        return self._config.for_partition(start.partition).agent.max_mode == "off"

    def _allowed(self, start: JobStart) -> JobStart:
        """With no more than the site lets agents do on this node for that partition."""
        if self._config.for_partition(start.partition).agent.max_mode == "on":
            return start
        return replace(start, envelope=replace(start.envelope, mode="observe"))

    def prepare(self, allocation: Allocation) -> None:
        """The directories; raises OSError. May be called again."""
        self._note_live(allocation)
        self._prepare_job_dir(allocation)
        rootfiles.make_dir(allocation.spool, 0o700, self._identity.uid, self._identity.gid)
        try:
            spools.save_start(allocation.spool, allocation.text)
        except OSError as error:
            # The agent keeps what it measures in memory meanwhile, and the request is saved later.
            text = f"{allocation.spool}/start: {error.strerror}"
            self._log.write(f"node job={allocation.job}", text, Severity.ERROR)

    def _note_live(self, allocation: Allocation) -> None:
        live = self.files.live(allocation.job)
        if not live.exists():
            temporary = self.files.live_dir / f".{allocation.job}"
            temporary.unlink(missing_ok=True)
            text = f"{allocation.text.rstrip()}\nbegin_real_ns={allocation.begin_real_ns}\n"
            rootfiles.write_new(temporary, text.encode(), 0o600, 0, 0)
            temporary.replace(live)

    def _prepare_job_dir(self, allocation: Allocation) -> None:
        job_dir = self.files.job_dir(allocation.job)
        if job_dir.exists():
            return
        start, user = allocation.start, (self._identity.uid, self._identity.gid)
        new = self.files.jobs / f".{start.job}.new"
        rootfiles.remove_tree(new)
        rootfiles.make_dir(new, 0o700)
        envelope = {
            **fields.decode(start.envelope.text(), ";"),
            "job": str(start.job),
            "nodes": hostlist.fold(start.nodes),
            "node": start.node,
        }
        text = fields.encode(envelope) + "\n"
        rootfiles.write_new(new / "envelope", text.encode(), 0o400, start.uid, 0)
        status = Status("starting", len(start.nodes)).text()
        rootfiles.write_new(new / "status", status.encode(), 0o644, *user)
        rootfiles.make_dir(new, 0o711, *user)
        new.replace(job_dir)

    def launch(self, allocation: Allocation, now_s: float) -> None:
        """Starts an agent; when that fails the reason stands in the status, and it is tried
        again."""
        allocation.restart_s = None
        if allocation.off:
            self._stay_off(allocation, now_s)
            return
        try:
            self.prepare(allocation)
            given = self._assignment(allocation)
            config = self._config.for_partition(given.start.partition)
            pid = spawn.fork_agent(given, config, self._identity, self._log)
            self._watch(allocation, pid, now_s, is_child=True)
        except (OSError, FabricError) as error:
            self._not_started(allocation, error, now_s)
            return
        allocation.notes.clear()
        allocation.problem = ""

    def _watch(self, allocation: Allocation, pid: int, now_s: float, is_child: bool) -> None:
        allocation.pidfd = os.pidfd_open(pid)
        allocation.pid, allocation.is_child = pid, is_child
        allocation.started_s, allocation.restart_s = now_s, None

    def _not_started(self, allocation: Allocation, error: Exception, now_s: float) -> None:
        what = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        allocation.problem = f"no agent could be started: {what}{why}"
        self._log.write(f"node job={allocation.job}", allocation.problem, Severity.ERROR)
        if not any(allocation.problem == text for _, text in allocation.notes):
            allocation.notes.append((Severity.ERROR, allocation.problem))
        allocation.restart_s = now_s + RETRY_S
        with contextlib.suppress(OSError):
            self._prepare_job_dir(allocation)
            self._write_status(allocation)

    def _stay_off(self, allocation: Allocation, now_s: float) -> None:
        """Says why there is none, again and again: what is old is not believed."""
        if not allocation.problem:
            allocation.problem = allocation.off
            self._log.write(f"node job={allocation.job}", allocation.off)
        allocation.restart_s = now_s + RETRY_S
        with contextlib.suppress(OSError):
            self._note_live(allocation)
            self._prepare_job_dir(allocation)
            self._write_status(allocation)

    def _write_status(self, allocation: Allocation) -> None:
        known = Status("starting", len(allocation.start.nodes), problem=allocation.problem)
        path = self.files.status(allocation.job)
        temporary = path.with_name(".status.root")
        temporary.unlink(missing_ok=True)
        user = (self._identity.uid, self._identity.gid)
        rootfiles.write_new(temporary, known.text().encode(), 0o644, *user)
        temporary.replace(path)

    # Taking over from an earlier service

    def adopt(self, job: int, now_s: float) -> Allocation | None:
        """An allocation that was there before this service; None when nothing of it is known."""
        try:
            text, begin_real_ns = read_live(self.files.live(job))
            start = JobStart.parse(text)
        except (OSError, ValueError, FabricError) as error:
            self._log.write(f"node job={job}", f"{self.files.live(job)}: {error}", Severity.ERROR)
            return None
        spool = layout.spool(self._config.node.spool_dir, job, begin_real_ns)
        found = Allocation(self._allowed(start), text, begin_real_ns, spool)
        if self._is_off(start) and not spool.is_dir():
            # One that has a spool began before the partition was turned off: kept to its end.
            return self.new(start, text, begin_real_ns)
        pid = self._living_agent(job)
        if pid is not None:
            self._watch(found, pid, now_s, is_child=False)
        else:
            note = "no agent lived when the node service started"
            found.notes.append((Severity.WARNING, note))
            found.restart_s = now_s
        return found

    def _living_agent(self, job: int) -> int | None:
        try:
            text = rootfiles.read_small(self.files.agent_pid(job), self._identity.uid)
            pid, ticks = (int(word) for word in text.split())
        except (OSError, ValueError):
            return None
        return pid if spawn.is_agent(pid, ticks, self._identity) else None

    # Ending

    def died(self, allocation: Allocation, now_s: float) -> None:
        """The pidfd said that the agent ended."""
        how = _how_it_ended(allocation)
        os.close(allocation.pidfd)
        allocation.pidfd, allocation.kill_s = -1, None
        lived_s = now_s - allocation.started_s
        if allocation.ending:
            if how not in CLEAN_ENDS:
                text = f"the last agent {how} after {lived_s:.1f} s"
                allocation.notes.append((Severity.ERROR, text))
            return
        allocation.deaths = 0 if lived_s > STABLE_S else allocation.deaths
        wait_s = BACKOFF_S[min(allocation.deaths, len(BACKOFF_S) - 1)]
        allocation.deaths += 1
        allocation.restart_s = now_s + wait_s
        text = f"the agent before this one {how} after {lived_s:.1f} s"
        allocation.notes.append((Severity.ERROR, text))
        self._log.write(
            f"node job={allocation.job}", f"agent {how}; next in {wait_s:g} s", Severity.ERROR
        )

    def stop(self, allocation: Allocation, number: signal.Signals, now_s: float) -> None:
        """Asks the agent to end; may be called again."""
        if not allocation.ending:
            allocation.ending, allocation.restart_s = True, None
            allocation.kill_s = now_s + STOP_WAIT_S
            self.send(allocation, number)

    def send(self, allocation: Allocation, number: signal.Signals) -> None:
        if allocation.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(allocation.pidfd, number)

    def leave_notes(self, allocation: Allocation) -> None:
        """What no agent took into the record any more becomes a journal of its own."""
        if not allocation.notes or not allocation.spool.is_dir():
            return
        given = self._assignment(allocation)
        try:
            record = Record(given, (), self._config.agent.sample_hz, self._log)
        except FabricError as error:
            self._log.write(f"node job={allocation.job}", str(error), Severity.ERROR)
            return
        for severity, text in given.notes:
            record.note(severity, "node", text)
        record.close()

    def _assignment(self, allocation: Allocation) -> Assignment:
        """For the next life."""
        return Assignment(
            allocation.start,
            self.files,
            allocation.spool,
            spools.next_life(allocation.spool),
            allocation.begin_real_ns,
            tuple(allocation.notes),
        )

    def remove_ended(self, allocation: Allocation) -> None:
        """As :meth:`remove`; the start request stays until the spool has it: without it, nobody
        would know whose the spool is once this service is gone."""
        live = self.files.live(allocation.job)
        if allocation.spool.is_dir() and not spools.has_start(allocation.spool) and live.exists():
            live.replace(self.files.unsaved(allocation.spool))
        self.remove(allocation.job)

    def remove(self, job: int) -> None:
        """What of the job is in run_dir; raises OSError."""
        rootfiles.remove_tree(self.files.job_dir(job))
        self._remove_marks(job)
        self.files.live(job).unlink(missing_ok=True)

    def _remove_marks(self, job: int) -> None:
        """The plugin's marks of steps, but for those that the next attempt of a requeued job, whose
        start request waits, has made already."""
        steps = self.files.steps(job)
        try:
            since_ns = self.files.request(job, "start").stat().st_mtime_ns
            marks = list(steps.iterdir())
        except FileNotFoundError:
            rootfiles.remove_tree(steps)
            return
        for mark in marks:
            if mark.lstat().st_mtime_ns < since_ns:
                mark.unlink(missing_ok=True)


def read_live(path: Path) -> tuple[str, int]:
    """The start request and the begin (CLOCK_REALTIME ns) that :meth:`Keeper.prepare` wrote;
    raises OSError and ValueError."""
    text, _, begin = rootfiles.read_small(path, 0).decode().rpartition("begin_real_ns=")
    return text, int(begin)


def _how_it_ended(allocation: Allocation) -> str:
    if not allocation.is_child:
        return "ended"  # it was started by an earlier node service
    try:
        _, status = os.waitpid(allocation.pid, os.WNOHANG)
    except ChildProcessError:
        return "ended"
    if os.WIFSIGNALED(status):
        return f"was killed by signal {os.WTERMSIG(status)}"
    return f"ended with status {os.WEXITSTATUS(status)}"
