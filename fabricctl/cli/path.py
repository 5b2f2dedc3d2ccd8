"""``fabricctl path``: link failover of the jobs on this node."""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import click

from fabricctl import config, layout
from fabricctl.errors import FabricError, NotFoundError, SystemRefusedError, UsageError
from fabricctl.paths import control
from fabricctl.paths.files import PathsFiles, read_state
from fabricctl.sharing import CLASSES
from fabricctl.units import format_duration

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
    shown = [_one(_files(), number, peer) for number in _jobs(job, live=False)]
    if as_json:
        drained = _files().drained()
        click.echo(
            json.dumps({"version": JSON_VERSION, "drained": drained, "jobs": shown}, indent=1)
        )
        return
    for name, said in _files().drained().items():
        click.echo(f"{name} is out for maintenance ({said})\n")
    for number, entry in enumerate(shown):
        click.echo(("\n" if number else "") + _as_text(entry), nl=False)
    if not shown:
        click.echo("no job with link failover on this node")


@command.command()
@_job
@_json
def events(job: str | None, as_json: bool) -> None:
    """What was seen and done, oldest first."""
    for number in _jobs(job, live=False):
        for line in _event_lines(_files().events(number)):
            if as_json:
                click.echo(json.dumps({"version": JSON_VERSION, "job": number, **line}))
            else:
                click.echo(_event_text(line))


@command.command()
@click.argument("peer")
@click.argument("rail", type=int)
@_job
@_dry
@_why
def move(peer: str, rail: int, job: str | None, dry_run: bool, why: str) -> None:
    """Send everything for node PEER over RAIL (a number), until `path unmove`."""
    request = {"do": "move", "peer": peer, "rail": str(rail), "why": why}
    jobs = _jobs(job, live=True, one=True)
    with _logged("move", f"{_host()} job {jobs[0]} to {peer} over rail {rail}", why, dry_run):
        _change(jobs, request, dry_run)


@command.command()
@click.argument("peer")
@_job
@_dry
@_why
def unmove(peer: str, job: str | None, dry_run: bool, why: str) -> None:
    """Undo `path move`: rails are chosen by their health again."""
    jobs = _jobs(job, live=True, one=True)
    with _logged("unmove", f"{_host()} job {jobs[0]} to {peer}", why, dry_run):
        _change(jobs, {"do": "unmove", "peer": peer, "why": why}, dry_run)


@command.command(name="drain-rail")
@click.argument("rail", type=int)
@_job
@_dry
@_why
def drain_rail(rail: int, job: str | None, dry_run: bool, why: str) -> None:
    """Take RAIL out for maintenance: every job's traffic leaves it, at both ends.

    Without --job it holds for jobs that begin later too, until `undrain-rail` or the next boot.
    """
    _drain(job, rail, why, dry_run, out=True)


@command.command(name="undrain-rail")
@click.argument("rail", type=int)
@_job
@_dry
@_why
def undrain_rail(rail: int, job: str | None, dry_run: bool, why: str) -> None:
    """Let RAIL carry traffic again."""
    _drain(job, rail, why, dry_run, out=False)


def _drain(job: str | None, rail: int, why: str, dry_run: bool, *, out: bool) -> None:
    on = f"{_host()} rail {rail}" + (f" of job {job}" if job else "")
    control.check_why(why)
    with _logged("rail out" if out else "rail in", on, why, dry_run):
        if job is None:
            _keep_drained(rail, why, dry_run, out=out)
        jobs = _jobs(job, live=job is not None)
        live = [number for number in jobs if _state(number) in ("ready", "starting")]
        request = {"do": "drain" if out else "undrain", "rail": str(rail), "why": why}
        _change(live if job is None else jobs, request, dry_run)


def _host() -> str:
    return os.uname().nodename.partition(".")[0]


def _logged(what: str, on: str, why: str, dry_run: bool) -> AbstractContextManager[None]:
    """In `fabricctl changes` of this node; others than root will be refused anyway."""
    from fabricctl.fleet.changes import ChangeLog

    if dry_run or os.geteuid():
        return nullcontext()
    return ChangeLog(config.load().fleet.dir, "path").change(what, on, why)


def _state(job: int) -> str:
    try:
        return read_state(_files().state(job)).get("state", "")
    except FabricError:
        return ""


def _keep_drained(rail: int, why: str, dry_run: bool, *, out: bool) -> None:
    """What jobs that begin later are to find."""
    from fabricctl.paths import addresses

    files = _files()
    found = addresses.find(config.load(), _host())
    if not 0 <= rail < len(found):
        raise UsageError(f"rail {rail}: this node has {len(found)}, counted from 0")
    name, drained = found[rail].name, files.drained()
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
        f"rail {rail} ({name}) {'would be' if dry_run else 'is'} {words} for jobs that begin later"
    )


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


def _one(files: PathsFiles, job: int, peer: str | None) -> dict[str, object]:
    try:
        state = read_state(files.state(job))
    except FabricError as error:
        state = {"state": "unknown", "why": str(error)}
    entry: dict[str, object] = {"job": job, "state": state}
    request = {"do": "show", **({"peer": peer} if peer else {})}
    if state["state"] in ("ready", "starting"):
        try:
            entry["summary"], *lines = control.ask(files.control(job), request)
            entry["shares"] = [line for line in lines if "share_rail" in line]
            entry["paths"] = [line for line in lines if "peer" in line]
        except NotFoundError:
            entry["problem"] = "its fabric-pathd does not run; routes are as it left them"
    return entry


def _as_text(entry: Mapping[str, object]) -> str:
    state = entry["state"]
    assert isinstance(state, Mapping)
    head = f"job {entry['job']}: {state['state']}"
    head += f", {state['why']}" if state.get("why") else ""
    head += f", {entry['problem']}" if entry.get("problem") else ""
    lines = [head]
    lines += [f"  rail {key[4:]}  {text}" for key, text in state.items() if key.startswith("rail")]
    shares = entry.get("shares")
    lines += [_share_text(line) for line in shares] if isinstance(shares, list) else []
    paths = entry.get("paths")
    if isinstance(paths, list) and paths:
        lines.append(
            f"  {'peer':16} {'rail':4} {'level':5} {'reason':8} {'carried by':10} "
            f"{'round trip':>10} {'jitter':>8} {'waits':>8} {'lost':>5} traffic"
        )
        lines += [_path_text(path) for path in paths]
    return "\n".join(lines) + "\n"


def _share_text(line: Mapping[str, str]) -> str:
    guarantee, ceiling, now = (int(line[key]) / 10 for key in ("guarantee", "ceiling", "now"))
    slowed = f", slowed to {now:g} %" if now < ceiling else ""
    name = CLASSES[int(line["class"])]
    return (
        f"  rail {line['share_rail']}: {guarantee:g} % guaranteed, at most {ceiling:g} %, "
        f"class {name}{slowed}"
    )


def _path_text(path: Mapping[str, str]) -> str:
    times = ("round_trip_ns", "jitter_ns", "queue_ns")
    trip, jitter, waits = (format_duration(int(path[key]) / 1e9) for key in times)
    pinned = " (moved by hand)" if path["pinned"] == "1" else ""
    pinned += " (round a queue)" if path["away"] == "1" else ""
    traffic = "yes" if path["active"] == "1" else "no"
    return (
        f"  {path['peer']:16} {path['rail']:4} {path['level']:5} {path['reason']:8} "
        f"{'rail ' + path['carried_by']:10} {trip:>10} {jitter:>8} {waits:>8} {path['lost']:>5} "
        f"{traffic}{pinned}"
    )


def _event_lines(path: Path) -> Iterable[dict[str, str]]:
    from fabricctl import fields

    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror}") from None
    for line in text.splitlines():
        try:
            yield fields.decode(line, ";")
        except FabricError:
            continue  # the last line may be half written


def _event_text(line: Mapping[str, str]) -> str:
    import time

    real_ns = int(line.get("time_real_ns", "0"))
    stamp = time.strftime("%H:%M:%S", time.localtime(real_ns // 10**9))
    rest = {
        key: value
        for key, value in line.items()
        if key not in ("event", "time_mono_ns", "time_real_ns") and value not in ("", "0", "none")
    }
    now_ns = int(line.get("time_mono_ns", "0"))
    for key in [key for key in rest if key.endswith("_mono_ns")]:
        ago = format_duration((now_ns - int(rest.pop(key))) / 1e9)
        rest[key.removesuffix("_mono_ns")] = f"{ago} before"
    words = " ".join(f"{key}={value}" for key, value in rest.items())
    return f"{stamp}.{real_ns // 10**6 % 1000:03d}  {line.get('event', '?'):9} {words}"


def _change(jobs: Iterable[int], request: dict[str, str], dry_run: bool) -> None:
    """Asks every job's fabric-pathd; prints what moves. The first refusal ends it."""
    for job in jobs:
        given = {key: value for key, value in request.items() if value}
        answer = control.ask(_files().control(job), given | ({"dry": "1"} if dry_run else {}))
        for line in answer:
            if "peer" in line:
                click.echo(
                    f"job {job}: {'would move' if dry_run else 'moved'} address "
                    f"{line['address']} of {line['peer']} from rail {line['from']} "
                    f"to rail {line['to']}"
                )
        total = next((line["moves"] for line in answer if "moves" in line), "0")
        if total == "0":
            click.echo(f"job {job}: nothing to move")
