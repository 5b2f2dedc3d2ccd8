"""The program that is harmed, of MPI or of PyTorch (Gloo): it computes as a GPU would, without the
CPU, and sums gradients.

It looks into a directory for what the application itself is to suffer: `late-<node>`, a rank whose
compute takes five times as long; `checkpoint`, all ranks write state. It writes `begun-<job>` there
once all ranks compute. Rank 0 prints its iterations.
"""

import argparse
import ctypes
import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np

COMPUTE_S = 0.02
CHECKPOINT = 131  # docs/tracker.md
PORT = 29_500  # of PyTorch's store, on the first node


class Mpi:
    """All ranks, by mpi4py."""

    def __init__(self, kib: int) -> None:
        from mpi4py import MPI

        self._world = MPI.COMM_WORLD
        self._mine, self._total = np.ones(kib * 128), np.empty(kib * 128)
        self.rank, self.size, self.bytes = self._world.rank, self._world.size, self._mine.nbytes

    def sum(self) -> float:
        self._world.Allreduce(self._mine, self._total)
        return float(self._total[0])

    def told(self, order: int) -> int:
        """What rank 0 says."""
        return int(self._world.bcast(order))

    def end(self) -> None: ...


class Torch:
    """All ranks, by torch.distributed over the first rail."""

    def __init__(self, kib: int) -> None:
        import torch
        import torch.distributed as dist

        from fabricctl import state

        self.rank, self.size = (int(os.environ[f"SLURM_{name}"]) for name in ("PROCID", "NTASKS"))
        torch.set_num_threads(1)
        where = f"tcp://{os.environ['FIRST_NODE']}:{PORT + int(os.environ['SLURM_JOB_ID']) % 100}"
        dist.init_process_group(
            "gloo", where, rank=self.rank, world_size=self.size, timeout=timedelta(minutes=4)
        )
        state.track_torch()
        self._dist, self._mine, self._order = dist, torch.ones(kib * 256), torch.zeros(1)
        self.bytes = self._mine.nbytes

    def sum(self) -> float:
        total = self._mine.clone()
        self._dist.all_reduce(total)
        return float(total[0])

    def told(self, order: int) -> int:
        """What rank 0 says."""
        self._order[0] = order
        self._dist.broadcast(self._order, 0)
        return int(self._order[0])

    def end(self) -> None:
        self._dist.destroy_process_group()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("orders", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--kib", type=int, default=512)
    parser.add_argument("--told", action="store_true", help="Tell the tracker each iteration.")
    parser.add_argument("--torch", action="store_true", help="PyTorch, not MPI.")
    args = parser.parse_args()
    world = (Torch if args.torch else Mpi)(args.kib)
    track = ctypes.CDLL(None)
    late = args.orders / f"late-{os.uname().nodename}"
    took: list[tuple[int, int]] = []
    step, going = 0, 1
    if world.sum() == world.size and world.rank == 0:
        (args.orders / f"begun-{os.environ['SLURM_JOB_ID']}").touch()
    end_s = time.monotonic() + args.seconds
    while going:
        begin = time.monotonic_ns()
        time.sleep(COMPUTE_S * (5 if late.exists() else 1))
        if world.sum() != world.size:
            sys.exit(f"step {step}: wrong sum")
        step += 1
        if args.told:
            track.fabric_track_step(ctypes.c_uint64(step))
        order = 0
        if world.rank == 0:
            order = int(time.monotonic() < end_s) + 2 * (args.orders / "checkpoint").exists()
        order = world.told(order)
        going = order & 1
        if order & 2:
            track.fabric_track_enter(CHECKPOINT, -1, ctypes.c_uint64(world.bytes))
            time.sleep(0.5)  # a file system that takes half a second for it
            track.fabric_track_exit()
        took.append((begin, time.monotonic_ns() - begin))
    world.end()
    if world.rank == 0:
        usual = sorted(took_ns for _, took_ns in took)[len(took) // 2]
        long = [(at, ns) for at, ns in took if ns > 1.2 * usual]
        print(json.dumps({"iterations": step, "usual_ns": usual, "long": long}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
