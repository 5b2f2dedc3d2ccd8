"""Instants for people: clock time in the reader's zone, and since the job began."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

from fabricctl_analysis.coverage import Span

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class When:
    """Writes instants of one job; ``zone`` None is the reader's own.

    One offset holds for the whole job, so that the report's times can be subtracted.
    """

    whole: Span
    zone: tzinfo | None = None

    @property
    def offset(self) -> timedelta:
        """Of the zone from UTC when the job began."""
        return _moment(self.whole.begin_ns).astimezone(self.zone).utcoffset() or timedelta(0)

    @property
    def zone_name(self) -> str:
        """``UTC``, ``UTC+01:00``."""
        minutes = round(self.offset.total_seconds() / 60)
        sign = "-" if minutes < 0 else "+"
        hours, rest = divmod(abs(minutes), 60)
        return "UTC" + (f"{sign}{hours:02d}:{rest:02d}" if minutes else "")

    def clock(self, at_ns: int, digits: int = 3) -> str:
        """``10:02:03.124``, with the day in front when the job saw more than one."""
        text = self._local(at_ns).strftime("%H:%M:%S") + _fraction(at_ns, digits)
        several = self._local(self.whole.begin_ns).date() != self._local(self.whole.end_ns).date()
        return f"{self._local(at_ns):%m-%d} {text}" if several else text

    def full(self, at_ns: int, digits: int = 1) -> str:
        """``2026-11-21 10:02:03.1``."""
        return self._local(at_ns).strftime("%Y-%m-%d %H:%M:%S") + _fraction(at_ns, digits)

    def since_begin_s(self, at_ns: int) -> float:
        return (at_ns - self.whole.begin_ns) / 1e9

    def _local(self, at_ns: int) -> datetime:
        return _moment(at_ns) + self.offset


def iso(at_ns: int) -> str:
    """``2026-11-21T10:02:03.124000512Z``: RFC 3339, UTC, to the nanosecond."""
    return _moment(at_ns).strftime("%Y-%m-%dT%H:%M:%S") + _fraction(at_ns, 9) + "Z"


def _moment(at_ns: int) -> datetime:
    """To the second; the rest is cut, not rounded, as clocks do."""
    return _EPOCH + timedelta(seconds=at_ns // 1_000_000_000)


def _fraction(at_ns: int, digits: int) -> str:
    return f".{at_ns % 1_000_000_000:09d}"[: digits + 1] if digits else ""
