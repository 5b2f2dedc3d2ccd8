"""The rails: which interfaces they are, their counters, and what happens to their links."""

import errno
import fnmatch
import os
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from fabricctl.errors import DataError
from fabricctl.store import schema
from fabricctl.store.schema import LinkEvent
from fabricctl.telemetry import netlink
from fabricctl.telemetry.batch import Batch
from fabricctl.telemetry.source import Complaints, Row, Tell

ONE_SECOND = struct.pack("@ll", 1, 0)  # struct timeval
ANSWER_BYTES = 4096  # it has 1100 to 1600
MAX_RAILS = 254  # the column holds 255 values, one of which means: not measured


def choose(patterns: Sequence[str], links: Sequence[netlink.Link], own: str | None) -> list[str]:
    """Names of the rails, in rail order.

    ``patterns`` empty: every interface that is up, but loopback and ``own``, the one that carries
    the node's own name. A name without wildcards is a rail even while it is absent.
    """
    if not patterns:
        chosen = [
            item.name
            for item in links
            if item.name and item.flags & netlink.IFF_UP and item.name != own
            if not item.flags & netlink.IFF_LOOPBACK
        ]
        return chosen[:MAX_RAILS]
    present = [item.name for item in links if item.name]
    chosen = []
    for pattern in patterns:
        wild = any(char in pattern for char in "*?[")
        matched = fnmatch.filter(present, pattern) if wild else [pattern]
        chosen += [name for name in matched if name not in chosen]
    return chosen[:MAX_RAILS]


class LinkTracker:
    """Turns successive states of the rails' links into events, each told once.

    Both the kernel's messages and the samples feed it: the kernel may hold a message back for up
    to a second after the one before (net/core/link_watch.c), and then the sample sees it first.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._rail = {name: at for at, name in enumerate(names)}
        self._seen: dict[int, netlink.Link | None] = {}
        self.changes = 0  # counts them

    def index_of(self, rail: int) -> int | None:
        """The interface index that the rail had last."""
        known = self._seen.get(rail)
        return known.index if known else None

    def rail_of(self, item: netlink.Link) -> tuple[int | None, bool]:
        """The rail that a message is about, and whether the interface still has its name."""
        if item.name in self._rail:
            return self._rail[item.name], True
        seen = (rail for rail, old in self._seen.items() if old and old.index == item.index)
        return next(seen, None), item.name is None

    def update(self, rail: int, now: netlink.Link | None) -> list[tuple[LinkEvent, int | None]]:
        """``(event, carrier_changes after it)`` since the last call; None: the interface is gone.

        The first state of a rail is where it starts from, not an event.
        """
        first, old = rail not in self._seen, self._seen.get(rail)
        if _is_older(old, now):
            return []
        self._seen[rail] = now
        self.changes += 1
        if first or old is now is None:
            return []
        if now is None:
            return [(LinkEvent.REMOVED, None)]
        if old is None or old.index != now.index:
            gone = [(LinkEvent.REMOVED, None)] if old else []
            return [*gone, (LinkEvent.ADDED, now.carrier_changes)]
        return _changes(old, now)


def _is_older(old: netlink.Link | None, now: netlink.Link | None) -> bool:
    """A message that waited while a sample was taken tells of a state before it."""
    if old is None or now is None or old.index != now.index:
        return False
    return (now.carrier_changes or 0) < (old.carrier_changes or 0)


def _changes(old: netlink.Link, now: netlink.Link) -> list[tuple[LinkEvent, int | None]]:
    events: list[tuple[LinkEvent, int | None]] = []
    was_up, is_up = old.flags & netlink.IFF_UP, now.flags & netlink.IFF_UP
    if was_up != is_up:
        events.append((LinkEvent.ADMIN_UP if is_up else LinkEvent.ADMIN_DOWN, now.carrier_changes))
    count = now.carrier_changes
    event = {0: LinkEvent.CARRIER_DOWN, 1: LinkEvent.CARRIER_UP}
    if now.carrier is not None and old.carrier is not None and now.carrier != old.carrier:
        events.append((event[bool(now.carrier)], count))
    elif count is not None and now.carrier is not None and count - (old.carrier_changes or 0) >= 2:
        # The same state with a higher count: it went and came back before anybody could tell.
        events.append((event[not now.carrier], count - 1))
        events.append((event[bool(now.carrier)], count))
    return events


@dataclass(frozen=True, slots=True)
class _Shape:
    """How answers about one interface begin as long as nothing but its counters changes.

    Comparing them whole is one call; walking their 50 attributes would cost ten times the
    exchange itself.
    """

    begin: bytes  # everything before the counters
    carrier: int | None
    carrier_changes: int | None


class RailSource:
    """Counters and carrier of each rail, asked of the kernel one interface at a time: a dump
    would cost as much as the node has interfaces, and compute nodes with containers have many."""

    table = schema.RAIL

    def __init__(
        self, names: Sequence[str], tell: Tell, tracker: LinkTracker, batch: Batch
    ) -> None:
        self.names = names
        self._tracker = tracker
        self._complaints = Complaints("rails", tell)
        self._batch = batch
        self._slots = [batch.add() for _ in names]
        self._shapes: list[_Shape | None] = [None] * len(names)
        self._events: list[Row] = []
        self._socket: socket.socket | None = None
        try:
            self._socket = netlink.open_socket()
            # Not settimeout: the descriptor would no longer block.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, ONE_SECOND)
        except OSError as error:
            self._complaints.failed("rails", error)
        self.ask_anew()

    def ask_anew(self) -> None:
        """After link events: a rail may have another interface now, or one at last."""
        for rail, slot in enumerate(self._slots):
            if self._socket is not None:
                index = self._tracker.index_of(rail)
                name = "" if index else self.names[rail]
                request = netlink.request(index=index or 0, name=name)
                self._batch.set(slot, self._socket.fileno(), ANSWER_BYTES, request)

    def rows(self) -> Sequence[Row]:
        rows = [
            self._row(rail, time_mono_ns, got)
            for rail, slot in enumerate(self._slots)
            for time_mono_ns, got in self._batch.drain(slot)
        ]
        self.ask_anew()
        rows.sort(key=lambda row: row[0] or 0)
        return rows

    def _row(self, rail: int, time_mono_ns: int, got: bytes | int) -> Row:
        shape = self._shapes[rail]
        if shape is not None and isinstance(got, bytes) and got.startswith(shape.begin):
            counters = netlink.COUNTERS.unpack_from(got, len(shape.begin))
            return (
                time_mono_ns,
                rail,
                shape.carrier,
                shape.carrier_changes,
                *in_order(counters),
            )
        return self._new_row(rail, time_mono_ns, got)

    def _new_row(self, rail: int, time_mono_ns: int, got: bytes | int) -> Row:
        """Of an answer that is not as the one before; also when there is none."""
        self._shapes[rail] = None
        try:
            body = _body(got)
            found: netlink.Link | None = netlink.link(body)
            self._shapes[rail] = _shape_of(cast(bytes, got), body)
            self._complaints.works(self.names[rail])
        except (OSError, DataError) as error:
            gone = isinstance(error, OSError) and error.errno == errno.ENODEV
            self._complaints.failed(self.names[rail], "no such interface" if gone else error)
            found = None
            if not gone:
                return (time_mono_ns, rail, *(None,) * 10)
        self._events += event_rows(rail, self._tracker.update(rail, found), time_mono_ns)
        if found is None:
            return (time_mono_ns, rail, *(None,) * 10)
        state = (found.carrier, found.carrier_changes)
        return (time_mono_ns, rail, *state, *in_order(found.counters or (None,) * 8))

    def events(self) -> Sequence[Row]:
        """Rows of the ``link_event`` table: what samples saw before the kernel told it."""
        taken, self._events = self._events, []
        return taken

    def close(self) -> None:
        for slot in self._slots:
            self._batch.set(slot, -1)
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _body(got: bytes | int) -> memoryview:
    """Of the answer to a request for one interface; raises :class:`OSError` for what the kernel
    answered instead, :class:`DataError` for what is no answer."""
    if isinstance(got, int):
        raise OSError(got, os.strerror(got))
    for kind, body in netlink.messages(memoryview(got)):
        if kind == netlink.RTM_NEWLINK:
            return body
        if kind == netlink.NLMSG_ERROR:
            number = netlink.error_number(body)
            raise OSError(number, os.strerror(number))
    raise DataError("rtnetlink: no answer in the message")


def in_order(counters: Sequence[int | None]) -> Sequence[int | None]:
    """The kernel's first eight counters in the order of the table's columns."""
    rx_packets, tx_packets, rx_bytes, tx_bytes, *rest = counters
    return (rx_bytes, tx_bytes, rx_packets, tx_packets, *rest)


def _shape_of(answer: bytes, body: memoryview) -> _Shape | None:
    """None when the counters do not come after what else is wanted."""
    at = netlink.offsets(body)
    before = (netlink.IFLA_CARRIER, netlink.IFLA_CARRIER_CHANGES)
    begin, length = at.get(netlink.IFLA_STATS64, (0, 0))
    if length < netlink.COUNTERS.size or any(at.get(k, (begin, 0))[0] >= begin for k in before):
        return None
    found = netlink.link(body, at)
    return _Shape(answer[: netlink.HEADER_BYTES + begin], found.carrier, found.carrier_changes)


def event_rows(
    rail: int,
    events: Sequence[tuple[LinkEvent, int | None]],
    time_mono_ns: int,
    time_real_ns: int | None = None,
) -> list[Row]:
    """Rows of the ``link_event`` table; without CLOCK_REALTIME: what it was at the time."""
    if not events:
        return []
    if time_real_ns is None:
        now_mono_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        time_real_ns = time.clock_gettime_ns(time.CLOCK_REALTIME) - (now_mono_ns - time_mono_ns)
    return [(time_mono_ns, time_real_ns, rail, int(event), count) for event, count in events]


class LinkWatch:
    """What the kernel tells of the rails' links, the moment it does. Not sampled: the agent
    waits on :meth:`fileno` and calls :meth:`receive`."""

    table = schema.LINK_EVENT

    def __init__(self, tell: Tell, tracker: LinkTracker) -> None:
        self._tell = tell
        self._tracker = tracker
        self._socket = netlink.open_socket(netlink.RTMGRP_LINK)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> list[Row]:
        """Events of all messages that wait."""
        rows: list[Row] = []
        while True:
            try:
                data = self._socket.recv(netlink.RECEIVE_BYTES)
            except BlockingIOError:
                return rows
            except OSError as error:
                # ENOBUFS: messages were lost; the next sample compares with what was known.
                self._tell("links", f"messages of the kernel lost: {error.strerror}")
                return rows
            mono_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            real_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
            rows += self._parse(data, mono_ns, real_ns)

    def _parse(self, data: bytes, mono_ns: int, real_ns: int) -> list[Row]:
        rows: list[Row] = []
        try:
            for kind, body in netlink.messages(memoryview(data)):
                if kind not in (netlink.RTM_NEWLINK, netlink.RTM_DELLINK):
                    continue
                item = netlink.link(body)
                rail, is_named = self._tracker.rail_of(item)
                # A bridge says DELLINK of a port that merely left it; some NEWLINK messages
                # (wireless extensions) carry nothing of the link's state.
                if rail is None or item.family != socket.AF_UNSPEC:
                    continue
                if kind == netlink.RTM_NEWLINK and item.carrier is None:
                    continue
                now = item if kind == netlink.RTM_NEWLINK and is_named else None
                rows += event_rows(rail, self._tracker.update(rail, now), mono_ns, real_ns)
        except DataError as error:
            self._tell("links", str(error))
        return rows

    def close(self) -> None:
        self._socket.close()
