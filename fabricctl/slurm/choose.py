"""The one way to get at Slurm."""

from typing import Literal

from fabricctl.errors import SlurmError
from fabricctl.slurm.commands import CommandSlurm
from fabricctl.slurm.model import Slurm
from fabricctl.slurm.probe import pyslurm_problem


def open_slurm(prefer: Literal["commands", "pyslurm"] | None = None) -> Slurm:
    """Slurm by pyslurm where that works, else by its commands; the choice says why.

    Raises :class:`SlurmError` when no Slurm answers, or when pyslurm was asked for and cannot do.
    """
    commands = CommandSlurm()
    if prefer == "commands":
        return commands
    problem = pyslurm_problem(commands)
    if problem is None:
        from fabricctl.slurm.pyslurm_backend import PyslurmSlurm

        return PyslurmSlurm(commands, "asked for" if prefer else "its probe agrees with scontrol")
    if prefer == "pyslurm":
        raise SlurmError(f"pyslurm: {problem}: use the commands, or build it for this Slurm")
    commands.reason = problem
    return commands
