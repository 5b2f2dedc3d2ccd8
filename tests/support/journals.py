"""Random journals, and what a reader must find in them."""

import random
import struct
from collections.abc import Mapping
from pathlib import Path

from fabricctl.store import schema
from fabricctl.store.journal import JournalWriter
from fabricctl.store.schema import NOT_MEASURED, Column, Table

JOURNAL_TABLES = tuple(table for table in schema.TABLES if table is not schema.LIFE)
HEADER = {
    "job": "7",
    "user": "alice",
    "uid": "1000",
    "cluster": "lab",
    "mode": "on",
    "spares": "0",
    "nodes": "n[1-3]",
    "node": "n1",
    "hostname": "n1.site",
    "boot_id": "b0",
    "agent_version": "0.1.0",
    "rails": "r0 r1",
    "sample_hz": "1",
    "begin_real_ns": "1790000000000000000",
}
_RANGES = {"B": (0, 255), "H": (0, 2**16 - 1), "I": (0, 2**32 - 1), "Q": (0, 2**64 - 1)}
_LETTERS = "abcXYZ 019=;\n\x00äß√🚀"


def value(column: Column, rng: random.Random) -> int | str | None:
    """Anything that a caller may append, extremes preferred."""
    if column.code.endswith("s"):
        length = rng.choice((0, 1, 10, int(column.code[:-1]), 300))
        return "".join(rng.choice(_LETTERS) for _ in range(length))
    if column.code == "q":
        return rng.choice((0, 1, 2**63 - 1, -(2**63), rng.randrange(2**62)))
    low, high = _RANGES[column.code]
    return rng.choice((None, low, high, rng.randint(low, high)))


def stored(column: Column, given: int | str | None) -> int | bytes:
    """How a reader gets it back."""
    if given is None:
        return NOT_MEASURED[column.code]
    if isinstance(given, int):
        return given
    size = int(column.code[:-1])
    whole = given.encode()[:size].decode(errors="ignore").encode()
    return whole.rstrip(b"\x00")


def row(table: Table, rng: random.Random) -> tuple[int | str | None, ...]:
    return tuple(value(column, rng) for column in table.columns)


def stored_row(table: Table, given: tuple[int | str | None, ...]) -> tuple[int | bytes, ...]:
    return tuple(stored(c, v) for c, v in zip(table.columns, given, strict=True))


def frames(data: bytes) -> list[tuple[int, int]]:
    """``(begin, end)`` of every frame of an undamaged journal, by its lengths alone."""
    found, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at + 8)
        found.append((at, at + 16 + length))
        at = found[-1][1]
    return found


def write(path: Path, rows: int, header: Mapping[str, str] = HEADER, per_flush: int = 5) -> bytes:
    """A plain journal of ``rows`` job samples whose ``processes`` column counts from 0."""
    writer = JournalWriter(path, header)
    for nth in range(rows):
        writer.append(schema.JOB, nth * 10**9, nth, 1, nth)
        if nth % per_flush == per_flush - 1:
            writer.flush()
    writer.close()
    return path.read_bytes()
