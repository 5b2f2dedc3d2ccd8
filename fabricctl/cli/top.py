"""``fabricctl top``: the cluster live, in the terminal."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from fabricctl.errors import DataError, UsageError


@click.command()
@click.option("--every", type=click.FloatRange(0.2, 60), default=2.0, show_default=True,
              metavar="S", help="Seconds between looks.")  # fmt: skip
@click.option("--once", is_flag=True, help="Print one look as text, and end.")
@click.option("--view", type=click.Choice(["jobs", "nodes", "links"]), default="jobs",
              show_default=True, help="What to begin with.")  # fmt: skip
@click.option("--filter", "wanted", default="", metavar="TEXT", help="Only rows that have it.")
@click.option("--sort", "by", default="", metavar="COLUMN", help="Largest first.")
def command(every: float, once: bool, view: str, wanted: str, by: str) -> None:
    """Jobs, nodes and links as fabricd on this host knows them; without one, as Slurm does.

    Keys: 1 2 3 jobs, nodes, links; arrows and page keys; s sort by the next column, r the other
    way; / filter; enter look into; escape back; f findings; q end. You see the jobs that you may.
    """
    from fabricctl import config
    from fabricctl.cli.top_model import Screen

    settings = config.load()
    screen = Screen(view, wanted, by)
    if by and by not in screen.columns:
        raise UsageError(f"top: --sort {by[:40]!r}: {', '.join(screen.columns)}")
    if once or not sys.stdout.isatty():
        screen.take(look(settings.head.socket))
        click.echo("\n".join([*screen.head(), *screen.lines(0, 10_000)]))
        return
    from fabricctl.cli.top_app import Top

    Top(screen, lambda: look(settings.head.socket), every).run()


def look(socket: Path) -> dict[str, Any]:
    """A snapshot, of fabricd or made from Slurm itself."""
    from fabricctl.errors import SystemRefusedError
    from fabricctl.fleet.head.service import ask

    if socket.exists():
        try:
            given = json.loads(ask(socket, "snapshot"))
        except SystemRefusedError:
            return _of_slurm()  # it was killed and left its socket
        except ValueError:
            raise DataError(f"{socket}: what answers there is not fabricd") from None
        if not isinstance(given, dict) or "nodes" not in given:
            raise DataError(f"{socket}: what answers there is not fabricd")
        return given
    return _of_slurm()


def _of_slurm() -> dict[str, Any]:
    """Without a head service: no links, no traffic, and Slurm is asked at every look."""
    import os
    import time

    from fabricctl import config
    from fabricctl.errors import SlurmError
    from fabricctl.fleet import access
    from fabricctl.fleet.head import views
    from fabricctl.fleet.head.table import Table
    from fabricctl.slurm.choose import open_slurm

    settings = config.load()
    slurm = open_slurm("commands")
    try:
        rights = slurm.rights()
    except SlurmError:
        rights = {}
    caller = access.who(os.getuid(), rights, settings.access)
    cluster = slurm.configuration().get("ClusterName", "?")
    now_s = time.monotonic()
    view = views.SlurmView(slurm.nodes(), slurm.jobs(), cluster, now_s)
    return views.snapshot(Table(5, 1000), view, caller, settings.access, now_s)
