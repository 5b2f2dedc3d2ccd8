"""``fabricctl job events``: what happened to a job, line by line."""

import json
import time
from dataclasses import asdict

import click

JSON_VERSION = 1
_MARKS = {"error": "!!", "warning": " !", "info": "  "}


@click.command()
@click.argument("job", metavar="JOB")
@click.option("--json", "as_json", is_flag=True, help="One object a line, for scripts.")
@click.option("--kind", multiple=True, type=click.Choice(["job", "step", "link", "path", "note"]),
              help="Only these; may be given several times.")  # fmt: skip
@click.option("--node", metavar="NODE", help="Only what this node saw.")
@click.option("--attempt", type=click.IntRange(min=0), metavar="N",
              help="Of a requeued job: the run after N requeues; default the newest.")  # fmt: skip
def command(
    job: str, as_json: bool, kind: tuple[str, ...], node: str | None, attempt: int | None
) -> None:
    """Steps, links, moves of traffic and notes of all nodes, oldest first, out of the job's trace.

    JOB is a job id, an array task (12_3) or a trace file. A job's trace is there when it has ended.
    """
    from fabricctl.cli import find_trace
    from fabricctl.fleet.history import job_events

    for event in job_events(find_trace.find(job, attempt)):
        if (kind and event.kind not in kind) or (node and event.node != node):
            continue
        if as_json:
            click.echo(json.dumps({"version": JSON_VERSION, **asdict(event)}))
            continue
        seconds, rest_ns = divmod(event.at_real_ns, 10**9)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
        where = event.node or "-"
        mark = _MARKS[event.severity]
        click.echo(f"{stamp}.{rest_ns // 10**6:03d} {mark} {where:8} {event.kind:5} {event.text}")
