"""CPU time and memory of the job on this node: its cgroup where Slurm made one, else its
processes summed up."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fabricctl.store import schema
from fabricctl.store.schema import Severity
from fabricctl.telemetry import cgroups, processes
from fabricctl.telemetry.batch import Batch
from fabricctl.telemetry.host import NS_PER_TICK
from fabricctl.telemetry.processes import Stat, Stepd
from fabricctl.telemetry.source import Complaints, Row, Tell

FIGURE_BYTES = 256  # of a cgroup's file: what is wanted stands first
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Going through all processes costs 10 us each: never more than this share of a core.
SCAN_SHARE = 0.001
SCAN_MIN_S = 1.0

Reading = Callable[[], int]


class JobSource:
    """The ``job`` table. ``stepds`` gives the job's step daemons as they were seen last."""

    table = schema.JOB

    def __init__(self, stepds: Callable[[], Sequence[Stepd]], tell: Tell, batch: Batch) -> None:
        self._stepds = stepds
        self._tell = tell
        self._complaints = Complaints("job", tell)
        self._batch = batch
        self._cpu: _CgroupFile | None = None
        self._memory: _CgroupFile | None = None
        self._sums = _ProcessSums()
        self._cpu_ns = 0
        self._next_scan_mono_ns = 0
        self._processes: int | None = None
        self.pids: frozenset[int] | None = None  # of the job, as they were seen last
        self._told_how = ""

    def rows(self) -> Sequence[Row]:
        """One for each sample of the job's cgroup; where it lacks a figure, one for each look at
        all processes."""
        cpu = self._cpu.drain() if self._cpu else []
        memory = self._memory.drain() if self._memory else []
        figures = [(at, cpu_ns, used) for (at, cpu_ns), (_, used) in zip(cpu, memory, strict=False)]
        now_mono_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        if now_mono_ns >= self._next_scan_mono_ns:
            self._scan(now_mono_ns)
            if (
                not figures
                and self._sums.cpu_ns is not None
                and self._sums.memory_bytes is not None
            ):
                cpu_ns = cpu[-1][1] if cpu else self._sums.cpu_ns
                used = memory[-1][1] if memory else self._sums.memory_bytes
                figures = [(now_mono_ns, cpu_ns, used)]
        return [self._row(*values) for values in figures]

    def _row(self, time_mono_ns: int, cpu_ns: int, memory_bytes: int) -> Row:
        # Sums in ticks come before the cgroup is found and after it is gone: they differ from its
        # figure by a little, but what was used does not become less.
        self._cpu_ns = max(self._cpu_ns, cpu_ns)
        return time_mono_ns, self._cpu_ns, memory_bytes, self._processes

    def _scan(self, now_mono_ns: int) -> None:
        """Counts the job's processes and finds its cgroup."""
        stepds = self._stepds()
        if stepds or self._sums.cpu_ns is not None:
            members = list(processes.tree((s.pid for s in stepds), processes.all_stats()))
            self._processes = len(members)
            self.pids = frozenset(member.pid for member in members)
            self._sums.update(members)
            if members and self._cpu is None and self._memory is None:
                self._find_cgroup(members)
        cost_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - now_mono_ns
        self._next_scan_mono_ns = now_mono_ns + max(
            int(cost_ns / SCAN_SHARE), int(SCAN_MIN_S * 1e9)
        )

    def _find_cgroup(self, members: Sequence[Stat]) -> None:
        mounts = cgroups.parse_mounts(_text(Path("/proc/self/mountinfo")))
        for member in members:
            paths = cgroups.parse_membership(_text(Path(f"/proc/{member.pid}/cgroup")))
            self._cpu = _open_first(mounts, paths, CPU_FILES, self._batch)
            self._memory = _open_first(mounts, paths, MEMORY_FILES, self._batch)
            if self._cpu or self._memory:
                break
        how = ", ".join(
            f"{what} {f'of cgroup {file.path}' if file else 'summed over processes'}"
            for what, file in (("CPU", self._cpu), ("memory", self._memory))
        )
        if how != self._told_how:
            self._told_how = how
            self._tell("job", how, Severity.INFO)

    def close(self) -> None:
        for file in (self._cpu, self._memory):
            if file:
                file.close()
        self._cpu = self._memory = None


class _ProcessSums:
    """Sums over the job's processes that never run backwards.

    A process that ended and was waited for counts in its parent. When one ends otherwise its
    time would vanish from the sum: what was seen of it is kept.
    """

    def __init__(self) -> None:
        self.cpu_ns: int | None = None
        self.memory_bytes: int | None = None
        self._kept_ticks = 0
        self._last_ticks = 0

    def update(self, members: Sequence[Stat]) -> None:
        ticks = sum(stat.own_ticks + stat.children_ticks for stat in members)
        if ticks < self._last_ticks:
            self._kept_ticks += self._last_ticks - ticks
        self._last_ticks = ticks
        self.cpu_ns = (self._kept_ticks + ticks) * NS_PER_TICK
        self.memory_bytes = sum(stat.resident_pages for stat in members) * PAGE_BYTES


class _CgroupFile:
    """One figure of a cgroup, read with each sample; its file stays open, and so keeps its last
    value readable while the job's directory is being removed."""

    def __init__(self, path: Path, parse: Callable[[bytes], int], batch: Batch) -> None:
        self.path = path.parent
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._parse = parse
        self._batch = batch
        self._slot = batch.add()
        batch.set(self._slot, self._fd, FIGURE_BYTES)

    def drain(self) -> list[tuple[int, int]]:
        """When it was read (CLOCK_MONOTONIC, ns) and the figure, since the last call; it ends once
        the cgroup is gone (ENODEV)."""
        found: list[tuple[int, int]] = []
        for time_mono_ns, got in self._batch.drain(self._slot):
            try:
                found.append((time_mono_ns, self._parse(got if isinstance(got, bytes) else b"")))
            except ValueError:
                self.close()
        return found

    def close(self) -> None:
        if self._fd >= 0:
            self._batch.set(self._slot, -1)
            os.close(self._fd)
            self._fd = -1


def parse_usage_ns(cpu_stat: bytes) -> int:
    """``usage_usec`` of a version 2 cpu.stat."""
    label, number = cpu_stat.split(None, 2)[:2]
    if label != b"usage_usec":
        raise ValueError("cpu.stat does not begin with usage_usec")
    return int(number) * 1000


# (controller, "" for version 2; file; how to read it), the first that exists is taken.
CPU_FILES = (("", "cpu.stat", parse_usage_ns), ("cpuacct", "cpuacct.usage", int))
MEMORY_FILES = (("", "memory.current", int), ("memory", "memory.usage_in_bytes", int))


def _open_first(
    mounts: Sequence[cgroups.Mount],
    paths: dict[str, str],
    files: Sequence[tuple[str, str, Callable[[bytes], int]]],
    batch: Batch,
) -> _CgroupFile | None:
    for controller, name, parse in files:
        job = cgroups.job_path(paths.get(controller, ""))
        found = cgroups.directory(mounts, controller, job) if job else None
        if found is None:
            continue
        try:
            return _CgroupFile(found / name, parse, batch)
        except OSError:
            continue
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
