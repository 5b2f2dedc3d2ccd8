"""An MPI loop for bench/failover.py: checked Allreduce and Sendrecv; every long iteration is noted.

Rank 0 prints one line of JSON, with what all ranks waited for a core. A wrong result ends the job
with an error.
"""

import argparse
import json
import sys
import time

import numpy as np
from failover_stream import WAIT_NS, Runqueue
from mpi4py import MPI


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--kib", type=int, default=256)
    parser.add_argument("--keep", type=int, default=2000)
    args = parser.parse_args()
    world = MPI.COMM_WORLD
    rank, size = world.Get_rank(), world.Get_size()
    mine, total = np.empty(args.kib * 128), np.empty(args.kib * 128)
    word, got = np.empty(1), np.empty(1)
    took: list[tuple[int, int, int]] = []
    queue = Runqueue()
    end, step, go_on = time.monotonic() + args.seconds, 0, True
    while go_on:
        begin = time.monotonic_ns()
        mine[:] = rank + step
        world.Allreduce(mine, total)
        word[0] = rank * 1000 + step
        world.Sendrecv(word, (rank + 1) % size, 0, got, (rank - 1) % size, 0)
        right = size * (size - 1) / 2 + size * step
        if not (total == right).all() or got[0] != (rank - 1) % size * 1000 + step:
            sys.stderr.write(f"rank {rank} step {step}: wrong result\n")
            world.Abort(1)
        took.append((begin, time.monotonic_ns() - begin, queue.since_ns()))
        step += 1
        go_on = world.bcast(time.monotonic() < end if rank == 0 else None)
    waits = [(at + gap, waited) for at, gap, waited in took if rank and waited > WAIT_NS]
    theirs = world.gather(waits)
    if rank == 0:
        long = sorted(took, key=lambda item: -item[1])[: args.keep]
        print(json.dumps({
            "blocks": step,
            "median_ns": sorted(item[1] for item in took)[len(took) // 2],
            "waits": [wait for one in theirs or [] for wait in one],
            "longest": [
                {"begin_mono_ns": at, "gap_ns": gap, "waited_ns": waited}
                for at, gap, waited in long
            ],
        }), flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
