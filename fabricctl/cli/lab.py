"""``fabricctl lab``: a real multi-node Slurm on this machine."""

import json
import os
import subprocess
import time
from dataclasses import asdict

import click

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import CONTROLLER, LabSpec

_name = click.option(
    "--name", default="lab", envvar="FABRICCTL_LAB", show_default=True, help="Which lab."
)


@click.group()
def command() -> None:
    """A real multi-node Slurm on this machine, with faults to order (docs/lab.md)."""


@command.command()
@_name
@click.option("--nodes", default=5, show_default=True, help="Compute nodes; the last is a spare.")
@click.option("--rails", default=2, show_default=True, help="Fabric networks.")
@click.option("--bare", is_flag=True, help="Slurm alone, nothing of fabricctl in it.")
def up(name: str, nodes: int, rails: int, bare: bool) -> None:
    """Bring a lab up, or back up when part of it died."""
    begin_s = time.monotonic()
    lab = Lab(LabSpec(name=name, nodes=nodes, rails=rails, bare=bare))
    lab.up(say=lambda text: click.echo(f"lab {name}: {text}", err=True))
    took_s = time.monotonic() - begin_s
    click.echo(f"lab {name}: {nodes} nodes idle after {took_s:.1f} s", err=True)


@command.command()
@_name
def down(name: str) -> None:
    """Take a lab away: its processes, namespaces, mounts, groups and files."""
    Lab(name=name).down()


@command.command(context_settings={"ignore_unknown_options": True})
@_name
@click.option("-u", "--user", default="root", show_default=True, help="Who runs it.")
@click.argument("node")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
def exec(name: str, user: str, node: str, argv: tuple[str, ...]) -> None:
    """Run a command on a node: lab exec n1 -- ip addr."""
    _replace_self(Lab(name=name), node, argv, user)


@command.command(context_settings={"ignore_unknown_options": True})
@_name
@click.option("-u", "--user", default="alice", show_default=True, help="Who runs it.")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
def run(name: str, user: str, argv: tuple[str, ...]) -> None:
    """Run a command on the login node as a job user: lab run -- sbatch job.sh."""
    _replace_self(Lab(name=name), CONTROLLER, argv, user)


def _replace_self(lab: Lab, node: str, argv: tuple[str, ...], user: str) -> None:
    """The command takes this process's place: terminal, signals and exit status are its own."""
    passed = {key: os.environ[key] for key in ("TERM", "COLUMNS", "LINES") if key in os.environ}
    line = lab.exec_argv(node, argv, user=user, environment=passed)
    os.execvp(line[0], line)


@command.command()
@_name
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def status(name: str, as_json: bool) -> None:
    """What lives on each node."""
    lab = Lab(name=name)
    nodes = [lab.node_status(node) for node in lab.spec.all_nodes]
    if as_json:
        click.echo(json.dumps([asdict(node) for node in nodes]))
        return
    for node in nodes:
        click.echo(f"{node.name:6} {node.state:8} {subprocess.list2cmdline(node.services)}")
