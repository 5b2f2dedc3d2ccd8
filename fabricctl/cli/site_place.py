"""What the checks of ``fabricctl site check`` are given, and what they give."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fabricctl.config import Config
from fabricctl.slurm.model import Slurm

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    status: Status
    found: str
    todo: str = ""


@dataclass(frozen=True)
class Place:
    """This host, and what is known about its Slurm."""

    config: Config
    host: str
    slurm: Slurm | None
    settings: Mapping[str, str]  # of slurm.conf; empty without Slurm
    is_node: bool  # a compute node; else a login node or the controller
