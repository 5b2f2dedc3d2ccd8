"""``fabricctl fleet-report``: where the time of many jobs went."""

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fabricctl.errors import FabricError, UsageError

if TYPE_CHECKING:
    from fabricctl.config import Config
    from fabricctl.slurm.model import Usage
    from fabricctl_analysis.fleet_sums import SwitchOf

_AGO = re.compile(r"([1-9][0-9]{0,4})([hdw])")
_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
GROUPS = ("user", "account", "node", "link", "switch")
# Attempts of a job whose trace is that old began at most so long before: the longest queue.
_QUEUED_S = 30 * 86_400


@click.command()
@click.option("--since", default="7d", show_default=True, metavar="TIME",
              help="Traces written since: 12h, 7d, 4w ago, or 2026-11-01.")  # fmt: skip
@click.option("--dir", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Another trace directory than the site's.")  # fmt: skip
@click.option("--by", multiple=True, type=click.Choice(GROUPS),
              help="Only these, each in full; default: ten of each.")  # fmt: skip
@click.option("--slurm/--no-slurm", default=True,
              help="Ask the accounting for accounts, waiting, preemption.")  # fmt: skip
@click.option("--processes", type=click.IntRange(min=1), help="Default: one a core.")
@click.option("--mpi", is_flag=True, help="By the ranks of an MPI job (docs/report.md).")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def command(
    *,
    since: str,
    folder: Path | None,
    by: tuple[str, ...],
    slurm: bool,
    processes: int | None,
    mpi: bool,
    as_json: bool,
) -> None:
    """Lost node-hours by cause, user, account, node, link and switch; goodput, ETTR and MTBF; nodes
    that fail more often than chance allows; of all jobs whose traces you may read.

    Switches are the inventory's (`fabricctl inventory discover`)."""
    from fabricctl import config
    from fabricctl_analysis import fleet
    from fabricctl_analysis.fleet_document import document
    from fabricctl_analysis.fleet_sums import summed
    from fabricctl_analysis.fleet_words import lines
    from fabricctl_analysis.pool import spread

    settings = config.load()
    trace_dir = folder or settings.trace.dir
    begin_ns = _since_ns(since)
    paths = fleet.traces(trace_dir, begin_ns)
    digests = spread(fleet.digest_of, paths, processes, mpi)
    usages = _usages(begin_ns // 10**9) if slurm and paths else ()
    made = summed(digests, usages, _switches(settings) if paths else None)
    if as_json:
        click.echo(json.dumps(document(made), indent=1))
        return
    title = f"{len(made.digests)} jobs in {trace_dir} since {since}"
    click.echo("\n".join(lines(made, title, by)))


def _since_ns(text: str) -> int:
    if ago := _AGO.fullmatch(text):
        return time.time_ns() - int(ago.group(1)) * _SECONDS[ago.group(2)] * 10**9
    try:
        return int(time.mktime(time.strptime(text, "%Y-%m-%d"))) * 10**9
    except (ValueError, OverflowError):
        raise UsageError(f"--since {text[:40]!r}: neither 12h, 7d, 4w nor 2026-11-01") from None


def _usages(since_s: int) -> "Sequence[Usage]":
    """None where there is no accounting: that is told, and what the traces know is reported."""
    from fabricctl.slurm.choose import open_slurm

    try:
        return open_slurm("commands").usage(max(1, since_s - _QUEUED_S), int(time.time()))
    except FabricError as error:
        click.echo(f"fabricctl: accounts and waiting are not known: {error}", err=True)
        return ()


def _switches(settings: "Config") -> "SwitchOf | None":
    """By the inventory, where it is at hand and knows some."""
    from fabricctl.fleet.inventory.formats import leaf_switch
    from fabricctl.fleet.inventory.store import Inventory

    where: str | Path = settings.fleet.inventory or settings.fleet.dir / "inventory.db"
    if isinstance(where, Path) and not where.exists():
        return None
    try:
        with Inventory(where) as inventory:
            values = {node: dict(mine) for node, mine in inventory.declared().items()}
            for node, seen in inventory.now().items():
                values.setdefault(node, {}).update({key: one.value for key, one in seen.items()})
    except (FabricError, OSError) as error:
        click.echo(f"fabricctl: switches are not known: {error}", err=True)
        return None
    if not any(leaf_switch(mine) for mine in values.values()):
        return None
    return lambda node, interface: leaf_switch(values.get(node, {}), interface)
