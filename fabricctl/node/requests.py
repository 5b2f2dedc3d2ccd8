"""What prolog and epilog ask of the node service: files in run_dir/requests (docs/envelope.md)."""

import os
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fabricctl.errors import FabricError
from fabricctl.node import rootfiles
from fabricctl.records import JobStart

_NAME = re.compile(r"([1-9][0-9]{0,9})\.(start|stop)")
WRITING_S = 5.0  # a writer needs a millisecond between making and closing its file


@dataclass(frozen=True)
class Request:
    """One file that waits."""

    job: int
    what: str  # "start" or "stop"
    path: Path
    written_real_ns: int


def waiting(directory: Path, refuse: Callable[[Path, str], None]) -> list[Request]:
    """The requests in the order they were written; ``refuse`` is called for what is none.

    Of a start and a stop written in the same clock tick the start is first.
    """
    found = []
    for entry in os.scandir(directory):
        path = directory / entry.name
        match = _NAME.fullmatch(entry.name)
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        if match is None:
            refuse(path, "its name is not <job>.start or <job>.stop")
        elif not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            refuse(path, "not a file of root")
        else:
            request = Request(int(match.group(1)), match.group(2), path, status.st_mtime_ns)
            found.append(request)
    return sorted(found, key=lambda request: (request.written_real_ns, request.what))


def read_start(request: Request) -> tuple[JobStart, str] | None:
    """The request and its text, None while it is being written; raises OSError or FabricError for
    one that no prolog writes."""
    try:
        text = rootfiles.read_small(request.path, os.geteuid()).decode()
    except UnicodeDecodeError:
        raise FabricError("not UTF-8") from None
    if not text.endswith("\n") or not text.splitlines()[-1].startswith("envelope="):
        if -WRITING_S < time.time() - request.written_real_ns / 1e9 < WRITING_S:
            return None
        raise FabricError("is not whole")
    start = JobStart.parse(text)
    if start.job != request.job:
        raise FabricError(f"is about job {start.job}")
    return start, text


def remove(path: Path) -> None:
    """Also when it is a directory; raises OSError."""
    try:
        path.unlink(missing_ok=True)
    except (IsADirectoryError, PermissionError):
        rootfiles.remove_tree(path)
