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
@click.option(
    "--limits/--no-limits",
    default=True,
    help="Read in bounded time and memory (the default), or a trace that you trust.",
)
def command(job: str, html: Path | None, as_json: bool, attempt: int | None, limits: bool) -> None:
    """What ran where and when, each rail's links and traffic, CPU and memory, and what was not
    measured.

    JOB is a job id, an array task (12_3), a component of a heterogeneous job (12+1) or a trace
    file. Your own jobs are looked for in the site's trace directory; root finds everybody's.
    """
    from fabricctl.cli import find_trace
    from fabricctl_analysis.guard import NO_LIMITS, Limits, guarded

    path = find_trace.find(job, attempt)
    wanted = ["json" if as_json else "text", *(["html"] if html is not None else [])]
    terminal = _terminal()

    def work() -> dict[str, str]:
        from fabricctl_analysis.build import renderings

        return renderings(path, wanted, *terminal)

    texts = guarded(path, work, Limits.of(path) if limits else NO_LIMITS)
    if html is not None:
        from fabricctl.cli.write_file import write_private

        write_private(html, texts["html"])
        click.echo(f"fabricctl: wrote {html}", err=True)
    click.echo(texts[wanted[0]], nl=False, color=True)


def _terminal() -> tuple[bool, bool]:
    """Whether standard output shows colours, and characters beyond ASCII."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return colour, (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
