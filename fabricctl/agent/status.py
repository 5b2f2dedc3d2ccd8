"""The agent's status file, read by the plugin and by the user (docs/envelope.md)."""

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from fabricctl import fields, hostlist

STATES = ("starting", "running", "ending")
# A long list of names must not push the file over what readers accept.
MAX_LIST = 20_000


@dataclass(frozen=True)
class Status:
    """What the file says, but for the time it was written."""

    state: str
    nodes: int
    protected: int = 0
    missing: Collection[str] = ()
    unplugged: Collection[str] = ()
    settled: bool = False
    problem: str = ""
    notice: str = ""  # told to steps, and no more

    def text(self) -> str:
        given = {
            "v": "1",
            "state": self.state,
            "nodes": str(self.nodes),
            "protected": str(self.protected),
            "missing": short_list(self.missing),
            "unplugged": short_list(self.unplugged),
            "settled": str(int(self.settled)),
        }
        for key, text in (("problem", self.problem), ("notice", self.notice)):
            if text:
                given[key] = "".join(c if c.isprintable() else "?" for c in text[:500])
        given["updated_mono_ns"] = str(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        return fields.encode(given) + "\n"


def short_list(names: Collection[str], limit: int = MAX_LIST) -> str:
    """A folded host list; of a very long one the beginning."""
    folded = hostlist.fold(names)
    if len(folded) <= limit:
        return folded
    some = sorted(names)
    return hostlist.fold(some[: max(1, len(some) * limit // len(folded) // 2)])


def write(path: Path, status: Status) -> None:
    """Replaces the file in one step; raises OSError."""
    temporary = path.with_name(f".{path.name}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o644)
    try:
        os.fchmod(fd, 0o644)
        os.write(fd, status.text().encode())
    finally:
        os.close(fd)
    temporary.replace(path)
