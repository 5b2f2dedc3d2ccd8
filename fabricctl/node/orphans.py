"""Finds allocations that ended without an epilog.

Slurm is asked only about a job that shows no step on this node for a while, one question at a
time, never by a prolog or an epilog, and the more nodes a job has the less often by each.
"""

import os
import random
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

from fabricctl import hostlist
from fabricctl.agent.log import NodeLog
from fabricctl.errors import DataError
from fabricctl.store.schema import Severity
from fabricctl.telemetry.processes import StepdScan

SCAN_S = 4.0
QUERY_WAIT_S = 8.0
QUESTIONS_PER_S = 20  # to the controller, from all nodes of one job
SLURM_PATHS = "/usr/bin:/usr/local/bin:/opt/slurm/bin:/usr/sbin"
ALIVE = frozenset({"RUNNING", "SUSPENDED", "CONFIGURING", "STOPPED", "SIGNALING", "RESIZING"})


@dataclass
class _Suspect:
    idle_since_s: float
    next_ask_s: float


@dataclass
class _Query:
    job: int
    node: str
    pid: int
    fd: int
    deadline_s: float
    output: bytearray = field(default_factory=bytearray)


class OrphanWatch:
    """``fileno`` is the answer that is waited for, -1 when none is."""

    def __init__(self, check_s: float, log: NodeLog, scan: StepdScan | None = None) -> None:
        self._check_s = check_s
        self._log = log
        self._scan = scan or StepdScan()
        self._suspects: dict[int, _Suspect] = {}
        self._query: _Query | None = None
        self._next_scan_s = 0.0

    def fileno(self) -> int:
        return self._query.fd if self._query else -1

    def next_due_s(self) -> float:
        return min(self._next_scan_s, self._query.deadline_s if self._query else float("inf"))

    def run_due(self, jobs: Mapping[int, tuple[str, int]], now_s: float) -> None:
        """Looks, and asks about what is suspicious. ``jobs``: number -> (this node, nodes)."""
        if self._query is not None and now_s >= self._query.deadline_s:
            self._log.write("node", "Slurm does not answer squeue", Severity.WARNING)
            self._finish_query(kill=True)
        if now_s < self._next_scan_s:
            return
        self._next_scan_s = now_s + SCAN_S
        self._suspect(jobs, now_s)
        if self._query is None:
            self._ask(jobs, now_s)

    def _suspect(self, jobs: Mapping[int, tuple[str, int]], now_s: float) -> None:
        try:
            active = {stepd.job for stepd in self._scan.scan()}
        except OSError as error:
            self._log.write("node", f"processes not listed: {error.strerror}", Severity.ERROR)
            return
        idle = jobs.keys() - active
        self._suspects = {job: found for job, found in self._suspects.items() if job in idle}
        for job in idle - self._suspects.keys():
            # All nodes of a job become idle at once: let them not ask at once.
            first_s = self._check_s + random.uniform(0, jobs[job][1] / QUESTIONS_PER_S)  # noqa: S311
            self._suspects[job] = _Suspect(now_s, now_s + first_s)

    def _ask(self, jobs: Mapping[int, tuple[str, int]], now_s: float) -> None:
        due = [job for job, found in self._suspects.items() if found.next_ask_s <= now_s]
        if not due:
            return
        job = min(due, key=lambda number: self._suspects[number].next_ask_s)
        node, nodes = jobs[job]
        every_s = max(self._check_s, nodes / QUESTIONS_PER_S)
        self._suspects[job].next_ask_s = now_s + every_s * random.uniform(0.9, 1.1)  # noqa: S311
        try:
            self._query = _start_query(job, node, now_s)
        except OSError as error:
            text = f"squeue cannot be run: {error.strerror}; ended jobs may not be noticed"
            self._log.write("node", text, Severity.WARNING)

    def receive(self) -> tuple[int, str] | None:
        """``(job, why)`` when an answer is complete and says that the allocation is gone."""
        assert self._query is not None
        try:
            data = os.read(self._query.fd, 65_536)
        except BlockingIOError:
            return None
        self._query.output += data[: 65_536 - len(self._query.output)]
        if data:
            return None
        job, node, output = self._query.job, self._query.node, bytes(self._query.output)
        status = self._finish_query(kill=False)
        gone = judge(job, node, output.decode(errors="replace"), status)
        if gone is None:
            self._log.write("node", f"squeue -j {job}: {output[:200]!r}", Severity.WARNING)
        return (job, gone) if gone else None

    def _finish_query(self, kill: bool) -> int:
        assert self._query is not None
        query, self._query = self._query, None
        os.close(query.fd)
        if kill:
            os.kill(query.pid, signal.SIGKILL)
        # It has closed its output, or was killed: this does not wait for the network.
        _, status = os.waitpid(query.pid, 0)
        return os.waitstatus_to_exitcode(status)


def _start_query(job: int, node: str, now_s: float) -> _Query:
    program = find_program("squeue", os.environ.get("PATH", "") + ":" + SLURM_PATHS)
    argv = [program, "--noheader", "-j", str(job), "-t", "all", "-o", "%A|%T|%N"]
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read_fd, False)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    actions = [
        (os.POSIX_SPAWN_DUP2, null, 0),
        (os.POSIX_SPAWN_DUP2, write_fd, 1),
        (os.POSIX_SPAWN_DUP2, write_fd, 2),
    ]
    try:
        pid = os.posix_spawn(program, argv, dict(os.environ), file_actions=actions)
    except OSError:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
        os.close(null)
    return _Query(job, node, pid, read_fd, now_s + QUERY_WAIT_S)


def find_program(name: str, path: str) -> str:
    """Its absolute name; raises :class:`FileNotFoundError`. (shutil's costs half a megabyte.)"""
    for directory in path.split(":"):
        candidate = f"{directory}/{name}"
        if directory.startswith("/") and os.access(candidate, os.X_OK):
            return candidate
    raise FileNotFoundError(2, "no such program", name)


def judge(job: int, node: str, output: str, status: int) -> str | None:
    """Why the allocation is gone; empty: it lives here; None: the answer says neither."""
    if status != 0:
        return "Slurm does not know the job any more" if "Invalid job id" in output else None
    for line in output.splitlines():
        words = line.split("|")
        if len(words) != 3 or words[0] != str(job):
            continue
        if words[1] not in ALIVE:
            return f"Slurm says {words[1]}"
        try:
            return "" if node in hostlist.expand(words[2]) else "the node left the job"
        except DataError:
            return None
    return None if output.strip() else "Slurm does not know the job any more"
