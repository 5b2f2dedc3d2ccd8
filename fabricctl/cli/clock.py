"""``fabricctl clock``: the job clock of a job on this node."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fabricctl import layout
from fabricctl.errors import ClockError, UsageError
from fabricctl.units import format_duration

if TYPE_CHECKING:
    from fabricctl.clock.page import ClockPage

JSON_VERSION = 1

_job = click.option("--job", help="Job id; default: the job this runs in, or the only one here.")
_json = click.option("--json", "as_json", is_flag=True, help="For scripts (docs/clock.md).")


@click.group()
def command() -> None:
    """The job clock: one time for all nodes of a protected job."""


@command.command()
@_job
@_json
@click.option(
    "--within",
    "within_ns",
    type=click.IntRange(1),
    metavar="NS",
    help="Fail (status 69) when job time may be further off than this.",
)
def now(job: str | None, as_json: bool, within_ns: int | None) -> None:
    """Job time now, and how sure that is."""
    reading = _page(job).now(within_ns)
    if as_json:
        fields = ("time_ns", "earliest_ns", "latest_ns", "likely_ns", "status")
        shown = {name: getattr(reading, name) for name in fields}
        click.echo(json.dumps({"version": JSON_VERSION, **shown}))
        return
    early, late = reading.time_ns - reading.earliest_ns, reading.latest_ns - reading.time_ns
    click.echo(
        f"{reading.time_ns} ns, likely within {format_duration(reading.likely_ns * 1e-9)}, "
        f"certainly -{format_duration(early * 1e-9)} +{format_duration(late * 1e-9)}, "
        f"{_status(reading.status)}"
    )


@command.command()
@_job
@_json
def status(job: str | None, as_json: bool) -> None:
    """The state of this node's job clock."""
    page = _page(job)
    body, rows = page.body(), page.rows()
    try:
        reading = page.now()
    except ClockError:
        reading = None
    given = {
        "version": JSON_VERSION,
        "job": body.job,
        "node": body.node,
        "status": _status(reading.status if reading else body.status),
        "likely_ns": reading.likely_ns if reading else None,
        "early_ns": reading.time_ns - reading.earliest_ns if reading else None,
        "late_ns": reading.latest_ns - reading.time_ns if reading else None,
        "rate_ppb": round(body.rate1 * 1e9, 3) if reading else None,
        "converts_s": len(rows),
    }
    if as_json:
        click.echo(json.dumps(given))
        return
    click.echo(f"job {body.job}, node {body.node} of its list: {given['status']}")
    if reading is not None:
        early, late = reading.time_ns - reading.earliest_ns, reading.latest_ns - reading.time_ns
        sure = [format_duration(value * 1e-9) for value in (early, late)]
        click.echo(f"likely within    {format_duration(reading.likely_ns * 1e-9)}")
        click.echo(f"certainly within -{sure[0]} +{sure[1]}")
        click.echo(f"rate             {body.rate1 * 1e9:+.1f} ppb against CLOCK_MONOTONIC_RAW")
        click.echo(f"conversions      {len(rows)} s back")


def _status(number: int) -> str:
    from fabricctl.clock.page import STATUS_NAMES

    return STATUS_NAMES[number]


def _page(job: str | None) -> "ClockPage":
    """Raises :class:`ClockError` or :class:`UsageError` when no job, or no single one, is meant."""
    from fabricctl import config
    from fabricctl.clock.page import ClockPage

    here = os.environ.get("FABRIC_JOB_DIR")
    if job is None and here:
        return ClockPage(Path(here) / "clock")
    files = layout.NodeFiles(config.load().node.run_dir)
    if job is not None:
        return ClockPage(files.clock(layout.job_number(job)))
    found = _jobs(files)
    if len(found) != 1:
        jobs = ", ".join(map(str, found)) or "none"
        raise UsageError(f"clock: jobs with a clock on this node: {jobs}; name one with --job")
    return ClockPage(files.clock(found[0]))


def _jobs(files: layout.NodeFiles) -> list[int]:
    """Jobs whose page is there. The directory is readable to root only; others name their job."""
    try:
        names = [path.parent.name for path in files.jobs.glob("*/clock")]
    except OSError:
        names = []
    return sorted(int(name) for name in names if name.isdigit())
