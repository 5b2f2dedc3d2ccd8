"""The file beneath an HDF5 file that is being written, so that HDF5 never meets a full disk.

HDF5 does not survive a failed write: objects stay half open, errors surface from destructors and
the process may crash at its end (measured with HDF5 2.0: docs/decisions/0001). So a write that
fails is kept in memory and remembered, HDF5 closes in peace, and the caller then throws the file
away.
"""

import io
import os

_ENOUGH_BYTES = 256 << 20  # whoever writes on for that long has not looked at ``error``


class Sink(io.RawIOBase):
    """A seekable file over a descriptor, which it does not close, for h5py's fileobj driver."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.error: OSError | None = None
        self._fd = fd
        self._pos = 0
        self._unwritten: list[tuple[int, bytes]] = []
        self._kept_bytes = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            ends = (at + len(data) for at, data in self._unwritten)
            offset += max([os.fstat(self._fd).st_size, *ends])
        self._pos = offset
        return self._pos

    def tell(self) -> int:
        return self._pos

    def write(self, data: "bytes | memoryview", /) -> int:  # type: ignore[override]
        view = memoryview(data)
        at, size = self._pos, len(view)
        while view and not self.error:
            try:
                done = os.pwrite(self._fd, view, at)
            except OSError as error:
                self.error = error
                break
            view, at = view[done:], at + done
        if view:
            self._keep(at, bytes(view))
        self._pos += size
        return size

    def readinto(self, buffer: "bytearray | memoryview", /) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        got = os.preadv(self._fd, [view], self._pos)
        if self._unwritten:
            view[got:] = bytes(len(view) - got)
            got = max([got, *(self._patch(view, at, data) for at, data in self._unwritten)])
        self._pos += got
        return got

    def truncate(self, size: int | None = None, /) -> int:
        size = self._pos if size is None else size
        if not self.error:
            try:
                os.ftruncate(self._fd, size)
            except OSError as error:
                self.error = error
        return size

    def _keep(self, at: int, data: bytes) -> None:
        self._kept_bytes += len(data)
        if self._kept_bytes <= _ENOUGH_BYTES:
            self._unwritten.append((at, data))

    def _patch(self, view: memoryview, at: int, data: bytes) -> int:
        """Lays what was not written over what was read; the end of it in ``view``."""
        begin = max(at, self._pos)
        end = min(at + len(data), self._pos + len(view))
        if begin < end:
            view[begin - self._pos : end - self._pos] = data[begin - at : end - at]
            return end - self._pos
        return 0
