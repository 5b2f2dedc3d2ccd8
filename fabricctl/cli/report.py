"""``fabricctl report``: what happened to a job."""

import os
import sys
from pathlib import Path

import click


@click.command()
@click.argument("job", metavar="JOB")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Also write one HTML file with plots, which needs no network.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="For scripts, in place of the screen.")
@click.option("--attempt", type=click.IntRange(min=0), metavar="N",
              help="Of a requeued job: the run after N requeues; default the newest.")  # fmt: skip
def command(job: str, html: Path | None, as_json: bool, attempt: int | None) -> None:
    """What ran where and when, each rail's links and traffic, CPU and memory, and what was not
    measured.

    JOB is a job id, an array task (12_3) or a trace file. Your own jobs are looked for in the
    site's trace directory; root finds everybody's.
    """
    from fabricctl.cli import find_trace
    from fabricctl_analysis.build import report_of
    from fabricctl_analysis.findings import findings
    from fabricctl_analysis.when import When

    report = report_of(find_trace.find(job, attempt))
    when = When(report.whole)
    found = findings(report, when)
    if html is not None:
        from fabricctl_analysis.render_html import render_html

        _write(html, render_html(report, found, when))
        click.echo(f"fabricctl: wrote {html}", err=True)
    if as_json:
        from fabricctl_analysis.render_json import render_json

        click.echo(render_json(report, found), nl=False)
    else:
        from fabricctl_analysis.render_text import Screen, render_text

        click.echo(render_text(report, found, when, Screen(*_terminal())), nl=False, color=True)


def _terminal() -> tuple[bool, bool]:
    """Whether standard output shows colours, and characters beyond ASCII."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return colour, (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def _write(path: Path, text: str) -> None:
    """The file appears whole, readable by its owner alone, as the trace is."""
    from fabricctl.errors import SystemRefusedError

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w",
                           encoding="utf-8") as stream:  # fmt: skip
                stream.write(text)
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise SystemRefusedError(f"report {path}: cannot be written: {error.strerror}") from None
