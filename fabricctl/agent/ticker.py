"""A periodic timer of the kernel behind a descriptor (timerfd_create(2)).

It keeps its own grid, so nothing drifts, and it wakes the agent more cheaply than a time-out that
is worked out anew for every sample.
"""

import ctypes
import os
import struct

from fabricctl.errors import SystemRefusedError

_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK, _TFD_CLOEXEC = 0o4000, 0o2000000
_TIMES = struct.Struct("=4q")  # itimerspec: interval and first expiry, each s and ns


class Ticker:
    """Readable at every point of time; the first is at once."""

    def __init__(self, period_ns: int) -> None:
        """Raises :class:`SystemRefusedError`."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC))
        times = _TIMES.pack(*divmod(period_ns, 1_000_000_000), 0, 1)
        if self._fd < 0 or libc.timerfd_settime(self._fd, 0, times, None) != 0:
            raise SystemRefusedError(f"timerfd: {os.strerror(ctypes.get_errno())}")

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)
