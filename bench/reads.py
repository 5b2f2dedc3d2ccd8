"""What is read in a file system, by anybody on this machine, told by fanotify(7)."""

import ctypes
import os
import struct
import threading
from pathlib import Path

_EVENT = struct.Struct("=IBBHQii")
_ADD, _FILESYSTEM, _ACCESS = 0x1, 0x100, 0x1
_CLOEXEC, _NOFOLLOW_CWD = 0x1, -100


class Reads:
    """Needs root; use as a context manager. ``bytes`` grows by a file's whole size with each look
    into it, if its name ends so: the kernel does not tell how much was read."""

    def __init__(self, of: Path, ending: str) -> None:
        """Raises OSError."""
        self._ending = ending
        self.bytes = 0
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(libc.fanotify_init(_CLOEXEC, os.O_RDONLY | os.O_CLOEXEC))
        place = os.fsencode(of)
        mask = ctypes.c_uint64(_ACCESS)
        if self._fd < 0 or libc.fanotify_mark(
            self._fd, _ADD | _FILESYSTEM, mask, _NOFOLLOW_CWD, place
        ):
            raise OSError(ctypes.get_errno(), f"fanotify on {of}")
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            try:
                data = os.read(self._fd, 65_536)
            except OSError:
                return
            while data:
                length, *_, fd, _pid = _EVENT.unpack_from(data)
                data = data[length:]
                if fd >= 0:
                    self._take(fd)

    def _take(self, fd: int) -> None:
        try:
            if Path(f"/proc/self/fd/{fd}").readlink().name.endswith(self._ending):
                self.bytes += os.fstat(fd).st_size
        finally:
            os.close(fd)

    def __enter__(self) -> "Reads":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
