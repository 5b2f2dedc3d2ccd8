"""What root does to files in directories that others may write to: never through a link, never
blocking on a fifo, never more than was expected."""

import os
import stat
from pathlib import Path

MAX_BYTES = 128 * 1024  # twice what fields allow


def read_small(path: Path, owner: int) -> bytes:
    """A regular file of ``owner``; raises OSError for anything else."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != owner:
            raise OSError(0, f"not a regular file of uid {owner}")
        if found.st_size > MAX_BYTES:
            raise OSError(0, f"more than {MAX_BYTES} bytes")
        return os.read(fd, MAX_BYTES)
    finally:
        os.close(fd)


def write_new(path: Path, data: bytes, mode: int, uid: int, gid: int) -> None:
    """A file that was not there before; raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        os.fchown(fd, uid, gid)
        os.fchmod(fd, mode)
        if os.write(fd, data) != len(data):
            raise OSError(0, f"{path}: not written whole")
    finally:
        os.close(fd)


def make_dir(path: Path, mode: int, uid: int = 0, gid: int = 0) -> None:
    """A directory with exactly this owner and mode; one that is there is put right.

    Raises OSError, also when something else than a directory has the name.
    """
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if (found.st_uid, found.st_gid) != (uid, gid):
            os.fchown(fd, uid, gid)
        if stat.S_IMODE(found.st_mode) != mode:
            os.fchmod(fd, mode)
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """A directory and what is in it, links themselves and not what they lead to.

    What is gone already is no error; raises OSError for what cannot be removed.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        path.unlink(missing_ok=True)
        return
    try:
        _empty(fd, depth=0)
    finally:
        os.close(fd)
    try:
        path.rmdir()
    except FileNotFoundError:
        return


def _empty(directory: int, depth: int) -> None:
    if depth > 8:
        raise OSError(0, "directories nest too deep")
    for name in os.listdir(directory):
        try:
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            continue
        except (IsADirectoryError, PermissionError):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(name, flags, dir_fd=directory)
            try:
                _empty(inner, depth + 1)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=directory)
