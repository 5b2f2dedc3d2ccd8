"""One node's part of the tournament: latency, bandwidth both ways and clock, on every rail.

A pair begins when both have ended their round before: the schedule keeps pairs apart, no clock
and no leader does. All wait in the order of rounds, so nobody can wait for each other in a circle.
Who connects first says the cookie of this audit; nobody else is listened to.
"""

import contextlib
import socket
import struct
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from fabricctl.errors import SystemRefusedError
from fabricctl.fleet.audit.tournament import partners

Peers = Mapping[str, Mapping[str, str]]  # node -> rail -> address

PINGS = 60
BLOCK = bytes(1 << 18)
LATE = "it did not come"  # the peer was held up by others: says nothing of this rail
SEND_S = 0.12  # each way on each rail; four times what a 10 ms round trip's slow start takes
WAIT_S = 6.0  # for a partner that is late
STALL_S = 3.0  # without a byte
_HELLO = struct.Struct("!8s16s64s")  # magic, cookie, name
_MAGIC = b"fabpairs"
_PING = struct.Struct("!q")  # CLOCK_REALTIME of who answers, ns
_SIZE = struct.Struct("!I")  # of a block; 0: the end
_SAID = struct.Struct("!QQ")  # bytes, ns


@dataclass(frozen=True)
class Link:
    """What a pair measured on one rail; told by who connected, ``node``."""

    node: str
    peer: str
    rail: str
    rtt_ns: int | None = None  # the median
    least_rtt_ns: int | None = None
    offset_ns: int | None = None  # > 0: the peer's CLOCK_REALTIME is ahead; +- least_rtt_ns / 2
    out_bytes_per_s: float | None = None  # node to peer
    in_bytes_per_s: float | None = None
    why: str = ""  # why something is not there


class Lane:
    """One rail of this node: a socket that listens, and who has called on it."""

    def __init__(self, rail: str, address: str, port: int) -> None:
        self.rail, self._address = rail, address
        self._called: dict[str, socket.socket] = {}
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _bind_device(self._listener, rail)
            self._listener.bind((address, port))
            self._listener.listen(64)
        except OSError as error:
            self._listener.close()
            raise SystemRefusedError(f"{rail} {address} port {port}: {error.strerror}") from None

    def accept(self, peer: str, cookie: bytes, until_s: float) -> socket.socket | None:
        """The connection of ``peer``, which may have been there for a while."""
        while peer not in self._called:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return None
            self._listener.settimeout(left_s)
            try:
                made, _ = self._listener.accept()
            except OSError:
                return None
            made.settimeout(STALL_S)
            try:
                magic, given, name = _HELLO.unpack(_read(made, _HELLO.size))
            except (OSError, struct.error):
                made.close()
                continue
            if magic != _MAGIC or given != cookie:
                made.close()
                continue
            old = self._called.pop(name.rstrip(b"\0").decode(errors="replace"), None)
            if old is not None:
                old.close()
            self._called[name.rstrip(b"\0").decode(errors="replace")] = made
        return self._called.pop(peer)

    def connect(
        self, node: str, where: tuple[str, int], cookie: bytes, until_s: float
    ) -> socket.socket | None:
        while (left_s := until_s - time.monotonic()) > 0:
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                _bind_device(made, self.rail)
                made.bind((self._address, 0))
                made.settimeout(min(left_s, 1.0))
                made.connect(where)
                made.sendall(_HELLO.pack(_MAGIC, cookie, node.encode()))
                return made
            except OSError:
                made.close()
                time.sleep(min(0.05, max(0.0, left_s)))  # it does not listen yet
        return None

    def close(self) -> None:
        for each in (self._listener, *self._called.values()):
            each.close()


@dataclass(frozen=True)
class Where:
    """This node among the others."""

    node: str
    table: Peers
    port: int
    cookie: bytes


def measure(
    where: Where, dead: Collection[tuple[str, str, str]], limit_s: float
) -> list[Link]:  # fmt: skip
    """All rounds of this node. ``dead``: (node, peer, rail) known to be without an answer."""
    node, table = where.node, where.table
    end_s = time.monotonic() + limit_s
    lanes: dict[str, Lane] = {}
    found: list[Link] = []
    try:
        for rail, address in table[node].items():
            lanes[rail] = Lane(rail, address, where.port)
        for peer in partners(node, list(table)):
            if peer is None:
                continue
            for rail, lane in sorted(lanes.items()):
                gone = {(node, peer, rail), (peer, node, rail)} & set(dead)
                if rail not in table[peer] or gone:
                    continue
                until_s = min(end_s, time.monotonic() + WAIT_S)
                if node < peer:
                    found.append(_lead(lane, where, peer, until_s))
                else:
                    _follow(lane, peer, where.cookie, until_s)
    finally:
        for lane in lanes.values():
            lane.close()
    return found


def _lead(lane: Lane, here: Where, peer: str, until_s: float) -> Link:
    node = here.node
    there = (here.table[peer][lane.rail], here.port)
    made = lane.connect(node, there, here.cookie, until_s)
    if made is None:
        return Link(node, peer, lane.rail, why=LATE)
    known: dict[str, int | float | None] = {}
    with made:
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.settimeout(max(0.1, until_s - time.monotonic()) + STALL_S)
            if not _came(made):
                return Link(node, peer, lane.rail, why=LATE)
            made.settimeout(STALL_S)
            rtts, known["offset_ns"] = _ping(made)
            rtts.sort()
            known["rtt_ns"], known["least_rtt_ns"] = rtts[len(rtts) // 2], rtts[0]
            known["out_bytes_per_s"] = _send(made)
            known["in_bytes_per_s"] = _receive(made)
        except (OSError, struct.error) as error:
            said = "stalled" if isinstance(error, TimeoutError) else "the connection broke"
            return Link(node, peer, lane.rail, **known, why=said)  # type: ignore[arg-type]
    return Link(node, peer, lane.rail, **known)  # type: ignore[arg-type]


def _came(made: socket.socket) -> bool:
    """Whether the peer has come to this round."""
    try:
        _read(made, 1)
    except OSError:
        return False
    return True


def _follow(lane: Lane, peer: str, cookie: bytes, until_s: float) -> None:
    made = lane.accept(peer, cookie, until_s)
    if made is None:
        return
    with made, contextlib.suppress(OSError, struct.error):
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.sendall(b"!")
        for _ in range(PINGS):
            _read(made, 1)
            made.sendall(_PING.pack(time.clock_gettime_ns(time.CLOCK_REALTIME)))
        _receive(made)
        _send(made)


def _ping(made: socket.socket) -> tuple[list[int], int]:
    """Round trips, and the offset by the quickest of them (NTP, RFC 5905 section 8)."""
    rtts, best, offset = [], None, 0
    for _ in range(PINGS):
        begin_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
        sent_ns = time.monotonic_ns()
        made.sendall(b"?")
        (there_ns,) = _PING.unpack(_read(made, _PING.size))
        rtt_ns = time.monotonic_ns() - sent_ns
        rtts.append(rtt_ns)
        if best is None or rtt_ns < best:
            best, offset = rtt_ns, there_ns - begin_ns - rtt_ns // 2
    return rtts, offset


def _send(made: socket.socket) -> float:
    """Blocks for a while; what the other side says of them, bytes per second."""
    end_s = time.monotonic() + SEND_S
    head = _SIZE.pack(len(BLOCK))
    while time.monotonic() < end_s:
        made.sendall(head + BLOCK)
    made.sendall(_SIZE.pack(0))
    count, took_ns = _SAID.unpack(_read(made, _SAID.size))
    return int(count) * 1e9 / max(1, int(took_ns))


def _receive(made: socket.socket) -> float:
    count, begin_ns = 0, 0
    room = memoryview(bytearray(len(BLOCK)))
    while True:
        (size,) = _SIZE.unpack(_read(made, _SIZE.size))
        begin_ns = begin_ns or time.monotonic_ns()
        if not size:
            break
        if size > len(room):
            raise OSError(71, "a block that is too large")
        got = 0
        while got < size:
            now = made.recv_into(room[got:size])
            if not now:
                raise OSError(104, "closed")
            got += now
        count += size
    took_ns = time.monotonic_ns() - begin_ns
    made.sendall(_SAID.pack(count, took_ns))
    return count * 1e9 / max(1, took_ns)


def _read(made: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = made.recv(size - len(data))
        if not more:
            raise OSError(104, "closed")
        data += more
    return data


def _bind_device(made: socket.socket, rail: str) -> None:
    # Without it a connection to a rail's address could leave by another rail.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, rail.encode())
