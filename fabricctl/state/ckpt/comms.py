"""What a program's ranks talk by: mpi4py, torch.distributed, or nothing."""

import ctypes
import os
from collections.abc import Callable
from typing import Any

from fabricctl.errors import UsageError
from fabricctl.state import torch_hooks

Gather = Callable[[Any], list[Any]]  # what each rank has to say, in their order
MAIN = "main"  # the name of a checkpoint that was given none


class Regroup(Exception):  # noqa: N818 - no error: nothing went wrong
    """All ranks have saved and shall leave the program's loop, to enter it in another group."""


def adapt(comm: Any, name: str) -> tuple[int, int, Gather]:
    """Rank, number of ranks, and how all of them learn what each has to say; all say the same kind
    of thing. A tuple of floats and bools may come back as floats.

    Raises :class:`UsageError` where processes of a step would take each other's for their own."""
    if comm is None:
        if name == MAIN and (processes := step_tasks()) > 1:
            raise UsageError(
                f"checkpoint: one of {processes} processes of a step, and no communicator: give "
                'mpi4py\'s or "torch", or each a name of its own: name=f"main-{rank}"'
            )
        return 0, 1, lambda value: [value]
    if comm == "torch":
        import torch
        import torch.distributed as dist

        torch_hooks.install()

        def gather(value: Any) -> list[Any]:
            told: list[Any] = [None] * dist.get_world_size()
            if _are_numbers(value) and dist.get_backend() == "gloo":  # one collective, not two
                mine = torch.tensor(value, dtype=torch.float64)
                parts = [torch.empty_like(mine) for _ in told]
                dist.all_gather(parts, mine)
                return [tuple(part.tolist()) for part in parts]
            dist.all_gather_object(told, value)
            return told

        return dist.get_rank(), dist.get_world_size(), gather
    return comm.Get_rank(), comm.Get_size(), comm.allgather


def step_tasks() -> int:
    """Processes of the Slurm step that this one is of; 1 outside of any, as in a job script."""
    given = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    return int(given) if given.isdecimal() else 1


def _are_numbers(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(each, bool | float) for each in value)


def track_step(n: int) -> None:
    """Tells the tracker, where it is preloaded."""
    global _tracker  # noqa: PLW0603 - looked up once a process
    if _tracker is None:
        _tracker = getattr(ctypes.CDLL(None), "fabric_track_step", False)
    if _tracker:
        _tracker(ctypes.c_uint64(n))


_tracker: Any = None
