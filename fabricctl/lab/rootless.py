"""The lab without root: everything of it inside one user namespace per user.

A process, the keeper, holds a user, mount, network, ipc and pid namespace in which the user is
root and 65,535 further ids are at hand (newuidmap(1), subuid(5)). Every command enters them and
then does what it would do as root. The keeper is found by its socket; its end is the end of all
of the user's labs.
"""

import contextlib
import fcntl
import os
import pwd
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fabricctl.errors import FabricError, LabError, SystemRefusedError
from fabricctl.lab import control, kernel

_NEEDED_IDS = 65_535  # Debian's system users go up to 65534
_SETUP_S = 10.0

LACKS = (
    "without root: no control groups (a node is frozen by signals, a job's memory is the sum of "
    "its processes), no real-time priority"
)


def required() -> bool:
    """Whether this process is not root and has to enter the user's own namespaces."""
    return os.geteuid() != 0


def run(words: Sequence[str], *, create: bool, finish: bool) -> int:
    """Runs ``fabricctl lab WORDS`` inside the user's namespaces; its exit status.

    ``create``: make them when they are not there; ``finish``: end them when no lab is left.
    Raises :class:`LabError` or :class:`SystemRefusedError`.
    """
    path = _socket_path()
    pid = control.init_pid(path)
    if pid is None and create:
        try:
            with _alone(path):
                pid = control.init_pid(path) or _make_keeper(path)
        except FabricError:
            _tidy(path)
            raise
    if pid is None:
        _tidy(path)
        if finish:
            return 0
        raise LabError("no lab of yours is up (fabricctl lab up; root's labs are root's alone)")
    program = [sys.executable, "-m", "fabricctl.cli.main", "lab", *words]
    there = ["env", "-C", str(Path.cwd()), *program]
    status = subprocess.run(_inside(pid, there), check=False).returncode
    if finish:
        with _alone(path):
            _end_if_empty(pid)
        _tidy(path)
    return status if status >= 0 else 128 - status


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One of the user's commands at a time makes or ends the keeper."""
    fd = os.open(path.with_name("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _end_if_empty(pid: int) -> None:
    some_lab = _inside(pid, ["test", "-d", "/run/fabricctl-lab"])
    if subprocess.run(some_lab, check=False).returncode == 0:
        return
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            select.select([fd], [], [], _SETUP_S)  # readable once it has ended
        finally:
            os.close(fd)


def _tidy(path: Path) -> None:
    """Takes the directory away when there is no keeper."""
    if control.init_pid(path) is None:
        for name in ("keeper", "lock"):
            path.with_name(name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def _inside(pid: int, argv: Sequence[str]) -> list[str]:
    return ["nsenter", "-t", str(pid), "-U", "-m", "-n", "-i", "-p", *argv]


def _socket_path() -> Path:
    uid = os.getuid()
    run_dir = Path(f"/run/user/{uid}")
    parent = run_dir / "fabricctl-lab" if run_dir.is_dir() else Path(f"/tmp/fabricctl-lab-{uid}")  # noqa: S108
    parent.mkdir(mode=0o700, exist_ok=True)
    state = parent.lstat()
    if state.st_uid != uid or state.st_mode & 0o077:
        raise SystemRefusedError(f"{parent}: belongs to somebody else, or others may write to it")
    return parent / "keeper"


def _make_keeper(path: Path) -> int:
    """Forks the keeper and waits until it stands."""
    ranges = {file: _sub_ids(Path("/etc", file)) for file in ("subuid", "subgid")}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.settimeout(_SETUP_S)
    child = os.fork()
    if child == 0:
        ours.close()
        _become_keeper(theirs, path)
    theirs.close()
    with ours:
        _expect(ours, b"unshared")
        _map(child, "newuidmap", os.getuid(), ranges["subuid"])
        _map(child, "newgidmap", os.getgid(), ranges["subgid"])
        ours.sendall(b"mapped\n")
        _expect(ours, b"ready")
    os.waitpid(child, 0)
    pid = control.init_pid(path)
    if pid is None:
        raise LabError("lab: its keeper died at once")
    return pid


def _expect(connection: socket.socket, word: bytes) -> None:
    try:
        said = connection.recv(1000)
    except TimeoutError:
        said = b""
    if said.strip() != word:
        why = said.decode(errors="replace").strip() or "it died"
        raise SystemRefusedError(
            f"lab: needs root, or user namespaces, which this machine does not give ({why})"
        )


def _sub_ids(file: Path) -> int:
    """The first of the user's subordinate ids."""
    user = pwd.getpwuid(os.getuid()).pw_name
    with contextlib.suppress(FileNotFoundError):
        for line in file.read_text().splitlines():
            fields = line.split(":")
            if fields[0] in (user, str(os.getuid())) and int(fields[2]) >= _NEEDED_IDS:
                return int(fields[1])
    raise SystemRefusedError(
        f"lab: needs root, or {_NEEDED_IDS} ids for {user} in {file}: as root, apt-get install "
        f"uidmap; usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
    )


def _map(pid: int, program: str, own: int, first: int) -> None:
    words = ["0", str(own), "1", "1", str(first), str(_NEEDED_IDS)]
    try:
        done = subprocess.run(
            [program, str(pid), *words], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise SystemRefusedError(f"lab: needs root, or {program}: apt-get install uidmap") from None
    if done.returncode:
        raise SystemRefusedError(f"lab: needs root: {program}: {done.stderr.strip()[:200]}")


def _become_keeper(parent: socket.socket, path: Path) -> None:
    """In the child: never returns."""
    try:
        os.setsid()
        # A fork takes the lock's file along, and would hold the lock for as long as it lives.
        os.closerange(3, parent.fileno())
        os.closerange(parent.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        kernel.unshare(
            kernel.CLONE_NEWUSER
            | kernel.CLONE_NEWNS
            | kernel.CLONE_NEWNET
            | kernel.CLONE_NEWIPC
            | kernel.CLONE_NEWPID
        )
        parent.sendall(b"unshared\n")
        if parent.recv(100).strip() != b"mapped":
            os._exit(1)
        if os.fork():
            os._exit(0)
        os.setgroups([])
        os.setgid(0)
        os.setuid(0)
        listener = control.listen(path)
        _own_tree()
        parent.sendall(b"ready\n")
        parent.close()
        _keep(listener)
    except (SystemRefusedError, OSError) as error:
        with contextlib.suppress(OSError):
            parent.sendall(str(error).encode())
    os._exit(1)


def _own_tree() -> None:
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("run", "/run", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755")
    kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)


def _keep(listener: socket.socket) -> None:
    """Process 1 of the user's labs: collects what their commands leave behind."""
    for name in (0, 1, 2):
        os.dup2(os.open("/dev/null", os.O_RDWR), name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        connection.close()
