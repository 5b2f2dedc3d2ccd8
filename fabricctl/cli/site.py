"""``fabricctl site``: what this machine needs and has."""

import json
import sys
from dataclasses import asdict

import click

JSON_VERSION = 1


@click.group()
def command() -> None:
    """Check what this machine needs and has."""


@command.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts; see docs/configuration.md.")
def check(as_json: bool) -> None:
    """Look at Slurm, the plugin, munge, the node service and the directories on this host.

    One line each: ok, warn or fail, and what to do. Exit status 1 when one of them fails.
    """
    from fabricctl import config
    from fabricctl.cli import site_checks

    found = []
    for each in site_checks.run_all(config.load()):
        found.append(each)
        if not as_json:  # as each check ends: some wait for an answer for seconds
            todo = f": {each.todo}" if each.todo else ""
            click.echo(f"{each.status:5} {each.name:12} {each.found}{todo}")
    worst = max((each.status for each in found), key=("ok", "warn", "fail").index)
    if as_json:
        checks = [asdict(each) for each in found]
        click.echo(json.dumps({"version": JSON_VERSION, "status": worst, "checks": checks}))
    sys.exit(1 if worst == "fail" else 0)
