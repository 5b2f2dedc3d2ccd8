"""An exclusive lock between processes of several machines, on whatever file system there is.

flock(2) where it works: the kernel frees it when the holder dies. NFS maps it to byte-range locks
(nfs(5), local_lock), Lustre has it with the mount option ``flock``; where the call is refused a
lease file stands in, which its holder keeps young and others may take once it is old.

Neither is beyond doubt (Lustre's ``localflock`` locks one machine only and says nothing), so who
works under the lock still looks, before the last step, whether somebody else was faster.
"""

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fabricctl.errors import SystemRefusedError

LEASE_S = 60.0  # attribute caches of NFS (acregmax, 60 s) must not make a young lease look old
_REFRESH_S = LEASE_S / 6
_UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


@contextlib.contextmanager
def exclusive(path: Path, wait_s: float) -> Iterator[None]:
    """Holds the lock named by ``path``, a file that is made when absent and removed at the end.

    Raises :class:`SystemRefusedError` when it is not to be had in ``wait_s``, and
    :class:`FileNotFoundError` when the directory is not there.
    """
    deadline = time.monotonic() + wait_s
    fd = _flocked(path, deadline)
    if fd is None:
        with _lease(path.with_name(path.name + ".lease"), deadline):
            yield
        return
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def _flocked(path: Path, deadline: float) -> int | None:
    """A descriptor that holds the lock, None when this file system has no flock."""
    pause_s = 0.01
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(fd, path):
                return fd
        except BlockingIOError:
            pause_s = _wait(path, deadline, pause_s)
        except OSError as error:
            os.close(fd)
            if error.errno in _UNSUPPORTED:
                return None
            raise
        os.close(fd)  # held by another, or removed by its last holder after our open


def _is_still(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _wait(path: Path, deadline: float, pause_s: float) -> float:
    if time.monotonic() + pause_s > deadline:
        raise SystemRefusedError(f"{path}: held by another process for too long; try again later")
    time.sleep(pause_s)
    return min(pause_s * 2, 1.0)


@contextlib.contextmanager
def _lease(path: Path, deadline: float) -> Iterator[None]:
    pause_s = 0.01
    while True:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            break
        except FileExistsError:
            if not _take_from_the_dead(path):
                pause_s = _wait(path, deadline, pause_s)
    done = threading.Event()
    keeper = threading.Thread(target=_keep_young, args=(fd, done), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
        if _is_still(fd, path):  # else it was taken from us, who seemed dead
            path.unlink(missing_ok=True)
        os.close(fd)


def _keep_young(fd: int, done: threading.Event) -> None:
    while not done.wait(_REFRESH_S):
        with contextlib.suppress(OSError):
            os.utime(fd)


def _take_from_the_dead(path: Path) -> bool:
    """Removes a lease that was not renewed; True when the name may be free now."""
    try:
        seen = path.lstat()
        if _server_time(path) - seen.st_mtime < LEASE_S:
            return False
        grave = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}")
        path.rename(grave)  # of several who try, one succeeds
    except FileNotFoundError:
        return True
    if not os.path.samestat(seen, grave.lstat()):  # somebody else's new one: give it back
        with contextlib.suppress(FileExistsError):
            os.link(grave, path)
    grave.unlink()
    return True


def _server_time(path: Path) -> float:
    """The file server's clock, which is the one that stamps leases."""
    probe = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}.now")
    probe.unlink(missing_ok=True)
    probe.touch(0o600, exist_ok=False)
    try:
        return probe.lstat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
