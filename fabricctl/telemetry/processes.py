"""Slurm's step daemons and the processes below them, from /proc.

A step daemon calls itself ``slurmstepd: [<job>.<step>]`` (setproctitle in slurmstepd). Any user
can take such a title, so name and owner are checked as well.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TITLE = re.compile(rb"slurmstepd: \[([1-9][0-9]{0,9})(?:\+[0-9]+)?\.([A-Za-z0-9_+]{1,23})\]")
STEPD_COMM = "slurmstepd"
# A new process has its program's name before it has its title: look at it in this many scans.
LOOKS = 3


@dataclass(frozen=True, slots=True)
class Stepd:
    """One step daemon; ``step`` as Slurm writes it: ``0``, ``batch``, ``extern``."""

    pid: int
    job: int
    step: str


@dataclass(frozen=True, slots=True)
class Stat:
    """What /proc/<pid>/stat says of one process, times in clock ticks."""

    pid: int
    comm: str
    state: str
    parent: int
    own_ticks: int
    children_ticks: int  # of children that ended and were waited for
    start_ticks: int
    resident_pages: int


def parse_title(cmdline: bytes) -> tuple[int, str] | None:
    """``(job, step)`` of a step daemon's command line, None for any other."""
    match = TITLE.match(cmdline)
    return (int(match.group(1)), match.group(2).decode()) if match else None


def parse_stat(text: bytes) -> Stat | None:
    """None for what is not a stat line; the name may hold blanks and brackets (proc(5))."""
    begin, end = text.find(b"("), text.rfind(b")")
    words = text[end + 2 :].split()
    if begin < 0 or end < begin or len(words) < 22:
        return None
    return Stat(
        pid=int(text[:begin]),
        comm=text[begin + 1 : end].decode(errors="replace"),
        state=words[0].decode(),
        parent=int(words[1]),
        own_ticks=int(words[11]) + int(words[12]),
        children_ticks=int(words[13]) + int(words[14]),
        start_ticks=int(words[19]),
        resident_pages=int(words[21]),
    )


def read_stat(pid: int, proc: Path = PROC) -> Stat | None:
    """None when the process is gone."""
    text = _read(proc / str(pid) / "stat")
    return parse_stat(text) if text else None


def start_ticks(pid: int, proc: Path = PROC) -> int | None:
    """When the process started, in ticks since boot: with the pid it names one process."""
    stat = read_stat(pid, proc)
    return None if stat is None or stat.state in "ZX" else stat.start_ticks


def owner(pid: int, proc: Path = PROC) -> int | None:
    """The real user id. Who owns the entry in /proc does not say: it is root's for every process
    that changed its user (prctl(2), PR_SET_DUMPABLE)."""
    for line in _read(proc / str(pid) / "status").splitlines():
        if line.startswith(b"Uid:"):
            return int(line.split()[1])
    return None


def pids(proc: Path = PROC) -> list[int]:
    return [int(name) for name in os.listdir(proc) if name.isdigit()]  # noqa: PTH208


class StepdScan:
    """Finds the step daemons on this node; a scan reads only processes that are new."""

    def __init__(self, proc: Path = PROC, owner: int = 0) -> None:
        self._proc = proc
        self._owner = owner
        self._found: dict[int, Stepd] = {}
        self._others: dict[int, int] = {}  # pid -> looks left

    def scan(self) -> list[Stepd]:
        """All step daemons that live now."""
        living = pids(self._proc)
        found: dict[int, Stepd] = {}
        others: dict[int, int] = {}
        for pid in living:
            looks = self._others.get(pid, LOOKS)
            known = self._found.get(pid)
            if known is None and looks:
                known = self._look(pid)
                looks -= 1
            elif known is not None and self._look(pid) != known:
                known, looks = None, LOOKS
            if known is None:
                others[pid] = looks
            else:
                found[pid] = known
        self._found, self._others = found, others
        return list(found.values())

    def _look(self, pid: int) -> Stepd | None:
        title = parse_title(_read(self._proc / str(pid) / "cmdline"))
        if title is None:
            return None
        stat = read_stat(pid, self._proc)
        if stat is None or stat.state in "ZX" or stat.comm != STEPD_COMM:
            return None
        return Stepd(pid, *title) if owner(pid, self._proc) == self._owner else None


def children(pid: int, proc: Path = PROC) -> list[int]:
    """Direct children of all threads of one process (CONFIG_PROC_CHILDREN)."""
    found: list[int] = []
    try:
        threads = os.listdir(proc / str(pid) / "task")  # noqa: PTH208
    except OSError:
        return found
    for thread in threads:
        text = _read(proc / str(pid) / "task" / thread / "children")
        found += [int(word) for word in text.split()]
    return found


def tree(roots: Iterable[int], stats: Iterable[Stat]) -> Iterator[Stat]:
    """The processes below ``roots``, without them."""
    below: dict[int, list[Stat]] = {}
    for stat in stats:
        below.setdefault(stat.parent, []).append(stat)
    todo = list(roots)
    seen = set(todo)
    while todo:
        for stat in below.get(todo.pop(), ()):
            if stat.pid not in seen:
                seen.add(stat.pid)
                todo.append(stat.pid)
                yield stat


def all_stats(proc: Path = PROC) -> list[Stat]:
    """Every process of the node that could be read."""
    return [stat for pid in pids(proc) if (stat := read_stat(pid, proc)) is not None]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb", buffering=0) as stream:
            return stream.read(4096) or b""
    except OSError:
        return b""
