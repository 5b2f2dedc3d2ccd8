"""Readings of the node's clocks at one instant, to convert between them."""

import time
from collections.abc import Sequence

from fabricctl.store import schema
from fabricctl.telemetry.source import Row

TRIES = 5  # the first reading often meets cold caches; the narrowest one is kept
MAX_WIDTH_NS = 0xFFFF_FFFE  # what the column holds


class ClockSource:
    """CLOCK_REALTIME, MONOTONIC_RAW and BOOTTIME against CLOCK_MONOTONIC."""

    table = schema.CLOCK

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def take(self) -> None:
        self._rows.append(min((_read() for _ in range(TRIES)), key=lambda row: row[-1] or 0))

    def rows(self) -> Sequence[Row]:
        taken, self._rows = self._rows, []
        return taken

    def close(self) -> None:
        """Nothing is held."""


def _read() -> Row:
    before_mono_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    real_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
    raw_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
    boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    after_mono_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    width_ns = after_mono_ns - before_mono_ns
    middle_mono_ns = before_mono_ns + width_ns // 2
    return middle_mono_ns, real_ns, raw_ns, boot_ns, min(width_ns, MAX_WIDTH_NS)
