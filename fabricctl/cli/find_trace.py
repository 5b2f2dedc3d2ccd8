"""From what a user calls a job to the file of its trace, or to the reason why there is none."""

import os
import pwd
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from fabricctl import config, layout
from fabricctl.errors import NotFoundError, SystemRefusedError, UsageError

_JOB = re.compile(r"[1-9][0-9]{0,9}")
SQUEUE_TIMEOUT_S = 10


def find(name: str, attempt: int | None = None) -> Path:
    """The trace of ``name``: a job id, an array task, a component of a heterogeneous
    job or a file.

    ``attempt``: how many requeues came before; None is the newest. Raises
    :class:`NotFoundError` with the reason, :class:`UsageError` for no such kind of name.
    """
    if "/" in name or name.endswith(".h5"):
        return _file(Path(name), attempt)
    if not _JOB.fullmatch(name) and layout.alias_link(Path(), name) is None:
        if Path(name).exists():
            return _file(Path(name), attempt)
        raise UsageError(
            f"job {name[:40]!r}: neither a job id (4711), an array task (12_3), a component "
            "(12+1), nor a file"
        )
    settings = config.load()
    folders = _folders(settings.trace.dir, name)
    found = {folder: traces for folder in folders if (traces := _traces(folder, name))}
    if len(found) > 1:
        owners = ", ".join(sorted(folder.name for folder in found))
        example = next(iter(next(iter(found.values())).values()))
        raise UsageError(f"job {name}: several users have one ({owners}): name the file, {example}")
    if not found:
        raise NotFoundError(f"job {name}: no trace: {_reason(name, folders, settings)}")
    traces = next(iter(found.values()))
    if attempt is None:
        return _newest(traces)
    if attempt not in traces:
        there = ", ".join(str(number) for number in sorted(traces))
        raise NotFoundError(f"job {name}: no trace of attempt {attempt}; there is {there}")
    return traces[attempt]


def _file(path: Path, attempt: int | None) -> Path:
    if attempt is not None:
        raise UsageError("--attempt goes with a job id: a file is one attempt already")
    try:
        path.stat()
    except FileNotFoundError:
        raise NotFoundError(f"trace {path}: no such file") from None
    except OSError as error:
        raise SystemRefusedError(f"trace {path}: {error.strerror}: ask its owner") from None
    return path


def _folders(trace_dir: Path, name: str) -> list[Path]:
    """The users' folders to look in: root's view is everybody's."""
    try:
        if os.geteuid() != 0:
            return [trace_dir / pwd.getpwuid(os.geteuid()).pw_name]
        return sorted(path for path in trace_dir.iterdir() if path.is_dir())
    except FileNotFoundError:
        raise NotFoundError(
            f"job {name}: no trace: the trace directory {trace_dir} does not exist "
            "(trace.dir in fabricctl.toml)"
        ) from None
    except KeyError:
        raise SystemRefusedError(f"job {name}: uid {os.geteuid()} has no user name") from None
    except OSError as error:
        raise SystemRefusedError(f"{trace_dir}: cannot be read: {error.strerror}") from None


def _traces(folder: Path, name: str) -> dict[int, Path]:
    """Attempt -> file."""
    try:
        job = _job_of(folder, name)
        if job is None:
            return {}
        named = [(path, layout.parse_trace_file(path)) for path in folder.iterdir()]
        return {which[1]: path for path, which in named if which and which[0] == job}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SystemRefusedError(f"{folder}: cannot be read: {error.strerror}") from None


def _job_of(folder: Path, name: str) -> int | None:
    """The job id; that of an array's task or of a component stands in the link of its trace."""
    link = layout.alias_link(folder, name)
    if link is None:
        return layout.job_number(name)
    if not link.is_symlink():
        return None
    which = layout.parse_trace_file(link.readlink())
    return which[0] if which else None


def _newest(traces: dict[int, Path]) -> Path:
    """By when the job began: attempts are numbered as their traces came in."""
    if len(traces) == 1:
        return next(iter(traces.values()))
    from fabricctl.errors import TraceError
    from fabricctl_analysis.guard import Limits, guarded

    def begin_real_ns(path: Path) -> int:
        def read() -> dict[str, str]:
            from fabricctl.store.trace import open_trace

            with open_trace(path, partial=True) as trace:
                return {"begin": str(trace.job.begin_real_ns)}

        try:
            return int(guarded(path, read, Limits.of(path))["begin"])
        except TraceError:
            return -1  # damaged: only when there is no other

    return max(traces.values(), key=begin_real_ns)


def _reason(name: str, folders: list[Path], settings: config.Config) -> str:
    """Why there is none, and what to do."""
    running = _state(name)
    if running:
        return f"Slurm says that it is {running}; its trace is made when it ends"
    waiting = sorted(_parts(folders, name))
    if waiting:
        return (
            f"{len(waiting)} node traces wait to be put together in {waiting[0].parent}, as soon "
            f"as a node of the job can; meanwhile: fabricctl report {waiting[0]}"
        )
    where = str(folders[0]) if len(folders) == 1 else f"any folder of {settings.trace.dir}"
    return (
        f"none in {where}. It was not submitted with --fabric-resilience, was another user's, "
        "or no node could write there (root: see node.log_file on its nodes)"
    )


def _state(name: str) -> str | None:
    """Slurm's word for a job that has not ended; None for any other, or when Slurm is away."""
    words = ["squeue", "--noheader", f"--jobs={name}", "--format=%T"]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=SQUEUE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    state = done.stdout.split("\n", 1)[0].strip().lower()
    return state if done.returncode == 0 and state.isalpha() else None


def _parts(folders: list[Path], name: str) -> Iterator[Path]:
    if not _JOB.fullmatch(name):
        return
    for folder in folders:
        parts = layout.part_file(folder, int(name), "x", 0).parent
        try:
            yield from parts.glob("*.h5")
        except OSError:
            continue  # not ours to see
