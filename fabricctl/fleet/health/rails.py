"""Excludes a rail on this node, through the link failover of its jobs (docs/paths.md)."""

import os

from fabricctl import config, layout
from fabricctl.errors import FabricError, NotFoundError, SystemRefusedError, UsageError
from fabricctl.fleet.health.policy import PREFIX
from fabricctl.paths import addresses, control
from fabricctl.paths.files import PathsFiles, rail_names, read_state


def exclude(rail: str, why: str) -> str:
    """What was done. Raises :class:`UsageError` for the last rail, or one that others took out."""
    files, names = _here(rail)
    if not why.startswith(PREFIX):
        raise UsageError(f"rail-out: the reason must begin with {PREFIX!r}")
    control.check_why(why)
    drained = files.drained()
    said = drained.get(rail, "")
    if said and PREFIX not in said:
        raise UsageError(f"{rail} is out already: {said}")
    left = [name for name in names if name != rail and name not in drained]
    if not left:
        raise UsageError(f"{rail} is the last rail that is in use: it stays")
    _write(files, {**drained, rail: f"uid {os.getuid()}: {why}"})
    return _tell_jobs(files, "drain", rail, why) or f"{rail} is out"


def include(rail: str) -> str:
    """What was done. Raises :class:`UsageError` for one that others took out."""
    files, _ = _here(rail)
    drained = files.drained()
    said = drained.pop(rail, "")
    if said and PREFIX not in said:
        raise UsageError(f"{rail} was taken out by somebody else: {said}")
    if said:
        _write(files, drained)
    return _tell_jobs(files, "undrain", rail, "") or f"{rail} is in use again"


def _here(rail: str) -> tuple[PathsFiles, list[str]]:
    settings = config.load()
    names = [each.name for each in addresses.find(settings, os.uname().nodename.partition(".")[0])]
    if rail not in names:
        raise NotFoundError(f"{rail}: no rail of this node; there are {', '.join(names) or 'none'}")
    return PathsFiles(settings.node.run_dir), names


def _write(files: PathsFiles, drained: dict[str, str]) -> None:
    try:
        files.set_drained(drained)
    except PermissionError:
        raise SystemRefusedError(f"{files.leases}: only root may: use sudo") from None
    except OSError as error:
        raise NotFoundError(f"{files.leases}: no link failover here: {error.strerror}") from None


def _tell_jobs(files: PathsFiles, do: str, rail: str, why: str) -> str:
    """Jobs that are there now; what refused is said, those that begin later have it anyway."""
    refused = []
    for job in files.jobs():
        try:
            names = rail_names(read_state(files.state(job)))
            if rail in names:  # else its partition has others
                request = {"do": do, "rail": str(names.index(rail))}
                control.ask(files.control(job), request | ({"why": why} if why else {}))
        except NotFoundError:
            continue  # it has no failover, or has ended
        except FabricError as error:
            refused.append(f"job {layout.job_number(str(job))}: {error}")
    return "; ".join(refused)
