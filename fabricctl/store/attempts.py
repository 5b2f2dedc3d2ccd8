"""Which part belongs to which attempt of a job: pure arithmetic on times and nodes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fabricctl import layout
from fabricctl.store.checked import DamagedTraceError
from fabricctl.store.trace import JobInfo, open_trace

# The nodes' clocks differ, and so do the moments at which their prologs ran: parts of a job that
# lasted no longer than that need not overlap. A requeue takes longer than a second at least: it
# waits for all epilogs and for the scheduler.
SLACK_NS = 1_000_000_000


@dataclass(frozen=True)
class Part:
    """One node's trace that waits."""

    path: Path
    node: str
    begin_real_ns: int
    end_real_ns: int

    @classmethod
    def read(cls, path: Path) -> "Part":
        """Raises :class:`~fabricctl.errors.TraceError`."""
        with open_trace(path) as trace:
            if not trace.nodes:
                raise DamagedTraceError(f"trace {path}: no node in it")
            first = next(iter(trace.nodes.values()))
            return cls(path, first.node, first.begin_real_ns, trace.job.end_real_ns)


@dataclass
class Attempt:
    """One run of the job: a trace that is there, or one to be made (``identity`` None)."""

    path: Path
    number: int
    begin_real_ns: int
    end_real_ns: int
    stays: dict[str, set[int]] = field(default_factory=dict)  # begin_real_ns by node
    identity: tuple[int, int, int] | None = None
    alias: str = ""  # `12_3` of an array's task, `12+1` of a component
    nodes: tuple[str, ...] = ()  # of the allocation, as the trace has them

    @classmethod
    def read(cls, path: Path, number: int) -> "Attempt":
        """Raises :class:`~fabricctl.errors.TraceError`."""
        identity = identity_of(path)  # before the look: what is newer than that must not pass
        with open_trace(path) as trace:
            job = trace.job
            found = cls(path, number, job.begin_real_ns, job.end_real_ns)
            found.identity, found.alias, found.nodes = identity, _alias(job), job.nodes
            for node in trace.nodes.values():
                found.stays.setdefault(node.node, set()).add(node.begin_real_ns)
            return found

    def overlap_ns(self, part: Part) -> int:
        """Time shared with the part; below 0: the gap between them."""
        return min(self.end_real_ns, part.end_real_ns) - max(self.begin_real_ns, part.begin_real_ns)

    def may_hold(self, part: Part) -> bool:
        """Whether the part can be of this attempt.

        Nodes of one attempt share most of the time of whoever was there more shortly; attempts
        share at most the clocks' error. A node that left the job and came back has two stays in
        one attempt, one that is in two attempts has none in common.
        """
        shared, length = self.overlap_ns(part), part.end_real_ns - part.begin_real_ns
        if part.node in self.stays:
            return 2 * shared > length
        shorter = min(length, self.end_real_ns - self.begin_real_ns)
        return 2 * shared > shorter or (shorter < SLACK_NS and shared > -SLACK_NS)

    def take(self, part: Part) -> None:
        self.begin_real_ns = min(self.begin_real_ns, part.begin_real_ns)
        self.end_real_ns = max(self.end_real_ns, part.end_real_ns)
        self.stays.setdefault(part.node, set()).add(part.begin_real_ns)


def _alias(job: JobInfo) -> str:
    if job.array_job is not None and job.array_task is not None:
        return f"{job.array_job}_{job.array_task}"
    if job.het_job is not None and job.het_offset is not None:
        return f"{job.het_job}+{job.het_offset}"
    return ""


def identity_of(path: Path) -> tuple[int, int, int] | None:
    """Tells one version of a file from another; None when there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def distribute(
    parts: Sequence[Part], attempts: Sequence[Attempt], user_dir: Path, job: int
) -> list[tuple[Attempt, list[Part]]]:
    """Every attempt, new ones too, with the parts that are to be added to it."""
    result: list[tuple[Attempt, list[Part]]] = [(attempt, []) for attempt in attempts]
    # The longest first: they span their attempt, and the short ones then find it.
    for part in sorted(parts, key=lambda p: (p.begin_real_ns - p.end_real_ns, p.node)):
        if any(part.begin_real_ns in entry[0].stays.get(part.node, ()) for entry in result):
            continue  # merged before a crash, or kept
        able = [entry for entry in result if entry[0].may_hold(part)]
        if able:
            entry = max(able, key=lambda e: e[0].overlap_ns(part))
        else:
            entry = (Attempt(user_dir, -1, part.begin_real_ns, part.end_real_ns), [])
            result.append(entry)
        entry[0].take(part)
        entry[1].append(part)
    number = max((attempt.number for attempt in attempts), default=-1)
    for attempt, _ in sorted(result[len(attempts) :], key=lambda entry: entry[0].begin_real_ns):
        number += 1
        attempt.number, attempt.path = number, layout.trace_file(user_dir, job, number)
    return result


def complete(waiting: Sequence[str], traces: Sequence[JobInfo], nodes: Sequence[str]) -> bool:
    """Whether the waiting parts, by their names, make an attempt of all ``nodes`` whole."""
    begins = {}
    for name in waiting:
        node, begin, _ = name.rsplit(".", 2)
        begins[node] = int(begin)
    missing = set(nodes) - begins.keys()
    if not missing:
        return True
    return any(
        missing <= set(job.nodes) - set(job.missing_nodes)
        and any(
            job.begin_real_ns - SLACK_NS < begin < job.end_real_ns + SLACK_NS
            for begin in begins.values()
        )
        for job in traces
    )
