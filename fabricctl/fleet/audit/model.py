"""What a check says."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail", "not measured"]
STATUSES: tuple[Status, ...] = ("fail", "warn", "not measured", "ok")


@dataclass(frozen=True)
class Check:
    """One check on one node; ``value`` is what was measured, in words with its unit."""

    node: str
    area: str  # host, link, gpu, fabric, clock, mpi, slurm, storage
    name: str
    status: Status
    value: str
    limit: str = ""
    rail: str = ""
    number: float | None = None  # the value again, for comparisons; None: it has none
    unit: str = ""


def worst(checks: list[Check]) -> Status:
    """Of all; what was not measured is never fine."""
    return min((check.status for check in checks), key=STATUSES.index, default="not measured")
