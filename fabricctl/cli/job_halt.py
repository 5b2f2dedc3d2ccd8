"""``fabricctl job halt``: ends a program that runs under ``fabricctl run``."""

import click

from fabricctl import config, layout
from fabricctl.agent.ask import Asker, Member, job_here
from fabricctl.cli.hop import hop
from fabricctl.errors import NotFoundError

ANSWER_S = 2.0


@click.command(name="halt")
@click.argument("job", required=False)
@click.option("--now", is_flag=True, help="At once; what was not saved is lost.")
@click.option("--after-checkpoint", is_flag=True, help="When all ranks have saved (default).")
@click.option("--dry-run", is_flag=True, help="Say what would be ended, and end nothing.")
def command(job: str | None, now: bool, after_checkpoint: bool, dry_run: bool) -> None:
    """End the program of JOB that `fabricctl run` started, and do not start it again.

    Without --now the ranks get SIGUSR1: a program with checkpoints (docs/checkpoints.md) saves and
    leaves its loop. The keepers hold its state for a requeue.
    """
    if now and after_checkpoint:
        raise click.UsageError("--now and --after-checkpoint: one of them")
    number = job_here(job)
    how = "now" if now else "checkpoint"
    if dry_run:
        click.echo(f"job {number}: the program would be ended, {_WORDS[how]}")
        return
    try:
        ordered = order(number, how)
    except NotFoundError:
        hop(number, ["job", "halt", str(number), *(["--now"] if now else [])])
        return
    click.echo(f"job {number}: {ordered} nodes told to end the program, {_WORDS[how]}")


_WORDS = {"now": "at once", "checkpoint": "after a checkpoint"}


def order(job: int, how: str) -> int:
    """Tells the job's agents; how many heard it. Raises :class:`NotFoundError` when none did, or
    when this is no node of the job."""
    settings = config.load()
    member = Member.here(layout.NodeFiles(settings.node.run_dir), job)
    asker = Asker(member, settings)
    try:
        heard = sum(1 for _ in asker.ask(member.nodes, ANSWER_S, "halt", {"how": how}))
    finally:
        asker.close()
    if not heard:
        raise NotFoundError(f"job {job}: no agent answers")
    return heard
