"""``fabricctl status``: the cluster on one screen."""

import json
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import asdict

import click

JSON_VERSION = 1
_MARKS = {"error": "!!", "warning": " !", "info": "  "}
_COLOURS = {"error": "red", "warning": "yellow", "info": None}
_NODE_WORDS = ("idle", "mixed", "allocated", "draining", "drained", "down", "powered down",
               "unknown")  # fmt: skip
MAX_FINDINGS = 12


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts; see docs/administration.md.")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "never"]),
    default="error",
    show_default=True,
    help="The least finding that makes the exit status 1.",
)
def command(as_json: bool, fail_on: str) -> None:
    """Nodes, jobs, and what somebody should look at.

    Exit status 0: nothing is open; 1: something is (see --fail-on); 69: Slurm does not answer.
    """
    from fabricctl.cli.table import terminal_width
    from fabricctl.fleet.overview import overview
    from fabricctl.slurm.choose import open_slurm

    slurm = open_slurm()
    jobs = slurm.jobs()
    found = overview(slurm.nodes(), jobs)
    cluster = slurm.configuration().get("ClusterName", "?")
    if as_json:
        said = {
            "version": JSON_VERSION,
            "cluster": cluster,
            "slurm": slurm.version.text,
            "at_real_s": int(time.time()),
            "worst": found.worst,
            **asdict(found),
        }
        click.echo(json.dumps(said))
    else:
        now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        click.echo(f"Cluster {cluster}, Slurm {slurm.version.text}, {now}")
        total = sum(found.nodes.values())
        click.echo(f"Nodes  {total}: {_counts(found.nodes, _NODE_WORDS)}")
        click.echo(f"Jobs   {_counts(found.jobs, ('running', 'ending', 'waiting'))}")
        click.echo()
        width = terminal_width() or 100
        for one in found.findings[:MAX_FINDINGS]:
            mark = click.style(_MARKS[one.severity], fg=_COLOURS[one.severity])
            lines = textwrap.wrap(one.text, max(20, width - 3)) or [""]
            click.echo("\n".join([f"{mark} {lines[0]}", *(f"   {line}" for line in lines[1:])]))
        if len(found.findings) > MAX_FINDINGS:
            click.echo(f"   and {len(found.findings) - MAX_FINDINGS} more: fabricctl status --json")
        if not found.findings:
            click.echo("nothing is open")
    failing = {"error": ("error",), "warning": ("error", "warning"), "never": ()}[fail_on]
    sys.exit(1 if found.worst in failing else 0)


def _counts(counts: Mapping[str, int], words: tuple[str, ...]) -> str:
    return ", ".join(f"{counts[word]} {word}" for word in words if counts.get(word)) or "none"
