"""``fabricctl usage``: who used the cluster, what faults took, what it costs."""

import csv
import datetime
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fabricctl.errors import UsageError

if TYPE_CHECKING:
    from fabricctl.config import Config
    from fabricctl.fleet.usage import Price, Spans, Sum

JSON_VERSION = 1
_GROUPS = ("job", "user", "account", "partition", "name", "state", "all")


@click.command()
@click.option(
    "--from",
    "begin",
    default="month",
    show_default=True,
    metavar="TIME",
    help="2026-11-01, 2026-11-01T08:00, 7d (so long ago), today, month, year.",
)
@click.option("--to", "end", default="now", show_default=True, metavar="TIME", help="The same.")
@click.option(
    "--by",
    multiple=True,
    type=click.Choice(_GROUPS),
    default=("user",),
    help="What is summed up; several make groups of groups.  [default: user]",
)
@click.option("--user", multiple=True, metavar="NAME", help="Only these users.")
@click.option("--account", multiple=True, metavar="NAME", help="Only these accounts.")
@click.option("--partition", multiple=True, metavar="NAME", help="Only these partitions.")
@click.option("--no-traces", is_flag=True, help="Do not look into traces for lost time.")
@click.option("--csv", "as_csv", is_flag=True, help="For spreadsheets.")
@click.option("--json", "as_json", is_flag=True, help="For scripts; see docs/administration.md.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Also write one HTML page, for those who pay.")  # fmt: skip
def command(
    *,
    begin: str,
    end: str,
    by: tuple[str, ...],
    user: tuple[str, ...],
    account: tuple[str, ...],
    partition: tuple[str, ...],
    no_traces: bool,
    as_csv: bool,
    as_json: bool,
    html: Path | None,
) -> None:
    """Node, CPU and GPU hours of a period, what of them was lost and to what, and the charge.

    Counts as `sacct --truncate`: only what lies in the period. Prices and what is credited are in
    [usage] of fabricctl.toml.
    """
    from fabricctl import config as configuration
    from fabricctl.fleet import losses
    from fabricctl.fleet.period import moment
    from fabricctl.fleet.usage import summed
    from fabricctl.slurm.choose import open_slurm

    now = datetime.datetime.now().astimezone()
    begin_s, end_s = moment(begin, now), moment(end, now)
    if begin_s >= end_s:
        raise UsageError(f"usage: --from {begin} is not before --to {end}")
    if as_csv and as_json:
        raise UsageError("usage: --csv and --json: one at a time")
    settings = configuration.load()
    usages = [
        use
        for use in open_slurm("commands").usage(begin_s, end_s)
        if (not user or use.user in user)
        and (not account or use.account in account)
        and (not partition or use.partition in partition)
    ]
    links: Mapping[int, list[Spans]] = {}
    problems: list[str] = []
    if not no_traces:
        links, problems = losses.read(settings.trace.dir, {use.job for use in usages})
    keys = () if "all" in by else tuple(dict.fromkeys(by))
    how: Any = {
        "prices": lambda name: _price(settings, name),
        "credited": settings.usage.credit,
        "links": links,
    }
    rows = summed(usages, begin_s, end_s, keys, **how)
    whole = summed(usages, begin_s, end_s, (), **how)
    for problem in problems:
        click.echo(f"fabricctl: not counted: {problem}", err=True)
    if html is not None:
        from fabricctl.cli.usage_html import page
        from fabricctl.cli.write_file import write_private

        write_private(html, page(rows, whole, keys, (begin_s, end_s), settings))
        click.echo(f"fabricctl: wrote {html}", err=True)
    if as_json:
        said = {
            "version": JSON_VERSION, "begin_real_s": begin_s, "end_real_s": end_s, "by": keys,
            "currency": settings.usage.currency, "credited": settings.usage.credit,
            "groups": [record(row, keys) for row in rows],
            "total": record(whole[0], ()) if whole else None, "problems": problems,
        }  # fmt: skip
        click.echo(json.dumps(said))
    elif as_csv:
        click.echo(_csv(rows, keys), nl=False)
    else:
        _print(rows, whole, keys, (begin_s, end_s), settings)


def _price(settings: "Config", partition: str | None) -> "Price":
    from fabricctl.fleet.usage import Price

    mine = settings.for_partition(partition or "").usage
    return Price(mine.node_hour, mine.cpu_hour, mine.gpu_hour)


def record(row: "Sum", keys: tuple[str, ...]) -> dict[str, Any]:
    """One group for scripts; hours, to the microhour."""
    from fabricctl.fleet.usage import CAUSES

    hours = {
        "wall_hours": row.wall_s, "node_hours": row.node_s, "cpu_hours": row.cpu_s,
        "gpu_hours": row.gpu_s, "lost_node_hours": row.lost_s,
        **{f"lost_{cause}_node_hours": row.lost_node_s.get(cause, 0.0) for cause in CAUSES},
        "credited_node_hours": row.credited_node_s,
    }  # fmt: skip
    return {
        **dict(zip(keys, row.group, strict=True)),
        "jobs": len(row.jobs),
        "attempts": row.attempts,
        "traced_attempts": row.traced,
        **{name: round(value / 3600, 6) for name, value in hours.items()},
        "energy_kwh": round(row.energy_j / 3.6e6, 6) if row.metered else None,
        "metered_attempts": row.metered,
        "charge": round(row.charge, 2),
        "credit": round(row.credit, 2),
    }


def _csv(rows: list["Sum"], keys: tuple[str, ...]) -> str:
    records = [record(row, keys) for row in rows]
    out = io.StringIO()
    if records:
        writer = csv.DictWriter(out, list(records[0]))
        writer.writeheader()
        for each in records:
            # A cell that begins so is a formula to a spreadsheet, and users choose their names.
            writer.writerow({k: _harmless(v) for k, v in each.items()})
    return out.getvalue()


def _harmless(value: object) -> object:
    risky = isinstance(value, str) and value[:1] in "=+-@\t\r" and value != "-"
    return f"'{value}" if risky else value


def _print(
    rows: list["Sum"], whole: list["Sum"], keys: tuple[str, ...], period: tuple[int, int],
    settings: "Config",
) -> None:  # fmt: skip
    from fabricctl.cli.table import table, terminal_width

    first, last = (
        datetime.datetime.fromtimestamp(each).astimezone().strftime("%Y-%m-%d %H:%M %Z")
        for each in period
    )
    click.echo(f"{first} to {last}")
    if not rows:
        click.echo("no job ran in it")
        return
    paid = settings.usage.currency
    priced = any(row.charge or row.credit for row in rows)
    head = (*(key.upper() for key in keys), "JOBS", "NODE-H", "CPU-H", "GPU-H", "LOST", "CREDITED",
            *((paid,) if priced else ()))  # fmt: skip
    cells = [_cells(row, priced) for row in rows]
    if keys and len(rows) > 1:
        total = _cells(whole[0], priced)
        cells.append(["total", *[""] * (len(keys) - 1), *total])
    right = " ".join(name for name in head[len(keys) :])
    click.echo(table(head, cells, right=right, width=terminal_width()))
    lost = whole[0].lost_node_s
    if lost:
        causes = ", ".join(f"{name} {value / 3600:.2f}" for name, value in sorted(lost.items()))
        click.echo(f"\nnode hours lost: {causes}; credited: {', '.join(settings.usage.credit)}")
    if whole[0].metered:
        known = f"{whole[0].metered} of {whole[0].attempts} attempts"
        click.echo(
            f"energy: {whole[0].energy_j / 3.6e6:.2f} kWh, of {known}; --json, --csv: by group"
        )
    traced, attempts = whole[0].traced, whole[0].attempts
    click.echo(f"{attempts} attempts, {traced} of them with a trace that says what links did")


def _cells(row: "Sum", priced: bool) -> list[str]:
    # "LOST" and "CREDITED" are node hours, as NODE-H.
    hours = (row.node_s, row.cpu_s, row.gpu_s, row.lost_s, row.credited_node_s)
    group = ["".join(c if c.isprintable() else "?" for c in name) for name in row.group]
    texts = [*group, str(len(row.jobs)), *(f"{value / 3600:.2f}" for value in hours)]
    return [*texts, f"{row.charge:.2f}"] if priced else texts
