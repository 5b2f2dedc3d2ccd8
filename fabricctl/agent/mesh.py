"""The agents' UDP socket: ports, addresses and seals around :mod:`fabricctl.agent.peers`."""

import hashlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fabricctl import wire
from fabricctl.agent.blocks import Blocks
from fabricctl.agent.peers import PORTS, Peers, Send
from fabricctl.agent.versions import Tell, Versions
from fabricctl.errors import DataError
from fabricctl.store.schema import Severity
from fabricctl.telemetry.interfaces import lookup

RECEIVE_AT_ONCE = 64  # datagrams taken before the samples get their turn
RESOLVE_AGAIN_S = 30.0
ASKER = "@"  # the sender of a question that is no agent: the job's user has the job's key
OTHERS = ("where", "there", "waits", "alive", "event", "halt", "journal")
Other = Callable[[Mapping[str, str]], dict[str, str] | None]
Address = tuple[str, int, int, int] | tuple[str, int]


def ports(job: int, first: int, count: int) -> list[int]:
    """The ports that an agent of this job may have bound, the likeliest first."""
    found: list[int] = []
    for nth in range(PORTS):
        digest = hashlib.sha256(f"{job} {nth}".encode()).digest()
        found.append(first + int.from_bytes(digest[:8], "big") % count)
    return found


@dataclass(frozen=True)
class Identity:
    """Who speaks: ``life`` is higher for every later start of this node's agent."""

    job: int
    life: int
    key: bytes


class Mesh:
    """Sends what :class:`Peers` has to say and hands it what is authentic."""

    def __init__(
        self,
        peers: Peers | Blocks,
        identity: Identity,
        candidates: Sequence[int],
        tell: Tell,
        other: Other | None = None,
    ) -> None:
        """``other`` takes kinds of messages that :class:`Peers` does not know, gives the answer.

        Raises OSError when none of the ports can be had.
        """
        self._peers = peers
        self._job, self._life = str(identity.job), str(identity.life)
        self._key = identity.key
        self._candidates = candidates
        self._tell = tell
        self._versions = Versions(tell)
        self._other = other
        self._seq = 0
        self._strange = False
        self._fresh = wire.Freshness()
        self._learnt: dict[str, Address] = {}
        self._resolver = Resolver()
        self._socket = _bind(candidates)
        self.refused = 0  # datagrams that were not authentic, fresh or sensible

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> None:
        """Takes what has arrived; called when the socket is readable."""
        for _ in range(RECEIVE_AT_ONCE):
            try:
                datagram, address = self._socket.recvfrom(wire.MAX_BYTES + 1)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error of an earlier send
            try:
                answers = self._take(datagram, address)
            except DataError:
                self.refused += 1
                if self.refused in (1, 1000, 1_000_000):
                    text = f"datagrams refused so far: {self.refused}, not of this job's agents"
                    self._tell(text, Severity.WARNING)
                continue
            for send in answers:
                self._send(send)

    def _take(self, datagram: bytes, address: Address) -> list[Send]:
        if wire.of_another_version(datagram):
            self._tell_stranger(datagram)
        message = wire.open_sealed(datagram, self._key)
        sender = message.get("node", "")
        if message.get("job") != self._job or sender == self._peers.own:
            raise DataError("message: of another job, or our own")
        if self._other is not None and message.get("kind") in OTHERS:
            self._take_other(message, address)
            return []
        life, seq = wire.number(message, "life"), wire.number(message, "seq")
        if sender in self._peers.known and not self._fresh.accepts(sender, life, seq):
            raise DataError("message: a copy of an old one")
        answers = self._peers.receive(message, time.monotonic())
        self._learnt[sender] = address
        self._versions.heard(message)
        return answers

    def _tell_stranger(self, datagram: bytes) -> None:
        """Once. It cannot be held against the job's key: that is how much is said."""
        if not self._strange:
            self._strange = True
            theirs, ours = datagram[:4].decode(), wire.MAGIC.decode()
            text = f"messages {theirs} came, this agent knows {ours}: is a node of another version?"
            self._tell(text, Severity.WARNING)

    def _take_other(self, message: Mapping[str, str], address: Address) -> None:
        sender = message.get("node", "")
        if sender != ASKER:
            life, seq = wire.number(message, "life"), wire.number(message, "seq")
            if sender not in self._peers.known or not self._fresh.accepts(sender, life, seq):
                raise DataError("message: a copy of an old one")
            self._learnt[sender] = address
        assert self._other is not None
        answer = self._other(message)
        if answer is not None:
            self._put(address, {**answer, "to": message.get("ask", "")[:24]})

    def send(self, send: Send) -> bool:
        """One message; False when the address is not known."""
        return self._send(send)

    def run_due(self) -> None:
        """Sends the hellos whose time has come."""
        for send in self._peers.due(time.monotonic()):
            if not self._send(send):
                self._peers.not_sent(send.node, time.monotonic())

    def bye(self) -> None:
        """Says goodbye, twice: it is not answered."""
        sends = self._peers.bye()
        for send in sends + sends:
            self._send(send)

    def _send(self, send: Send) -> bool:
        """False when the address is not known."""
        address = self._address(send)
        if address is None:
            return False
        self._put(address, send.fields)
        return True

    def _put(self, address: Address, message: Mapping[str, str]) -> None:
        self._seq += 1
        signed = self._versions.sign(message)
        head = {
            "job": self._job,
            "node": self._peers.own,
            "life": self._life,
            "seq": str(self._seq),
        }
        try:
            self._socket.sendto(wire.seal({**head, **signed}, self._key), address)
        except (OSError, DataError):
            pass  # no route just now, or a full queue: the next hello comes soon

    def _address(self, send: Send) -> Address | None:
        learnt = self._learnt.get(send.node)
        if send.port is None or (learnt is not None and send.port == 0):
            return learnt
        host = self._resolver.address(send.node)
        if host is None:
            return None
        if self._socket.family == socket.AF_INET:
            return (host, self._candidates[send.port])
        mapped = host if ":" in host else f"::ffff:{host}"
        return (mapped, self._candidates[send.port], 0, 0)

    def close(self) -> None:
        self._socket.close()


def _bind(candidates: Sequence[int]) -> socket.socket:
    """IPv6 and IPv4 on one socket where the kernel has both."""
    failure = OSError("no port to bind")
    for family in (socket.AF_INET6, socket.AF_INET):
        for port in candidates:
            try:
                made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            except OSError as error:
                failure = error
                break
            try:
                if family == socket.AF_INET6:
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                made.bind(("::" if family == socket.AF_INET6 else "", port))
                made.setblocking(False)
                return made
            except OSError as error:
                failure = error
                made.close()
    raise failure


class Resolver:
    """Names to addresses in a thread of its own: a name service may take seconds to answer."""

    def __init__(self) -> None:
        self._asked: dict[str, float] = {}
        self._known: dict[str, str] = {}
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def address(self, name: str) -> str | None:
        """What is known now; asks again in the background when that is old."""
        now_s = time.monotonic()
        if now_s - self._asked.get(name, -RESOLVE_AGAIN_S) >= RESOLVE_AGAIN_S:
            self._asked[name] = now_s
            self._queue.put(name)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()
        return self._known.get(name)

    def _work(self) -> None:
        while True:
            name = self._queue.get()
            found = lookup(name)
            if found:
                self._known[name] = found[0]
