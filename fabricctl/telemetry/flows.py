"""The job's own TCP connections by peer address: sent again, round trip, rate of delivery.

sock_diag(7) tells of every connection of the node what `ss -ti` shows (struct tcp_info of
linux/tcp.h); those of the job's user are summed by remote address. Nodes with thousands of
connections are asked more seldom: a look costs less than :data:`SHARE` of a core.
"""

import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fabricctl.errors import DataError
from fabricctl.store import schema
from fabricctl.telemetry import netlink
from fabricctl.telemetry.slow import TextRow
from fabricctl.telemetry.source import Complaints, Tell

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
# Its older request tells both families in one walk over the kernel's table, which is what costs:
# the newer one (SOCK_DIAG_BY_FAMILY) takes one walk for each (net/ipv4/inet_diag.c).
_TCPDIAG_GETSOCK = 18
_INFO = 2  # INET_DIAG_INFO
_ESTABLISHED = 1 << 1
_REQUEST = struct.Struct("=IHHII 3xB 48x I4x")
_MESSAGE = struct.Struct("=4B 2s2s16s16sI8s 5I")
_TCP_INFO = struct.Struct("=8B24I4Q6IQ")  # to tcpi_delivery_rate
_LEAST_INFO = 104  # to tcpi_total_retrans: Linux 2.6
PERIOD_S = 2.0
SHARE = 0.002
ADDRESSES_S = 30.0
MAX_PEERS = 4096
NO_RAIL = schema.NOT_MEASURED["B"]


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection, of either family; addresses as text."""

    cookie: bytes
    uid: int
    own: str
    peer: str
    unacked: int
    retransmitted: int
    rtt_us: int
    rto_ms: int
    rate_bytes_per_s: int | None


@dataclass(slots=True)
class _Peer:
    connections: int = 0
    unacked: int = 0
    again: int = 0  # grows: what connections that ended had sent again stays in it
    rtt_us: int = 0
    rto_ms: int = 0
    rate_bytes_per_s: int = 0
    rail: int = NO_RAIL
    cookies: dict[bytes, int] = field(default_factory=dict)


class FlowSource:
    """Rows of the ``tcp_flow`` table: one every two seconds and peer address that is connected."""

    def __init__(
        self,
        uid: int,
        rails: list[str],
        tell: Tell,
        dump: Callable[[], Iterator[Connection]] | None = None,
    ) -> None:
        self._uid, self._rails = uid, rails
        self._complaints = Complaints("flows", tell)
        self._dump = dump or connections
        self._due_s = self._addresses_s = 0.0
        self._rail_of: dict[str, int] = {}
        self._peers: dict[str, _Peer] = {}
        self._rows: list[TextRow] = []

    def take(self) -> None:
        now_s = time.monotonic()
        if now_s < self._due_s:
            return
        begin_s = time.thread_time()
        try:
            self._look(now_s)
            self._complaints.works("connections")
        except (OSError, DataError) as error:
            self._complaints.failed("connections", error)
        cost_s = time.thread_time() - begin_s
        self._due_s = now_s + max(PERIOD_S, cost_s / SHARE) - 0.05

    def _look(self, now_s: float) -> None:
        if now_s >= self._addresses_s:
            self._addresses_s = now_s + ADDRESSES_S
            self._rail_of = rail_addresses(self._rails)
        for peer in self._peers.values():
            peer.connections = peer.unacked = peer.rtt_us = peer.rto_ms = 0
            peer.rate_bytes_per_s = 0
        at_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        seen: dict[str, dict[bytes, int]] = {}
        # All of them before any is counted: an answer that breaks off is asked for again.
        for one in list(self._dump()):
            if one.uid == self._uid and (one.peer in self._peers or len(self._peers) < MAX_PEERS):
                self._count(one, seen.setdefault(one.peer, {}))
        for name, peer in self._peers.items():
            peer.cookies = seen.get(name, {})
            if peer.connections:
                self._rows.append((at_ns, peer.rail, name, peer.connections, peer.unacked,
                                   peer.again, peer.rtt_us, peer.rto_ms,
                                   peer.rate_bytes_per_s))  # fmt: skip

    def _count(self, one: Connection, seen: dict[bytes, int]) -> None:
        peer = self._peers.setdefault(one.peer, _Peer())
        peer.connections += 1
        peer.unacked += one.unacked
        peer.again += max(0, one.retransmitted - peer.cookies.get(one.cookie, 0))
        peer.rtt_us = max(peer.rtt_us, one.rtt_us)
        peer.rto_ms = max(peer.rto_ms, one.rto_ms)
        peer.rate_bytes_per_s += one.rate_bytes_per_s or 0
        peer.rail = self._rail_of.get(one.own, NO_RAIL)
        seen[one.cookie] = one.retransmitted

    def rows(self) -> list[TextRow]:
        taken, self._rows = self._rows, []
        return taken

    def close(self) -> None:
        self._peers.clear()


def rail_addresses(rails: list[str]) -> dict[str, int]:
    """Address -> rail; raises OSError or DataError."""
    index_of = {}
    for rail, name in enumerate(rails):
        try:
            index_of[socket.if_nametoindex(name)] = rail
        except OSError:
            continue
    return {text: index_of[index] for index, text in netlink.addresses() if index in index_of}


def connections() -> Iterator[Connection]:
    """Every established TCP connection of this network namespace. Raises OSError or DataError."""
    flags = netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP
    asked = _REQUEST.pack(
        _REQUEST.size, _TCPDIAG_GETSOCK, flags, 1, 0, 1 << (_INFO - 1), _ESTABLISHED
    )
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, _SOCK_DIAG) as opened:
        opened.settimeout(2)
        opened.send(asked)
        yield from _answers(opened)


def _answers(opened: socket.socket) -> Iterator[Connection]:
    while True:
        for kind, body in netlink.messages(memoryview(opened.recv(netlink.RECEIVE_BYTES))):
            if kind == netlink.NLMSG_DONE:
                return
            if kind == netlink.NLMSG_ERROR:
                raise OSError(netlink.error_number(body), "sock_diag refused")
            found = parse(body)
            if found is not None:
                yield found


def parse(body: memoryview) -> Connection | None:
    """One connection of an answer; None without what TCP says of it. Raises DataError."""
    if len(body) < _MESSAGE.size:
        raise DataError(f"sock_diag: message of {len(body)} bytes")
    family, _, _, _, _, _, own, peer, _, cookie, _, _, _, uid, _ = _MESSAGE.unpack_from(body)
    begin, length = netlink.offsets(body, _MESSAGE.size).get(_INFO, (0, 0))
    if length < _LEAST_INFO:
        return None
    raw = bytes(body[begin : begin + length]).ljust(_TCP_INFO.size, b"\0")
    info = _TCP_INFO.unpack_from(raw)
    size = 4 if family == socket.AF_INET else 16
    rate = info[-1] if length >= _TCP_INFO.size else None
    return Connection(
        cookie=cookie,
        uid=uid,
        own=_text(family, own[:size]),
        peer=_text(family, peer[:size]),
        unacked=info[12],
        retransmitted=info[31],
        rtt_us=info[23],
        rto_ms=info[8] // 1000,
        rate_bytes_per_s=rate,
    )


def _text(family: int, raw: bytes) -> str:
    """IPv4 in IPv6's clothes is IPv4."""
    if family == socket.AF_INET6 and raw[:12] == b"\0" * 10 + b"\xff\xff":
        return socket.inet_ntop(socket.AF_INET, raw[12:])
    return socket.inet_ntop(family, raw)
