"""Do the job clock's intervals hold? The agents' own code on fake time, so that no load matters.

Eight nodes whose probes wait in queues nine times of ten, one of them behind a port through which
nothing comes undelayed; meanwhile a node is killed and started again, frozen, cut off, 3 s each,
over and over. Twenty times a second all nodes are asked at one instant: intervals that exclude
each other are false. bench/clock_harm.py asks the same of real sockets.

    python bench/clock_faults.py [--seeds 16] [--seconds 60]
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fabricctl.clock._page import Reading
from fabricctl.clock.page import SYNCHRONISED
from tests.support.clock_mesh import Link, Mesh

NODES = 8
SETTLE_S, AWAY_S, REST_S = 6.0, 3.0, 1.5


def harmed(mesh: Mesh, seconds: float, seed: int) -> Iterator[dict[int, Reading]]:
    """Readings of all nodes while it happens."""
    mesh.skip(SETTLE_S)
    chance, victim = random.Random(seed), seed % NODES
    for other in range(NODES):
        for node in range(NODES):
            mesh.link[0, other, node] = Link(busy=0.9, queue_ns=50_000.0)
        mesh.link[0, other, victim] = Link(extra_ns=3_000.0, busy=1.0, queue_ns=2_000_000.0)
    for turn in range(int(seconds / (AWAY_S + REST_S))):
        node = chance.randrange(NODES)
        if turn % 3 == 0:
            mesh.kill(node, noticed=False)
        elif turn % 3 == 1:
            mesh.frozen.add(node)
        else:
            mesh.cut(0, node)
            mesh.silent.add(node)
        yield from mesh.run(AWAY_S)
        if turn % 3 == 0:
            mesh.start(node)
        mesh.frozen.clear()
        mesh.cut(0, node, cut=False)
        mesh.silent.clear()
        yield from mesh.run(REST_S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    asked = false = 0
    likely: list[float] = []
    widths: list[float] = []
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory(prefix="fabric-clock-") as folder:
            mesh = Mesh(NODES, Path(folder), seed=seed)
            for readings in harmed(mesh, given.seconds, seed):
                values = list(readings.values())
                first = np.array([r.earliest_ns for r in values])
                last = np.array([r.latest_ns for r in values])
                times = np.array([r.time_ns for r in values])
                error = np.array([r.likely_ns for r in values])
                i, j = np.triu_indices(len(values), 1)
                asked += 2 * len(i)  # each pair in both orders
                false += int((last[:, None] < first[None, :]).sum())
                likely.append(float((np.abs(times[i] - times[j]) <= error[i] + error[j]).mean()))
                sure = [n for n, r in enumerate(values) if r.status == SYNCHRONISED]
                widths += ((last - first)[sure] / 2).tolist()
        print(f"seed {seed}: so far {asked:,} questions, {false} false intervals", flush=True)
    print(
        f"likely holds {np.mean(likely):.5f} of the pairs; certain half-width while synchronised: "
        f"median {np.median(widths):,.0f} ns, 99 % {np.quantile(widths, 0.99):,.0f} ns, "
        f"half the least round trip {Link().floor_ns:,.0f} ns"
    )
    return 1 if false else 0


if __name__ == "__main__":
    sys.exit(main())
