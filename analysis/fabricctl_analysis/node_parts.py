"""All nodes' parts of a report; of wide jobs by all cores, each process reading its own nodes."""

import ctypes
import os
import pickle
import signal
import sys
import tempfile
from itertools import groupby
from pathlib import Path
from typing import IO

from fabricctl.errors import FabricError
from fabricctl.store import schema
from fabricctl.store.trace import Damage, Trace, open_trace
from fabricctl_analysis.load import node_rows
from fabricctl_analysis.summarise import Grids, NodePart, node_part

# A node of a day takes 0.1 s of CPU, a process that is forked as much again to hand over its parts.
WORTH_NODES = 32
MOST = 8  # processes: each may use what one may (guard.Limits)
_PR_SET_PDEATHSIG = 1  # prctl(2)

Made = dict[str, NodePart]


def parts_of(trace: Trace, width: str | None, grids: Grids, names: tuple[str, ...]) -> list[
    NodePart
]:  # fmt: skip
    """In the trace's order; what is damaged is told by ``trace``."""
    nodes = [name for name, _ in groupby(info.node for info in trace.nodes.values())]
    # The first node's samples say how fine the windows are, its job clock what all are shifted to.
    first = nodes.index(_first_clocked(trace)) + 1 if nodes else 0
    made = _made(trace, width, grids, nodes[:first], names)
    while grids.whole is not None and grids.grid is None and first < len(nodes):
        made |= _made(trace, width, grids, nodes[first : first + 1], names)
        first += 1
    rest = nodes[first:]
    count = min(len(os.sched_getaffinity(0)), MOST, max(1, len(rest) // WORTH_NODES))
    shares = [rest[nth::count] for nth in range(count)]
    others = [_Worker(trace.path, width, grids, share, names) for share in shares[1:]]
    try:
        made |= _made(trace, width, grids, shares[0], names)
        for one in others:
            parts, damage = one.result()
            made |= parts
            trace.damage.extend(damage)
    finally:
        for one in others:
            one.end()
    return [made[node] for node in nodes if node in made]


def _first_clocked(trace: Trace) -> str:
    """The first node that had job time, or else the first."""
    clocked = (key for key in trace.nodes if trace.has(key, schema.JOB_CLOCK))
    return trace.nodes[next(clocked, next(iter(trace.nodes)))].node


def _made(
    trace: Trace, width: str | None, grids: Grids, nodes: list[str], names: tuple[str, ...]
) -> Made:
    rows = node_rows(trace, width, frozenset(nodes))
    parts: Made = {}
    for one, node in zip(rows, nodes, strict=False):
        parts[node] = node_part(one, grids, names)
    return parts


class _Worker:
    """A child that reads some nodes. It is as we are: same user, same limits, and ends with us."""

    def __init__(
        self, path: Path, width: str | None, grids: Grids, nodes: list[str], names: tuple[str, ...]
    ) -> None:
        # A file and not a pipe: it is read when our own share is done.
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self._pid: int | None = os.fork()
        if self._pid == 0:
            status = 1
            try:
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() == parent:
                    pickle.dump(_read(path, width, grids, nodes, names), self._file, protocol=5)
                    self._file.flush()
                    status = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stderr.flush()
                os._exit(status)

    def result(self) -> tuple[Made, list[Damage]]:
        """Raises what reading raised; dies of the signal that the child died of."""
        assert self._pid is not None
        status = os.waitpid(self._pid, 0)[1]
        self._pid = None
        if os.WIFSIGNALED(status):
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
            os.kill(os.getpid(), os.WTERMSIG(status))
        if status:
            raise SystemExit(1)  # the child has shown its traceback
        self._file.seek(0)
        found = pickle.load(self._file)  # noqa: S301  what we wrote ourselves
        if isinstance(found, BaseException):
            raise found
        parts, damage = found
        return parts, damage

    def end(self) -> None:
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        self._file.close()


def _read(
    path: Path, width: str | None, grids: Grids, nodes: list[str], names: tuple[str, ...]
) -> tuple[Made, list[Damage]] | FabricError | MemoryError:
    try:
        # HDF5 keeps what it knows of an open file in memory: each process opens it anew.
        with open_trace(path, partial=True) as trace:
            known = len(trace.damage)
            return _made(trace, width, grids, nodes, names), trace.damage[known:]
    except (FabricError, MemoryError) as error:
        return error
