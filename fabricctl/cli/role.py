"""Who calls, and whether they may."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fabricctl.fleet.access import Who
    from fabricctl.slurm.model import Slurm


def caller(slurm: "Slurm") -> "Who":
    """By Slurm's accounting, where there is one, and Unix groups."""
    from fabricctl import config
    from fabricctl.errors import SlurmError
    from fabricctl.fleet import access

    try:
        rights = slurm.rights()
    except SlurmError:
        rights = {}
    conf = slurm.configuration()
    slurm_user = conf.get("SlurmUser", "slurm").partition("(")[0]
    return access.who(os.getuid(), rights, config.load().access, slurm_user)


def demand_operator(slurm: "Slurm", what: str) -> None:
    """Raises :class:`~fabricctl.errors.SystemRefusedError` for who may not change nodes."""
    from fabricctl.fleet import access

    if os.getuid() != 0:  # root is never asked about
        access.demand_operator(caller(slurm), what)
