"""What programs tell of their checkpoints: a line of fields each, in the job's directory."""

import os
import re
import time
from pathlib import Path

from fabricctl import fields
from fabricctl.errors import DataError
from fabricctl.store.schema import CheckpointEvent

MOST_BYTES = 4 << 20  # of the file: a program must not fill what all jobs share
_NUMBER = re.compile(r"[0-9]{1,19}")
_COLUMNS = ("launch", "step", "ranks", "bytes", "stall_ns")


def tell(path: Path, event: CheckpointEvent, numbers: dict[str, int]) -> None:
    """Appends one line; what cannot be written is not told."""
    given = {
        "event": event.name.lower(),
        "time_mono_ns": str(time.clock_gettime_ns(time.CLOCK_MONOTONIC)),
        "time_real_ns": str(time.time_ns()),
        **{name: str(value) for name, value in numbers.items()},
    }
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o644)
    except OSError:
        return
    try:
        if os.fstat(fd).st_size < MOST_BYTES:
            os.write(fd, (fields.encode(given, ";") + "\n").encode())
    except OSError:
        return
    finally:
        os.close(fd)


def row(line: str) -> tuple[int | str, ...]:
    """One row of schema.CHECKPOINT; raises :class:`DataError` for what no program of ours tells."""
    given = fields.decode(line, ";")
    try:
        event = CheckpointEvent[given.get("event", "").upper()]
    except KeyError:
        raise DataError(f"checkpoint: event {given.get('event', '')[:24]!r} is not known") from None
    names = ("time_mono_ns", "time_real_ns", *_COLUMNS)
    found: dict[str, int] = {}
    for name in names:
        value = given.get(name, "")
        if not _NUMBER.fullmatch(value) or int(value) >= 1 << 63:
            raise DataError(f"checkpoint: {name} {value[:24]!r} is not a number")
        found[name] = int(value)
    found["launch"], found["ranks"] = (
        min(found[name], 0xFFFF_FFFE) for name in ("launch", "ranks")
    )
    times = (found["time_mono_ns"], found["time_real_ns"])
    return (*times, int(event), *(found[name] for name in _COLUMNS))
