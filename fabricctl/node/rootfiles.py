"""What root does to files in directories that others may write to: never through a link, never
blocking on a fifo, never more than was expected."""

import os
import secrets
import stat
from pathlib import Path

MAX_BYTES = 128 * 1024  # twice what fields allow
MOST_DIRECTORIES = 65_536  # of a tree to remove: somebody may make them as fast as they go


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
        _empty(fd)
    finally:
        os.close(fd)
    try:
        path.rmdir()
    except FileNotFoundError:
        return


def _empty(tree: int) -> None:
    """However deep its owner let directories nest: each one's are brought up to the first level."""
    waiting = _unlink_files(tree)
    for number, name in enumerate(waiting):  # which grows
        if number == MOST_DIRECTORIES:
            raise OSError(0, f"more than {MOST_DIRECTORIES} directories")
        inner = os.open(
            name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=tree
        )
        try:
            for below in _unlink_files(inner):
                waiting.append(secrets.token_hex(16))
                os.rename(below, waiting[-1], src_dir_fd=inner, dst_dir_fd=tree)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=tree)


def _unlink_files(directory: int) -> list[str]:
    """What is left: directories."""
    left = []
    for name in os.listdir(directory):
        try:
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            continue
        except (IsADirectoryError, PermissionError):
            left.append(name)
    return left
