"""What solving costs as jobs grow: a window of 128, 1,000 and 10,000 nodes, CPU time of one core.

python bench/clock_solve.py
"""

import time

import numpy as np
from numpy.typing import NDArray

from fabricctl.clock import exchange, peers
from fabricctl.clock.edges import REPORT
from fabricctl.clock.solve import Edges, solve
from fabricctl.clock.solver import NodeReport, Solver

Floats = NDArray[np.float64]


def solve_times() -> None:
    print("\nsolve of one window (10 peers, two rounds of rejection), ms")
    for nodes in (128, 1_000, 10_000):
        rng = np.random.default_rng(nodes)
        names = [f"n{i:05}" for i in range(nodes)]
        index = {name: i for i, name in enumerate(names)}
        begun = time.process_time()
        pairs = peers.edges(7, 0, names)
        graph_ms = (time.process_time() - begun) * 1e3
        a = np.array([index[a] for a, _ in pairs])
        b = np.array([index[b] for _, b in pairs])
        true = rng.normal(0, 1e3, nodes)
        x = true[b] - true[a] + rng.normal(0, 10, len(a))
        x[:: len(a) // 5] += 5_000
        edges = Edges(nodes, a, b, x, np.full(len(a), 10.0), np.zeros(len(a)))
        times = []
        for _ in range(5):
            begun = time.process_time()
            found = solve(edges, np.ones(len(a), bool))
            times.append((time.process_time() - begun) * 1e3)
        wrong = found.theta_ns - true + true.mean()
        print(
            f"{nodes:7,} nodes {len(a):7,} edges: solve {np.median(times):8.2f}  "
            f"probe graph {graph_ms:8.1f}  rms error {wrong.std():.2f} ns"
        )


def window_times() -> None:
    """All that a solver does in a window, from the messages that come to those that go."""
    print("\na solver's window, ms: 10 peers on one rail")
    for nodes in (128, 1_000, 10_000):
        key = exchange.Seal(b"k" * 32, 7, 0, 1)
        rng = np.random.default_rng(nodes)
        names = [f"n{i:05}" for i in range(nodes)]
        index = {name: i for i, name in enumerate(names)}
        owned: dict[int, list[int]] = {i: [] for i in range(nodes)}
        for first, second in peers.edges(7, 0, names):
            owned[index[first]].append(index[second])
        true = rng.normal(0, 1e3, nodes)
        messages = [message_of(node, owned[node], true, rng) for node in range(nodes)]
        solver = Solver(nodes, 0.25, 100.0)
        seals = [exchange.Seal(b"k" * 32, 7, node, 1) for node in range(nodes)]
        sealed = [seals[n].close(exchange.REPORT_KIND, 0, m) for n, m in enumerate(messages)]
        begun = time.process_time()
        for datagram in sealed:
            message = key.open(datagram)
            solver.add(exchange.unpack_report(message.body, message.sender), 100)
        taken = time.process_time()
        answers = solver.solve()
        solved = time.process_time()
        for answer in answers:
            key.close(exchange.ANSWER, answer.node, exchange.pack_answer(answer))
        done = time.process_time()
        ms = [(b - a) * 1e3 for a, b in ((begun, taken), (taken, solved), (solved, done))]
        print(
            f"{nodes:7,} nodes: take {ms[0]:8.1f}  solve with bounds {ms[1]:8.1f}  "
            f"answer {ms[2]:8.1f}"
        )


def message_of(node: int, owned: list[int], true: Floats, rng: np.random.Generator) -> bytes:
    table = np.zeros(len(owned), REPORT)
    table["a"], table["b"], table["usable"], table["near"] = node, owned, 1, 10
    table["offset_ns"] = true[owned] - true[node] + rng.normal(0, 10, len(owned))
    table["sigma_ns"] = 10.0
    table["hard_above_ns"], table["hard_below_ns"] = 800.0, -800.0
    return exchange.pack_report(NodeReport(node, 100, 0.0, 400.0, True, table))


def main() -> None:
    solve_times()
    window_times()


if __name__ == "__main__":
    main()
