"""The node's log: one file for the node service and all agents, kept short by a rate limit.

Lines are appended with single writes (O_APPEND), so that several processes can share the file;
rotate it with ``copytruncate``, agents keep it open.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from fabricctl.store.schema import Severity

MAX_LINES_PER_MINUTE = 120  # of one process; a broken node must not fill its disk with our words
REPEAT_S = 30.0  # the same line again within this time, and up to a minute more, is counted


class NodeLog:
    """``write(who, text)``; never raises, and never holds a secret: callers pass none."""

    def __init__(self, path: Path | None, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._fd = 2 if path is None else _open(path)
        self._minute_begin_s = clock_s()
        self._lines = 0
        self._dropped = 0
        self._seen: dict[tuple[str, str], tuple[float, int, Severity]] = {}

    def fileno(self) -> int:
        return self._fd

    def write(self, who: str, text: str, severity: Severity = Severity.INFO) -> None:
        """One line, unless it was said within the last minute or too much was."""
        now_s = self._clock_s()
        if now_s - self._minute_begin_s >= 60:
            self._new_minute(now_s)
        if (who, text) in self._seen:
            said_s, times, _ = self._seen[who, text]
            self._seen[who, text] = (said_s, times + 1, severity)
            return
        self._seen[who, text] = (now_s, 0, severity)
        if self._lines >= MAX_LINES_PER_MINUTE:
            self._dropped += 1
            return
        self._lines += 1
        self._put(who, text, severity)

    def _new_minute(self, now_s: float) -> None:
        self._minute_begin_s, self._lines = now_s, 0
        for (who, text), (said_s, times, severity) in list(self._seen.items()):
            if now_s - said_s >= REPEAT_S:
                del self._seen[who, text]
                if times:
                    self._put(who, f"{text} (and {times} times more)", severity)
        if self._dropped:
            self._put("log", f"{self._dropped} lines left out in a minute", Severity.WARNING)
            self._dropped = 0

    def _put(self, who: str, text: str, severity: Severity) -> None:
        now_s = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s))
        clean = "".join(char if char.isprintable() else "?" for char in text[:2000])
        line = f"{stamp}.{int(now_s % 1 * 1e6):06d}Z {severity.name} {who}: {clean}\n"
        try:
            os.write(self._fd, line.encode(errors="replace"))
        except OSError:
            pass  # a full disk; there is nowhere left to say so


def _open(path: Path) -> int:
    try:
        return os.open(
            path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640
        )
    except OSError as error:
        os.write(2, f"fabricctl: log {path}: {error.strerror}; using stderr\n".encode())
        return 2
