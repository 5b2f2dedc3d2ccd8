"""``fabricctl clock``: the job clock of a job on this node."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fabricctl import layout
from fabricctl.errors import ClockError, DataError, UsageError
from fabricctl.units import format_duration

if TYPE_CHECKING:
    from typing import TextIO

    from fabricctl.clock._page import Reading
    from fabricctl.clock.page import Body, ClockPage
    from fabricctl.clock.steering import State

JSON_VERSION = 1
STATUSES = ("unsynchronised", "synchronised", "holdover")
# Into SOURCES of clock/probing.py, and in words.
STAMPS = (None, "user", "sched", "software", "hardware")
_STAMPED = {
    "user": "read beside the system call: the driver gives none",
    "sched": "the kernel's, before the queueing discipline: the driver gives none",
    "software": "the kernel's",
    "hardware": "the NIC's",
}
_UNKNOWN_NS = 1 << 62  # the page says "nothing is certain" with the ends of 64 bits
_ORDERS = {-1: "before", 0: "unknown", 1: "after"}

_job = click.option(
    "--job", metavar="JOB", help="Job id; default: the job this runs in, or the only one here."
)
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
    page = _page(job)
    reading = page.now(within_ns)
    if as_json:
        click.echo(json.dumps({"version": JSON_VERSION, "job": page.body().job, **_shown(reading)}))
        return
    click.echo(
        f"{reading.time_ns} ns, likely within {_span(reading.likely_ns)}, "
        f"{_certainly(reading)}, {STATUSES[reading.status]}"
    )


@command.command()
@_job
@_json
def status(job: str | None, as_json: bool) -> None:
    """How this node's job clock does: what it is sure of, and what the system clock is off."""
    page = _page(job)
    body, rows = page.body(), page.rows()
    try:
        reading = page.now()
    except ClockError:
        reading = None
    given: dict[str, object] = {
        "version": JSON_VERSION,
        "job": body.job,
        "node_index": body.node,
        "status": STATUSES[0],
        "reading": None,
    }
    if reading is not None:
        raw_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        given["status"] = STATUSES[reading.status]
        given["reading"] = _shown(reading)
        given["answered_s_ago"] = round((raw_ns - body.state_raw_ns) * 1e-9, 3)
        given["rate_ppb"] = round(body.rate1 * 1e9, 3)
        given["system_clock_ahead_ns"] = time.time_ns() - page.now().time_ns
        given["conversions_reach_back_s"] = len(rows)
        given["stamps"] = STAMPS[body.stamps] if body.stamps < len(STAMPS) else None
    steered = _steered(page)
    given["steering"] = None if steered is None else asdict(steered)
    if as_json:
        click.echo(json.dumps(given))
        return
    click.echo(_as_text(body, reading, given))
    if steered is not None:
        click.echo("\n".join(_steering_lines(steered)))


def _steered(page: "ClockPage") -> "State | None":
    """What follows the job's time beside its page; None: nothing was asked for."""
    from fabricctl.clock import steering

    run_dir = page.path.parents[2]  # fabricctl/layout.py
    state = layout.NodeFiles(run_dir).steer_state(page.body().job)
    return steering.read_state(state)


def _steering_lines(found: "State") -> list[str]:
    title = f"--fabric-clock={found.clock}"
    lines = [f"{title}: {found.state}" + (f": {found.why}" if found.why else "")]
    if found.state in ("slewing", "steady", "holding"):
        for one in found.clocks:
            where = "ahead of" if one.off_ns >= 0 else "behind"
            lines.append(
                f"{one.name:<17}{_span(abs(round(one.off_ns)))} {where} job time, set to "
                f"{one.freq_ppb * 1e-3:+.3f} ppm (before the job {one.found_ppb * 1e-3:+.3f})"
            )
    return lines


def _as_text(body: "Body", reading: "Reading | None", given: dict[str, object]) -> str:
    title = f"job {body.job}, node {body.node} of its list: {given['status']}"
    if reading is None:
        return f"{title}\nno job time yet"
    ahead = float(str(given["system_clock_ahead_ns"])) * 1e-9
    where = "ahead of" if ahead >= 0 else "behind"
    return "\n".join(
        (
            title,
            f"likely within    {_span(reading.likely_ns)}",
            f"bounds           {_certainly(reading)}",
            f"last measured    {format_duration(float(str(given['answered_s_ago'])))} ago",
            f"rate             {body.rate1 * 1e9:+.1f} ppb against CLOCK_MONOTONIC_RAW",
            f"CLOCK_REALTIME   {format_duration(abs(ahead))} {where} job time",
            f"conversions      {given['conversions_reach_back_s']} s back",
            f"stamps           {_STAMPED.get(str(given['stamps']), 'not said')}",
        )
    )


@command.command()
@click.argument("first", type=click.File("r"))
@click.argument("second", type=click.File("r"))
@_json
def compare(first: "TextIO", second: "TextIO", as_json: bool) -> None:
    """Which of two readings was first: before, after or unknown.

    FIRST and SECOND are files with what `fabricctl clock now --json` said, on the same or on
    different nodes of one job; `-` is standard input. "before" and "after" are certain; "unknown"
    means that the two intervals overlap.
    """
    from fabricctl import clock

    (job, one), (other, two) = (read_reading(file.name, file.read()) for file in (first, second))
    if job != other:
        raise UsageError(f"clock: readings of two jobs, {job} and {other}: each has its own time")
    order = _ORDERS[clock.compare(one, two)]
    apart_ns = two.time_ns - one.time_ns
    likely_ns = one.likely_ns + two.likely_ns
    if as_json:
        answer = {"order": order, "apart_ns": apart_ns, "likely_within_ns": likely_ns}
        click.echo(json.dumps({"version": JSON_VERSION, **answer}))
        return
    click.echo(f"{order}: second - first = {apart_ns} ns, likely within {_span(likely_ns)}")


def read_reading(name: str, text: str) -> "tuple[int, Reading]":
    """A job and its reading, as :func:`now` prints them. Raises :class:`DataError`."""
    from fabricctl.clock.page import check_built

    check_built()
    from fabricctl.clock._page import Reading

    try:
        given = json.loads(text)
        if given["version"] != JSON_VERSION:
            raise DataError(f"clock: {name}: a reading of version {given['version']!r:.20}")
        ends = (given["earliest_ns"], given["latest_ns"])
        earliest, latest = (
            sign * (1 << 63) - (sign > 0) if end is None else int(end)
            for sign, end in zip((-1, 1), ends, strict=True)
        )
        values = int(given["time_ns"]), int(given["likely_ns"])
        status = STATUSES.index(given["status"])
        return int(given["job"]), Reading((values[0], earliest, latest, values[1], status))
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"clock: {name}: not a reading: give it what `fabricctl clock now --json` prints"
        ) from None


def _shown(reading: "Reading") -> dict[str, object]:
    ends = (reading.earliest_ns, reading.latest_ns)
    earliest, latest = (None if abs(end) > _UNKNOWN_NS else end for end in ends)
    return {
        "time_ns": reading.time_ns,
        "earliest_ns": earliest,
        "latest_ns": latest,
        "likely_ns": reading.likely_ns,
        "status": STATUSES[reading.status],
    }


def _certainly(reading: "Reading") -> str:
    shown = _shown(reading)
    if shown["earliest_ns"] is None or shown["latest_ns"] is None:
        return "certain of nothing"
    early, late = reading.time_ns - reading.earliest_ns, reading.latest_ns - reading.time_ns
    return f"certainly within -{_span(early)} +{_span(late)}"


def _span(span_ns: int) -> str:
    return format_duration(span_ns * 1e-9)


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
