"""``fabricctl audit``: are nodes fit to be handed to users."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fabricctl.errors import NotFoundError, SystemRefusedError, UsageError

if TYPE_CHECKING:
    from fabricctl.fleet.audit.model import Check
    from fabricctl.slurm.model import Node, Slurm

PORT = 20980  # UDP, while an audit runs
_MARKS = {"fail": "!!", "warn": " !", "not measured": " ?", "ok": "  "}


@click.command()
@click.argument("nodes", required=False)
@click.option("--partition", metavar="NAME", help="All nodes of a partition.")
@click.option("--via", metavar="CMD", help="Not by Slurm jobs, but by this: 'ssh {node}'.")
@click.option("--against", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Also say which verdicts are others than in this report (--json).")  # fmt: skip
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Also write one HTML page.")  # fmt: skip
@click.option("--all", "show_all", is_flag=True, help="Also show what is fine.")
@click.option("--json", "as_json", is_flag=True, help="The whole report, for scripts and records.")
@click.option("--dry-run", is_flag=True, help="Say which nodes would be audited, and how.")
def command(
    *,
    nodes: str | None,
    partition: str | None,
    via: str | None,
    against: Path | None,
    html: Path | None,
    show_all: bool,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Check NODES (a host list) in about ten seconds: host, links, fabric, clock, Slurm, storage.

    Each node looks at itself, then all of them probe each other on every rail. It runs as a job of
    one CPU a node beside others; exit status 0: all fit; 1: something failed or was not measured.
    """
    from fabricctl import hostlist
    from fabricctl.fleet.audit import report
    from fabricctl.fleet.audit.run import audit
    from fabricctl.fleet.inventory.collect import reachable
    from fabricctl.slurm.choose import open_slurm

    slurm = open_slurm()
    chosen = named(slurm, nodes, partition)
    names = [node.name for node in chosen]
    before = _earlier(against) if against else None
    if dry_run:
        fit, why = (chosen, dict[str, str]()) if via else reachable(chosen)
        click.echo(f"would be audited: {hostlist.fold(node.name for node in fit) or 'none'}")
        for name, reason in why.items():
            click.echo(f"{name}: cannot be: {reason}")
        return
    begin_s = int(time.time())
    checks = audit(chosen, PORT, via)
    cluster = slurm.configuration().get("ClusterName", "?")
    given = report.document(checks, names, cluster, begin_s, int(time.time()))
    if html is not None:
        from fabricctl.cli.write_file import write_private

        when = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(begin_s))
        write_private(html, report.page(given, when))
        click.echo(f"fabricctl: wrote {html}", err=True)
    if as_json:
        click.echo(json.dumps(given))
    else:
        for check in checks:
            if show_all or check.status != "ok":
                where = f"{check.node} {check.rail}".rstrip()
                limit = f" (wanted: {check.limit})" if check.limit else ""
                click.echo(f"{_MARKS[check.status]} {where:12} {check.area} {check.name}: "
                           f"{check.value}{limit}")  # fmt: skip
        fine = [name for name, status in given["nodes"].items() if status in ("ok", "warn")]
        click.echo(f"{len(fine)} of {len(names)} nodes fit: {hostlist.fold(fine) or 'none'}; "
                   f"{len(checks)} checks, verdicts {given['verdict_sha256'][:12]}")  # fmt: skip
    for was, check in report.changes(before, checks) if before is not None else ():
        old = was.status if was else "not there"
        click.echo(f"changed: {check.node} {check.area} {check.name} {check.rail}: "
                   f"{old} to {check.status}", err=True)  # fmt: skip
    bad = [status for status in given["nodes"].values() if status in ("fail", "not measured")]
    sys.exit(1 if bad else 0)


def named(slurm: "Slurm", nodes: str | None, partition: str | None) -> list["Node"]:
    """The nodes meant; raises :class:`UsageError` or :class:`NotFoundError`."""
    from fabricctl import hostlist

    known = {node.name: node for node in slurm.nodes()}
    if bool(nodes) == bool(partition):
        raise UsageError("audit: NODES or --partition: one of them")
    if nodes:
        names = list(dict.fromkeys(hostlist.expand(nodes)))
    else:
        found = [each for each in slurm.partitions() if each.name == partition]
        names = list(found[0].nodes) if found else []
        if not found:
            raise NotFoundError(f"partition {partition}: there is none")
    strange = [name for name in names if name not in known]
    if strange:
        raise NotFoundError(f"nodes {', '.join(strange[:5])}: Slurm does not know them: sinfo -N")
    return [known[name] for name in names]


def _earlier(path: Path) -> list["Check"]:
    from fabricctl.fleet.audit import report

    try:
        text = path.read_text()
    except OSError as error:
        raise SystemRefusedError(f"audit: {path}: {error.strerror}") from None
    checks: list[Check] = report.read(text)["checks"]
    return checks
