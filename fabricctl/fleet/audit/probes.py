"""Probes between nodes on every rail: each node answers all others and asks some of them.

No rendezvous: everybody opens the port, sends for a while, and answers for longer. What comes in
is no more than a cookie of this audit and a number; anything else is not answered.
"""

import contextlib
import selectors
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fabricctl.errors import SystemRefusedError

Peers = Mapping[str, Mapping[str, str]]  # node -> rail -> address

COUNT = 40  # of each size to each peer and rail
SMALL, LARGE = 64, 1400  # bytes of UDP; the large ones do not fit together with a smaller MTU
GATHER_S = 8.0  # until a peer must have begun to answer
SEND_S = 2.0
LINGER_S = 1.5  # for answers, and answered on after the own end: others began later
ALL_ASK_ALL = 17  # nodes; of more each asks sixteen
_HEAD = struct.Struct("!8s16sBHBB")  # magic, cookie, answer?, number, size class, peer
_MAGIC = b"fabaudit"


@dataclass(frozen=True)
class Pair:
    """What one node saw of another on one rail: probes of both sizes sent and answered."""

    node: str
    peer: str
    rail: str
    small_sent: int
    small_answered: int
    large_sent: int
    large_answered: int
    rtt_ns: int | None  # the median of the small ones


def chosen_peers(node: str, nodes: Sequence[str]) -> list[str]:
    """Up to sixteen others: all of few, of many those at distances 1, 2, 4... around a ring."""
    others = sorted(nodes)
    if len(others) <= ALL_ASK_ALL:
        return [name for name in others if name != node]
    at, found = others.index(node), list[str]()
    step = 1
    while len(found) < 16 and step <= len(others) // 2:
        for other in (others[(at + step) % len(others)], others[(at - step) % len(others)]):
            if other != node and other not in found:
                found.append(other)
        step *= 2
    return found


def measure(node: str, table: Peers, port: int, cookie: bytes) -> list[Pair]:
    """Sends and answers on every rail of this node; raises :class:`SystemRefusedError`."""
    # One for each peer: what waits for the MAC address of a dead one fills its socket's buffer, and
    # the probes of others would be refused.
    peers = chosen_peers(node, list(table))
    sockets: dict[tuple[str, str], socket.socket] = {}
    alone = _alone(port, min(table[node].values(), default=""))
    try:
        for rail, address in table[node].items():
            for peer in ("", *(peer for peer in peers if rail in table[peer])):
                sockets[rail, peer] = _open(rail, address, port)
        return _Run(node, table, port, cookie, sockets).all()
    finally:
        for each in (alone, *sockets.values()):
            each.close()


def _alone(port: int, address: str) -> socket.socket:
    """Two audits at once would read each other's probes; raises :class:`SystemRefusedError`."""
    found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        found.bind(f"\0fabricctl-audit.{port}.{address}")
    except OSError:
        found.close()
        raise SystemRefusedError(f"port {port}: another audit is at work on this node") from None
    return found


def _open(rail: str, address: str, port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        # Without it a probe to a rail's address could leave by another rail.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, rail.encode())
        # All have one port, for firewalls; whichever of them a datagram comes to, we read it.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind((address, port))
    except OSError as error:
        found.close()
        raise SystemRefusedError(f"{rail} {address} port {port}: {error.strerror}") from None
    return found


class _Run:
    def __init__(
        self, node: str, table: Peers, port: int, cookie: bytes,
        sockets: Mapping[tuple[str, str], socket.socket],
    ) -> None:  # fmt: skip
        self._node, self._table, self._port, self._cookie = node, table, port, cookie
        self._sockets = sockets
        self._peers = chosen_peers(node, list(table))
        # (peer index, rail, size class, number) -> when it was sent; when it was answered
        self._sent: dict[tuple[int, str, int, int], int] = {}
        self._answered: dict[tuple[int, str, int, int], int] = {}
        self._selector = selectors.DefaultSelector()
        self._rails = sorted({rail for rail, _ in sockets})
        self._by_address = {
            (rail, table[peer][rail]): each for (rail, peer), each in sockets.items() if peer
        }
        for (rail, _), each in sockets.items():
            self._selector.register(each, selectors.EVENT_READ, rail)

    def all(self) -> list[Pair]:
        """Greets until everybody has answered (number 0, not counted), then probes."""
        begin_s = time.monotonic()
        wanted = {(at, rail) for at, peer in enumerate(self._peers)
                  for rail in self._rails if rail in self._table[peer]}  # fmt: skip
        while time.monotonic() < begin_s + GATHER_S:
            silent = wanted - {(at, rail) for at, rail, _, number in self._answered if not number}
            if not silent:
                break
            for at, rail in sorted(silent):
                self._send(at, rail, 0, 0)
            self._receive(0.1)
        # Everybody begins to count at about the same time: those that wait for a dead one do.
        rounds = [(number, size) for number in range(1, COUNT + 1) for size in (0, 1)]
        pause_s = SEND_S / len(rounds)
        for number, size in rounds:
            for at, rail in sorted(wanted):
                self._send(at, rail, size, number)
            self._receive(pause_s)
        self._receive(LINGER_S)
        pairs = [self._pair(at, rail) for at, rail in sorted(wanted)]
        # Of many each asks a few: one of those that ask us may have greeted a dead one for longer.
        self._receive(LINGER_S if len(self._table) <= ALL_ASK_ALL else GATHER_S)
        return pairs

    def _send(self, at: int, rail: str, size: int, number: int) -> None:
        peer = self._peers[at]
        head = _HEAD.pack(_MAGIC, self._cookie, 0, number, size, at)
        data = head.ljust(LARGE if size else SMALL, b"\0")
        self._sent[at, rail, size, number] = time.monotonic_ns()
        try:
            self._sockets[rail, peer].sendto(data, (self._table[peer][rail], self._port))
        except OSError:
            pass  # without carrier, too long: it is sent and never answered

    def _receive(self, wait_s: float) -> None:
        until_s = time.monotonic() + wait_s
        while (left_s := until_s - time.monotonic()) > 0:
            for key, _ in self._selector.select(left_s):
                self._drain(key.fileobj, key.data)  # type: ignore[arg-type]

    def _drain(self, where: socket.socket, rail: str) -> None:
        for _ in range(64):
            try:
                data, source = where.recvfrom(2048)
            except (BlockingIOError, ConnectionRefusedError):
                return
            except OSError:
                return
            if len(data) < SMALL:
                continue
            magic, cookie, answer, number, size, at = _HEAD.unpack_from(data)
            if magic != _MAGIC or cookie != self._cookie:
                continue
            if answer:
                if (at, rail, size, number) in self._sent:
                    self._answered.setdefault((at, rail, size, number), time.monotonic_ns())
                continue
            head = _HEAD.pack(magic, cookie, 1, number, size, at)
            with contextlib.suppress(OSError):
                self._by_address.get((rail, source[0]), where).sendto(
                    head.ljust(len(data), b"\0"), source
                )

    def _pair(self, at: int, rail: str) -> Pair:
        answered = [[key for key in self._answered if key[:3] == (at, rail, size) and key[3]]
                    for size in (0, 1)]  # fmt: skip
        times = sorted(self._answered[key] - self._sent[key] for key in answered[0])
        median = times[len(times) // 2] if times else None
        return Pair(self._node, self._peers[at], rail, COUNT, len(answered[0]), COUNT,
                    len(answered[1]), median)  # fmt: skip
