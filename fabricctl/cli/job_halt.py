"""``fabricctl job halt``: ends a program that runs under ``fabricctl run``."""

import contextlib
from collections.abc import Callable, Mapping
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
        order(number, how)
    except NotFoundError:
        again = ["--before", before, "--lead", str(lead)] if before is not None else []
        hop(number, ["job", "halt", str(number), *(["--now"] if now else again)])
        return
    click.echo(f"job {number}: `fabricctl run` ends the program, {words}")


def at_time(text: str, now: datetime) -> datetime:
    """Of this day or, when it is past, the next; raises :class:`UsageError`."""
    try:
        if text.startswith("+"):
            found = now + timedelta(minutes=float(text[1:]))
        elif "T" in text or "-" in text:
            found = datetime.fromisoformat(text)
            found = found if found.tzinfo else found.replace(tzinfo=now.tzinfo)
        else:
            clock = time.fromisoformat(text)
            found = datetime.combine(now.date(), clock, clock.tzinfo or now.tzinfo)
            return found if found > now else found + timedelta(days=1)
    except (ValueError, OverflowError):
        raise UsageError(f"halt: --before {text[:40]!r}: 17:30, 2026-01-31T17:30 or +20") from None
    if found <= now:
        raise UsageError(f"halt: --before {text[:40]}: that is past; --now ends it at once")
    return found


def order(
    job: int, how: str, check: Callable[[Mapping[str, str]], None] = lambda _: None
) -> Mapping[str, str]:
    """Tells the job's `fabricctl run`, by way of its agents. ``check`` is given what it says of
    itself, and may raise; it is returned. ``how`` "": nothing else is done.

    Raises :class:`NotFoundError` when this is no node of the job or no agent answers, and
    :class:`UsageError` when nothing there would obey."""
    settings = config.load()
    member = Member.here(layout.NodeFiles(settings.node.run_dir), job)
    with contextlib.closing(Asker(member, settings)) as asker:
        heard = dict(asker.ask(member.nodes, ANSWER_S, "alive"))
        if not heard:
            raise NotFoundError(f"job {job}: no agent answers")
        # Agents of an older version say nothing of it, and one that is silent may be its.
        run = next((one for one in heard.values() if one.get("run") == "1"), None)
        if run is None and all(heard.get(node, {}).get("run") == "0" for node in member.nodes):
            raise UsageError(f"job {job}: no `fabricctl run` runs there that would obey")
        check(run or {})
        if how:
            for _ in asker.ask(heard, ANSWER_S, "halt", {"how": how}):
                pass
        return run or {}
