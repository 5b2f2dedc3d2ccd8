"""A whole job's clocks on fake time: the agents' own code over a fake fabric.

Real are JobClock, its messages, the solvers and the clock page; fake are the time, the probe
engine (it makes the stamps that a link of known delays would leave) and the sockets::

    mesh = Mesh(5, tmp_path)
    mesh.run(6)                                # seconds
    mesh.link[0, 1, 2].extra_ns = 400.0        # rail 0, from node 1 to 2
    mesh.kill(0)
    mesh.readings()[3].likely_ns
"""

import heapq
import time as real_time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from fabricctl.clock import live, page
from fabricctl.clock._page import Reading
from fabricctl.clock.live import JobClock, Member
from fabricctl.clock.page import ClockPage
from fabricctl.clock.probing import (
    COUNTERS,
    HARDWARE,
    SAMPLE,
    SOURCES,
    Anchor,
    Flow,
    Rail,
    Stamps,
    Virtual,
)
from fabricctl.errors import ClockError

BEGIN_NS = 1_000_000_000_000  # of the fake CLOCK_MONOTONIC
REAL_NS = 1_800_000_000_000_000_000 - BEGIN_NS
RAW_NS = 500_000_000  # raw time is ahead by so much
HOST_NS = 1_500.0
MESSAGE_NS = 300_000  # on the management network
STAMPS_BACK_NS = 25_000_000  # the other end's stamps come with a later probe

Ints = NDArray[np.int64]


@dataclass
class Link:
    """One direction of a path: ``busy``: the share of its packets that wait in a queue."""

    floor_ns: float = 6_000.0
    extra_ns: float = 0.0
    noise_ns: float = 15.0
    busy: float = 0.2
    queue_ns: float = 20_000.0
    cut: bool = False

    def delays_ns(self, packets: int, rng: np.random.Generator) -> NDArray[np.float64]:
        waits = rng.exponential(self.queue_ns, packets) * (rng.random(packets) < self.busy)
        return self.floor_ns + self.extra_ns + waits + np.abs(rng.normal(0, self.noise_ns, packets))


@dataclass
class Nic:
    """Stamps ``share`` of a node's packets, HOST_NS nearer to the wire than the kernel does; what
    it says is off by ``bias_ns``, known to ``error_ns``."""

    bias_ns: float = 0.0
    error_ns: int = 1_000
    share: float = 1.0


class Mesh:
    """``nodes`` job clocks; ``off_ns``: how far a node's CLOCK_REALTIME is off when it begins,
    ``message_ns``: how long messages take at least, ``wave_ns``: by how much clocks wander from
    their drift, and back, in a minute."""

    def __init__(
        self,
        nodes: int,
        folder: Path,
        rails: int = 1,
        seed: int = 1,
        off_ns: Mapping[int, int] | None = None,
        message_ns: int = MESSAGE_NS,
        wave_ns: float = 2_000.0,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.names = tuple(f"n{i}" for i in range(nodes))
        self.rails = rails
        self.message_ns = message_ns
        self.folder = folder
        self.now_ns = BEGIN_NS
        self.link: defaultdict[tuple[int, int, int], Link] = defaultdict(Link)
        self.nics: dict[int, Nic] = {}
        self.clock: dict[int, JobClock] = {}
        self.probers: dict[int, FakeProber] = {}
        self.sockets: dict[str, FakeSocket] = {}
        self.frozen: set[int] = set()
        self.silent: set[int] = set()  # nodes whose messages get lost
        self._sides: tuple[set[int], set[int]] = (set(), set())
        self.off_ns = dict(off_ns or {})
        self.pages: dict[int, ClockPage] = {}
        self.wave_ns = wave_ns
        self.virtual = {i: self._virtual() for i in range(nodes)}
        self._lives = count(1)
        self._messages: list[tuple[int, int, str, bytes, tuple[str, int]]] = []
        self._numbers = count()
        with self._faked():
            for node in range(nodes):
                self.start(node)

    def _virtual(self) -> Virtual:
        offset, drift = int(self.rng.integers(-(10**7), 10**7)), self.rng.uniform(-5e4, 5e4)
        waves = ((self.wave_ns, 63.0, float(self.rng.uniform(0, 6))),)
        return Virtual(BEGIN_NS, offset, drift, waves)

    # Faults

    def start(self, node: int) -> None:
        rails = [Rail(f"r{rail}", f"10.{rail}.0.{node}") for rail in range(self.rails)]
        member = Member(7, self.names, self.names[node], b"k" * 32, next(self._lives))
        FakeProber.mesh, FakeProber.node = self, node
        with self._faked():
            self.clock[node] = JobClock(
                member,
                rails,
                (1,),
                lambda name: name,
                page=self.folder / f"page{node}",
                virtual=self.virtual[node],
            )
        self.probers[node] = self.clock[node].prober  # type: ignore[assignment]
        self.sockets[self.names[node]] = self.clock[node]._socket  # type: ignore[assignment]

    def kill(self, node: int, *, noticed: bool = True) -> None:
        """With ``noticed``, the other agents miss it at once."""
        self.clock.pop(node)
        self.probers.pop(node)
        self.sockets.pop(self.names[node])
        if noticed:
            self.tell_dead([i for i in range(len(self.names)) if i not in self.clock])

    def tell_dead(self, nodes: Sequence[int]) -> None:
        with self._faked():
            for clock in self.clock.values():
                clock.set_dead([self.names[node] for node in nodes])

    def cut(self, rail: int, node: int, cut: bool = True) -> None:
        """Both directions of all paths of a node on a rail."""
        for other in range(len(self.names)):
            self.link[rail, node, other].cut = self.link[rail, other, node].cut = cut

    def split(self, one: set[int], other: set[int]) -> None:
        """Nothing passes between the two, neither probes nor messages."""
        self._sides = one, other
        self._set_between(cut=True)

    def heal(self) -> None:
        self._set_between(cut=False)
        self._sides = set(), set()

    def _set_between(self, cut: bool) -> None:
        for rail in range(self.rails):
            for a, b in product(*self._sides):
                self.link[rail, a, b].cut = self.link[rail, b, a].cut = cut

    def _parted(self, a: int, b: int) -> bool:
        return any(a in side for side in self._sides) and not any(
            {a, b} <= side for side in self._sides
        )

    def set_virtual(self, node: int, virtual: Virtual) -> None:
        self.virtual[node] = virtual
        with self._faked():
            self.clock[node].set_virtual(virtual)

    # Time

    def run(self, seconds: float, every_s: float = 0.05) -> Iterator[dict[int, Reading]]:
        """Readings of all pages while time passes."""
        end_ns = self.now_ns + round(seconds * 1e9)
        while self.now_ns < end_ns:
            with self._faked():
                self._run_until(min(self.now_ns + round(every_s * 1e9), end_ns))
            yield self.readings()

    def skip(self, seconds: float) -> dict[int, Reading]:
        """The last of :meth:`run`."""
        *_, last = self.run(seconds, seconds)
        return last

    def _run_until(self, end_ns: int) -> None:
        while True:
            alive = [n for n in self.clock if n not in self.frozen]
            due = {n: int(self.clock[n].next_due_s() * 1e9) + 1 for n in alive}
            next_due = min(due.values(), default=end_ns)
            if self._messages and self._messages[0][0] <= min(next_due, end_ns):
                at_ns, _, to, data, sender = heapq.heappop(self._messages)
                self.now_ns = max(self.now_ns, at_ns)
                self._deliver(to, data, sender)
                continue
            if next_due > end_ns:
                self.now_ns = end_ns
                return
            self.now_ns = max(self.now_ns, next_due)
            for node in alive:
                if due[node] <= self.now_ns:
                    self.clock[node].run_due()

    def _deliver(self, to: str, data: bytes, sender: tuple[str, int]) -> None:
        if to in self.sockets:
            self.sockets[to].queue.append((data, sender))
            if self.names.index(to) not in self.frozen:
                self.clock[self.names.index(to)].receive()

    def send(self, source: str, to: str, data: bytes) -> None:
        ends = self.names.index(source), self.names.index(to)
        if set(ends) & self.silent or self._parted(*ends):
            return
        at_ns = self.now_ns + int(self.message_ns + self.rng.exponential(self.message_ns / 3))
        item = (at_ns, next(self._numbers), to, bytes(data), (source, 1))
        heapq.heappush(self._messages, item)

    # What programs see

    @property
    def raw_ns(self) -> int:
        return self.now_ns + RAW_NS

    def readings(self) -> dict[int, Reading]:
        """Of the living nodes that have job time, all at this same instant."""
        found = {}
        for node in self.clock:
            try:
                if node not in self.pages:
                    self.pages[node] = ClockPage(self.folder / f"page{node}")
                found[node] = self.pages[node].at(self.raw_ns)
            except ClockError:
                continue
        return found

    @contextmanager
    def _faked(self) -> Iterator[None]:
        with (
            mock.patch.object(live, "time", FakeTime(self)),
            mock.patch.object(live, "Prober", FakeProber),
            mock.patch.object(live, "_bind", lambda _: FakeSocket(self)),
            mock.patch.object(page, "_page", FakePage(self, page._page)),
        ):
            yield


class FakeTime:
    CLOCK_MONOTONIC = real_time.CLOCK_MONOTONIC
    CLOCK_MONOTONIC_RAW = real_time.CLOCK_MONOTONIC_RAW

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def monotonic(self) -> float:
        return self._mesh.now_ns * 1e-9

    def time_ns(self) -> int:
        return REAL_NS + self._mesh.now_ns + self._mesh.off_ns.get(FakeProber.node, 0)

    def clock_gettime_ns(self, clock: int) -> int:
        return self._mesh.raw_ns if clock == self.CLOCK_MONOTONIC_RAW else self._mesh.now_ns


class FakePage:
    """The C part of the page, with fake time in it."""

    def __init__(self, mesh: Mesh, real: object) -> None:
        self._mesh, self._real = mesh, real

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def instant(self) -> tuple[int, int, int, int, int]:
        mesh = self._mesh
        return mesh.raw_ns, mesh.now_ns, REAL_NS + mesh.now_ns, mesh.now_ns, 100

    def now(self, memory: object) -> Reading | None:
        return self._real.at(memory, self._mesh.raw_ns)  # type: ignore[attr-defined,no-any-return]


class FakeSocket:
    family = 0

    def __init__(self, mesh: Mesh) -> None:
        self._mesh, self._name = mesh, mesh.names[FakeProber.node]
        self.queue: list[tuple[bytes, tuple[str, int]]] = []

    def sendto(self, data: bytes, address: tuple[str, int]) -> None:
        self._mesh.send(self._name, address[0], data)

    def recvfrom(self, most: int) -> tuple[bytes, tuple[str, int]]:
        if not self.queue:
            raise BlockingIOError
        data, sender = self.queue.pop(0)
        return data[:most], sender

    def fileno(self) -> int:
        return 0

    def close(self) -> None:
        self.queue.clear()


class FakeProber:
    """Samples as the probe engine would join them, from the truth."""

    mesh: Mesh
    node: int  # whose clock is being made

    def __init__(
        self, me: int, session: int, key: bytes, rails: Sequence[Rail], base_ns: int
    ) -> None:
        del session, key
        self._me, self.base_ns = me, base_ns
        self.mesh = FakeProber.mesh
        self.ports = tuple(1 for _ in rails)
        self.flows: list[Flow] = []
        self.virtual = Virtual(0, 0, 0.0)
        self._rate, self._until_ns, self._seq = 0.0, self.mesh.now_ns, 0

    def start(self, rate: float) -> None:
        self._rate = rate

    def set_rate(self, rate: float) -> None:
        self._rate = rate

    def set_flows(self, flows: Sequence[Flow]) -> None:
        self.flows = list(flows)

    def set_virtual(self, virtual: Virtual) -> None:
        self.virtual = virtual

    def counters(self) -> NDArray[np.void]:
        return np.zeros(0, COUNTERS)

    def stamps(self) -> Stamps:
        nic = self.mesh.nics.get(self._me)
        return Stamps(HARDWARE, nic.error_ns) if nic else Stamps(SOURCES.index("software"), 0)

    def stop(self) -> None:
        self.flows = []

    def anchor(self) -> Anchor:
        now_ns = self.mesh.now_ns
        node_ns = int(self.stamps_ns(np.array([float(now_ns - BEGIN_NS)]))[0])
        return Anchor(self.mesh.raw_ns, node_ns, REAL_NS + now_ns, now_ns, 100)

    def stamps_ns(self, since_ns: NDArray[np.float64]) -> Ints:
        """This node's time at true instants, in ns after BEGIN_NS."""
        virtual = self.virtual
        passed_s: NDArray[np.float64] = (since_ns + BEGIN_NS - virtual.begin_mono_ns) * 1e-9
        error = virtual.offset_ns + virtual.drift_ppb * passed_s
        for size, period_s, phase in virtual.waves:
            error += size * (np.sin(2 * np.pi * passed_s / period_s + phase) - np.sin(phase))
        for at_s, step_ns in virtual.steps:
            error += np.where(passed_s >= at_s, step_ns, 0.0)
        whole = np.rint(since_ns + error).astype(np.int64)
        return whole + (BEGIN_NS + RAW_NS - self.base_ns)

    def take(self) -> NDArray[np.void]:
        begin_ns, end_ns = self._until_ns, self.mesh.now_ns - STAMPS_BACK_NS
        self._until_ns = max(end_ns, begin_ns)
        parts = b""
        for flow in self.flows:
            other = self.mesh.probers.get(flow.peer)
            if flow.owner and other is not None and self._probed_by(other, flow.rail):
                for inbound in (False, True):
                    parts += self._direction(flow, other, inbound, (begin_ns, end_ns)).tobytes()
        return np.frombuffer(parts, SAMPLE)

    def _probed_by(self, other: "FakeProber", rail: int) -> bool:
        return any((flow.rail, flow.peer) == (rail, self._me) for flow in other.flows)

    def _direction(
        self, flow: Flow, other: "FakeProber", inbound: bool, span_ns: tuple[int, int]
    ) -> NDArray[np.void]:
        rng, frozen = self.mesh.rng, self.mesh.frozen
        source, target = (other, self) if inbound else (self, other)
        link = self.mesh.link[flow.rail, source._me, target._me]
        pairs = rng.poisson(max(self._rate * (span_ns[1] - span_ns[0]) * 1e-9, 0))
        if link.cut or source._me in frozen or target._me in frozen:
            pairs = 0
        sent_ns = np.sort(rng.uniform(*span_ns, pairs)) - BEGIN_NS
        found = np.zeros(pairs, SAMPLE)
        found["peer"], found["rail"], found["inbound"] = flow.peer, flow.rail, inbound
        found["seq"] = 2 * (self._seq + np.arange(pairs)) + 1
        self._seq += pairs
        noise = rng.normal(0, link.noise_ns, pairs)
        found["sent_ns"] = source.stamps_ns(sent_ns + noise)
        found["received_ns"] = target.stamps_ns(sent_ns + link.delays_ns(pairs, rng))
        for end, name, way in ((source._me, "sent", 1), (target._me, "received", -1)):
            nic = self.mesh.nics.get(end, Nic(share=0))
            by_nic = rng.random(pairs) < nic.share if nic.share else np.zeros(pairs, bool)
            found[f"{name}_source"] = np.where(by_nic, HARDWARE, SOURCES.index("software"))
            found[f"{name}_ns"] += np.where(by_nic, round(way * HOST_NS + nic.bias_ns), 0)
            found["error_ns"] += np.where(by_nic, nic.error_ns, 0).astype(np.uint16)
        return found
