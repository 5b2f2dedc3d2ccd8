"""The control group (version 2) that tells a job's packets from those of its user's other jobs."""

from collections.abc import Sequence

from fabricctl.telemetry.cgroups import Mount


def line(mounts: Sequence[Mount], node: str, job: int) -> list[str]:
    """``group LEVEL PATH`` for fabric-pathd where Slurm has such groups for jobs, else nothing.

    Slurm's scope is there as soon as slurmd is, the job's group with its first step; a slurmd that
    is one of many on its node puts the node's name before the scope's
    (https://slurm.schedmd.com/cgroup_v2.html).
    """
    for mount in mounts:
        for name in (f"{node}_slurmstepd.scope", "slurmstepd.scope"):
            if mount.controllers:
                continue
            for scope in sorted(mount.point.glob(f"*/{name}")):
                depth = _depth(mount.root) + _depth(str(scope.relative_to(mount.point)))
                return [f"group {depth + 1} {scope}/job_{job}"]
    return []


def _depth(path: str) -> int:
    return len([part for part in path.split("/") if part])
