"""inotify(7) for one directory, without a package: the standard library has none."""

import ctypes
import os
from pathlib import Path

IN_CREATE, IN_MOVED_TO, IN_CLOSE_WRITE = 0x100, 0x80, 0x8
_IN_NONBLOCK, _IN_CLOEXEC, _IN_ONLYDIR = 0o4000, 0o2000000, 0x1000000


class Inotify:
    """Readable when something was written to or renamed into a directory.

    Which file it was does not matter: the caller lists the directory anyway.
    """

    def __init__(self, directory: Path) -> None:
        """Raises OSError, also where the kernel's limits on inotify are used up."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC))
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1 refused")
        mask = IN_MOVED_TO | IN_CLOSE_WRITE | _IN_ONLYDIR
        if libc.inotify_add_watch(self._fd, os.fsencode(directory), mask) < 0:
            number = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(number, f"inotify on {directory}: {os.strerror(number)}")

    def fileno(self) -> int:
        return self._fd

    def drain(self) -> None:
        """Forgets what was told."""
        try:
            while os.read(self._fd, 65_536):
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        os.close(self._fd)
