"""Where a PyTorch program stands: its collectives and optimiser steps, told to the tracker.

The library is preloaded by `fabricctl run`; without it nothing is wrapped and nothing costs.
"""

import atexit
import ctypes
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from fabricctl.state.track.block import HOOK_OPS

_OPS = {name.removeprefix("torch."): op for op, name in HOOK_OPS.items()}
# Function -> (operation, where its root or peer stands among the arguments; None: it has none).
WRAPPED: dict[str, tuple[str, int | None]] = {
    "all_reduce": ("all_reduce", None),
    "broadcast": ("broadcast", 1),
    "all_gather": ("all_gather", None),
    "all_gather_into_tensor": ("all_gather", None),
    "reduce_scatter": ("reduce_scatter", None),
    "reduce_scatter_tensor": ("reduce_scatter", None),
    "all_to_all": ("all_to_all", None),
    "all_to_all_single": ("all_to_all", None),
    "reduce": ("reduce", 1),
    "gather": ("gather", 2),
    "scatter": ("scatter", 2),
    "barrier": ("barrier", None),
    "send": ("send", 1),
    "recv": ("recv", 1),
}
_PEERS = ("dst", "src", "group_dst", "group_src")
_state = {"installed": False, "steps": 0}


def install(dist: Any = None, library: Any = None) -> bool:
    """Wraps torch.distributed of this process, once; False when no tracker is preloaded.

    To be called after init_process_group. The arguments are for tests.
    """
    library = library or ctypes.CDLL(None)
    if _state["installed"] or not hasattr(library, "fabric_track_begin"):
        return bool(_state["installed"])
    dist = dist or importlib.import_module("torch.distributed")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    library.fabric_track_begin(ctypes.c_uint32(rank), ctypes.c_uint32(ranks), b"torch.distributed")
    for name, (op, at) in WRAPPED.items():
        if hasattr(dist, name):
            setattr(dist, name, _wrapped(getattr(dist, name), _OPS[op], at, library))
    _hook_steps(library)
    atexit.register(_end, library, os.getpid())
    _state["installed"] = True
    return True


def _end(library: Any, pid: int) -> None:
    """At the interpreter's exit: a rank that ends well has ended, as after MPI_Finalize.

    Not by an uncaught exception, which the interpreter leaves in ``sys.last_type``; signals and
    ``os._exit`` do not come here; a child that was forked off has the same block, and is no rank.
    """
    if os.getpid() == pid and getattr(sys, "last_type", None) is None:
        library.fabric_track_end()


def begin_again() -> None:
    """This process is in a new group, maybe as another rank: the tracker begins anew."""
    if not _state["installed"]:
        return
    dist = importlib.import_module("torch.distributed")
    who = (ctypes.c_uint32(dist.get_rank()), ctypes.c_uint32(dist.get_world_size()))
    ctypes.CDLL(None).fabric_track_begin(*who, b"torch.distributed")


def _wrapped(
    function: Callable[..., Any], op: int, at: int | None, library: Any
) -> Callable[..., Any]:
    pair = op in (_OPS["send"], _OPS["recv"])
    names = list(inspect.signature(function).parameters)
    group_at = names.index("group") if "group" in names else sys.maxsize

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = [kwargs[key] for key in _PEERS if kwargs.get(key) is not None]
        peer = given[0] if given else args[at] if at is not None and len(args) > at else None
        number = ctypes.c_int32(peer if isinstance(peer, int) else -1)
        size = ctypes.c_uint64(_bytes(args[0] if args else None))
        group = args[group_at] if len(args) > group_at else kwargs.get("group")
        met = not pair and group is None
        (library.fabric_track_meet if met else library.fabric_track_enter)(op, number, size)
        try:
            return function(*args, **kwargs)
        finally:
            library.fabric_track_exit()

    return call


def _bytes(thing: Any) -> int:
    try:
        return int(thing.nbytes)
    except (AttributeError, TypeError):
        return 0


def _hook_steps(library: Any) -> None:
    """Optimiser steps as iterations, and backward() where ranks meet in it."""
    try:
        import torch
        from torch.nn.parallel import DistributedDataParallel
        from torch.optim.optimizer import register_optimizer_step_post_hook
    except ImportError:
        return

    def stepped(*_: Any) -> None:
        _state["steps"] += 1
        library.fabric_track_step(ctypes.c_uint64(_state["steps"]))

    register_optimizer_step_post_hook(stepped)
    made, backward = DistributedDataParallel.__init__, torch.Tensor.backward

    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        if torch.Tensor.backward is backward:
            torch.Tensor.backward = _wrapped(backward, _OPS["backward"], None, library)

    DistributedDataParallel.__init__ = make


def step_to(n: int) -> None:
    """The program goes on from step ``n``: steps are counted from there."""
    _state["steps"] = n
