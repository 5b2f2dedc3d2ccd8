"""The TCP connections of a process group, so that whoever waits in it can be got out.

Gloo has no abort that ends a collective (torch 2.13's does nothing): only the end of a connection
does. Which sockets are the group's is known by what is new after it was made.
"""

import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

_FDS = Path("/proc/self/fd")


@dataclass
class Sockets:
    """Of the newest group; number of a descriptor -> inode."""

    _before: dict[int, int] = field(default_factory=dict)
    # None: it is being made, all that is new is its own. Before the first, nothing is.
    _group: dict[int, int] | None = field(default_factory=dict)

    def begin(self) -> None:
        """The group is about to be made."""
        self._before, self._group = _open(), None

    def made(self, dist: Any) -> None:
        """It was; groups that are made of it belong to it, too."""
        self._group = _new(self._before)
        original = getattr(dist.new_group, "__wrapped__", dist.new_group)
        dist.new_group = self._wrapped(original)

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            before = _open()
            try:
                return function(*args, **kwargs)
            finally:
                if self._group is not None:
                    self._group |= _new(before)

        return call

    def cut(self) -> int:
        """Ends the group's connections, on both sides; how many there were."""
        given = _new(self._before) if self._group is None else self._group
        return sum(_shut(fd, inode) for fd, inode in given.items())


def _open() -> dict[int, int]:
    found = {}
    for name in os.listdir(_FDS):  # noqa: PTH208 - numbers are wanted, and quickly
        try:
            status = os.fstat(int(name))
        except OSError:
            continue  # the listing's own
        if stat.S_ISSOCK(status.st_mode):
            found[int(name)] = status.st_ino
    return found


def _new(before: dict[int, int]) -> dict[int, int]:
    return {fd: inode for fd, inode in _open().items() if before.get(fd) != inode}


def _shut(fd: int, inode: int) -> bool:
    """True when it was a connection that was open."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return False  # the program's file by now: what is no socket would stay open twice
        with socket.socket(fileno=os.dup(fd)) as made:
            same = os.fstat(made.fileno()).st_ino == inode
            inet = made.family in (socket.AF_INET, socket.AF_INET6)
            if not same or not inet or made.type != socket.SOCK_STREAM:
                return False
            # A listener that is shut would end the thread that accepts.
            if made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return False
            made.shutdown(socket.SHUT_RDWR)
            return True
    except OSError:
        return False
