"""A file system without a free block, without writing one: a tmpfs shrunk to what it holds."""

import os
from pathlib import Path

from fabricctl.errors import LabError, SystemRefusedError
from fabricctl.lab import kernel

SIZES = {"spool": "256m", "disk": "1g", "shared": "4g"}
_FILLER = ".filler"  # an empty tmpfs cannot be shrunk to nothing: size=0 means no limit


def mount_tmpfs(path: Path, mode: str) -> None:
    """A tmpfs of the size that its name has, unless there is one already."""
    path.mkdir(exist_ok=True)
    if not kernel.is_mount(path):
        flags = kernel.MS_NOSUID | kernel.MS_NODEV
        options = f"size={SIZES[path.name]},mode={mode}"
        kernel.mount("fabricctl-lab", path, "tmpfs", flags, options)


def fill(path: Path) -> None:
    """Leaves no block free. Files that are deleted later make room again, as on any disk."""
    for _ in range(100):
        usage = os.statvfs(path)
        used = (usage.f_blocks - usage.f_bfree) * usage.f_frsize
        if used == 0:
            (path / _FILLER).write_bytes(b"\0")
            continue
        try:
            _resize(path, str(used))
        except SystemRefusedError:
            continue  # somebody wrote meanwhile: it holds more than we asked for
        return
    raise LabError(f"{path}: grows faster than it can be filled")


def restore(path: Path) -> None:
    """Gives the file system its size back."""
    _resize(path, SIZES[path.name])
    (path / _FILLER).unlink(missing_ok=True)


def _resize(path: Path, size: str) -> None:
    flags = kernel.MS_REMOUNT | kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("fabricctl-lab", path, "tmpfs", flags, f"size={size}")
