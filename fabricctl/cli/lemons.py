"""``fabricctl lemons``: nodes that fail again and again."""

import datetime
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fabricctl.fleet.health.store import Incident
    from fabricctl.slurm.model import Usage

JSON_VERSION = 1
MERGE_S = 3600  # what comes back within an hour is the same incident


@click.command()
@click.option("--from", "begin", default="30d", show_default=True, metavar="WHEN",
              help="12h, 7d, a date, month.")  # fmt: skip
@click.option("--all", "show_all", is_flag=True, help="All nodes that had an incident.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def command(begin: str, *, show_all: bool, as_json: bool) -> None:
    """Nodes with more incidents than chance makes of the rate of the others.

    Incidents are errors found by `fabricctl health look` and jobs that ended with NODE_FAIL or
    BOOT_FAIL; what comes back within an hour counts once. Exit status 1: there are lemons.
    """
    from fabricctl import config
    from fabricctl.cli.table import table, terminal_width
    from fabricctl.errors import SlurmError
    from fabricctl.fleet.health.lemons import lemons
    from fabricctl.fleet.health.store import HealthStore
    from fabricctl.fleet.period import moment
    from fabricctl.slurm.choose import open_slurm

    since_s = moment(begin, datetime.datetime.now().astimezone())
    slurm = open_slurm()
    names = [node.name for node in slurm.nodes()]
    store = HealthStore(config.load().fleet.dir / "health.db")
    every = list(_of_looks(store.incidents(since_s)))
    store.close()
    try:
        every += _of_jobs(slurm.usage(since_s, int(time.time())))
    except SlurmError as error:
        click.echo(f"fabricctl: without the accounting: {error}", err=True)
    found = lemons(_merged(every), names)
    certain = [each for each in found if each.certain]
    shown = found if show_all else certain
    if as_json:
        said = [{**asdict(each), "lemon": each.certain} for each in shown]
        click.echo(json.dumps({"version": JSON_VERSION, "from_real_s": since_s, "nodes": said}))
    elif shown:
        rows = [(each.node, each.incidents, f"{each.others:.2f}", f"{each.chance:.1g}",
                 time.strftime("%Y-%m-%d %H:%M", time.localtime(each.last_real_s)),
                 ", ".join(f"{count} {kind}" for kind, count in each.kinds.items()))
                for each in shown]  # fmt: skip
        head = ("NODE", "INCIDENTS", "OTHERS", "CHANCE", "LAST", "WHAT")
        click.echo(table(head, rows, right="INCIDENTS OTHERS CHANCE", width=terminal_width()))
    else:
        click.echo(f"no lemon among {len(names)} nodes; {len(found)} had an incident")
    sys.exit(1 if certain else 0)


def _of_looks(incidents: Sequence["Incident"]) -> Iterator[tuple[str, str, int]]:
    for each in incidents:
        if each.weight == "error":
            yield each.node, each.kind, each.begin_real_s


def _of_jobs(usages: Sequence["Usage"]) -> Iterator[tuple[str, str, int]]:
    """Of a job on several nodes nobody knows whose fault it was: only those on one count."""
    for use in usages:
        if use.state in ("NODE_FAIL", "BOOT_FAIL") and len(use.nodes) == 1 and use.end_real_s:
            yield use.nodes[0], use.state.lower(), use.end_real_s


def _merged(incidents: list[tuple[str, str, int]]) -> Iterator[tuple[str, str, int]]:
    """Of one node what lies within an hour is one incident, told by its first."""
    last: dict[str, int] = {}
    for node, kind, at_s in sorted(incidents, key=lambda each: each[2]):
        if node not in last or at_s > last[node] + MERGE_S:
            yield node, kind, at_s
        last[node] = at_s
