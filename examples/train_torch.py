#!/usr/bin/env python3
"""Data-parallel training in PyTorch on CPUs (Gloo) that goes on where it was when a node died.

    fabricctl run --spares 1 --mpi none python examples/train_torch.py --steps 500
    fabricctl run --spares 1 --live python examples/train_torch.py --steps 500

The first starts all processes again after a death, the second only the one that died: the others
enter `train` again. Batches follow from the step and the rank, so that a run with deaths ends with
exactly the weights of an unbroken one; rank 0 prints their hash. Needs torch.
"""

import argparse
import hashlib
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from fabricctl import state


def batch(step: int, rank: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, and the sign of its sum as the label."""
    made = torch.Generator().manual_seed(step * 1009 + rank)
    x = torch.randn(size, 64, generator=made)
    return x, (x.sum(1) > 0).long()


def network(width: int) -> torch.nn.Module:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers = [torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, 2)]
    return torch.nn.Sequential(*layers)


def digest(model: torch.nn.Module) -> str:
    """Of all weights, to the last bit."""
    weights = b"".join(w.detach().numpy().tobytes() for w in model.parameters())
    return hashlib.sha256(weights).hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--every", type=int, default=1, help="steps between checkpoints")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds of sleep in each step")
    parser.add_argument("--say", type=int, default=0, help="rank 0 tells every so many steps")
    parser.add_argument("--shared", help="directory of the shared file system, for some of them")
    options = parser.parse_args()

    model = network(options.width)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def train(checkpoint: state.Checkpoint) -> tuple[int, float | None]:
        rank = dist.get_rank()
        checkpoint.protect(model=state.Same(model), optimizer=state.Same(optimizer))
        begin = checkpoint.restore()
        # Else buckets are laid out anew after the first step of each start, and gradients are added
        # up in another order: right, but not the same to the last bit.
        parallel = DistributedDataParallel(model, find_unused_parameters=True)
        loss = torch.tensor(float("nan"))
        if rank == 0:
            print(f"from step {begin}", flush=True)
        for n in range(begin, options.steps):
            x, label = batch(n, rank, 32)
            loss = torch.nn.functional.cross_entropy(parallel(x), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            time.sleep(options.pause)
            checkpoint.step(n + 1)
            if rank == 0 and n == begin:
                print(f"first step done at {time.time():.3f}", flush=True)
            if rank == 0 and options.say and (n + 1) % options.say == 0:
                print(f"at step {n + 1}", flush=True)
            if checkpoint.ending:
                return rank, None
        return rank, loss.item()

    rank, loss = state.live(train, "gloo", every_steps=options.every, shared=options.shared)
    if rank == 0 and loss is not None:
        print(f"step {options.steps}, loss {loss:.4f}, weights {digest(model)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
