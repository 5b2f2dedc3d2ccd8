"""The training of examples/train_torch.py by other ways, for bench/training.py.

``plain``: DistributedDataParallel, with torch.save to ``--to``, from where it goes on.
``torchft``: a replica group of one process; its manager finds the others at the lighthouse.
"""

import argparse
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from train_torch import batch, digest, network


def loss_of(model: torch.nn.Module, step: int, rank: int) -> torch.Tensor:
    x, label = batch(step, rank, 32)
    return torch.nn.functional.cross_entropy(model(x), label)


def say(rank: int, step: int, every: int) -> None:
    if rank == 0 and step % every == 0:
        print(f"at step {step}", flush=True)


def plain(options: argparse.Namespace) -> None:
    rank, ranks = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    model = network(options.width)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    begin = 0
    if options.to is not None and options.to.exists():
        saved = torch.load(options.to)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        begin = saved["step"]
    parallel = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    for n in range(begin, options.steps):
        loss = loss_of(parallel, n, rank)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(options.pause)
        if rank == 0 and options.to is not None and (n + 1) % options.every == 0:
            what = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**what, "step": n + 1}, f"{options.to}.new")
            Path(f"{options.to}.new").replace(options.to)
        say(rank, n + 1, options.say)
    if rank == 0:
        print(f"step {options.steps}, weights {digest(model)}", flush=True)


def torchft(options: argparse.Namespace) -> None:
    from torchft import DistributedDataParallel, Manager, Optimizer, ProcessGroupGloo

    model = network(options.width)
    inner = torch.optim.Adam(model.parameters(), lr=1e-3)

    def load(saved: dict) -> None:
        model.load_state_dict(saved["model"])
        inner.load_state_dict(saved["optimizer"])

    limit = timedelta(seconds=10)
    host = os.environ["SLURMD_NODENAME"]
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=limit), min_replica_size=1, load_state_dict=load,
        state_dict=lambda: {"model": model.state_dict(), "optimizer": inner.state_dict()},
        replica_id=f"{options.rank}-{host}", rank=0, world_size=1, store_addr=host,
        store_port=store.port, lighthouse_addr=options.lighthouse, hostname=host, timeout=limit,
        quorum_timeout=timedelta(seconds=60), connect_timeout=limit,
    )  # fmt: skip
    parallel = DistributedDataParallel(manager, model)
    optimizer = Optimizer(manager, inner)
    while (n := manager.current_step()) < options.steps:
        optimizer.zero_grad()
        loss_of(parallel, n, options.rank).backward()
        optimizer.step()
        time.sleep(options.pause)
        say(options.rank, manager.current_step(), options.say)
    print(f"step {options.steps} of replica {options.rank}, weights {digest(model)}", flush=True)
    os._exit(0)  # its threads would wait for the others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("way", choices=["plain", "torchft"])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--pause", type=float, default=0.03)
    parser.add_argument("--say", type=int, default=10)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--to", type=Path)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--lighthouse")
    options = parser.parse_args()
    {"plain": plain, "torchft": torchft}[options.way](options)


if __name__ == "__main__":
    main()
