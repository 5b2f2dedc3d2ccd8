"""``fabricctl fleet-report``: where the time of many jobs went."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fabricctl.errors import UsageError

if TYPE_CHECKING:
    from fabricctl_analysis.fleet import Fleet

_AGO = re.compile(r"([1-9][0-9]{0,4})([hdw])")
_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
MAX_ROWS = 10


@click.command()
@click.option("--since", default="7d", show_default=True, metavar="TIME",
              help="Traces written since: 12h, 7d, 4w ago, or 2026-11-01.")  # fmt: skip
@click.option("--dir", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Another trace directory than the site's.")  # fmt: skip
@click.option("--processes", type=click.IntRange(min=1), help="Default: one a core.")
@click.option("--mpi", is_flag=True, help="By the ranks of an MPI job (docs/report.md).")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def command(
    *, since: str, folder: Path | None, processes: int | None, mpi: bool, as_json: bool
) -> None:
    """Lost node-hours by cause, user and node, nodes that fail more often than chance allows, and
    how often links are lost, of all jobs whose traces you may read."""
    from fabricctl import config
    from fabricctl_analysis import fleet
    from fabricctl_analysis.pool import spread

    trace_dir = folder or config.load().trace.dir
    paths = fleet.traces(trace_dir, _since_ns(since))
    made = fleet.summed(spread(fleet.digest_of, paths, processes, mpi))
    if as_json:
        click.echo(json.dumps(fleet.document(made), indent=1))
        return
    click.echo("\n".join(_lines(made, trace_dir, since)))


def _since_ns(text: str) -> int:
    if ago := _AGO.fullmatch(text):
        return time.time_ns() - int(ago.group(1)) * _SECONDS[ago.group(2)] * 10**9
    try:
        return int(time.mktime(time.strptime(text, "%Y-%m-%d"))) * 10**9
    except (ValueError, OverflowError):
        raise UsageError(f"--since {text[:40]!r}: neither 12h, 7d, 4w nor 2026-11-01") from None


def _lines(made: "Fleet", trace_dir: Path, since: str) -> Iterator[str]:
    elapsed = made.total("elapsed")
    yield f"{len(made.digests)} jobs in {trace_dir} since {since}: {elapsed:.1f} node-h"
    for one in made.failed[:MAX_ROWS]:
        yield f"not read: {one.error}"
    if not made.digests:
        return
    yield ""
    yield f"{'WHERE THE TIME WENT':34}{'node-h':>12}{'share':>9}"
    rows = [("work at the usual pace", made.total("ideal"))]
    from fabricctl_analysis.verdicts import CAUSES

    rows += [(f"lost: {CAUSES[cause]}", hours)  # type: ignore[index]
             for cause, hours in made.by_cause().most_common()]  # fmt: skip
    rows += [("no step ran", made.total("no_step")), ("not known", made.total("not_known"))]
    for what, hours in rows:
        yield f"{what:34}{hours:12.3f}{_share(hours, elapsed):>9}"
    yield ""
    yield f"{'USER':34}{'node-h':>12}{'lost':>9}"
    by_loss = sorted(made.by_user().items(), key=lambda item: -item[1][1])
    for user, (hours, lost) in by_loss[:MAX_ROWS]:
        yield f"{user:34}{hours:12.3f}{_share(lost, hours):>9}"
    nodes = made.by_node().most_common(MAX_ROWS)
    if nodes:
        yield ""
        yield f"{'NODE':34}{'lost node-h':>12}{'incidents':>11}"
        counts = made.incidents()
        for node, hours in nodes:
            yield f"{node:34}{hours:12.3f}{counts[node]:11}"
    for node, count, mean in made.lemons():
        yield f"LEMON {node}: {count} incidents, where chance gives {mean:.2g}: take it out"
    links = made.links()
    low, high = (1000 * bound for bound in links.bounds())
    yield ""
    yield (
        f"Links were lost {links.failures} times: {1000 * links.per_node_hour:.3g} "
        f"({low:.3g} to {high:.3g}) in 1,000 node-h."
    )
    for link, times in made.worst_links().most_common(3):
        yield f"  {link}: {times} times"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
