"""The journal: what the agent appends to while the job runs.

A sequence of frames, drawn in ``docs/data-format.md``; each is whole or worth nothing, and a
reader that meets a damaged one finds the next. The writer needs the standard library only and
never raises for what a disk does: rows wait in memory until there is space again.
"""

import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fabricctl import fields
from fabricctl.errors import SystemRefusedError
from fabricctl.store.schema import BY_NUMBER, NOT_MEASURED, SCHEMA_VERSION, Table

if TYPE_CHECKING:
    from fabricctl.store.journal_reader import Journal

MAGIC = b"\xf5fj\x1a"  # no valid UTF-8: no text that a row holds can contain it
FRAME_VERSION = 1
HEADER_TABLE = 0  # its payload is the attributes as fields
HEAD = struct.Struct("<4sBBHI")  # magic, frame version, table, rows, payload bytes
CRC = struct.Struct("<I")  # of head and payload, between the two
MAX_ROWS = 0xFFFF  # what the head can say
# Rows wait in memory while the disk refuses them: half a minute at 100 Hz and two rails,
# an hour at 1 Hz, and small beside the agent's 48 MB.
MAX_PENDING_BYTES = 1 << 20


def frame(table: int, rows: int, payload: bytes | bytearray) -> bytes:
    """One frame as it stands in the file."""
    head = HEAD.pack(MAGIC, FRAME_VERSION, table, rows, len(payload))
    return head + CRC.pack(zlib.crc32(payload, zlib.crc32(head))) + payload


class JournalWriter:
    """Appends rows of the schema's tables to a new journal.

    ``append`` only packs; ``flush``, called once a second, hands everything to the kernel in one
    write, from where a kill -9 cannot take it. A disk that refuses shows in ``problem`` until it
    takes writes again, rows that did not fit into memory meanwhile in ``lost_rows``.
    """

    def __init__(self, path: Path, attributes: Mapping[str, str]) -> None:
        """Creates ``path`` with mode 0600; raises :class:`SystemRefusedError` when that fails,
        also when it exists. A full disk is no failure: the header waits like any row."""
        header = {"schema_version": str(SCHEMA_VERSION), **attributes}
        text = fields.encode(header).encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise SystemRefusedError(f"journal {path}: cannot be created: {error.strerror}")
        self.path = path
        self.lost_rows = 0
        self.problem: str | None = None
        self._end = 0
        self._rows: dict[int, bytearray] = {}
        self._rows_bytes = 0
        self._pending = bytearray(frame(HEADER_TABLE, 1, text))
        self.flush()

    def describe(self, attributes: Mapping[str, str]) -> None:
        """Adds to the header's attributes what was not known when the journal was begun."""
        self._pending += frame(HEADER_TABLE, 1, fields.encode(attributes).encode())

    def append(self, table: Table, *values: int | str | bytes | None) -> None:
        """One row, in the order of the table's columns. Text is cut to fit, None is "not
        measured" (unsigned columns only)."""
        try:
            row = table.packer.pack(*values)
        except struct.error:
            row = table.packer.pack(*_packable(table, values))
        rows = self._rows.setdefault(table.number, bytearray())
        full = len(self._pending) + self._rows_bytes + len(row) > MAX_PENDING_BYTES
        if full or len(rows) >= MAX_ROWS * len(row):
            self.lost_rows += 1
            return
        rows += row
        self._rows_bytes += len(row)

    def flush(self) -> None:
        """Writes what was appended; never raises for what the disk does."""
        for number, rows in self._rows.items():
            if rows:
                count = len(rows) // BY_NUMBER[number].packer.size
                self._pending += frame(number, count, rows)
                rows.clear()
        self._rows_bytes = 0
        while self._pending:
            try:
                # At an offset of our own: whatever a failed write left is written over.
                done = os.pwrite(self._fd, self._pending, self._end)
            except OSError as error:
                self.problem = f"journal {self.path}: {error.strerror}"
                return
            self._end += done
            del self._pending[:done]
        self.problem = None

    def close(self) -> None:
        """Flushes and closes; a second call does nothing."""
        if self._fd >= 0:
            self.flush()
            os.close(self._fd)
            self._fd = -1


def read(source: bytes | Path | int) -> "Journal":
    """The journal in memory, at a path or behind a descriptor; see ``journal_reader``."""
    from fabricctl.store import journal_reader  # numpy stays out of the agent

    return journal_reader.read(source)


def _packable(
    table: Table, values: tuple[int | str | bytes | None, ...]
) -> list[int | str | bytes | None]:
    """Text as bytes, None as the type's mark; anything else stays, for struct to complain."""
    plain = list(values)
    for at, (column, value) in enumerate(zip(table.columns, values, strict=False)):
        if value is None and column.code in NOT_MEASURED:
            plain[at] = NOT_MEASURED[column.code]
        elif isinstance(value, str):
            plain[at] = _cut(value, int(column.code[:-1]))
    return plain


def _cut(text: str, size: int) -> bytes:
    """UTF-8, at most ``size`` bytes, never half a character."""
    return text.encode("utf-8", "replace")[:size].decode("utf-8", "ignore").encode()
