"""``fabricctl path``: link failover of the jobs on this node."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import click

from fabricctl import config, layout
from fabricctl.cli import path_show
from fabricctl.errors import FabricError, NotFoundError, SystemRefusedError, UsageError
from fabricctl.paths import control
from fabricctl.paths.files import PathsFiles, rail_names, read_state

JSON_VERSION = 1

_job = click.option("--job", metavar="JOB", help="Which job; needed when there are several.")
_json = click.option("--json", "as_json", is_flag=True, help="For scripts (docs/paths.md).")
_dry = click.option("--dry-run", is_flag=True, help="Say what would move, and move nothing.")
_why = click.option("--why", default="", metavar="TEXT", help="Recorded with the change.")


@click.group()
def command() -> None:
    """Link failover of the jobs on this node: what carries what, and moving it by hand."""


@command.command()
@_job
@click.option("--peer", metavar="NODE", help="Only paths to this node.")
@_json
def show(job: str | None, peer: str | None, as_json: bool) -> None:
    """Each path of each job: how good it is, and which rail carries its traffic."""
    shown = [path_show.one(_files(), number, peer) for number in _jobs(job, live=False)]
    if as_json:
        drained = _files().drained()
        click.echo(
            json.dumps({"version": JSON_VERSION, "drained": drained, "jobs": shown}, indent=1)
        )
        return
    for name, said in _files().drained().items():
        click.echo(f"{name} is out for maintenance ({said})\n")
    for number, entry in enumerate(shown):
        click.echo(("\n" if number else "") + path_show.as_text(entry), nl=False)
    if not shown:
        click.echo("no job with link failover on this node")


@command.command()
@_job
@_json
def events(job: str | None, as_json: bool) -> None:
    """What was seen and done, oldest first."""
    for number in _jobs(job, live=False):
        try:
            lines = list(path_show.event_lines(_files().events(number)))
        except NotFoundError:
            why = _state(number).get("why")  # a job without link failover has none
            click.echo(f"job {number}: no events{f': {why}' if why else ''}", err=True)
            continue
        for line in lines:
            if as_json:
                click.echo(json.dumps({"version": JSON_VERSION, "job": number, **line}))
            else:
                click.echo(path_show.event_text(line))


@command.command()
@click.argument("peer")
@click.argument("rail")
@_job
@_dry
@_why
def move(peer: str, rail: str, job: str | None, dry_run: bool, why: str) -> None:
    """Send everything for node PEER over RAIL (number or interface), until `path unmove`."""
    (number,) = _jobs(job, live=True, one=True)
    names = _rails(number)
    at = _number(rail, names, f"job {number}")
    request = {"do": "move", "peer": peer, "rail": str(at), "why": why}
    with _logged("move", f"{_host()} job {number} to {peer} over rail {rail}", why, dry_run):
        if _change(number, request, dry_run):
            raise FabricError(
                f"job {number}: rail {at} ({names[at]}) to {peer} does not work now: it gets the "
                f"traffic as soon as it does, until `path unmove {peer}`"
            )


@command.command()
@click.argument("peer")
@_job
@_dry
@_why
def unmove(peer: str, job: str | None, dry_run: bool, why: str) -> None:
    """Undo `path move`: rails are chosen by their health again."""
    (number,) = _jobs(job, live=True, one=True)
    with _logged("unmove", f"{_host()} job {number} to {peer}", why, dry_run):
        _change(number, {"do": "unmove", "peer": peer, "why": why}, dry_run)


@command.command(name="drain-rail")
@click.argument("rail")
@_job
@_dry
@_why
def drain_rail(rail: str, job: str | None, dry_run: bool, why: str) -> None:
    """Take RAIL (number or interface) out for maintenance: every job's traffic leaves it, at both
    ends. Fails where some of it has no other way.

    Without --job it holds for jobs that begin later too, until `undrain-rail` or the next boot.
    """
    _drain(job, rail, why, dry_run, out=True)


@command.command(name="undrain-rail")
@click.argument("rail")
@_job
@_dry
@_why
def undrain_rail(rail: str, job: str | None, dry_run: bool, why: str) -> None:
    """Let RAIL carry traffic again."""
    _drain(job, rail, why, dry_run, out=False)


def _drain(job: str | None, rail: str, why: str, dry_run: bool, *, out: bool) -> None:
    on = f"{_host()} rail {rail}" + (f" of job {job}" if job else "")
    control.check_why(why)
    with _logged("rail out" if out else "rail in", on, why, dry_run):
        if job is None:
            name = _keep_drained(rail, why, dry_run, out=out)
            jobs = [number for number in _files().jobs() if _is_live(_state(number))]
        else:
            jobs = _jobs(job, live=True)
            names = _rails(jobs[0])
            name = names[_number(rail, names, f"job {jobs[0]}")]
        _drain_jobs(jobs, name, {"do": "drain" if out else "undrain", "why": why}, dry_run)


def _drain_jobs(jobs: Iterable[int], name: str, request: Mapping[str, str], dry_run: bool) -> None:
    """Every job is asked, whatever another one answers."""
    wrong: list[str] = []
    for job in jobs:
        names = _rails(job)
        if name not in names:
            continue  # its partition has other rails
        at = names.index(name)
        try:
            stays = _change(job, {**request, "rail": str(at)}, dry_run)
        except FabricError as error:
            wrong.append(f"job {job}: {error}")
            continue
        if stays:
            wrong.append(
                f"job {job}: rail {at} ({name}) is not free: {stays} addresses stay, no other rail "
                "of theirs is in order (or `path move` keeps them there)"
            )
    if wrong:
        raise FabricError("; ".join(wrong))


def _number(rail: str, names: Sequence[str], whose: str) -> int:
    """Of a rail that is given by its number or its interface."""
    if rail in names:
        return names.index(rail)
    if rail.isdecimal() and int(rail) < len(names):
        return int(rail)
    raise UsageError(f"rail {rail}: {whose} has {len(names)}, counted from 0: {', '.join(names)}")


def _is_live(state: Mapping[str, str]) -> bool:
    return state.get("state") in ("ready", "starting")


def _rails(job: int) -> list[str]:
    """The job's, as its fabric-pathd counts them."""
    state = _state(job)
    if not _is_live(state):
        why = state.get("why", "its fabric-pathd did not begin")
        raise NotFoundError(f"job {job}: has no link failover: {why}")
    return rail_names(state)


def _host() -> str:
    return os.uname().nodename.partition(".")[0]


def _logged(what: str, on: str, why: str, dry_run: bool) -> AbstractContextManager[None]:
    """In `fabricctl changes` of this node; others than root will be refused anyway."""
    from fabricctl.fleet.changes import ChangeLog

    if dry_run or os.geteuid():
        return nullcontext()
    return ChangeLog(config.load().fleet.dir, "path").change(what, on, why)


def _state(job: int) -> dict[str, str]:
    try:
        return read_state(_files().state(job))
    except FabricError:
        return {}


def _keep_drained(rail: str, why: str, dry_run: bool, *, out: bool) -> str:
    """What jobs that begin later are to find; the interface."""
    from fabricctl.paths import addresses

    files = _files()
    found = addresses.find(config.load(), _host())
    names, drained = [each.name for each in found], files.drained()
    at = _number(rail, names, "this node")
    name = names[at]
    if out:
        drained[name] = f"uid {os.getuid()}{': ' if why else ''}{why}"
    else:
        drained.pop(name, None)
    words = "out" if out else "in use again"
    if not dry_run:
        try:
            files.set_drained(drained)
        except PermissionError:
            raise SystemRefusedError(f"{files.leases}: only root may ask; use sudo") from None
        except FileNotFoundError:
            raise NotFoundError(f"{files.leases}: no link failover on this node") from None
    click.echo(
        f"rail {at} ({name}) {'would be' if dry_run else 'is'} {words} for jobs that begin later"
    )
    return name


def _files() -> PathsFiles:
    return PathsFiles(config.load().node.run_dir)


def _jobs(job: str | None, *, live: bool, one: bool = False) -> list[int]:
    """The jobs meant; raises :class:`NotFoundError` or :class:`UsageError`."""
    files = _files()
    known = files.jobs()
    if job is not None:
        number = layout.job_number(job)
        if number not in known:
            raise NotFoundError(f"job {number}: has no link failover on this node")
        return [number]
    if live and not known:
        raise NotFoundError("no job with link failover on this node")
    if one and len(known) > 1:
        raise UsageError(f"jobs {', '.join(map(str, known))} are here: say which with --job")
    return known


def _change(job: int, request: Mapping[str, str], dry_run: bool) -> int:
    """Asks the job's fabric-pathd, prints what moves; how many addresses stay where they are not
    wanted."""
    given = {key: value for key, value in request.items() if value}
    *lines, last = control.ask(_files().control(job), given | ({"dry": "1"} if dry_run else {}))
    for line in lines:
        click.echo(
            f"job {job}: {'would move' if dry_run else 'moved'} address {line['address']} of "
            f"{line['peer']} from rail {line['from']} to rail {line['to']}"
        )
    if last["moves"] == "0":
        click.echo(f"job {job}: nothing to move")
    elif more := int(last["moves"]) - len(lines):
        click.echo(f"job {job}: and {more} more")
    return int(last.get("stays", "0"))
