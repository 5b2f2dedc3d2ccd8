"""Merges the node traces of a job into one job trace, in the user's directory.

Runs with the rights of the job's user, on every node whose part of the job ended, at any time and
any number of times: whoever comes merges what waits. A part is removed only after the file that
holds it is on the disk under its name, so a crash anywhere costs nothing but a second merge.

Several attempts of one job (requeues) have the same job id. They are told apart by time: a part
belongs to the attempt whose time it shares.
"""

import contextlib
import itertools
import logging
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fabricctl import layout
from fabricctl.errors import SystemRefusedError, TraceError
from fabricctl.store import lock, merge_file
from fabricctl.store.attempts import Attempt, Part, complete, distribute
from fabricctl.store.checked import DamagedTraceError, NewerTraceError
from fabricctl.store.trace import JobInfo, read_job

_log = logging.getLogger(__name__)
_PART = re.compile(r"[A-Za-z0-9].*\.[0-9]{1,19}\.h5")
_TRIES = 1000  # each but the first two needs another merge to succeed, or sets a damaged file aside
# A merge that is killed keeps the batches before: 10 to 20 s at 5 to 10 ms a node.
_BATCH = 2000
Step = Callable[[str], None]


def ensure_user_dir(trace_dir: Path, user: str, uid: int) -> Path:
    """The user's folder in the shared directory, made with mode 0700 when it is not there.

    To be called with that user's rights. Raises :class:`SystemRefusedError` when the folder is
    not safe to write to: owned by another, a link, or writable by others.
    """
    if os.geteuid() != uid:
        raise SystemRefusedError(f"{trace_dir}: the folder of {user} must be made by uid {uid}")
    if user in ("", ".", "..") or "/" in user:
        raise SystemRefusedError(f"{trace_dir}: {user!r} cannot be a folder's name")
    path = trace_dir / user
    try:
        parent = trace_dir.stat()
        if parent.st_mode & stat.S_IWOTH and not parent.st_mode & stat.S_ISVTX:
            raise SystemRefusedError(
                f"{trace_dir}: anybody may replace folders in it: chmod 1777 {trace_dir}"
            )
        if not path.is_symlink() and not path.exists():
            path.mkdir(mode=0o700, exist_ok=True)
        _check_dir(path, uid)
    except OSError as error:
        raise SystemRefusedError(f"{path}: cannot be made or opened: {error.strerror}")
    return path


def merge(
    user_dir: Path,
    job: int,
    nodes: Sequence[str],
    now_real_ns: int,
    complete_only: bool,
    *,
    keep_parts: bool = False,
    lock_wait_s: float = 300.0,
    step: Step = lambda _: None,
) -> Path | None:
    """Merges the parts that wait for ``job``; the path of its newest trace, None without one.

    With ``complete_only`` nothing is done, and None returned, while parts of some of ``nodes``
    are still missing. ``step`` is called with a name before each step, for tests of crashes.
    Raises :class:`SystemRefusedError` when the directory is unsafe or full, or another merge
    does not end within ``lock_wait_s``; the parts then wait on.
    """
    _check_dir(user_dir, os.geteuid())
    parts_dir = layout.part_file(user_dir, job, "x", 0).parent
    try:
        waiting = _waiting(parts_dir)
        jobs = _jobs(user_dir, job)
        if waiting and complete_only and not complete(waiting, list(jobs.values()), nodes):
            return None
        if parts_dir.is_dir():  # also when a merge was killed after its last part
            with (
                contextlib.suppress(FileNotFoundError),  # another merge emptied the directory
                lock.exclusive(parts_dir / ".lock", lock_wait_s),
            ):
                _Merge(user_dir, parts_dir, job, now_real_ns, step).run(keep_parts)
            _remove_empty(parts_dir)
            jobs = _jobs(user_dir, job)
    except (OSError, TraceError) as error:
        raise SystemRefusedError(f"{user_dir}: traces cannot be merged now: {error}")
    return max(jobs, key=lambda path: jobs[path].begin_real_ns, default=None)


@dataclass(frozen=True)
class _Merge:
    """What is done under the lock."""

    user_dir: Path
    parts_dir: Path
    job: int
    now_real_ns: int
    step: Step

    def run(self, keep_parts: bool) -> None:
        """Merges, in batches, until a look at the disk finds every part in a trace."""
        self.step("locked")
        parts = _parts(self.parts_dir)
        for _ in range(_TRIES):
            self.step("scanned")
            attempts = _attempts(self.user_dir, self.job)
            additions = distribute(parts, attempts, self.user_dir, self.job)
            waiting = {part for _, new in additions for part in new}
            self._link_aliases(attempts)
            if not keep_parts:
                self._remove([part for part in parts if part not in waiting])
            if not waiting:
                return
            first = min((a for a in additions if a[1]), key=lambda a: a[0].number)
            try:
                merge_file.write(first[0], first[1][:_BATCH], self.now_real_ns, self.step)
                parts = [part for part in parts if part in waiting]
            except merge_file.ChangedError:  # the lock does not lock everywhere; see lock.py
                parts = _parts(self.parts_dir)
            except merge_file.SourceError as error:
                _set_aside(error.path, error)
                parts = _parts(self.parts_dir)
        raise SystemRefusedError(f"{self.parts_dir}: traces change faster than they can be merged")

    def _link_aliases(self, attempts: Sequence[Attempt]) -> None:
        for attempt in sorted(attempts, key=lambda a: a.begin_real_ns):
            _link_alias(self.user_dir, attempt)  # in the end the newest one's
        self.step("linked")

    def _remove(self, merged: Sequence[Part]) -> None:
        for part in merged:
            part.path.unlink(missing_ok=True)
            self.step("removed")


def _link_alias(user_dir: Path, trace: Attempt) -> None:
    """``job-<array>_<task>.h5``, ``job-<job>+<offset>.h5`` lead to the newest trace of those."""
    link = layout.alias_link(user_dir, trace.alias)
    if link is None:
        return
    if link.exists() and not link.is_symlink():
        return  # not ours
    temporary = link.with_name(f".{link.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(trace.path.name)
    temporary.rename(link)


def _waiting(parts_dir: Path) -> list[str]:
    """Their names: every node of the job looks, and paths take far longer to be sorted."""
    try:
        return sorted(path.name for path in parts_dir.iterdir() if _PART.fullmatch(path.name))
    except FileNotFoundError:
        return []


def _parts(parts_dir: Path) -> list[Part]:
    """What waits and can be merged."""
    found = []
    for path in map(parts_dir.joinpath, _waiting(parts_dir)):
        try:
            found.append(Part.read(path))
        except NewerTraceError as error:  # a node that was updated earlier will merge it
            _log.warning("%s", error)
        except DamagedTraceError as error:
            _set_aside(path, error)
        except TraceError:
            if path.exists():  # else it was merged meanwhile
                raise
    return found


def _traces(user_dir: Path, job: int) -> list[tuple[Path, int]]:
    """The job's traces that are there, with their numbers, and in their order."""
    pattern = re.compile(rf"job-{job}(?:\.r([1-9][0-9]{{0,5}}))?\.h5")
    found = [(path, pattern.fullmatch(path.name)) for path in user_dir.iterdir()]
    numbered = [(path, int(match.group(1) or 0)) for path, match in found if match]
    return sorted(numbered, key=lambda entry: entry[1])


def _jobs(user_dir: Path, job: int) -> dict[Path, JobInfo]:
    """What they say of the job: all nodes look, and none but who merges looks at the others'."""
    found = {}
    for path, _ in _traces(user_dir, job):
        with contextlib.suppress(DamagedTraceError):
            found[path] = read_job(path)
    return found


def _attempts(user_dir: Path, job: int) -> list[Attempt]:
    """To be called under the lock: what is damaged is set aside."""
    found = []
    for path, number in _traces(user_dir, job):
        try:
            found.append(Attempt.read(path, number))
        except DamagedTraceError as error:
            _set_aside(path, error)
    return found


def _set_aside(path: Path, error: Exception) -> None:
    """Renames what is damaged: it is looked at once, and nobody's data is deleted."""
    names = (path.name + ".damaged" + (f".{nth}" if nth else "") for nth in itertools.count())
    aside = next(new for name in names if not os.path.lexists(new := path.with_name(name)))
    _log.warning("%s; kept as %s", error, aside.name)
    path.rename(aside)


def _remove_empty(parts_dir: Path) -> None:
    """The directories of parts go when nothing is left in them."""
    try:
        parts_dir.rmdir()
        parts_dir.parent.rmdir()
    except OSError:  # not empty, or already gone
        return


def _check_dir(path: Path, uid: int) -> None:
    """Raises :class:`SystemRefusedError` unless nobody but ``uid`` can change what is in it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SystemRefusedError(f"{path}: not a folder that can be used: {error.strerror}")
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    if found.st_uid != uid:
        raise SystemRefusedError(
            f"{path}: belongs to uid {found.st_uid}, not to {uid}: ask its owner to remove it"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SystemRefusedError(f"{path}: others may write to it: chmod go-w {path}")
