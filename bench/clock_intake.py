"""Whether one node can solve for a large job: a real clock and socket, and everybody's messages.

The node that is measured runs the agent's own code from its start on. Another process says hello
and reports for everybody else: sealed as agents seal, of the instant that each would speak at, and
counts the answers. A node is served when it got an answer to its report on a window. Told apart are
the beginning, when all report on every window, and after it, on every other.

    python -m bench.clock_intake [--nodes 300 1000 4000 10000] [--windows 40] [--burst]

``--burst``: all report as soon as the window is over, as they did before reports were spread.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import select
import socket
import statistics
import time
from multiprocessing.connection import Connection

import numpy as np

from fabricctl.clock import exchange, live, peers
from fabricctl.clock.edges import REPORT
from fabricctl.clock.follow import SETTLED_MEASUREMENTS
from fabricctl.clock.live import SETTLED_WINDOWS, STRIDE, JobClock, Member
from fabricctl.clock.probing import Rail
from fabricctl.clock.solver import NodeReport

KEY = b"k" * 32
PORT = 20_900
# After a window's end: a stamp comes back (18 pairs a second), the fit and the thread that waits.
GRACE_S, JITTER_S = 0.18, 0.004


def names_of(nodes: int) -> tuple[str, ...]:
    return tuple(f"n{i:05}" for i in range(nodes))


def as_agents_run() -> None:
    """Ahead of the job (agent.realtime); without the right to, as it is."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def solver(nodes: int, seconds: float, pipe: Connection) -> None:
    """Node 0, as its agent runs it; tells when it began, was told job time, had settled and ended:
    instants, and the CPU time that it had taken by then."""
    as_agents_run()
    member = Member(7, names_of(nodes), names_of(nodes)[0], KEY, 1)
    clock = JobClock(member, [Rail("lo", "127.0.0.1")], (PORT,), lambda _: None)
    begin_s = time.monotonic()
    marks = [(begin_s, time.process_time())]
    while (now_s := time.monotonic()) < begin_s + seconds:
        wait_s = min(max(clock.next_due_s() - now_s, 0), 0.5)
        if select.select([clock.fileno()], [], [], wait_s)[0]:
            clock.receive()
        clock.run_due()
        settled = clock.clock.told + (clock.clock.settled_windows > SETTLED_WINDOWS)
        if settled >= len(marks):
            marks.append((now_s, time.process_time()))
    pipe.send([*marks, (time.monotonic(), time.process_time())])
    clock.close()


class Others:
    """Everybody but node 0, on one socket."""

    def __init__(self, nodes: int, burst: bool) -> None:
        self.nodes = nodes
        rng, names = np.random.default_rng(nodes), names_of(nodes)
        index = {name: i for i, name in enumerate(names)}
        owned: dict[int, list[int]] = {i: [] for i in range(nodes)}
        for first, second in peers.edges(7, 0, names):
            a, b = index[first], index[second]
            owned[max(a, b) if min(a, b) == 0 else a].append(min(a, b) if min(a, b) == 0 else b)
        self.tables = {node: self._table(node, owned[node], rng) for node in range(1, nodes)}
        self.seals = {node: exchange.Seal(KEY, 7, node, 1) for node in range(1, nodes)}
        self.base, self.answered = 1, 0
        chance = random.Random(1)
        spread_s = 0.0 if burst else nodes / live.REPORTS_PER_S
        at_s = [(GRACE_S + n / nodes * spread_s + chance.uniform(0, JITTER_S), n) for n in owned]
        self.order = sorted(entry for entry in at_s if entry[1])
        crowd = max(1.0, nodes / live.CROWD)
        self.hello_s = [crowd * pause_s for pause_s in (live.BEGINNER_HELLO_S, live.HELLO_S[1])]
        self.hello_due_s = [time.time() + node / nodes * self.hello_s[0] for node in range(nodes)]
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for option in (socket.SO_RCVBUF, 33):  # SO_RCVBUFFORCE: root's
            with contextlib.suppress(PermissionError):
                self.socket.setsockopt(socket.SOL_SOCKET, option, 64 << 20)
        self.socket.setblocking(False)

    @property
    def settled(self) -> bool:
        return self.answered >= SETTLED_MEASUREMENTS

    @property
    def stride(self) -> int:
        return STRIDE if self.answered > SETTLED_MEASUREMENTS + SETTLED_WINDOWS else 1

    @staticmethod
    def _table(node: int, owned: list[int], rng: np.random.Generator) -> np.ndarray:
        table = np.zeros(len(owned), REPORT)
        table["a"], table["b"], table["usable"], table["near"] = node, owned, 1, 10
        table["offset_ns"], table["sigma_ns"] = rng.normal(0, 10, len(owned)), 10.0
        table["hard_above_ns"], table["hard_below_ns"] = 800.0, -800.0
        return table

    def sealed(self, window: int, end_s: float, next_s: float) -> list[tuple[float, bytes]]:
        """What all say of a window, when; and their hellos of that time."""
        found = []
        for after_s, node in self.order:
            mine = NodeReport(
                node, window, 0.0, 400.0, self.settled, self.tables[node], self.base, False
            )
            body = exchange.pack_report(mine)
            found.append((end_s + after_s, node, exchange.REPORT_KIND, body))
        said = exchange.Hello((("127.0.0.1", 9),), round(end_s * 1e9), self.settled, asked_ns=1)
        for node in self.seals:
            if (due_s := self.hello_due_s[node]) < next_s:
                found.append((due_s, node, exchange.HELLO, exchange.pack_hello(said)))
                self.hello_due_s[node] = due_s + self.hello_s[self.settled]
        found.sort(key=lambda message: message[0])
        return [(at_s, self.seals[n].close(kind, 0, body)) for at_s, n, kind, body in found]

    def window(self, window: int, hop_s: float) -> tuple[float, float]:
        """The share of the nodes that are served, and when the last of them was, after the end."""
        end_s = window * hop_s
        until_s = end_s + GRACE_S + self.stride * hop_s - 0.01
        messages = self.sealed(window, end_s, until_s)
        served: set[int] = set()
        last_s = 0.0
        for at_s, data in [*messages, (until_s, b"")]:
            while (early_s := at_s - time.time()) > 0.001:
                if not select.select([self.socket], [], [], early_s - 0.0005)[0]:
                    continue
                with contextlib.suppress(BlockingIOError):
                    for _ in range(64):
                        if self._took(self.socket.recv(exchange.MAX_BYTES), window, served):
                            last_s = time.time() - end_s
            if data:
                self.socket.sendto(data, ("127.0.0.1", PORT))
        self.answered += 2 * len(served) > self.nodes
        return len(served) / (self.nodes - 1), last_s

    def _took(self, data: bytes, window: int, served: set[int]) -> bool:
        _, kind, _, to, _, _ = exchange._HEAD.unpack_from(data)
        if kind != exchange.ANSWER:
            return False
        answer = exchange.unpack_answer(data[exchange._HEAD.size : -16], to)
        self.base = answer.base
        if answer.window == window:
            served.add(to)
        return answer.window == window


def measure(nodes: int, windows: int, burst: bool) -> None:
    ours, theirs = multiprocessing.Pipe()
    hop_s = live.hop_s(nodes)
    seconds = hop_s * (SETTLED_MEASUREMENTS + SETTLED_WINDOWS + 4 + STRIDE * windows)
    others = Others(nodes, burst)
    process = multiprocessing.Process(target=solver, args=(nodes, seconds, theirs))
    process.start()
    as_agents_run()
    begin_s = time.time()
    found: dict[int, list[tuple[float, float]]] = {1: [], STRIDE: []}
    while time.time() < begin_s + seconds - hop_s * STRIDE:
        window = int((time.time() - GRACE_S) / hop_s) + 1
        window += -window % others.stride
        found[others.stride].append(others.window(window, hop_s))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    marks = ours.recv()
    process.join()
    told = f"job time after {marks[1][0] - marks[0][0]:.1f} s" if len(marks) > 2 else "no job time"
    print(f"{nodes:7,} nodes, a window every {hop_s:g} s: {told}")
    for what, stride, (begun, ended) in (
        ("beginning", 1, (marks[0], marks[-2])),
        ("settled", STRIDE, (marks[-2], marks[-1])),
    ):
        if not (some := found[stride]) or ended == begun:
            continue
        shares, lasts = zip(*some, strict=True)
        cpu = (ended[1] - begun[1]) / (ended[0] - begun[0])
        print(
            f"        {what:9} {len(some):3} windows: served {statistics.mean(shares):6.1%}, "
            f"at worst {min(shares):6.1%}; the last {statistics.median(lasts):5.2f} s after the "
            f"window's end; {cpu:5.1%} of a core",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[300, 1000, 4000, 10000])
    parser.add_argument("--windows", type=int, default=40, help="once settled")
    parser.add_argument("--burst", action="store_true")
    given = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    for nodes in given.nodes:
        measure(nodes, given.windows, given.burst)


if __name__ == "__main__":
    main()
