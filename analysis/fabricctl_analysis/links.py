"""When a rail had no carrier: events as they happened, samples for what events did not tell.

The kernel counts changes of carrier (``carrier_changes``, up and down alike), so a change that
neither an event nor a sample showed is still known to have taken place; it is reported as missed,
with the interval in which it lies and no duration.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fabricctl.store.schema import NOT_MEASURED, LinkEvent

Ns = NDArray[np.int64]
Rows = NDArray[np.void]
Cause = Literal["carrier", "admin", "removed"]
Source = Literal["event", "sample", "edge"]  # edge: measurement begins or ends there


@dataclass(frozen=True)
class Down:
    """An interval in which the rail could carry nothing (CLOCK_REALTIME of its node).

    It began at most ``begin_error_ns`` before ``begin_ns`` and ended at most ``end_error_ns``
    before ``end_ns``: a sample shows a change only afterwards. ``end_ns`` None: still down when
    measurement ended.
    """

    begin_ns: int
    begin_error_ns: int
    begin_source: Source
    cause: Cause
    end_ns: int | None = None
    end_error_ns: int = 0
    end_source: Source = "edge"


@dataclass(frozen=True)
class Missed:
    """``changes`` of carrier within an interval that no event and no sample showed."""

    begin_ns: int
    end_ns: int
    changes: int


@dataclass(frozen=True)
class LinkHistory:
    """One rail's link over the job. ``changes`` None: the kernel's counter was not measured."""

    downs: tuple[Down, ...]
    missed: tuple[Missed, ...]
    changes: int | None
    measured: bool  # False: neither a sample nor an event told the state


@dataclass(frozen=True)
class _Seen:
    """One observation; None is "not told"."""

    at_ns: int
    changes: int | None
    carrier: bool | None
    event: LinkEvent | None = None
    exact: bool = False  # at_ns is when it happened, not when it was found out
    restart: bool = False  # a new agent, which does not know what the one before was told


@dataclass
class _Rail:
    """State while going through the observations in the order of time."""

    carrier: bool | None = None
    admin_down: bool = False
    removed: bool = False
    changes: int | None = None
    at_ns: int = 0
    counted: int | None = None
    open: Down | None = None
    downs: list[Down] = field(default_factory=list)
    missed: list[Missed] = field(default_factory=list)
    begun: bool = False

    def usable(self) -> bool | None:
        if self.admin_down or self.removed:
            return False
        return self.carrier

    def cause(self) -> Cause:
        if self.removed:
            return "removed"
        return "admin" if self.admin_down else "carrier"


def link_history(
    sample_ns: Ns, samples: Rows, event_ns: Ns, events: Rows, restart_ns: Sequence[int] = ()
) -> LinkHistory:
    """The history of one rail from its rows of the ``rail`` and ``link_event`` tables, with
    their times on one time line, each non-decreasing; ``restart_ns``: begins of agents' lives."""
    rail = _Rail()
    restarts = [_Seen(at, None, None, restart=True) for at in restart_ns]
    beside = np.concatenate([event_ns, np.array(restart_ns, dtype=np.int64)])
    seen = [*restarts, *_samples(sample_ns, samples, beside), *_events(event_ns, events)]
    for one in sorted(seen, key=lambda one: one.at_ns):
        _observe(rail, one)
    if rail.open is not None:
        rail.downs.append(rail.open)
    measured = rail.carrier is not None or bool(rail.downs)
    return LinkHistory(tuple(rail.downs), tuple(rail.missed), rail.counted, measured)


def _samples(sample_ns: Ns, samples: Rows, beside_ns: Ns) -> list[_Seen]:
    """The samples that show a change, or stand next to one or to ``beside_ns``."""
    return [
        _Seen(
            int(sample_ns[i]),
            _count(int(samples["carrier_changes"][i])),
            _carrier(int(samples["carrier"][i])),
        )
        for i in _telling(sample_ns, samples, beside_ns)
    ]


def _events(event_ns: Ns, events: Rows) -> list[_Seen]:
    """A loss and a return told at one instant were found out by the counter, after the fact."""
    told = {LinkEvent.CARRIER_DOWN: False, LinkEvent.CARRIER_UP: True}
    alone = np.ones(len(event_ns), dtype=bool)
    same = np.flatnonzero(np.diff(event_ns) == 0)
    alone[same] = alone[same + 1] = False
    seen: list[_Seen] = []
    for at, row, exact in zip(event_ns, events, alone, strict=True):
        if int(row["event"]) not in set(LinkEvent):
            continue  # a kind that a later version may write
        event = LinkEvent(int(row["event"]))
        changes = _count(int(row["carrier_changes"]))
        seen.append(_Seen(int(at), changes, told.get(event), event, bool(exact)))
    return seen


def _telling(sample_ns: Ns, samples: Rows, beside_ns: Ns) -> list[int]:
    count = len(sample_ns)
    if not count:
        return []
    state = np.stack([samples["carrier"].astype(np.int64), samples["carrier_changes"]])
    changed = np.flatnonzero((np.diff(state, axis=1) != 0).any(axis=0)) + 1
    after = np.searchsorted(sample_ns, beside_ns)
    keep = np.concatenate([[0, count - 1], changed, changed - 1, after, after - 1])
    return sorted({int(i) for i in keep if 0 <= i < count})


def _count(value: int) -> int | None:
    return None if value == NOT_MEASURED["I"] else value


def _carrier(value: int) -> bool | None:
    return {0: False, 1: True}.get(value)


def _observe(rail: _Rail, seen: _Seen) -> None:
    if seen.restart:
        rail.admin_down = rail.removed = False
        return
    _take_event(rail, seen.event)
    grown = _grown(rail, seen)
    carrier = seen.carrier
    if carrier is None and grown and rail.carrier is not None:
        carrier = rail.carrier ^ bool(grown % 2)  # the kernel counts strict alternation
    if grown is not None:
        # What the carrier was before is not known of a new interface: one change is explained.
        net = min(grown, 1) if rail.carrier is None else int(carrier not in (None, rail.carrier))
        if grown > net:
            rail.missed.append(Missed(rail.at_ns, seen.at_ns, grown - net))
        rail.counted = (rail.counted or 0) + grown
    rail.carrier = rail.carrier if carrier is None else carrier
    _move(rail, seen)
    rail.changes = rail.changes if seen.changes is None else seen.changes
    rail.at_ns, rail.begun = seen.at_ns, True


def _take_event(rail: _Rail, event: LinkEvent | None) -> None:
    if event is LinkEvent.ADMIN_DOWN:
        rail.admin_down = True
    elif event is LinkEvent.ADMIN_UP:
        rail.admin_down = False
    elif event is LinkEvent.REMOVED:
        rail.removed, rail.carrier = True, None
    elif event is LinkEvent.ADDED:
        # A new interface under the old name: its counter starts anew, its carrier is not told.
        rail.removed, rail.changes, rail.carrier = False, None, None


def _grown(rail: _Rail, seen: _Seen) -> int | None:
    if seen.changes is None:
        return None
    if rail.changes is None:
        return 0
    return seen.changes - rail.changes if seen.changes >= rail.changes else None


def _move(rail: _Rail, seen: _Seen) -> None:
    """Opens or closes an interval when the rail's use changed."""
    now = rail.usable()
    error = 0 if seen.exact or not rail.begun else seen.at_ns - rail.at_ns
    source: Source = "event" if seen.exact else "sample"
    if now is False and rail.open is None:
        begin = source if rail.begun or seen.exact else "edge"
        rail.open = Down(seen.at_ns, error, begin, rail.cause())
    elif now and rail.open is not None:
        closed = replace(rail.open, end_ns=seen.at_ns, end_error_ns=error, end_source=source)
        rail.downs.append(closed)
        rail.open = None
