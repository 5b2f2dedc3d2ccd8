"""The MPI program that is harmed: it computes as a GPU would, without the CPU, and sums gradients.

It looks into a directory for what the application itself is to suffer: `late-<node>`, a rank whose
compute takes five times as long; `checkpoint`, all ranks write state. Rank 0 prints its iterations.
"""

import argparse
import ctypes
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

COMPUTE_S = 0.02
CHECKPOINT = 131  # docs/tracker.md


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("orders", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--kib", type=int, default=512)
    parser.add_argument("--told", action="store_true", help="Tell the tracker each iteration.")
    args = parser.parse_args()
    world = MPI.COMM_WORLD
    track = ctypes.CDLL(None)
    mine, total = np.ones(args.kib * 128), np.empty(args.kib * 128)
    late = args.orders / f"late-{os.uname().nodename}"
    took: list[tuple[int, int]] = []
    end_s, step, going = time.monotonic() + args.seconds, 0, 1
    while going:
        begin = time.monotonic_ns()
        time.sleep(COMPUTE_S * (5 if late.exists() else 1))
        world.Allreduce(mine, total)
        if total[0] != world.size:
            sys.stderr.write(f"step {step}: wrong sum\n")
            world.Abort(1)
        step += 1
        if args.told:
            track.fabric_track_step(ctypes.c_uint64(step))
        order = 0
        if world.rank == 0:
            order = int(time.monotonic() < end_s) + 2 * (args.orders / "checkpoint").exists()
        order = world.bcast(order)
        going = order & 1
        if order & 2:
            track.fabric_track_enter(CHECKPOINT, -1, ctypes.c_uint64(mine.nbytes))
            time.sleep(0.5)  # a file system that takes half a second for it
            track.fabric_track_exit()
        took.append((begin, time.monotonic_ns() - begin))
    if world.rank == 0:
        usual = sorted(took_ns for _, took_ns in took)[len(took) // 2]
        long = [(at, ns) for at, ns in took if ns > 1.2 * usual]
        print(json.dumps({"iterations": step, "usual_ns": usual, "long": long}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
