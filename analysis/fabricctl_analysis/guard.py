"""Reads a trace in a child process with limits: what is in it may harm that child, never us.

HDF5 has crashed and looped on damaged files, and a small file can declare more data than there is
memory. The child hands texts over and nothing else (no pickles: the reader may be root). When root
reads, the child becomes the file's owner first.
"""

import faulthandler
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fabricctl import errors
from fabricctl.errors import FabricError, TraceError

# A report of 1,024 nodes x 24 h takes 1.2 GB (bench/report.py); a whole table may be 8 GiB
# (docs/data-format.md), and such a trace is read with --no-limits.
MEMORY_BYTES = 3 << 30
# Time goes with the file's size, above what Python and Bokeh need to start: a damaged file of a few
# kilobytes that makes HDF5 loop is told within two minutes, on a busy machine too.
CPU_S = 60
CPU_S_PER_MB = 0.5
_WALL_PER_CPU = 4  # the machine may be shared

Texts = Mapping[str, str]


@dataclass(frozen=True)
class Limits:
    """Of one child; None: as much as there is."""

    memory_bytes: int | None
    cpu_s: int | None

    @classmethod
    def of(cls, *paths: Path) -> "Limits":
        """For reading these files."""
        size = sum(path.stat().st_size for path in paths if path.exists())
        return cls(MEMORY_BYTES, int(CPU_S + CPU_S_PER_MB * size / 1e6))


NO_LIMITS = Limits(None, None)


def guarded(path: Path, work: Callable[[], Texts], limits: Limits) -> Texts:
    """What ``work`` returns, done in a child.

    Raises what ``work`` raised of :class:`FabricError`, and :class:`TraceError` for a child that
    crashed or ran into its limits. Any other exception is our bug: its traceback is shown.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(path, work, limits, writer)
    os.close(writer)
    try:
        answer = _receive(reader, None if limits.cpu_s is None else limits.cpu_s * _WALL_PER_CPU)
    finally:
        os.close(reader)
        if not _over(child):
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    return _texts(path, answer, status, limits)


def _over(child: int) -> bool:
    """Whether it has ended by itself, or is about to: it ends right after its answer."""
    for _ in range(100):
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(0.01)
    return False


def _receive(fd: int, wall_s: float | None) -> bytes:
    import select

    deadline_s = None if wall_s is None else time.monotonic() + wall_s
    readable = select.poll()  # select() ends at descriptor 1023
    readable.register(fd, select.POLLIN)
    found = bytearray()
    while True:
        left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
        if not readable.poll(None if left_s is None else left_s * 1000):
            return b""
        piece = os.read(fd, 1 << 20)
        if not piece:
            return bytes(found)
        found += piece


def _texts(path: Path, answer: bytes, status: int, limits: Limits) -> Texts:
    if os.WIFSIGNALED(status):
        raise TraceError(f"trace {path}: {_killed(os.WTERMSIG(status), limits)}")
    if status or not answer:  # the child has shown its traceback
        raise SystemExit(1)
    said: dict[str, dict[str, str]] = json.loads(answer)
    if failed := said.get("error"):
        kind = getattr(errors, failed["kind"], TraceError)
        error: FabricError = kind(failed["text"])
        error.exit_status = int(failed["status"])
        raise error
    return said["texts"]


def _killed(number: int, limits: Limits) -> str:
    if number in (signal.SIGXCPU, signal.SIGKILL):
        return (
            f"not read within {limits.cpu_s} s: damaged, or very large (then --no-limits reads it)"
        )
    return f"damaged: reading it ended with {signal.Signals(number).name}"


def _child(path: Path, work: Callable[[], Texts], limits: Limits, writer: int) -> None:
    status = 1
    try:
        _quiet_libraries()
        _restrict(path, limits)
        try:
            answer: dict[str, object] = {"texts": work()}
        except FabricError as error:
            kind = type(error).__name__
            answer = {"error": {"kind": kind, "text": str(error), "status": error.exit_status}}
        except MemoryError:
            answer = {"error": {"kind": "TraceError", "status": 65, "text": (
                f"trace {path}: needs more than {MEMORY_BYTES >> 30} GiB of memory: damaged, or "
                "very large (then --no-limits reads it)"
            )}}  # fmt: skip
        with open(writer, "wb") as pipe:
            pipe.write(json.dumps(answer).encode("utf-8", "replace"))
        status = 0
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def _quiet_libraries() -> None:
    """HDF5 itself prints on descriptor 2 what it thinks of a forged file; what Python has to say
    still comes through."""
    told = sys.stderr
    try:
        own = told is sys.__stderr__ and told is not None and told.fileno() == 2
    except (OSError, ValueError):
        own = False
    if own:
        sys.stderr.flush()
        sys.stderr = os.fdopen(os.dup(2), "w", errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _restrict(path: Path, limits: Limits) -> None:
    faulthandler.disable()  # a crash is told in one line
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # numpy's BLAS maps a buffer of 32 MB and more for each core: a big login node would have none
    # of the memory left. Nothing here multiplies matrices.
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    if limits.memory_bytes is not None:
        _lower(resource.RLIMIT_AS, _mapped_bytes() + limits.memory_bytes)
    if limits.cpu_s is not None:
        _lower(resource.RLIMIT_CPU, limits.cpu_s)
    _become_owner(path)


def _lower(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (value if hard < 0 else min(value, hard), hard))


def _mapped_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _become_owner(path: Path) -> None:
    """Root has no business in a file that somebody else wrote: its owner can read it as well."""
    if os.geteuid() != 0:
        return
    try:
        owner = path.stat()
    except OSError:
        return  # told by who opens it
    if owner.st_uid == 0:
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        path.open("rb").close()
    except OSError:  # in a folder that its owner may not enter
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
        return
    os.seteuid(0)
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)
