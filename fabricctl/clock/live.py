"""The job clock on one node while the job runs: probes, windows, reports, answers.

Everything happens when :meth:`JobClock.receive` or :meth:`JobClock.run_due` is called; there is no
thread but the probe engine's. Each window: take the samples, fit the edges this node owns, report
to the two nodes that solve, follow the first answer.
"""

import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fabricctl.clock import bounds, exchange, peers, probing
from fabricctl.clock.choice import ASKED, SolverChoice
from fabricctl.clock.delays import DelayMeter, DelayRow
from fabricctl.clock.edges import OwnedEdges, Span
from fabricctl.clock.follow import HOLDOVER_WINDOWS, NodeClock
from fabricctl.clock.gates import GateRules
from fabricctl.clock.page import (
    HOLDOVER,
    SYNCHRONISED,
    UNSYNCHRONISED,
    Body,
    Line,
    PageWriter,
)
from fabricctl.clock.probing import Flow, Prober, Rail, Virtual
from fabricctl.clock.solver import RATE_LIMITS, Answer, NodeReport, Solver
from fabricctl.errors import DataError, SystemRefusedError

HOP_S = 0.25  # the grid of windows while nothing is known: first job time within 2 s
# So many a hop, whatever their number: four times the reports would be more than solvers can take.
NODES_PER_HOP = 2_000
STRIDE = 2  # a settled clock takes every other window, twice as long: half the probes and the work
SETTLED_WINDOWS = 16  # not at once: those that began later still measure on the finer grid
FIRST_PAIRS = 25  # in the first windows, so that they know something
SOLVE_WAIT_S = 0.05  # for reports that are late
# All at once they would overflow the sockets of the two that solve, from some hundred nodes on;
# a report takes a solver 25 us (bench/clock_intake.py).
REPORTS_PER_S = 20_000
HELLO_S = (0.1, 5.0)  # to a node not yet heard, and to all others
BEGINNER_HELLO_S = 0.5  # to all others, from who does not know job time: they may know by now
CROWD = 1_000  # nodes that say hello to those who solve as often as to others, the more the less
RECEIVE_AT_ONCE = 256
RECEIVE_BYTES = 8 << 20  # reports of 6,000 nodes, where net.core.rmem_max allows
ROW_S = 1.0  # between the page's rows for conversions
NIC_ERROR_S = 3.0  # the clock is still what a NIC's stamps made of it when they cease
# What a node's transmit and receive paths may differ by, which no loop of edges can see. Assumed,
# not measured: on veth it is nothing. Where a NIC stamps, the error of its clock comes on top.
ASYMMETRY_NS = 20.0
# Beyond this two beginners number their windows too differently: who is behind by more than
# solvers wait is never heard in time. A hello shows a time that has passed: how old it is, is
# known of those that were asked for; of others only that their sender is not ahead of that.
ALIGN_NS, LATE_NS = 20_000_000, 400_000_000
OLDEST_HELLO_NS = 2_000_000_000

Address = tuple[str, int]


@dataclass(frozen=True)
class Member:
    """Who this node is among the allocation's nodes, and the job's secret."""

    job: int
    nodes: tuple[str, ...]
    node: str
    key: bytes
    life: int


@dataclass(frozen=True)
class ClockState:
    """A pair of instants, the node's and the job's, and how sure it is; None: no job time.

    Job time at ``mono_ns`` is ``job_ns``, likely within ``likely_ns``, certainly not more than
    ``early_ns`` before or ``late_ns`` after. ``rate``: pairs of probes a second and peer;
    ``stamps``: where they come from on this node, into SOURCES of probing.py.
    """

    status: int
    mono_ns: int
    job_ns: int | None
    likely_ns: float | None
    early_ns: float | None
    late_ns: float | None
    rate: float
    stamps: int


class JobClock:
    """Raises :class:`SystemRefusedError` when it cannot begin.

    ``resolve`` gives a node's address on the management network, None while it is not known.
    ``candidates``: the UDP ports to try, the same on every node. ``page``: the file that programs
    read job time from. ``virtual``: the lab's clock.
    """

    def __init__(
        self,
        member: Member,
        rails: Sequence[Rail],
        candidates: Sequence[int],
        resolve: Callable[[str], str | None],
        *,
        page: Path | None = None,
        virtual: Virtual | None = None,
    ) -> None:
        self._member = member
        self._me = member.nodes.index(member.node)
        self._hop_s = hop_s(len(member.nodes))
        self._crowd = max(1.0, len(member.nodes) / CROWD)
        self._spread_s = len(member.nodes) / REPORTS_PER_S  # from the first report to the last
        self._turn = self._me / len(member.nodes)
        self._rails = tuple(rails)
        self._candidates = tuple(candidates)
        self._resolve = resolve
        self._seal = exchange.Seal(member.key, member.job, self._me, member.life)
        raw_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        self.base_ns = raw_ns - time.time_ns()
        key = probing.probe_key(member.key, member.job)
        session = secrets.randbits(63) | 1
        self.prober = Prober(self._me, session, key, self._rails, self.base_ns)
        self._virtual = virtual
        self._page = PageWriter(page, member.job, self._me) if page else None
        self._row_due_s = 0.0
        if virtual is not None:
            self.prober.set_virtual(virtual)
        self._socket = _bind(self._candidates)
        self.clock = NodeClock(self._hop_s, self._hop_s)  # windows of two hops: their centres
        self._edges = OwnedEdges(self._me, GateRules())
        self._first_rate = self._rate = max(RATE_LIMITS[0], FIRST_PAIRS / self._hop_s)
        self._solver = Solver(len(member.nodes), self._hop_s, self._rate)
        self._delays = DelayMeter()
        self._dead: frozenset[int] = frozenset()
        self._ports: dict[int, Address] = {}  # where a node was heard from
        self._hellos: dict[int, exchange.Hello] = {}
        self._followed = self._me  # the first node whose time was heard; -1: of one who knows it
        self._hello_due_s: dict[int, float] = {}
        self._hello_at_s = 0.0
        self._choice = SolverChoice(len(member.nodes))
        self._solvers = list(range(min(ASKED, len(member.nodes))))
        self._solve_at_s: float | None = None
        self._fit_at_s = 0.0
        self._nic_error_ns, self._nic_error_until_s = 0, 0.0
        self.refused = 0
        self._set_neighbours()
        self.prober.start(self._rate)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self.prober.stop()
        self._socket.close()
        if self._page is not None:
            self._page.close()

    # Who probes whom, who solves

    def set_dead(self, nodes: Sequence[str]) -> None:
        """Nodes that the other agents do not hear: probed no more, the graph heals."""
        index = {name: place for place, name in enumerate(self._member.nodes)}
        dead = frozenset(index[name] for name in nodes if name in index) - {self._me}
        if dead != self._dead:
            self._dead = dead
            self._solver.alive = len(self._member.nodes) - len(dead)
            self._set_neighbours()

    def _set_neighbours(self) -> None:
        names = self._member.nodes
        dead = [names[place] for place in self._dead]
        self._neighbours: list[tuple[int, int]] = []  # (rail, peer)
        for rail in range(len(self._rails)):
            pairs = peers.edges(self._member.job, rail, names, dead)
            mine = peers.neighbours(pairs, self._member.node)
            self._neighbours += [(rail, names.index(name)) for name in mine]
        self._apply_flows()

    def _apply_flows(self) -> None:
        flows = [
            Flow(rail, peer, *self._hellos[peer].rails[rail], _owns(self._me, peer))
            for rail, peer in self._neighbours
            if peer in self._hellos and rail < len(self._hellos[peer].rails)
        ]
        with contextlib.suppress(OSError):  # an address that is none: its edge stays silent
            self.prober.set_flows(flows)
        self._edges.set_edges([(flow.rail, flow.peer) for flow in flows if flow.owner])

    # Time

    def next_due_s(self) -> float:
        """When :meth:`run_due` wants to be called, on CLOCK_MONOTONIC."""
        due = [self._fit_at_s, self._hello_at_s]
        if self._solve_at_s is not None:
            due.append(self._solve_at_s)
        return min(due)

    def run_due(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._fit_at_s:
            self._run_window()
            self._fit_at_s = self._next_fit_s()
        if self._solve_at_s is not None and now_s >= self._solve_at_s:
            self._solve()
        self._say_hellos(now_s)

    def _stride(self) -> int:
        """Windows of the grid from one report to the next."""
        steady = self.clock.settled_windows > SETTLED_WINDOWS and not self.clock.holding
        return STRIDE if steady else 1

    def _next_fit_s(self) -> float:
        """When the samples of the next window are complete: its end, and the time that a stamp
        takes to come back, which is two ticks of the slower engine and a bit; and it is this
        node's turn to report."""
        now = self.prober.anchor()
        hop_s = self._hop_s * self._stride()
        hop_ns = round(hop_s * 1e9)
        model = self.clock.model
        since_ns = float(model.since_ns(np.array([now.node_ns]))[0])
        left_ns = hop_ns - (model.at_job_ns + since_ns) % hop_ns
        grace_s = 2.5 * 1.25 / self._rate + 0.003 + self._turn * self._spread_s
        wait_s = left_ns * 1e-9 + grace_s
        return time.monotonic() + (wait_s - hop_s if wait_s - hop_s > 0.5 * hop_s else wait_s)

    def _run_window(self) -> None:
        samples = self.prober.take()
        self._edges.add(samples)
        self._delays.add(samples, self._edges.offsets_of(samples, self.clock.model))
        stride = self._stride()
        window = self._window_now()
        window -= window % stride
        before = self.clock.model
        self.clock.advance(window)
        if self.clock.holding:
            self._set_rate(self._first_rate)  # as all do whom nobody answers: in time then
        model = self.clock.model
        if model.at_job_ns == before.at_job_ns or window in self.clock.void:
            return
        span = Span(model.at_job_ns, 2 * self._hop_s * stride, self.clock.reference_s)
        edges = self._edges.fit(span, model, self.clock.wander_ppb)
        theta_ns, p_theta = self.clock.prediction()
        report = NodeReport(
            self._me,
            window,
            theta_ns,
            p_theta,
            self.clock.settled,
            edges,
            self.clock.base,
            self.clock.own,
        )
        self._solvers = self._choice.choose(window, self._dead)
        for solver in self._solvers:
            if solver == self._me:
                self._take_report(report, self._window_now())
            else:
                self._send(exchange.REPORT_KIND, solver, exchange.pack_report(report))

    def take_delays(self) -> Sequence[DelayRow]:
        """Delays since the last call, of the edges this node owns; once a second."""
        return self._delays.flush(self._edges.floors(), self.prober.counters())

    def set_virtual(self, virtual: Virtual | None) -> None:
        """The lab changed this node's clock, as a fault."""
        self._virtual = virtual
        self.prober.set_virtual(virtual or Virtual(0, 0, 0.0))

    def state(self) -> ClockState:
        """What this clock knows now: after the fact where it was measured within a second."""
        now, model = self.prober.anchor(), self.clock.model
        own_rate = self._virtual.rate(now.mono_ns) if self._virtual else 0.0
        centre = self.clock.centre
        if not self.clock.told or centre is None:
            return ClockState(UNSYNCHRONISED, now.mono_ns, None, None, None, None, self._rate, 0)
        status = HOLDOVER if self.clock.holding else SYNCHRONISED
        since_ns = round(float(model.since_ns(np.array([now.node_ns]))[0]))
        job_ns, mono_ns = model.at_job_ns + since_ns, now.mono_ns
        likely_ns, early_ns, late_ns = self.clock.bounds(job_ns)
        if status == SYNCHRONISED:
            ago_ns = now.node_ns - (centre.at_job_ns + centre.theta_ns)
            job_ns, mono_ns = centre.at_job_ns, now.mono_ns - round(ago_ns / (1 + own_rate))
            likely_ns = self.clock.centre_likely_ns
        source, asymmetry_ns = self._stamps()
        likely_ns += asymmetry_ns + now.width_ns / 2
        return ClockState(status, mono_ns, job_ns, likely_ns, early_ns, late_ns, self._rate, source)

    def _stamps(self) -> tuple[int, float]:
        """Where this node's stamps come from, and what no loop of edges can see of its clock."""
        found, now_s = self.prober.stamps(), time.monotonic()
        if found.error_ns >= self._nic_error_ns or now_s >= self._nic_error_until_s:
            self._nic_error_ns, self._nic_error_until_s = found.error_ns, now_s + NIC_ERROR_S
        return found.source, ASYMMETRY_NS + self._nic_error_ns

    # Messages

    def receive(self) -> None:
        """Takes what has arrived; called when the socket is readable."""
        window = self._window_now()
        for _ in range(RECEIVE_AT_ONCE):
            try:
                datagram, address = self._socket.recvfrom(exchange.MAX_BYTES)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error of an earlier send
            try:
                self._take(self._seal.open(datagram), address, window)
            except DataError:
                self.refused += 1

    def _take(self, message: exchange.Message, address: Address, window: int) -> None:
        if not 0 <= message.sender < len(self._member.nodes):
            raise DataError("clock message: of nobody")
        self._ports[message.sender] = (address[0], address[1])
        if message.kind == exchange.HELLO:
            self._take_hello(message.sender, exchange.unpack_hello(message.body))
        elif message.kind == exchange.REPORT_KIND:
            self._take_report(exchange.unpack_report(message.body, message.sender), window)
        elif message.kind == exchange.ANSWER:
            answer = exchange.unpack_answer(message.body, self._me)
            self._follow(answer, message.sender)

    def _take_hello(self, sender: int, hello: exchange.Hello) -> None:
        if self.clock.fresh:
            self._align(sender, hello)
        if hello.asked_ns:
            self._say_hello(sender, answers_ns=hello.asked_ns)
        before = self._hellos.get(sender)
        self._hellos[sender] = hello
        if before is None or before.rails != hello.rails:
            self._apply_flows()
        self._hello_due_s[sender] = time.monotonic() + self._hello_pause_s(sender)

    def _align(self, sender: int, hello: exchange.Hello) -> None:
        """Before anything is measured, the time of who knows it, or of the first of all nodes that
        are heard; not of one between, who may be about to follow the first, too."""
        if sender > self._followed and not hello.settled:
            return
        self._followed = -1 if hello.settled else sender
        made_ns, early_ns, late_ns = hello.job_ns, ALIGN_NS, LATE_NS
        took_ns = round(time.monotonic() * 1e9) - hello.answers_ns
        if 0 <= took_ns < OLDEST_HELLO_NS:
            made_ns += took_ns // 2  # as old as it is likely to be
            early_ns = late_ns = ALIGN_NS + took_ns // 4
        if not -late_ns <= made_ns - self._job_now_ns() <= early_ns:
            self.clock.align(made_ns, self.prober.anchor().node_ns)

    def _hello_pause_s(self, peer: int) -> float:
        if self._is_crowded(peer):
            return self._crowd * (HELLO_S[1] if self.clock.settled else BEGINNER_HELLO_S)
        if peer not in self._hellos:
            return HELLO_S[0]
        return HELLO_S[1] if self.clock.settled else BEGINNER_HELLO_S

    def _is_crowded(self, peer: int) -> bool:
        """One that solves, to which everybody in a large job says hello."""
        return self._crowd > 1 and all(peer != other for _, other in self._neighbours)

    def _say_hellos(self, now_s: float) -> None:
        if now_s < self._hello_at_s:
            return
        wanted = ({peer for _, peer in self._neighbours} | set(self._solvers)) - {self._me}
        for peer in wanted - self._dead:
            turn_s = self._turn * self._hello_pause_s(peer) if self._is_crowded(peer) else 0.0
            if now_s >= self._hello_due_s.setdefault(peer, now_s + turn_s):
                self._hello_due_s[peer] = now_s + self._hello_pause_s(peer)
                self._say_hello(peer, asked_ns=round(now_s * 1e9))
        due = [self._hello_due_s[peer] for peer in wanted - self._dead]
        self._hello_at_s = max(min(due, default=0.0), now_s + HELLO_S[0])

    def _say_hello(self, peer: int, asked_ns: int = 0, answers_ns: int = 0) -> None:
        pairs = zip(self._rails, self.prober.ports, strict=True)
        rails = tuple((rail.address, port) for rail, port in pairs)
        known = self._job_now_ns(), self.clock.settled
        hello = exchange.Hello(rails, *known, asked_ns, answers_ns)
        self._send(exchange.HELLO, peer, exchange.pack_hello(hello))

    def _job_now_ns(self) -> int:
        model = self.clock.model
        node_ns = np.array([self.prober.anchor().node_ns])
        return model.at_job_ns + round(float(model.since_ns(node_ns)[0]))

    def _window_now(self) -> int:
        return self.clock.window_at(self.prober.anchor().node_ns)

    def _take_report(self, report: NodeReport, window: int) -> None:
        if self._solver.add(report, window):
            self._solve()
        elif self._solve_at_s is None and self._solver.waiting() is not None:
            self._solve_at_s = time.monotonic() + SOLVE_WAIT_S + self._spread_s

    def _solve(self) -> None:
        self._solve_at_s = None
        self._solver.rate = self._rate
        for answer in self._solver.solve():
            if answer.node == self._me:
                self._follow(answer, self._me)
            else:
                self._send(exchange.ANSWER, answer.node, exchange.pack_answer(answer))

    def _follow(self, answer: Answer, solver: int) -> None:
        self._choice.answered(solver, answer.window)
        self._edges.learn_residuals(round(answer.window * self._hop_s * 1e9), answer.residuals_ns)
        if not self.clock.settled and solver != self._choice.first(answer.window):
            return
        if answer.window > self.clock.answered:
            self._set_rate(answer.rate)
        if self.clock.follow(answer) and self.clock.told:
            self._write_page()

    def _set_rate(self, rate: float) -> None:
        if abs(rate / self._rate - 1) > 0.01:
            self._rate = rate
            self.prober.set_rate(rate)

    def _write_page(self) -> None:
        if self._page is None:
            return
        now, model, clocks = self.prober.anchor(), self.clock.model, self.clock.clocks
        job_ns = model.at_job_ns + round(float(model.since_ns(np.array([now.node_ns]))[0]))
        own_rate = self._virtual.rate(now.mono_ns) if self._virtual else 0.0
        line = Line(now.raw_ns, job_ns, (1 + own_rate) / (1 + model.drift_ppb * 1e-9) - 1)
        hard = self.clock.hard
        assert hard is not None
        least_ns, most_ns, drift_ppb = hard.around(model)
        source, asymmetry_ns = self._stamps()
        self._page.write(
            line,
            Body(
                status=SYNCHRONISED,
                stamps=source,
                state_raw_ns=now.raw_ns - (job_ns - model.at_job_ns),
                p_theta=float(clocks.p_theta[0]),
                p_cross=float(clocks.p_cross[0]),
                p_drift=float(clocks.p_drift[0]),
                wander2=self.clock.wander_ppb**2,
                sigmas=bounds.SIGMAS,
                asymmetry_ns=asymmetry_ns,
                hard_raw_ns=now.raw_ns - (job_ns - hard.line.at_job_ns),
                hard_least_ns=least_ns,
                hard_most_ns=most_ns,
                hard_drift_ppb=drift_ppb,
                holdover_raw_ns=now.raw_ns + round(HOLDOVER_WINDOWS * self._hop_s * 1e9),
            ),
        )
        if time.monotonic() >= self._row_due_s:
            self._row_due_s = time.monotonic() + ROW_S
            self._page.add_row()

    def _send(self, kind: int, to: int, body: bytes) -> None:
        known = self._ports.get(to)
        address = None if known else self._resolve(self._member.nodes[to])
        targets = [known] if known else [(address, p) for p in self._candidates if address]
        datagram = self._seal.close(kind, to, body)
        for host, port in targets:
            with contextlib.suppress(OSError):  # no route now: said again later
                self._socket.sendto(datagram, (self._mapped(host), port))

    def _mapped(self, host: str) -> str:
        """IPv4 addresses as an IPv6 socket wants them."""
        six = self._socket.family == socket.AF_INET6
        return f"::ffff:{host}" if six and ":" not in host else host


def hop_s(nodes: int) -> float:
    """From one window to the next. All that counts windows takes as much longer in a job of many
    nodes."""
    return HOP_S * -(-nodes // NODES_PER_HOP)


def _owns(me: int, peer: int) -> bool:
    """Of every pair one end, so that all own about as many."""
    return (me < peer) == ((me + peer) % 2 == 1)


def _bind(candidates: Sequence[int]) -> socket.socket:
    """A socket for IPv4 and IPv6 on the first port that is free."""
    try:
        found = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    except OSError:  # IPv6 is switched off
        found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    found.setblocking(False)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    for port in candidates:
        with contextlib.suppress(OSError):
            found.bind(("", port))
            return found
    found.close()
    ports = ", ".join(map(str, candidates))
    raise SystemRefusedError(f"clock: none of the UDP ports {ports} is free")
