"""``fabricctl job migrate``: ranks leave a node for a spare."""

from collections.abc import Mapping

import click

from fabricctl import config, hostlist, layout
from fabricctl.agent.ask import job_here
from fabricctl.cli.hop import hop
from fabricctl.cli.job_halt import order
from fabricctl.errors import NotFoundError, UsageError
from fabricctl.membership import Member


@click.command(name="migrate")
@click.argument("job")
@click.option("--from", "source", metavar="NODE", required=True, help="Which node to leave.")
@click.option("--to", metavar="SPARE", default="", help="Which spare takes its place.")
@click.option("--dry-run", is_flag=True, help="Say what would be moved, and move nothing.")
def command(job: str, source: str, to: str, dry_run: bool) -> None:
    """Move the ranks of JOB from a node to a spare, at its next checkpoint.

    For maintenance, or when a node looks bad. The program must run under `fabricctl run`, with a
    spare left, and use checkpoints (docs/checkpoints.md): all ranks save, and start again with a
    spare in the node's place. With `--live` they save and run on in a new group. A node that is
    itself a spare is none any more.
    """
    number = job_here(job)
    try:
        settings = config.load()
        member = Member.here(layout.NodeFiles(settings.node.run_dir), number)
        for node in (source, to or source):
            if node not in member.nodes:
                raise UsageError(f"job {number}: {node} is not one of its nodes")
        if to == source:
            raise UsageError(f"job {number}: --to is the node to leave")
        how = f"from:{source}:{to}" if to else f"from:{source}"
        how = "" if dry_run else how
        run = order(number, how, lambda run: _check(number, source, to, run))
    except NotFoundError:
        more = [*(["--to", to] if to else []), *(["--dry-run"] if dry_run else [])]
        hop(number, ["job", "migrate", str(number), "--from", source, *more])
        return
    if source in _names(run, "spares"):
        click.echo(f"job {number}: {source} {'would be' if dry_run else 'is'} no spare any more")
        return
    does = "would leave" if dry_run else "leave"
    click.echo(f"job {number}: its ranks {does} {source} for {to or 'a spare'} after a checkpoint")


def _names(run: Mapping[str, str], which: str) -> list[str]:
    return hostlist.expand(run[which]) if run.get(which) else []


def _check(job: int, source: str, to: str, run: Mapping[str, str]) -> None:
    """What `fabricctl run` could not do is said at once; raises :class:`UsageError`."""
    if "on" not in run or "spares" not in run:
        return  # too many to be told, or an agent of an older version
    on, spares = _names(run, "on"), _names(run, "spares")
    if source in spares:
        return  # it is no spare any more
    if source not in on:
        raise UsageError(f"job {job}: no rank is on {source}; they are on {run['on']}")
    if not spares:
        raise UsageError(f"job {job}: no spare is left to take the place of {source}")
    if to and to not in spares:
        raise UsageError(f"job {job}: {to} is not one of its spares: {run['spares']}")
