#!/usr/bin/env python3
"""An MPI program that never stops talking: a checked Allreduce in a loop.

    srun --mpi=pmix python examples/allreduce.py --seconds 20

Prints, on rank 0, the iterations done, the usual iteration time and every iteration that took
ten times that long, with the wall-clock time at which it began. A wrong sum ends the job.
"""

import argparse
import statistics
import sys
import time

import numpy as np
from mpi4py import MPI


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--kib", type=int, default=256, help="bytes reduced per iteration, in KiB")
    options = parser.parse_args()

    world = MPI.COMM_WORLD
    rank, size = world.Get_rank(), world.Get_size()
    mine = np.full(options.kib * 128, float(rank))
    total = np.empty_like(mine)
    expected = size * (size - 1) / 2
    nodes = world.gather(MPI.Get_processor_name())
    if rank == 0:
        print(f"{size} ranks on {', '.join(nodes or [])}; {options.kib} KiB a step", flush=True)

    took: list[tuple[float, float]] = []  # (wall clock at begin, seconds)
    end = time.monotonic() + options.seconds
    go_on = True
    while go_on:
        wall, begin = time.time(), time.monotonic()
        world.Allreduce(mine, total)
        if not (total == expected).all():
            print(f"rank {rank}: wrong sum", file=sys.stderr)
            world.Abort(1)
        took.append((wall, time.monotonic() - begin))
        # Rank 0's clock decides, so that everyone stops at the same step.
        go_on = world.bcast(time.monotonic() < end if rank == 0 else None)

    if rank == 0:
        usual = statistics.median(seconds for _, seconds in took)
        print(f"{len(took)} steps, every sum right; usually {usual * 1e3:.2f} ms a step")
        slow = [(wall, s) for wall, s in took if s > 10 * usual and s > 0.05]
        for wall, seconds in sorted(slow, key=lambda item: -item[1])[:5]:
            stamp = time.strftime("%H:%M:%S", time.localtime(wall)) + f".{int(wall % 1 * 1e3):03d}"
            print(f"slow step: began {stamp}, took {seconds:.3f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
