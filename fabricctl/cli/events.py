"""``fabricctl events``: what happens on the cluster, line by line."""

import datetime
import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fabricctl.fleet.watch import ClusterEvent
    from fabricctl.slurm.model import Usage

JSON_VERSION = 1
_MARKS = {"error": "!!", "warning": " !", "info": "  "}
_WEIGHT = ("info", "warning", "error")


@click.command()
@click.option("--from", "begin", default="1h", show_default=True, metavar="TIME",
              help="The first that are shown: 2026-11-01T08:00, 12h, today, now.")  # fmt: skip
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option("--poll", type=click.FloatRange(0.2, 600), default=2.0, show_default=True,
              metavar="SECONDS", help="Between looks at Slurm, with --follow.")  # fmt: skip
@click.option("--kind", multiple=True, type=click.Choice(["node", "job", "slurm"]),
              help="Only these.")  # fmt: skip
@click.option("--least", type=click.Choice(_WEIGHT), default="info", show_default=True,
              help="Only from this weight on.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One object a line, for scripts.")
def command(
    *, begin: str, follow: bool, poll: float, kind: tuple[str, ...], least: str, as_json: bool
) -> None:
    """Nodes that went out, came back or booted; jobs that began, ended or were requeued.

    The past comes from Slurm's accounting and from the reasons that nodes still have.
    """
    from fabricctl.errors import SlurmError
    from fabricctl.fleet import watch
    from fabricctl.fleet.period import moment
    from fabricctl.slurm.choose import open_slurm

    now = datetime.datetime.now().astimezone()
    begin_s = moment(begin, now)
    slurm = open_slurm()
    usages: tuple[Usage, ...] = ()
    if begin_s < int(now.timestamp()):
        try:
            usages = slurm.usage(begin_s, int(now.timestamp()) + 1)
        except SlurmError as error:
            click.echo(f"fabricctl: no jobs of the past: {error}", err=True)

    def show(event: "ClusterEvent") -> None:
        light = _WEIGHT.index(event.severity) < _WEIGHT.index(least)
        if light or (kind and event.kind not in kind):
            return
        if as_json:
            click.echo(json.dumps({"version": JSON_VERSION, **asdict(event)}))
            return
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at_real_s))
        click.echo(f"{stamp} {_MARKS[event.severity]} {event.kind:5} {event.text}")

    for event in watch.past(slurm.nodes(), usages, begin_s):
        show(event)
    if follow:
        for event in watch.follow(slurm, poll):
            show(event)
