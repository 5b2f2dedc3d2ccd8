"""``fabricctl job halt``: ends a program that runs under ``fabricctl run``."""

from datetime import datetime, time, timedelta

import click

from fabricctl import config, layout
from fabricctl.agent.ask import Asker, job_here
from fabricctl.cli.hop import hop
from fabricctl.errors import NotFoundError, UsageError
from fabricctl.membership import Member

ANSWER_S = 2.0


@click.command(name="halt")
@click.argument("job", required=False)
@click.option("--now", is_flag=True, help="At once; what was not saved is lost.")
@click.option("--after-checkpoint", is_flag=True, help="When all ranks have saved (default).")
@click.option("--before", metavar="TIME", help="To end by then: 17:30, an ISO time, or +MINUTES.")
@click.option("--lead", type=click.FloatRange(0), default=60.0, show_default=True, metavar="S",
              help="With --before: so many seconds earlier all are told to save.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be ended, and end nothing.")
def command(  # noqa: PLR0917 - click hands them by name
    job: str | None,
    now: bool,
    after_checkpoint: bool,
    before: str | None,
    lead: float,
    dry_run: bool,
) -> None:
    """End the program of JOB that `fabricctl run` started, and do not start it again.

    Without --now the ranks get SIGUSR1: a program with checkpoints (docs/checkpoints.md) saves and
    leaves its loop. The keepers hold its state for a requeue.
    """
    if now + after_checkpoint + (before is not None) > 1:
        raise click.UsageError("--now, --after-checkpoint, --before: one of them")
    number = job_here(job)
    how, words = ("now", "at once") if now else ("checkpoint", "after a checkpoint")
    if before is not None:
        at_s = at_time(before, datetime.now().astimezone()).timestamp() - lead
        how = f"before:{int(at_s)}"
        words = f"after a checkpoint at {datetime.fromtimestamp(at_s).astimezone():%F %T %Z}"
    if dry_run:
        click.echo(f"job {number}: the program would be ended, {words}")
        return
    try:
        ordered = order(number, how)
    except NotFoundError:
        again = ["--before", before, "--lead", str(lead)] if before is not None else []
        hop(number, ["job", "halt", str(number), *(["--now"] if now else again)])
        return
    click.echo(f"job {number}: {ordered} nodes told to end the program, {words}")


def at_time(text: str, now: datetime) -> datetime:
    """Of this day or, when it is past, the next; raises :class:`UsageError`."""
    try:
        if text.startswith("+"):
            return now + timedelta(minutes=float(text[1:]))
        if "T" in text or "-" in text:
            found = datetime.fromisoformat(text)
            return found if found.tzinfo else found.replace(tzinfo=now.tzinfo)
        clock = time.fromisoformat(text)
    except (ValueError, OverflowError):
        raise UsageError(f"halt: --before {text[:40]!r}: 17:30, 2026-01-31T17:30 or +20") from None
    found = datetime.combine(now.date(), clock, now.tzinfo)
    return found if found > now else found + timedelta(days=1)


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
