"""A running job's journal, piece by piece, to those who have the job's key: what is going on now is
seen with the same eyes as what is over (`fabricctl report --follow`)."""

import base64
import binascii
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

from fabricctl import wire
from fabricctl.errors import DataError

# Most that one answer holds before it is packed; journals shrink to a quarter or less.
PIECE_BYTES = 96_000
MOST_PACKED = 43_000  # of which base64 makes 57,400, with the rest of the message below 60,000


def answer(journal: Path, message: Mapping[str, str]) -> dict[str, str]:
    """What stands at offset ``from`` of the journal, and how long the journal is by now."""
    offset = wire.number(message, "from")
    size, data = 0, b""
    try:
        fd = os.open(journal, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            data = os.pread(fd, PIECE_BYTES, min(offset, size))
        finally:
            os.close(fd)
    except OSError:
        pass  # nothing was written yet: there is nothing to tell
    packed = zlib.compress(data, 1)
    while len(packed) > MOST_PACKED:
        data = data[: len(data) // 2]
        packed = zlib.compress(data, 1)
    text = base64.b64encode(packed).decode()
    return {"kind": "journal", "from": str(offset), "size": str(size), "data": text}


def taken(message: Mapping[str, str], offset: int) -> tuple[bytes, int]:
    """The piece in an answer, and the journal's length. Raises DataError for what is none."""
    if message.get("kind") != "journal" or wire.number(message, "from") != offset:
        raise DataError("message: not the piece that was asked for")
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(
            base64.b64decode(message.get("data", ""), validate=True), PIECE_BYTES
        )
    except (zlib.error, binascii.Error) as error:
        raise DataError(f"message: {error}") from None
    return data, wire.number(message, "size")
