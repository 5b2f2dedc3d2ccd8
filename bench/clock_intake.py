"""Whether one node can solve for a large job: a real clock and socket, and everybody's reports.

The node that is measured runs the agent's own code. Another process reports for everybody else:
sealed as agents seal, of the instant that each would report at, and counts the answers. A node is
served when it got an answer to its report on a window.

    python -m bench.clock_intake [--nodes 300 1000 4000 10000] [--seconds 20] [--burst]

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
from fabricctl.clock.live import HOP_S, STRIDE, JobClock, Member
from fabricctl.clock.probing import Rail
from fabricctl.clock.solver import NodeReport

KEY = b"k" * 32
PORT = 20_900
WARM_S = 4.0  # not counted
# After a window's end: a stamp comes back (18 pairs a second), the fit and the thread that waits.
GRACE_S, JITTER_S = 0.18, 0.004


def names_of(nodes: int) -> tuple[str, ...]:
    return tuple(f"n{i:05}" for i in range(nodes))


def as_agents_run() -> None:
    """Ahead of the job (agent.realtime); without the right to, as it is."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def solver(nodes: int, seconds: float, pipe: Connection) -> None:
    """Node 0, as its agent runs it; tells what CPU it took, in shares of a core."""
    as_agents_run()
    member = Member(7, names_of(nodes), names_of(nodes)[0], KEY, 1)
    clock = JobClock(member, [Rail("lo", "127.0.0.1")], (PORT,), lambda _: None)
    end_s, begun = time.monotonic() + seconds, (0.0, 0.0)
    while (now_s := time.monotonic()) < end_s:
        wait_s = min(max(clock.next_due_s() - now_s, 0), 0.5)
        if select.select([clock.fileno()], [], [], wait_s)[0]:
            clock.receive()
        clock.run_due()
        if not begun[0] and now_s > end_s - seconds + WARM_S:
            begun = now_s, time.process_time()
    pipe.send((time.process_time() - begun[1]) / (time.monotonic() - begun[0]))
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
        self.base, self.settled = 1, False
        chance = random.Random(1)
        spread_s = 0.0 if burst else live.spread_s(nodes)
        at_s = [(GRACE_S + n / nodes * spread_s + chance.uniform(0, JITTER_S), n) for n in owned]
        self.order = sorted(entry for entry in at_s if entry[1])
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for option in (socket.SO_RCVBUF, 33):  # SO_RCVBUFFORCE: root's
            with contextlib.suppress(PermissionError):
                self.socket.setsockopt(socket.SOL_SOCKET, option, 64 << 20)
        self.socket.setblocking(False)

    @staticmethod
    def _table(node: int, owned: list[int], rng: np.random.Generator) -> np.ndarray:
        table = np.zeros(len(owned), REPORT)
        table["a"], table["b"], table["usable"], table["near"] = node, owned, 1, 10
        table["offset_ns"], table["sigma_ns"] = rng.normal(0, 10, len(owned)), 10.0
        table["hard_above_ns"], table["hard_below_ns"] = 800.0, -800.0
        return table

    def sealed(self, window: int) -> list[tuple[float, bytes]]:
        """What all say of a window, and how long after its end."""
        found = []
        for after_s, node in self.order:
            mine = NodeReport(
                node, window, 0.0, 400.0, self.settled, self.tables[node], self.base, False
            )
            body = exchange.pack_report(mine)
            found.append((after_s, self.seals[node].close(exchange.REPORT_KIND, 0, body)))
        return found

    def window(self, window: int) -> tuple[float, float]:
        """The share of the nodes that are served, and when the last of them was, after the end."""
        messages, end_s = self.sealed(window), window * HOP_S
        for after_s, data in messages:
            while (early_s := end_s + after_s - time.time()) > 0:
                if early_s > 0.001:
                    time.sleep(early_s - 0.0005)
            self.socket.sendto(data, ("127.0.0.1", PORT))
        served, last_s = set(), 0.0
        while (left_s := end_s + GRACE_S + STRIDE * HOP_S - 0.01 - time.time()) > 0:
            if not select.select([self.socket], [], [], left_s)[0]:
                break
            data = self.socket.recv(exchange.MAX_BYTES)
            _, kind, _, to, _, _ = exchange._HEAD.unpack_from(data)
            if kind == exchange.ANSWER:
                answer = exchange.unpack_answer(data[exchange._HEAD.size : -16], to)
                self.base, self.settled = answer.base, True
                if answer.window == window:
                    served.add(to)
                    last_s = time.time() - end_s
            if len(served) == len(messages):
                break
        return len(served) / len(messages), last_s


def measure(nodes: int, seconds: float, burst: bool) -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=solver, args=(nodes, seconds, theirs))
    others = Others(nodes, burst)
    process.start()
    as_agents_run()
    begin_s, shares, lasts = time.time(), [], []
    while time.time() < begin_s + seconds - 1:
        window = int((time.time() - GRACE_S) / HOP_S) + 1
        window += -window % STRIDE
        share, last_s = others.window(window)
        if time.time() > begin_s + WARM_S:
            shares.append(share)
            lasts.append(last_s - GRACE_S)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    cpu = ours.recv()
    process.join()
    print(
        f"{nodes:7,} nodes: served {statistics.mean(shares):6.1%}, at worst {min(shares):6.1%}; "
        f"last answer {statistics.median(lasts) * 1e3:4.0f} ms after the first report; "
        f"{cpu:5.1%} of a core",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[300, 1000, 4000, 10000])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--burst", action="store_true")
    given = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores; two windows a second")
    for nodes in given.nodes:
        measure(nodes, given.seconds, given.burst)


if __name__ == "__main__":
    main()
