"""``fabricctl status``: the cluster on one screen."""

import json
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

JSON_VERSION = 1
_MARKS = {"error": "!!", "warning": " !", "info": "  "}
_COLOURS = {"error": "red", "warning": "yellow", "info": None}
_NODE_WORDS = ("idle", "mixed", "allocated", "draining", "drained", "down", "powered down",
               "unknown")  # fmt: skip
MAX_FINDINGS = 12
OLD = 3  # of fabricd's looks at Slurm: what it knows is not shown any more


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
    """Nodes, jobs, rails (where fabricd runs on this host), and what somebody should look at.

    Exit status 0: nothing is open; 1: something is (see --fail-on); 69: Slurm does not answer.
    """
    said = look()
    if as_json:
        click.echo(json.dumps(said))
    else:
        _print(said)
    failing = {"error": ("error",), "warning": ("error", "warning"), "never": ()}[fail_on]
    sys.exit(1 if said["worst"] in failing else 0)


def look() -> dict[str, Any]:
    """What fabricd on this host knows, and else what Slurm says itself."""
    from fabricctl import config
    from fabricctl.errors import SystemRefusedError
    from fabricctl.fleet.head.service import ask

    head = config.load().head
    at = {"version": JSON_VERSION, "at_real_s": int(time.time())}
    if head.socket.exists():
        try:
            given = json.loads(ask(head.socket, "status"))
        except (SystemRefusedError, ValueError):
            given = {}  # it was killed and left its socket
        age_s = given.get("slurm_age_s")
        # Its Slurm may be away for it alone: then Slurm is asked here, and says so itself.
        if age_s is not None and not given["slurm_trouble"] and age_s < OLD * head.slurm_s:
            return {**given, **at}
    return {**_of_slurm(), **at}


def _of_slurm() -> dict[str, Any]:
    from fabricctl.fleet.overview import overview
    from fabricctl.slurm.choose import open_slurm

    slurm = open_slurm()
    jobs = slurm.jobs()
    found = overview(slurm.nodes(), jobs)
    cluster = slurm.configuration().get("ClusterName", "?")
    unknown = dict.fromkeys(("rails", "protected_jobs", "reports"))  # fabricd's to know
    return {"cluster": cluster, "slurm": slurm.version.text, "slurm_age_s": 0.0,
            "worst": found.worst, **asdict(found), **unknown}  # fmt: skip


def _print(said: Mapping[str, Any]) -> None:
    from fabricctl.cli.table import terminal_width

    now = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(said["at_real_s"]))
    ago = f", {said['slurm_age_s']:.0f} s ago" if said["slurm_age_s"] else ""
    click.echo(f"Cluster {said['cluster']}, Slurm {said['slurm']}, {now}{ago}")
    click.echo(f"Nodes  {sum(said['nodes'].values())}: {_counts(said['nodes'], _NODE_WORDS)}")
    jobs = _counts(said["jobs"], ("running", "ending", "waiting"))
    if said["rails"] is None:
        click.echo(f"Jobs   {jobs}")
    else:
        heard = said["reports"]
        click.echo(f"Jobs   {jobs}; {said['protected_jobs']} protected")
        click.echo(f"Rails  {_counts(said['rails'], tuple(said['rails']))}; "
                   f"{heard['fresh']} nodes report")  # fmt: skip
    click.echo()
    width = terminal_width() or 100
    found = said["findings"]
    for one in found[:MAX_FINDINGS]:
        mark = click.style(_MARKS[one["severity"]], fg=_COLOURS[one["severity"]])
        lines = textwrap.wrap(one["text"], max(20, width - 3)) or [""]
        click.echo("\n".join([f"{mark} {lines[0]}", *(f"   {line}" for line in lines[1:])]))
    if len(found) > MAX_FINDINGS:
        click.echo(f"   and {len(found) - MAX_FINDINGS} more: fabricctl status --json")
    if not found:
        click.echo("nothing is open")


def _counts(counts: Mapping[str, int], words: tuple[str, ...]) -> str:
    return ", ".join(f"{counts[word]} {word}" for word in words if counts.get(word)) or "none"
