"""Do the job clock's intervals hold? A million questions while nodes die, freeze and lose links.

Eight namespaced nodes as in bench/clock.py, with bursty cross traffic of 90 % on every port and one
receive port at 120 %. Meanwhile, one after the other and over again: a node is killed and started
again, one is frozen, one loses its link, for 3 s each. All pages are read all the time: two nodes
asked one after the other must never answer with intervals in the wrong order.

    python bench/clock_harm.py                     # 70 s a seed, three seeds
    python bench/clock_harm.py --seconds 30 --seed 5
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import clock as bench
import clock_bed as bed
import numpy as np
from needs import need_root

AWAY_S = 3.0
REST_S = 1.5
CASE = bed.CASES["harm"]


class Harm(threading.Thread):
    """What happens to the nodes until :meth:`end`."""

    def __init__(self, run: bed.Run, nodes: list["subprocess.Popen[bytes]"]) -> None:
        super().__init__(daemon=True)
        self._run, self._nodes = run, nodes
        self._begun_s, self._over = time.monotonic(), threading.Event()
        self.done: dict[str, int] = {}

    def run(self) -> None:
        random_ = random.Random(self._run.seed)
        kinds = [self._freeze, self._kill, self._cut]
        self._over.wait(bench.SETTLE_S + bench.QUIET_S)
        while not self._over.is_set():
            for kind in kinds:
                if self._over.is_set():
                    break
                name = kind.__name__.strip("_")
                self.done[name] = self.done.get(name, 0) + 1
                kind(random_.randrange(self._run.nodes))
                self._over.wait(REST_S)

    def end(self) -> None:
        self._over.set()
        self.join()

    def _freeze(self, node: int) -> None:
        self._nodes[node].send_signal(signal.SIGSTOP)
        self._over.wait(AWAY_S)
        self._nodes[node].send_signal(signal.SIGCONT)

    def _kill(self, node: int) -> None:
        self._nodes[node].kill()
        self._nodes[node].wait()
        self._over.wait(AWAY_S)
        rest = bench.shorter(self._run, time.monotonic() - self._begun_s)
        self._nodes[node] = bench.on_node_loud(
            self._run, node, *bench.ourselves("node", rest, node)
        )

    def _cut(self, node: int) -> None:
        self._set_link(node, "down")
        self._over.wait(AWAY_S)
        self._set_link(node, "up")

    def _set_link(self, node: int, state: str) -> None:
        port = f"p{node}"
        bed.call("ip", "-n", f"{self._run.prefix}s0", "link", "set", port, state)


def measure(nodes: int, seconds: float, seed: int, folder: str) -> bench.Seen:
    prefix = f"fh{os.getpid()}-"
    run = bed.Run(CASE, nodes, 1, seconds, seed, 100.0, (20.0, 63.0, 200.0), False, prefix, folder)
    Path(folder, "begin").write_text(str(bench.mono_ns()))
    children: list[subprocess.Popen[bytes]] = []
    with bed.wired(run):
        clocks = [
            bench.on_node_loud(run, n, *bench.ourselves("node", run, n)) for n in range(nodes)
        ]
        harm = Harm(run, clocks)
        try:
            harm.start()
            time.sleep(bench.QUIET_S)
            children += [
                bed.on_node(run, n, *bench.ourselves("traffic", run, n)) for n in range(nodes)
            ]
            seen, _ = bench.watch(bench.shorter(run, bench.QUIET_S))
        finally:
            harm.end()
            for child in (*clocks, *children):
                child.send_signal(signal.SIGCONT)
                child.terminate()
                child.wait(timeout=20)
    told = ", ".join(f"{count} x {kind}" for kind, count in harm.done.items())
    print(f"seed {seed}: {told}; {len(seen.error)} looks at all pages")
    return seen


def show(seen: bench.Seen) -> None:
    if not seen.error:
        print("  there was no instant at which all nodes had job time: is the machine full?")
        return
    error, likely, status = np.array(seen.error), np.array(seen.likely), np.array(seen.status)
    i, j = np.triu_indices(error.shape[1], 1)
    apart = np.abs(error[:, i] - error[:, j])
    inside = apart <= likely[:, i] + likely[:, j]
    measured = (status[:, i] == 1) & (status[:, j] == 1)
    width = (np.array(seen.high) - np.array(seen.low))[status == 1] / 2
    print(
        f"  {seen.queries:,} questions, {seen.false} false intervals; likely holds "
        f"{inside.mean():.5f} of {inside.size:,} pairs; held over {(status == 2).mean():.3f}\n"
        f"  apart, both synchronised: {bench.quantiles(apart[measured])} ns (p50, p99, max); "
        f"any: {bench.quantiles(apart.ravel())}\n"
        f"  certain half-width while synchronised: median {np.median(width):,.0f} ns, "
        f"99 % {np.quantile(width, 0.99):,.0f} ns"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=70.0)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--seed", type=int, nargs="*", default=[11, 12, 13])
    given = parser.parse_args()
    need_root()
    queries = false = 0
    for seed in given.seed:
        with tempfile.TemporaryDirectory(prefix="fabric-clock-") as folder:
            seen = measure(given.nodes, given.seconds, seed, folder)
        show(seen)
        queries, false = queries + seen.queries, false + seen.false
    print(f"altogether {queries:,} questions, {false} false intervals")
    return 1 if false else 0


if __name__ == "__main__":
    sys.exit(main())
