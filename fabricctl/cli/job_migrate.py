"""``fabricctl job migrate``: ranks leave a node for a spare."""

import click

from fabricctl import config, layout
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
    spare in the node's place. With `--live` they save and run on in a new group.
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
        if not dry_run:
            order(number, f"from:{source}:{to}" if to else f"from:{source}")
    except NotFoundError:
        more = [*(["--to", to] if to else []), *(["--dry-run"] if dry_run else [])]
        hop(number, ["job", "migrate", str(number), "--from", source, *more])
        return
    does = "would leave" if dry_run else "leave"
    click.echo(f"job {number}: its ranks {does} {source} for {to or 'a spare'} after a checkpoint")
