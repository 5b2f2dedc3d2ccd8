"""What administrators write for a time: ``2026-11-01``, ``7d``, ``today``."""

import datetime
import re

from fabricctl.errors import UsageError

_AGO = re.compile(r"(\d{1,5})(min|h|d|w)")
_UNIT_S = {"min": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def moment(words: str, now: datetime.datetime) -> int:
    """Seconds since 1970 for a date, a time in the zone of ``now``, or so long ago.

    Raises :class:`UsageError`.
    """
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    named = {
        "now": now,
        "today": midnight,
        "yesterday": midnight - datetime.timedelta(days=1),
        "month": midnight.replace(day=1),
        "year": midnight.replace(month=1, day=1),
    }
    if words in named:
        return int(_aware(named[words], now).timestamp())
    ago = _AGO.fullmatch(words)
    if ago:
        return int(now.timestamp()) - int(ago.group(1)) * _UNIT_S[ago.group(2)]
    try:
        given = datetime.datetime.fromisoformat(words)
        return int(_aware(given, now).timestamp())
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"time {words[:40]!r}: a date (2026-11-01), a time (2026-11-01T08:00), so long ago "
            "(90min, 12h, 7d, 2w), or now, today, yesterday, month, year"
        ) from None


def _aware(given: datetime.datetime, now: datetime.datetime) -> datetime.datetime:
    """In the machine's zone where none is named: of that day, not of today (summer time)."""
    if given.tzinfo is not None and given.tzinfo is not now.tzinfo:
        return given
    if isinstance(now.tzinfo, datetime.timezone):
        return given.replace(tzinfo=None).astimezone()
    return given.replace(tzinfo=now.tzinfo)
