"""What fabric-pathd reports: its ``events`` file as rows of the trace.

The file is one line of fields an event, joined by ``;`` (fabricctl/fields.py), appended to while
the job runs; ``time_mono_ns`` and ``time_real_ns`` are when the line was written.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from fabricctl import fields
from fabricctl.errors import DataError
from fabricctl.store.schema import PathEvent, PathLevel, PathReason

MAX_READ_BYTES = 262_144  # of one look; the rest waits for the next
_NUMBER = re.compile(r"[0-9]{1,20}")
_NO_RAIL = 0xFF
_TEXT_KEYS = ("what", "why", "action", "scheduler")

Row = tuple[int | str, ...]


def row(line: str) -> Row:
    """One row of schema.PATH_EVENT; raises :class:`DataError` for what is no event."""
    given = fields.decode(line, ";")
    try:
        event = PathEvent[given.get("event", "").upper()]
    except KeyError:
        raise DataError(f"paths: event {given.get('event', '')[:24]!r} is not known") from None
    begin = _number(given, "begin_mono_ns") or _number(given, "heard_mono_ns")
    return (
        _number(given, "time_mono_ns"),
        _number(given, "time_real_ns"),
        event,
        given.get("peer", ""),
        _rail(given),
        _named(PathLevel, given.get("level")),
        _named(PathReason, given.get("reason")),
        begin,
        _number(given, "moved_mono_ns"),
        _number(given, "recovered_mono_ns"),
        min(_number(given, "streams"), 0xFFFF_FFFE),
        _number(given, "waiting_bytes"),
        _text(given),
    )


def _number(given: Mapping[str, str], key: str) -> int:
    value = given.get(key, "0")
    if not _NUMBER.fullmatch(value) or int(value) >= 1 << 63:
        raise DataError(f"paths: {key} {value[:24]!r} is not a number")
    return int(value)


def _rail(given: Mapping[str, str]) -> int:
    value = given.get("rail", "")
    return int(value) if re.fullmatch(r"[0-7]", value) else _NO_RAIL


def _named(kind: type[PathLevel] | type[PathReason], name: str | None) -> int:
    return int(kind[name.upper()]) if name and name.upper() in kind.__members__ else 0xFF


def _text(given: Mapping[str, str]) -> str:
    parts = [given[key] for key in _TEXT_KEYS if given.get(key)]
    parts += [f"uid {given['uid']}"] if "uid" in given else []
    return ": ".join(parts)


class Follower:
    """Reads an ``events`` file from where it last stopped; the file may not exist yet.

    ``parse`` makes a row of a line, or raises :class:`DataError`.
    """

    def __init__(self, path: Path, parse: Callable[[str], Row] = row) -> None:
        self._path = path
        self._parse = parse
        self._offset = 0
        self._rest = b""
        self.broken_lines = 0

    def rows(self) -> list[Row]:
        """What is new. Never raises: a file that cannot be read has nothing to say yet."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return []
        try:
            data = os.pread(fd, MAX_READ_BYTES, self._offset)
        except OSError:
            return []
        finally:
            os.close(fd)
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        found: list[Row] = []
        for line in lines:
            try:
                found.append(self._parse(line.decode()))
            except (UnicodeDecodeError, DataError):
                self.broken_lines += 1
        return found
