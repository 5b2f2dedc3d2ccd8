"""Talking to a node's init, and entering its namespaces."""

import json
import shlex
import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fabricctl.errors import LabError

_ANSWER_S = 15.0  # starting munged on a machine that is busy took 3 s


class NodeDownError(LabError):
    """Nobody listens: the node is dead or was never started."""


class NodeStuckError(LabError):
    """The node's init lives but does not answer: it is frozen."""


def _connect(control: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_ANSWER_S)
        connection.connect(str(control))
    except TimeoutError:
        connection.close()
        raise NodeStuckError(f"node {control.parent.name} does not answer: frozen?") from None
    except OSError:
        connection.close()
        raise NodeDownError(f"node {control.parent.name} is down") from None
    return connection


def init_pid(control: Path) -> int | None:
    """The node's init as this process sees it, None when the node is down.

    The kernel tells who listens (SO_PEERCRED, unix(7)), translated into our pid namespace: no
    file that could be stale.
    """
    try:
        with _connect(control) as connection:
            size = struct.calcsize("3i")
            given = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    except NodeDownError:
        return None
    pid = int(struct.unpack("3i", given)[0])
    return pid or None


def listen(path: Path) -> socket.socket:
    """A socket by which :func:`init_pid` finds this very process."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    # Whoever asks a frozen node leaves a connection behind in its queue.
    listener.listen(4096)
    return listener


def ask(control: Path, request: Mapping[str, Any], timeout_s: float = _ANSWER_S) -> dict[str, Any]:
    """One request to a node's init (see :mod:`fabricctl.lab.init`).

    Raises :class:`NodeDownError`, :class:`NodeStuckError`, or :class:`LabError` with what the init
    had to say against it.
    """
    node = control.parent.name
    with _connect(control) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.sendall(json.dumps(request).encode() + b"\n")
            line = connection.makefile().readline()
        except TimeoutError:
            raise NodeStuckError(f"node {node} does not answer: frozen?") from None
        except OSError:
            line = ""
    if not line:
        raise NodeDownError(f"node {node} went down")
    reply: dict[str, Any] = json.loads(line)
    if not reply.pop("ok"):
        raise LabError(f"node {node}: {reply['error']}")
    return reply


def enter_argv(
    pid: int,
    entries: Sequence[Path],
    argv: Sequence[str],
    *,
    user: str,
    directory: str,
    environment: Mapping[str, str],
) -> list[str]:
    """A command line that runs ``argv`` inside the node whose init is ``pid``.

    The shell moves itself into the node's control groups first; setpriv ends the command when
    nsenter is killed, which is what a caller's time-out does.
    """
    moves = "".join(f"echo $$ >{shlex.quote(str(entry))} && " for entry in entries)
    inside = [
        *("setpriv", "--reuid", user, "--regid", user, "--init-groups", "--pdeathsig", "KILL"),
        *("env", "-i", "-C", directory),
        *(f"{key}={value}" for key, value in environment.items()),
        *argv,
    ]
    spaces = ("--net", "--uts", "--ipc", "--mount", "--pid", "--cgroup")
    return ["sh", "-c", moves + 'exec "$@"', "sh", "nsenter", "-t", str(pid), *spaces, *inside]
