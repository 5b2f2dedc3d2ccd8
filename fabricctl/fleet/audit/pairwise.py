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
BLOCK = bytes(1 << 16)
LATE = "it did not come"  # the peer was held up by others: says nothing of this rail
SEND_S = 0.12  # each way on each rail; four times what a 10 ms round trip's slow start takes
WAIT_S = 6.0  # for a partner that is late
HELLO_S = 1.0
PAIR_S = 4.0  # for all of it on one rail: twelve times what it takes on one that loses nothing
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


class Stream:
    """A connection on which every wait ends at the same time, however little comes at once."""

    def __init__(self, made: socket.socket, until_s: float) -> None:
        self._made, self._until_s = made, until_s

    def _in_time(self) -> socket.socket:
        left_s = self._until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._made.settimeout(left_s)
        return self._made

    def send(self, data: bytes) -> None:
        self._in_time().sendall(data)

    def take(self, room: memoryview) -> None:
        """Fills it."""
        got = 0
        while got < len(room):
            now = self._in_time().recv_into(room[got:])
            if not now:
                raise OSError(104, "closed")
            got += now

    def read(self, size: int) -> bytes:
        data = bytearray(size)
        self.take(memoryview(data))
        return bytes(data)


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
            try:
                hello = Stream(made, min(until_s, time.monotonic() + HELLO_S)).read(_HELLO.size)
                magic, given, name = _HELLO.unpack(hello)
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
            # Who came to the first rail is there for the others, too; who did not will not.
            wait_until_s = time.monotonic() + WAIT_S
            for rail, lane in sorted(lanes.items()):
                gone = {(node, peer, rail), (peer, node, rail)} & set(dead)
                if rail not in table[peer] or gone:
                    continue
                until_s = min(end_s, max(wait_until_s, time.monotonic() + HELLO_S))
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
            if not _came(made, until_s):
                return Link(node, peer, lane.rail, why=LATE)
            stream = Stream(made, time.monotonic() + PAIR_S)
            rtts, known["offset_ns"] = _ping(stream)
            rtts.sort()
            known["rtt_ns"], known["least_rtt_ns"] = rtts[len(rtts) // 2], rtts[0]
            known["out_bytes_per_s"] = _send(stream)
            known["in_bytes_per_s"] = _receive(stream)
        except (OSError, struct.error) as error:
            said = "stalled" if isinstance(error, TimeoutError) else "the connection broke"
            return Link(node, peer, lane.rail, **known, why=said)  # type: ignore[arg-type]
    return Link(node, peer, lane.rail, **known)  # type: ignore[arg-type]


def _came(made: socket.socket, until_s: float) -> bool:
    """Whether the peer has come to this round; who connects at its end is waited for as well."""
    try:
        Stream(made, until_s + HELLO_S).read(1)
    except OSError:
        return False
    return True


def _follow(lane: Lane, peer: str, cookie: bytes, until_s: float) -> None:
    made = lane.accept(peer, cookie, until_s)
    if made is None:
        return
    with made, contextlib.suppress(OSError, struct.error):
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = Stream(made, time.monotonic() + PAIR_S)
        stream.send(b"!")
        for _ in range(PINGS):
            stream.read(1)
            stream.send(_PING.pack(time.clock_gettime_ns(time.CLOCK_REALTIME)))
        _receive(stream)
        _send(stream)


def _ping(stream: Stream) -> tuple[list[int], int]:
    """Round trips, and the offset by the quickest of them (NTP, RFC 5905 section 8)."""
    rtts, best, offset = [], None, 0
    for _ in range(PINGS):
        begin_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
        sent_ns = time.monotonic_ns()
        stream.send(b"?")
        (there_ns,) = _PING.unpack(stream.read(_PING.size))
        rtt_ns = time.monotonic_ns() - sent_ns
        rtts.append(rtt_ns)
        if best is None or rtt_ns < best:
            best, offset = rtt_ns, there_ns - begin_ns - rtt_ns // 2
    return rtts, offset


def _send(stream: Stream) -> float:
    """Blocks for a while; bytes per second, from the first one sent to word of the last one.

    By the sender's clock: who receives and had to wait for a CPU finds megabytes in its buffer, and
    would take a slow link for a fast one. So this never says more than the link can.
    """
    begin_ns = time.monotonic_ns()
    end_s = time.monotonic() + SEND_S
    head = _SIZE.pack(len(BLOCK))
    while time.monotonic() < end_s:
        stream.send(head + BLOCK)
    stream.send(_SIZE.pack(0))
    count, _ = _SAID.unpack(stream.read(_SAID.size))
    took_ns = max(1, time.monotonic_ns() - begin_ns)
    stream.send(_SAID.pack(count, took_ns))
    return int(count) * 1e9 / took_ns


def _receive(stream: Stream) -> float:
    count = 0
    room = memoryview(bytearray(len(BLOCK)))
    while True:
        (size,) = _SIZE.unpack(stream.read(_SIZE.size))
        if not size:
            break
        if size > len(room):
            raise OSError(71, "a block that is too large")
        stream.take(room[:size])
        count += size
    stream.send(_SAID.pack(count, 0))
    _, took_ns = _SAID.unpack(stream.read(_SAID.size))
    return count * 1e9 / max(1, int(took_ns))


def _bind_device(made: socket.socket, rail: str) -> None:
    # Without it a connection to a rail's address could leave by another rail.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, rail.encode())
