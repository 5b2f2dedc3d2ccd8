"""The commands of nodes: their processes outlive the controller, and leave their result in a file.

``work/<node>.<n>/``: ``status`` (the exit status, there when it has ended), ``log`` (its output),
``pid``, and ``lock``, which its process holds: so a controller that starts anew knows whether the
command of the one before still runs.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fabricctl.errors import SystemRefusedError
from fabricctl.fleet.maintenance.decide import Outcome

# $1 is the directory, what follows is the command; only this shell keeps the lock (descriptor 9).
_SCRIPT = """\
d=$1; shift
echo $$ > "$d/pid"
"$@" > "$d/log" 2>&1 < /dev/null 9>&-
s=$?
echo $s > "$d/.status" && mv "$d/.status" "$d/status"
"""


def start(directory: Path, argv: Sequence[str], node: str) -> subprocess.Popen[bytes]:
    """Starts the command of a node in a session of its own."""
    words = [word.replace("{node}", node) for word in argv]
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.set_inheritable(fd, True)
            # The lock belongs to the open file: the child's copy, on 9, keeps it.
            line = f'exec 9<&{fd}; [ {fd} = 9 ] || exec {fd}<&-; exec sh -c "$0" sh "$@"'
            return subprocess.Popen(
                ["/bin/bash", "-c", line, _SCRIPT, str(directory), *words],
                pass_fds=[fd], start_new_session=True, cwd="/",
                env={**os.environ, "FABRIC_NODE": node},
            )  # fmt: skip
        finally:
            os.close(fd)
    except OSError as error:
        raise SystemRefusedError(f"{node}: {words[0]}: cannot be started: {error}") from None


def outcome(directory: Path) -> Outcome:
    """How the command stands."""
    try:
        return "ok" if int((directory / "status").read_text()) == 0 else "failed"
    except (FileNotFoundError, ValueError):
        pass
    if _locked(directory / "lock"):
        return "running"
    if (directory / "status").exists():
        return outcome(directory)  # it ended between the two looks
    # Its shell writes the pid before anything else, with the lock in its hands.
    return "lost" if (directory / "pid").exists() else "absent"


def last_words(directory: Path) -> str:
    """The last line of its output, and its status, as Slurm takes them for a reason."""
    try:
        status = (directory / "status").read_text().strip()
    except OSError:
        status = "unknown"
    try:
        with (directory / "log").open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 4096))
            lines = stream.read().decode(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    last = "".join(c if c.isprintable() else " " for c in lines[-1][:200]) if lines else ""
    return f"status {status}" + (f": {last}" if last else "")


def end(directory: Path) -> None:
    """Ends a command that is late: its whole session."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((directory / "pid").read_text())
        if _locked(directory / "lock"):
            os.killpg(pid, signal.SIGTERM)


def _locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
