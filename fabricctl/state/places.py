"""The directories of a node in which ranks say where they stand; made by root.

One tmpfs of its own holds them, so that what users write there takes nothing from /run.
"""

import ctypes
import errno
import os
from pathlib import Path

from fabricctl import layout

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8  # linux/mount.h
_INODES = 16_384


def prepare(files: layout.NodeFiles, track_mib: int) -> None:
    """The tmpfs; raises OSError. One that is there already stays, with what is in it."""
    files.track.mkdir(mode=0o711, exist_ok=True)
    if os.path.ismount(files.track):
        return
    if not _jobs_see_our_mounts():
        why = "no tmpfs is mounted; enable run-fabricctl-track.mount (docs/tracker.md)"
        raise OSError(errno.ENODEV, why, str(files.track))
    options = f"size={track_mib}m,mode=0711,nr_inodes={_INODES}".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    if libc.mount(b"fabricctl", bytes(files.track), b"tmpfs", flags, options) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"tmpfs not mounted: {os.strerror(number)}", str(files.track))


def _jobs_see_our_mounts() -> bool:
    """Not from a mount namespace of our own, as systemd makes one (ProtectSystem=). Who may not
    even look has none of the rights that mounting takes."""
    try:
        namespaces = [os.readlink(f"/proc/{pid}/ns/mnt") for pid in ("1", "self")]  # noqa: PTH115
    except OSError:
        return False
    return namespaces[0] == namespaces[1]


def jobs(files: layout.NodeFiles) -> list[int]:
    """Jobs that have a directory."""
    try:
        names = [path.name for path in files.track.iterdir()]
    except OSError:
        return []
    return [int(name) for name in names if name.isdecimal()]


def owner_of(path: Path) -> int | None:
    """None when it is not there."""
    try:
        return path.lstat().st_uid
    except OSError:
        return None
