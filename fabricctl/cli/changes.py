"""``fabricctl changes``: the log of what these commands changed."""

import datetime
import json
import time

import click


@click.command()
@click.option("--from", "begin", default="7d", show_default=True, metavar="WHEN",
              help="12h, 7d, a date, today, month.")  # fmt: skip
@click.option("--on", metavar="TEXT", help="Only changes of what begins so: a node, a job.")
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
def command(begin: str, on: str | None, as_json: bool) -> None:
    """Who drained, returned, moved what, when, why, and what came of it; oldest first."""
    from fabricctl import config
    from fabricctl.cli.table import table, terminal_width
    from fabricctl.fleet import changes
    from fabricctl.fleet.period import moment

    since_ms = moment(begin, datetime.datetime.now().astimezone()) * 1000
    lines = [
        line for line in changes.read(config.load().fleet.dir)
        if int(line["at_real_ms"]) >= since_ms and line.get("on", "").startswith(on or "")
    ]  # fmt: skip
    if as_json:
        for line in lines:
            click.echo(json.dumps({"version": 1, **line, "at_real_ms": int(line["at_real_ms"])}))
        return
    ends = {line.get("id"): line for line in lines if line.get("outcome") != "begun"}
    rows = []
    for line in lines:
        if line.get("outcome") != "begun":
            continue
        end = ends.get(line.get("id"), {"outcome": "cut off"})
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(line["at_real_ms"]) / 1000))
        said = end.get("text") or line.get("text")
        rows.append((when, line.get("user"), line.get("command"), line.get("what"),
                     line.get("on"), end.get("outcome"), said))  # fmt: skip
    if rows:
        head = ("WHEN", "WHO", "COMMAND", "WHAT", "ON", "OUTCOME", "TEXT")
        click.echo(table(head, rows, width=terminal_width()))
    else:
        click.echo("no change in that time")
