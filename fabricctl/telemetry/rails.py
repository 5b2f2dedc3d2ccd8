"""The rails: which interfaces they are, their counters, and what happens to their links."""

import errno
import fnmatch
import os
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from time import CLOCK_MONOTONIC, clock_gettime_ns

from fabricctl.errors import DataError
from fabricctl.store import schema
from fabricctl.store.schema import LinkEvent
from fabricctl.telemetry import netlink
from fabricctl.telemetry.source import Complaints, Row, Tell

ONE_SECOND = struct.pack("@ll", 1, 0)  # struct timeval
QUICK_BYTES = 4096  # of an answer; it has 1100 to 1600
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

    request: bytes
    begin: bytes  # everything before the counters
    carrier: int | None
    carrier_changes: int | None


class RailSource:
    """Counters and carrier of each rail, asked of the kernel one interface at a time: a dump
    would cost as much as the node has interfaces, and compute nodes with containers have many."""

    table = schema.RAIL

    def __init__(self, names: Sequence[str], tell: Tell, tracker: LinkTracker) -> None:
        self.names = names
        self._tracker = tracker
        self._complaints = Complaints("rails", tell)
        self._buffer = bytearray(netlink.RECEIVE_BYTES)
        self._view = memoryview(self._buffer)
        self._shapes: list[_Shape | None] = [None] * len(names)
        self._changes = 0
        self._taken: list[tuple[int, int, _Shape, bytes]] = []
        self._rows: list[Row] = []
        self._events: list[Row] = []
        self._socket: socket.socket | None = None
        try:
            self._socket = netlink.open_socket()
            # Not settimeout: Python would then ask poll(2) before every call.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, ONE_SECOND)
        except OSError as error:
            self._complaints.failed("rails", error)

    def take(self) -> None:
        # Written for cold caches, where every call counts: nothing here can move elsewhere.
        asked = self._socket
        if asked is None or self._changes != self._tracker.changes:
            self._changes = self._tracker.changes
            self._shapes = [None] * len(self.names)
        for rail, shape in enumerate(self._shapes):
            if shape is not None and asked is not None:
                try:
                    asked.send(shape.request)
                    answer = asked.recv(QUICK_BYTES)
                except OSError:
                    answer = b""
                if answer.startswith(shape.begin):
                    self._taken.append((clock_gettime_ns(CLOCK_MONOTONIC), rail, shape, answer))
                    continue
            self._take_slowly(rail)

    def _take_slowly(self, rail: int) -> None:
        """Whatever the answer looks like; also when there is none."""
        name = self.names[rail]
        index = self._tracker.index_of(rail)
        asked = netlink.request(index=index) if index else netlink.request(name=name)
        self._shapes[rail] = None
        try:
            answer, body = self._exchange(asked)
            found: netlink.Link | None = netlink.link(body)
            self._shapes[rail] = _shape_of(answer, body)
        except (OSError, DataError) as error:
            gone = isinstance(error, OSError) and error.errno == errno.ENODEV
            self._complaints.failed(name, "no such interface" if gone else error)
            found = None
            if not gone:
                self._put(rail, None)
                return
        if found is not None:
            self._complaints.works(name)
        self._put(rail, found)
        self._events += event_rows(rail, self._tracker.update(rail, found))
        self._changes = self._tracker.changes

    def _put(self, rail: int, found: netlink.Link | None) -> None:
        time_mono_ns = clock_gettime_ns(CLOCK_MONOTONIC)
        if found is None:
            self._rows.append((time_mono_ns, rail, *(None,) * 10))
            return
        counters = found.counters or (None,) * 8
        state = (found.carrier, found.carrier_changes)
        self._rows.append((time_mono_ns, rail, *state, *in_order(counters)))

    def _exchange(self, request: bytes) -> tuple[memoryview, memoryview]:
        """The whole answer about one interface, and its body."""
        if self._socket is None:
            raise OSError(errno.EBADF, "no netlink socket")
        self._socket.send(request)
        answer = self._view[: self._socket.recv_into(self._buffer)]
        for kind, body in netlink.messages(answer):
            if kind == netlink.RTM_NEWLINK:
                return answer, body
            if kind == netlink.NLMSG_ERROR:
                number = netlink.error_number(body)
                raise OSError(number, os.strerror(number))
        raise DataError("rtnetlink: no answer in the message")

    def rows(self) -> Sequence[Row]:
        rows, self._rows = self._rows, []
        taken, self._taken = self._taken, []
        for time_mono_ns, rail, shape, answer in taken:
            counters = netlink.COUNTERS.unpack_from(answer, len(shape.begin))
            state = (shape.carrier, shape.carrier_changes)
            rows.append((time_mono_ns, rail, *state, *in_order(counters)))
        rows.sort(key=lambda row: row[0] or 0)
        return rows

    def events(self) -> Sequence[Row]:
        """Rows of the ``link_event`` table: what samples saw before the kernel told it."""
        taken, self._events = self._events, []
        return taken

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def in_order(counters: Sequence[int | None]) -> Sequence[int | None]:
    """The kernel's first eight counters in the order of the table's columns."""
    rx_packets, tx_packets, rx_bytes, tx_bytes, *rest = counters
    return (rx_bytes, tx_bytes, rx_packets, tx_packets, *rest)


def _shape_of(answer: memoryview, body: memoryview) -> _Shape | None:
    """None when the counters do not come after what else is wanted, or too late to be read
    quickly."""
    at = netlink.offsets(body)
    before = (netlink.IFLA_CARRIER, netlink.IFLA_CARRIER_CHANGES)
    begin, length = at.get(netlink.IFLA_STATS64, (0, 0))
    found = netlink.link(body, at)
    end = netlink.HEADER_BYTES + begin
    if length < netlink.COUNTERS.size or any(at.get(k, (begin, 0))[0] >= begin for k in before):
        return None
    if end + netlink.COUNTERS.size > QUICK_BYTES:
        return None
    request = netlink.request(index=found.index)
    return _Shape(request, bytes(answer[:end]), found.carrier, found.carrier_changes)


def event_rows(
    rail: int,
    events: Sequence[tuple[LinkEvent, int | None]],
    time_mono_ns: int | None = None,
    time_real_ns: int | None = None,
) -> list[Row]:
    """Rows of the ``link_event`` table; without times: now."""
    if not events:
        return []
    mono_ns = time_mono_ns or time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    real_ns = time_real_ns or time.clock_gettime_ns(time.CLOCK_REALTIME)
    return [(mono_ns, real_ns, rail, int(event), count) for event, count in events]


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
