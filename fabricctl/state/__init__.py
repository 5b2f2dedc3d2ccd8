"""Where every rank stands, its checkpoints, and what takes a dead one's place.

For programs (docs/checkpoints.md)::

    from fabricctl import state
    with state.Checkpoint(comm) as ckpt:
        ckpt.protect(grid=grid, other={"seed": 7})
        for n in range(ckpt.restore(), steps):
            ...
            ckpt.step(n + 1)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fabricctl.state.ckpt.api import Checkpoint
    from fabricctl.state.ckpt.comms import Regroup
    from fabricctl.state.ckpt.items import Same, Share
    from fabricctl.state.replacement import live
    from fabricctl.state.torch_hooks import install as track_torch

__all__ = ["Checkpoint", "Regroup", "Same", "Share", "live", "track_torch"]


def __getattr__(name: str) -> Any:
    """Imported when it is used: the agent needs none of it."""
    if name == "Checkpoint":
        from fabricctl.state.ckpt.api import Checkpoint

        return Checkpoint
    if name == "Regroup":
        from fabricctl.state.ckpt.comms import Regroup

        return Regroup
    if name in ("Same", "Share"):
        from fabricctl.state.ckpt import items

        return getattr(items, name)
    if name == "live":
        from fabricctl.state.replacement import live

        return live
    if name == "track_torch":
        from fabricctl.state.torch_hooks import install

        return install
    raise AttributeError(name)
