"""A node that stands still: by its control group, or by signals where there is none."""

import contextlib
import os
import signal
import time
from pathlib import Path

from fabricctl.errors import LabError
from fabricctl.lab import cgroups, control
from fabricctl.lab.spec import LabPaths

_STOPPED = "Tt"  # by a signal; "t": by a debugger


def freeze(paths: LabPaths, node: str) -> None:
    """Stops every process of a node. Raises :class:`LabError` when it is down."""
    pid = control.init_pid(paths.node(node).control)
    if pid is None:
        raise control.NodeDownError(f"node {node} is down")
    if not cgroups.freeze(paths.name, node, True):
        _signal_until(pid, signal.SIGSTOP, stopped=True)


def thaw(paths: LabPaths, node: str) -> None:
    """Lets a node go on; content with one that is not frozen, or down."""
    cgroups.freeze(paths.name, node, False)
    pid = control.init_pid(paths.node(node).control)
    if pid is not None and process_state(pid) in _STOPPED:
        _signal_until(pid, signal.SIGCONT, stopped=False)


def is_frozen(paths: LabPaths, node: str) -> bool:
    """Whether the node stands still."""
    if cgroups.is_frozen(paths.name, node):
        return True
    pid = control.init_pid(paths.node(node).control)
    return pid is not None and process_state(pid) in _STOPPED


def process_state(pid: int) -> str:
    """The letter of /proc/PID/stat (proc(5)); X when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return "X"


def _signal_until(init: int, number: int, *, stopped: bool) -> None:
    """Signals all processes of a pid namespace until each is as wanted: one may fork meanwhile."""
    for _ in range(100):
        pids = _members(init)
        states = [process_state(pid) for pid in pids]
        if all(state in "TtZX" if stopped else state not in _STOPPED for state in states):
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(0.002)
    raise LabError(f"the node of process {init} does not {'stand still' if stopped else 'go on'}")


def _members(init: int) -> list[int]:
    try:
        wanted = Path(f"/proc/{init}/ns/pid").stat().st_ino
    except OSError:
        return []
    found: list[int] = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                if (path / "ns" / "pid").stat().st_ino == wanted:
                    found.append(int(path.name))
    return found
