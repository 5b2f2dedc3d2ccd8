"""The cgroup of a job, version 1 or 2, found from where its processes are.

Slurm keeps one directory a job with one below it for each step (``…/job_7/step_0/…``); what the
job's directory is called differs between Slurm's versions, what the step's is called does not.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_STEP = re.compile(r"/step_[A-Za-z0-9_+]+(/|$)")
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One cgroup hierarchy: controllers are empty for version 2."""

    point: Path
    root: str  # the path inside the hierarchy that is mounted there
    controllers: frozenset[str]


def parse_mounts(mountinfo: str) -> list[Mount]:
    """The cgroup hierarchies of /proc/self/mountinfo (proc(5))."""
    found = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        words, kind = left.split(), right.split()
        if len(words) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        controllers = frozenset(kind[2].split(",")) if kind[0] == "cgroup" else frozenset()
        found.append(Mount(Path(_unescape(words[4])), _unescape(words[3]), controllers))
    return found


def parse_membership(text: str) -> dict[str, str]:
    """Controller (``""`` for version 2) -> path, of a /proc/<pid>/cgroup (cgroups(7))."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        words = line.split(":", 2)
        if len(words) == 3:
            for controller in words[1].split(","):
                paths[controller] = words[2]
    return paths


def job_path(path: str) -> str | None:
    """The job's part of a process's cgroup path, None when the path is not below a step."""
    match = _STEP.search(path)
    return path[: match.start()] if match and match.start() > 0 else None


def directory(mounts: Sequence[Mount], controller: str, path: str) -> Path | None:
    """Where a cgroup lies in the file system, None when it is not mounted here."""
    for mount in mounts:
        if controller not in (mount.controllers or {""}):
            continue
        inside = path if mount.root == "/" else path.removeprefix(mount.root)
        if mount.root != "/" and inside == path:
            # In a cgroup namespace the paths begin at its root, and so does the mount.
            continue
        return mount.point / inside.lstrip("/")
    return None


def _unescape(text: str) -> str:
    """mountinfo writes blanks and backslashes in octal."""
    return _ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), text)
