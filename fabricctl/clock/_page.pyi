import mmap
from typing import NamedTuple

PAGE_BYTES: int
BODY_BYTES: int
BODY_OFFSET: int
ROWS_OFFSET: int
ROWS: int

class Reading(NamedTuple):
    time_ns: int
    earliest_ns: int
    latest_ns: int
    likely_ns: int
    status: int

def now(page: mmap.mmap, /) -> Reading | None: ...
def at(page: mmap.mmap, raw_ns: int, /) -> Reading | None: ...
def begin(page: mmap.mmap, /) -> None: ...
def write(page: mmap.mmap, body: bytes, /) -> None: ...
def instant() -> tuple[int, int, int, int, int]: ...
