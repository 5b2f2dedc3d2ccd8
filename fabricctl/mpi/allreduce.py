"""A checked all-reduce over the nodes of an audit: ``python -m fabricctl.mpi.allreduce``.

Rank 0 prints one line of JSON: every size, the least and the median time, and the nodes whose sum
was wrong.
"""

import json
import sys
import time
from array import array

from mpi4py import MPI

SIZES = (8, 8 << 10, 1 << 20)  # bytes
BUDGET_S = 0.8  # of each size


def main() -> int:
    """Exit status 1: a sum was wrong."""
    world = MPI.COMM_WORLD
    rank, size = world.Get_rank(), world.Get_size()
    name = MPI.Get_processor_name().partition(".")[0]
    found = []
    wrong: set[str] = set()
    for count in SIZES:
        mine = array("d", [float(rank + 1)] * (count // 8))
        total = array("d", bytes(count))
        expected = size * (size + 1) / 2
        took = []
        end_s = time.monotonic() + BUDGET_S
        go_on = True
        while go_on:
            world.Barrier()
            begin_s = time.monotonic()
            world.Allreduce(mine, total)
            took.append(time.monotonic() - begin_s)
            right = total[0] == total[-1] == expected and total.count(expected) == len(total)
            if not right:
                wrong.add(name)
            # Rank 0's clock decides, so that everyone stops at the same step.
            go_on = world.bcast(time.monotonic() < end_s if rank == 0 else None)
        took.sort()
        found.append({"bytes": count, "least_s": took[0], "median_s": took[len(took) // 2],
                      "times": len(took)})  # fmt: skip
    every = world.gather((name, sorted(wrong)))
    if rank == 0:
        bad = sorted({node for _, nodes in every or () for node in nodes})
        names = sorted({node for node, _ in every or ()})
        said = {"ranks": size, "nodes": names, "sizes": found, "wrong": bad}
        sys.stdout.write(f"fabric-allreduce {json.dumps(said)}\n")
        sys.stdout.flush()
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
