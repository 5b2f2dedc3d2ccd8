"""``fabricctl report``: what happened to a job."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fabricctl.slurm.model import Usage

ACCOUNTING_S = 5.0  # somebody waits for the report
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("job", metavar="JOB")
@click.option("--html", type=_FILE, metavar="FILE",
              help="Also write one HTML file with plots, which needs no network.")  # fmt: skip
@click.option("--pdf", type=_FILE, metavar="FILE",
              help="Also write a PDF (by Chromium, where it is installed).")  # fmt: skip
@click.option("--markdown", "form", flag_value="markdown", help="Print Markdown.")
@click.option("--json", "form", flag_value="json", help="For scripts, in place of the screen.")
@click.option("--compare", "other", metavar="JOB2",
              help="How JOB2 differs from JOB, and what that time was spent on.")  # fmt: skip
@click.option("--attempt", type=click.IntRange(min=0), metavar="N",
              help="Of a requeued job: the run after N requeues; default the newest.")  # fmt: skip
@click.option("--follow", is_flag=True,
              help="Of a running job: its verdicts as they are found, until it ends.")  # fmt: skip
@click.option("--slurm/--no-slurm", default=True,
              help="Of a job named by its id, ask the accounting how long it waited.")  # fmt: skip
@click.option(
    "--limits/--no-limits",
    default=True,
    help="Read in bounded time and memory (the default), or a trace that you trust.",
)
def command(
    job: str,
    *,
    html: Path | None,
    pdf: Path | None,
    form: str | None,
    other: str | None,
    attempt: int | None,
    follow: bool,
    slurm: bool,
    limits: bool,
) -> None:
    """Where a job's time went: what it lost to which link, node or cause, what ran where, each
    rail's links and traffic, CPU and memory, and what was not measured.

    JOB is a job id, an array task (12_3), a component of a heterogeneous job (12+1) or a trace
    file. Your own jobs are looked for in the site's trace directory; root finds everybody's.
    """
    from fabricctl.cli import find_trace
    from fabricctl_analysis.guard import NO_LIMITS, Limits, guarded

    if follow:
        from fabricctl.cli.report_follow import follow as follow_job
        from fabricctl.errors import UsageError

        if any((html, pdf, other, attempt is not None, form == "markdown")):
            raise UsageError("--follow prints text or --json: it goes with no other option")
        follow_job(job, form == "json")
        return
    path = find_trace.find(job, attempt)
    if other is not None:
        _compare(path, find_trace.find(other), form, (html, pdf), limits)
        return
    shown = form or "text"
    wanted = [shown, *(["html"] if html is not None or pdf is not None else [])]
    terminal = _terminal()
    usages = _usages(path) if slurm and not _is_file(job) else ()

    def work() -> dict[str, str]:
        from fabricctl_analysis.build import renderings

        return renderings(path, wanted, *terminal, usages=usages)

    texts = guarded(path, work, Limits.of(path) if limits else NO_LIMITS)
    if html is not None:
        write_file(html, texts["html"].encode())
    if pdf is not None:
        from fabricctl.cli.pdf import printed

        write_file(pdf, printed(texts["html"]))
    click.echo(texts[shown], nl=False, color=True)


def _is_file(job: str) -> bool:
    """A file may be of any cluster, and from long ago."""
    return "/" in job or job.endswith(".h5")


def _usages(path: Path) -> "Sequence[Usage]":
    """The job's attempts. Without an accounting that answers soon the report has no word on
    waiting: most of it is not Slurm's to tell."""
    import time
    from functools import partial

    from fabricctl import layout
    from fabricctl.errors import FabricError
    from fabricctl.slurm.commands import CommandSlurm
    from fabricctl.slurm.run import run

    which = layout.parse_trace_file(path.resolve())
    if which is None:
        return ()
    try:
        slurm = CommandSlurm(partial(run, timeout_s=ACCOUNTING_S))
        return slurm.usage(1, int(time.time()), which[0])
    except FabricError:
        return ()


def _compare(
    first: Path, second: Path, form: str | None, files: tuple[Path | None, ...], limits: bool
) -> None:
    from fabricctl.errors import UsageError
    from fabricctl_analysis.guard import NO_LIMITS, Limits, guarded

    if form == "markdown" or any(files):
        raise UsageError("--compare prints text or --json: it goes with no other form")
    shown = form or "text"
    ends = {}
    for name, path in (("first", first), ("second", second)):

        def work(path: Path = path) -> Mapping[str, str]:
            from fabricctl_analysis.compare import side_of

            return side_of(path)

        ends[name] = guarded(path, work, Limits.of(path) if limits else NO_LIMITS)
    from fabricctl_analysis.compare import compared

    click.echo(compared(ends["first"], ends["second"], shown), nl=False)


def _terminal() -> tuple[bool, bool]:
    """Whether standard output shows colours, and characters beyond ASCII."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return colour, (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def write_file(path: Path, content: bytes) -> None:
    """The file appears whole, readable by its owner alone, as the trace is."""
    from fabricctl.errors import SystemRefusedError

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(fd, "wb") as stream:
                stream.write(content)
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise SystemRefusedError(f"report {path}: cannot be written: {error.strerror}") from None
    click.echo(f"fabricctl: wrote {path}", err=True)
