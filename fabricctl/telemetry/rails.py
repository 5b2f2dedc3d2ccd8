"""The rails: which interfaces they are, their counters, and what happens to their links."""

import errno
import fnmatch
import os
import socket
import struct
import time
from collections.abc import Sequence

from fabricctl.errors import DataError
from fabricctl.store import schema
from fabricctl.store.schema import LinkEvent
from fabricctl.telemetry import netlink
from fabricctl.telemetry.source import Complaints, Row, Tell

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

    def index_of(self, rail: int) -> int | None:
        """The interface index that the rail had last."""
        known = self._seen.get(rail)
        return known.index if known else None

    def rail_of(self, item: netlink.Link) -> int | None:
        """The rail that a message is about, by name, or by index where it has no name."""
        if item.name is not None:
            return self._rail.get(item.name)
        return next(
            (rail for rail, old in self._seen.items() if old and old.index == item.index), None
        )

    def update(self, rail: int, now: netlink.Link | None) -> list[tuple[LinkEvent, int | None]]:
        """``(event, carrier_changes after it)`` since the last call; None: the interface is gone.

        The first state of a rail is where it starts from, not an event.
        """
        first, old = rail not in self._seen, self._seen.get(rail)
        if _is_older(old, now):
            return []
        self._seen[rail] = now
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
        self._layout: dict[int, tuple[int, dict[int, tuple[int, int]]]] = {}
        self.events: list[Row] = []  # seen by the last sample, for the link_event table
        try:
            self._socket: socket.socket | None = netlink.open_socket()
            self._socket.settimeout(1)
        except OSError as error:
            self._socket = None
            self._complaints.failed("rails", error)

    def sample(self) -> Sequence[Row]:
        self.events = []
        return [self._row(rail, name) for rail, name in enumerate(self.names)]

    def _row(self, rail: int, name: str) -> Row:
        asked, time_mono_ns = self._ask(rail, name), time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        if asked is None:
            return (time_mono_ns, rail, *(None,) * 10)
        counters: Sequence[int | None] = asked.counters or (None,) * 8
        rx_packets, tx_packets, rx_bytes, tx_bytes, *rest = counters
        volume = (rx_bytes, tx_bytes, rx_packets, tx_packets)
        return (time_mono_ns, rail, asked.carrier, asked.carrier_changes, *volume, *rest)

    def _ask(self, rail: int, name: str) -> netlink.Link | None:
        """The rail's link now, None when it could not be read (told)."""
        if self._socket is None:
            return None
        index = self._tracker.index_of(rail)
        try:
            found = self._exchange(
                rail, netlink.request(index=index) if index else netlink.request(name=name)
            )
        except (OSError, DataError) as error:
            gone = isinstance(error, OSError) and error.errno == errno.ENODEV
            self._complaints.failed(name, "no such interface" if gone else error)
            if gone:
                self._track(rail, None)
            return None
        self._complaints.works(name)
        self._track(rail, found)
        return found

    def _exchange(self, rail: int, request: bytes) -> netlink.Link:
        assert self._socket is not None
        self._socket.send(request)
        size = self._socket.recv_into(self._buffer)
        for kind, body in netlink.messages(self._view[:size]):
            if kind == netlink.RTM_NEWLINK:
                return self._parse(rail, body)
            if kind == netlink.NLMSG_ERROR:
                number = netlink.error_number(body)
                raise OSError(number, os.strerror(number))
        raise DataError("rtnetlink: no answer in the message")

    def _parse(self, rail: int, body: memoryview) -> netlink.Link:
        """Walking 50 attributes costs ten times the call: a message of one rail and one length
        has them where they were, which two of them are asked to confirm."""
        size, at = self._layout.get(rail, (0, {}))
        if size != len(body) or not _confirmed(body, at):
            at = netlink.offsets(body)
            wanted = (netlink.IFLA_CARRIER, netlink.IFLA_CARRIER_CHANGES, netlink.IFLA_STATS64)
            at = {kind: at[kind] for kind in wanted if kind in at}
            self._layout[rail] = (len(body), at)
        return netlink.link(body, at)

    def _track(self, rail: int, now: netlink.Link | None) -> None:
        self.events += event_rows(rail, self._tracker.update(rail, now))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


_ATTRIBUTE = struct.Struct("=HH")


def _confirmed(body: memoryview, at: dict[int, tuple[int, int]]) -> bool:
    return bool(at) and all(
        _ATTRIBUTE.unpack_from(body, begin - 4) == (length + 4, kind)
        for kind, (begin, length) in at.items()
    )


def event_rows(
    rail: int,
    events: Sequence[tuple[LinkEvent, int | None]],
    time_mono_ns: int | None = None,
    time_real_ns: int | None = None,
) -> list[Row]:
    """Rows of the ``link_event`` table; without times: now."""
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
                rail = self._tracker.rail_of(item)
                # A bridge says DELLINK of a port that merely left it; some NEWLINK messages
                # (wireless extensions) carry nothing of the link's state.
                if rail is None or item.family != socket.AF_UNSPEC:
                    continue
                if kind == netlink.RTM_NEWLINK and item.carrier is None:
                    continue
                now = item if kind == netlink.RTM_NEWLINK else None
                rows += event_rows(rail, self._tracker.update(rail, now), mono_ns, real_ns)
        except DataError as error:
            self._tell("links", str(error))
        return rows

    def close(self) -> None:
        self._socket.close()
