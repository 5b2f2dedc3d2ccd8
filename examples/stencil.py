#!/usr/bin/env python3
"""Heat on a ring, in mpi4py, that goes on where it was when a rank or a node dies.

    fabricctl run --spares 1 python examples/stencil.py --steps 2000

Every rank holds a piece of the ring and exchanges its ends with its neighbours in each step. Rank 0
prints the steps done since the last start and a hash of the whole ring: it is the same whatever
died on the way.
"""

import argparse
import hashlib
import sys
import time

import numpy as np
from mpi4py import MPI

from fabricctl import state


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--cells", type=int, default=65536, help="of each rank")
    parser.add_argument("--every", type=int, default=None, help="steps between checkpoints")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds of sleep in each step")
    parser.add_argument("--say", type=int, default=0, help="rank 0 tells every so many steps")
    parser.add_argument("--shared", help="directory of the shared file system, for some of them")
    options = parser.parse_args()

    world = MPI.COMM_WORLD
    rank, size = world.Get_rank(), world.Get_size()
    left, right = (rank - 1) % size, (rank + 1) % size
    heat = np.random.default_rng(rank).random(options.cells)
    ends = np.empty(2)

    with state.Checkpoint(world, every_steps=options.every, shared=options.shared) as checkpoint:
        checkpoint.protect(heat=heat)
        begin = checkpoint.restore()
        if rank == 0:
            print(f"from step {begin}", flush=True)
        for n in range(begin, options.steps):
            world.Sendrecv(heat[-1:], right, 0, ends[:1], left, 0)
            world.Sendrecv(heat[:1], left, 1, ends[1:], right, 1)
            padded = np.concatenate((ends[:1], heat, ends[1:]))
            heat += 0.25 * (padded[:-2] - 2 * heat + padded[2:])
            time.sleep(options.pause)
            checkpoint.step(n + 1)
            if rank == 0 and n == begin:
                print(f"first step done at {time.time():.3f}", flush=True)
            if rank == 0 and options.say and (n + 1) % options.say == 0:
                print(f"at step {n + 1}", flush=True)
            if checkpoint.ending:  # somebody asked for an end: everything is saved
                return 0
        pieces = world.gather(hashlib.sha256(heat.tobytes()).hexdigest())
    if rank == 0:
        whole = hashlib.sha256("".join(pieces or []).encode()).hexdigest()[:16]
        print(f"{options.steps - begin} steps since step {begin}; ring {whole}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
