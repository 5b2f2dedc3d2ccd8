"""One lock a lab: commands that change it do so one after the other."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from fabricctl.lab.spec import BASE, LabPaths


@contextmanager
def locked(paths: LabPaths) -> Iterator[None]:
    """Holds the lab's lock; the kernel lets it go when the holder dies, however that happens."""
    while True:
        BASE.mkdir(parents=True, exist_ok=True, mode=0o755)
        try:
            fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # a `down` took the directory away between the two lines
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # A `down` may have removed the file while we waited: then the lock is nobody's.
            if _is_same(fd, paths):
                yield
                return
        finally:
            os.close(fd)


def _is_same(fd: int, paths: LabPaths) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.fstat(fd).st_ino == paths.lock.stat().st_ino
    return False
