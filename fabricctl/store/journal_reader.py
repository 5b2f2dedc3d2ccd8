"""Reads journals; everything in one is taken for hostile.

A journal ends where the agent was killed, so a torn last frame is ordinary; anything else that
is not a whole frame is skipped up to the next one, and said in :attr:`Journal.damage`.
"""

import os
import stat
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fabricctl import fields
from fabricctl.errors import FieldsError, TraceError
from fabricctl.store import dtypes, schema
from fabricctl.store.journal import (
    CRC,
    FRAME_VERSION,
    HEAD,
    HEADER_TABLE,
    MAGIC,
    MAX_PENDING_BYTES,
)

MAX_JOURNAL_BYTES = 4 << 30  # 150 days at 1 Hz and two rails, 38 hours at 100 Hz
_PREFIX = HEAD.size + CRC.size
_BLOCK = 4 << 20
# A forged file could make every byte claim a frame of the largest size; ours have a handful of
# damaged places. Past this many bytes checked in vain the search is given up.
_MAX_WASTED_BYTES = 256 << 20


@dataclass(frozen=True)
class Journal:
    """What could be read: one life of an agent on one node."""

    attributes: Mapping[str, str]  # of the header, without schema_version
    schema_version: int | None  # None: the header was damaged
    tables: Mapping[str, dtypes.Rows]  # every table of the schema, also without rows
    damage: str | None  # one sentence, None when every byte was part of a whole frame


def read(source: bytes | Path | int) -> Journal:
    """A journal from memory, a path or a descriptor (which is not closed, nor moved).

    Raises :class:`TraceError` when it cannot be read at all, or is no journal.
    """
    if isinstance(source, bytes):
        return _Reader(lambda size, at: source[at : at + size]).journal("journal")
    if isinstance(source, int):
        return _read_fd(source, f"journal on descriptor {source}")
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise TraceError(f"journal {source}: cannot be opened: {error.strerror}")
    try:
        return _read_fd(fd, f"journal {source}")
    finally:
        os.close(fd)


def _read_fd(fd: int, name: str) -> Journal:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise TraceError(f"{name}: not a regular file")
    try:
        return _Reader(lambda size, at: os.pread(fd, size, at)).journal(name)
    except OSError as error:
        raise TraceError(f"{name}: cannot be read: {error.strerror}")


class _Reader:
    """One pass over a journal, a window of a few megabytes at a time."""

    def __init__(self, pread: Callable[[int, int], bytes]) -> None:
        self._pread = pread
        self._data = b""
        self._pos = 0  # in _data
        self._base = 0  # of _data in the file
        self._ended = False
        self._skipped = 0
        self._first_skipped = -1
        self._wasted = 0
        self._attributes: dict[str, str] | None = None
        self._rows: dict[tuple[int, int], bytearray] = {}  # by table and row length
        self._sinks: dict[tuple[int, int, int], bytearray | None] = {}  # by table, rows, bytes
        self._problems: list[str] = []

    def journal(self, name: str) -> Journal:
        self._scan()
        if not self._base and not self._pos and not self._data:
            raise TraceError(f"{name}: empty")
        if self._attributes is None and not self._rows:
            raise TraceError(f"{name}: not a journal: no whole frame in it")
        attributes = dict(self._attributes or {})
        version = attributes.pop("schema_version", "")
        return Journal(
            attributes=attributes,
            schema_version=int(version) if version.isdecimal() and len(version) < 6 else None,
            tables={table.name: self._table(table) for table in schema.TABLES},
            damage=self._damage(),
        )

    def _scan(self) -> None:
        while self._fill():
            if self._frames():
                continue
            if self._wasted > _MAX_WASTED_BYTES:
                self._problem("too much damage: the rest was not read")
                return
            self._skip()

    def _fill(self) -> bool:
        """Has the largest frame in the window, or all there is; False at the end."""
        need = _PREFIX + MAX_PENDING_BYTES
        if len(self._data) - self._pos < need and not self._ended:
            self._base += self._pos
            parts, have = [self._data[self._pos :]], len(self._data) - self._pos
            while have < need:
                at = self._base + have
                block = self._pread(min(_BLOCK, MAX_JOURNAL_BYTES - at), at)
                if at == MAX_JOURNAL_BYTES:
                    self._problem(f"longer than {at} bytes: the rest was not read")
                if not block:
                    self._ended = True
                    break
                parts.append(block)
                have += len(block)
            self._data, self._pos = b"".join(parts), 0
        return self._pos < len(self._data)

    def _frames(self) -> bool:
        """Takes whole frames from the window's position on; False when there is none.

        One loop without calls of ours: a month at 1 Hz has ten million frames.
        """
        data, pos, end = self._data, self._pos, len(self._data)
        unpack, crc_at, sinks = HEAD.unpack_from, CRC.unpack_from, self._sinks
        while end - pos >= _PREFIX:
            magic, version, number, rows, length = unpack(data, pos)
            stop = pos + _PREFIX + length
            if magic != MAGIC or version != FRAME_VERSION:
                break
            if length > MAX_PENDING_BYTES or stop > end:
                break
            payload = data[pos + _PREFIX : stop]
            if (
                zlib.crc32(payload, zlib.crc32(data[pos : pos + HEAD.size]))
                != crc_at(data, pos + HEAD.size)[0]
            ):
                self._wasted += length
                break
            shape = number, rows, length
            if shape not in sinks:
                sinks[shape] = self._sink(*shape)
            sink = sinks[shape]
            if sink is not None:
                sink += payload
            elif number == HEADER_TABLE:
                self._take_header(payload)
            pos = stop
        progress = pos > self._pos
        self._pos = pos
        return progress

    def _sink(self, number: int, rows: int, length: int) -> bytearray | None:
        """Where payloads of that shape go: all of one table and row length to one place."""
        table = schema.BY_NUMBER.get(number)
        if number == HEADER_TABLE:
            return None
        if table is None:
            self._problem(f"table number {number} is not known")
            return None
        if not rows or length % rows or not dtypes.prefix(table, length // rows):
            self._problem(f"rows of table {table.name} have an unknown length")
            return None
        return self._rows.setdefault((number, length // rows), bytearray())

    def _take_header(self, payload: bytes) -> None:
        """The first, or an addition to it: what was said first stays."""
        try:
            added = fields.decode(payload.decode("utf-8", "replace"))
        except FieldsError as error:
            self._problem(f"header: {error}")
            return
        known = self._attributes or {}
        if len(known) + len(added) > fields.MAX_FIELDS:
            self._problem("header: too many attributes")
            return
        self._attributes = {**added, **known}

    def _skip(self) -> None:
        """To the next place that may begin a frame."""
        if self._first_skipped < 0:
            self._first_skipped = self._base + self._pos
        found = self._data.find(MAGIC, self._pos + 1)
        if found < 0:  # the last three bytes may begin a magic that goes on in the next block
            found = len(self._data) if self._ended else max(self._pos + 1, len(self._data) - 3)
        self._skipped += found - self._pos
        self._pos = found

    def _problem(self, text: str) -> None:
        if text not in self._problems and len(self._problems) < 8:
            self._problems.append(text)

    def _damage(self) -> str | None:
        problems = list(self._problems)
        if self._attributes is None:
            problems.insert(0, "no header")
        if self._skipped:
            problems.insert(
                0, f"{self._skipped} bytes skipped, the first at offset {self._first_skipped}"
            )
        return "; ".join(problems) or None

    def _table(self, table: schema.Table) -> dtypes.Rows:
        parts = []
        for (number, row_bytes), rows in self._rows.items():
            if number == table.number:
                kind = dtypes.prefix(table, row_bytes)
                parts.append(dtypes.conform(np.frombuffer(rows, kind), table))
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else dtypes.empty(table)
