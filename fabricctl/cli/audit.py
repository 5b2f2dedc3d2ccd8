"""``fabricctl audit``: are nodes fit to be handed to users."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fabricctl.errors import NotFoundError, SystemRefusedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fabricctl.fleet.audit.model import Check
    from fabricctl.fleet.audit.pairwise import Link
    from fabricctl.slurm.model import Node, Slurm

PORT = 20980  # UDP, while an audit runs
_MARKS = {"fail": "!!", "warn": " !", "not measured": " ?", "ok": "  "}


@click.command()
@click.argument("nodes", required=False)
@click.option("--partition", metavar="NAME", help="All nodes of a partition.")
@click.option("--full", is_flag=True, help="Also bandwidth, latency and clocks of all pairs, and "
              "an all-reduce by MPI: up to a minute.")  # fmt: skip
@click.option("--burn-in", metavar="TIME", help="Full audits one after the other for so long: 4h.")
@click.option("--job-prolog", is_flag=True, help="This node only, without asking Slurm or other "
              "nodes: for a prolog or HealthCheckProgram.")  # fmt: skip
@click.option("--via", metavar="CMD", help="Not by Slurm jobs, but by this: 'ssh {node}'.")
@click.option("--against", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Also say what is other than in this report (--json).")  # fmt: skip
@click.option("--sign-off", metavar="TEXT", help="Put your name and these words on the report.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Also write one HTML page.")  # fmt: skip
@click.option("--all", "show_all", is_flag=True, help="Also show what is fine.")
@click.option("--json", "as_json", is_flag=True, help="The whole report, for scripts and records.")
@click.option("--dry-run", is_flag=True, help="Say which nodes would be audited, and how.")
def command(
    *,
    nodes: str | None,
    partition: str | None,
    full: bool,
    burn_in: str | None,
    job_prolog: bool,
    via: str | None,
    against: Path | None,
    sign_off: str | None,
    html: Path | None,
    show_all: bool,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Check NODES (a host list): host, links, fabric, clock, GPUs, Slurm, storage.

    Each node looks at itself, then all of them probe each other on every rail, in about ten
    seconds. It runs as a job of one CPU a node beside others; exit status 0: all fit; 1: something
    failed or was not measured.
    """
    from fabricctl import config, hostlist
    from fabricctl.fleet.audit import report
    from fabricctl.fleet.audit.run import audit
    from fabricctl.fleet.inventory.collect import reachable
    from fabricctl.slurm.choose import open_slurm

    if job_prolog:
        if nodes or partition or via or full or burn_in:
            raise UsageError("audit: --job-prolog is of this node, by itself")
        _prolog(as_json)
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
    settings = config.load().audit

    links: list[Link] = []

    def once() -> "list[Check]":
        return audit(chosen, PORT, settings, via=via, full=full or burn_in is not None, seen=links)

    checks = _burned(once, burn_in) if burn_in else once()
    cluster = slurm.configuration().get("ClusterName", "?")
    signed = _signature(sign_off) if sign_off is not None else None
    given = report.document(
        checks, names, cluster, begin_s, int(time.time()), signed=signed, links=links
    )
    if html is not None:
        from fabricctl.cli.write_file import write_private

        when = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(begin_s))
        write_private(html, report.page(given, when))
        click.echo(f"fabricctl: wrote {html}", err=True)
    if as_json:
        click.echo(json.dumps(given))
    else:
        _print(checks, show_all)
        fine = [name for name, status in given["nodes"].items() if status in ("ok", "warn")]
        click.echo(f"{len(fine)} of {len(names)} nodes fit: {hostlist.fold(fine) or 'none'}; "
                   f"{len(checks)} checks, verdicts {given['verdict_sha256'][:12]}")  # fmt: skip
    if before is not None:
        _compare(before, checks)
    bad = [status for status in given["nodes"].values() if status in ("fail", "not measured")]
    sys.exit(1 if bad else 0)


def _print(checks: "list[Check]", show_all: bool) -> None:
    for check in checks:
        if show_all or check.status != "ok":
            where = f"{check.node} {check.rail}".rstrip()
            limit = f" (wanted: {check.limit})" if check.limit else ""
            click.echo(f"{_MARKS[check.status]} {where:12} {check.area} {check.name}: "
                       f"{check.value}{limit}")  # fmt: skip


def _compare(before: "list[Check]", checks: "list[Check]") -> None:
    from fabricctl.fleet.audit import report

    for was, check in report.changes(before, checks):
        old = was.status if was else "not there"
        click.echo(f"changed: {check.node} {check.area} {check.name} {check.rail}: "
                   f"{old} to {check.status}", err=True)  # fmt: skip
    for was, check in report.drifts(before, checks):
        click.echo(f"drifted: {check.node} {check.area} {check.name} {check.rail}: "
                   f"{was.value} to {check.value}", err=True)  # fmt: skip


def _prolog(as_json: bool) -> None:
    """What failed goes to stderr. What could not be measured never holds a job up."""
    import os
    from dataclasses import asdict

    from fabricctl import config
    from fabricctl.fleet.audit import local

    node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename.partition(".")[0]
    checks = local.checks(node, config.load())
    bad = [check for check in checks if check.status == "fail"]
    if as_json:
        click.echo(json.dumps({"version": 1, "checks": [asdict(check) for check in checks]}))
    for check in bad:
        where = f"{check.rail} " if check.rail else ""
        click.echo(f"fabric: {where}{check.area} {check.name}: {check.value}", err=True)
    sys.exit(1 if bad else 0)


def _burned(once: "Callable[[], list[Check]]", words: str) -> "list[Check]":
    import re

    from fabricctl.fleet.audit.burnin import together

    match = re.fullmatch(r"(\d{1,4})(min|h)", words)
    if match is None or not int(match.group(1)):
        raise UsageError(f"audit: --burn-in {words[:20]!r}: so many minutes or hours: 30min, 4h")
    end_s = time.monotonic() + int(match.group(1)) * (60 if match.group(2) == "min" else 3600)
    rounds: list[list[Check]] = []
    while not rounds or time.monotonic() < end_s:
        rounds.append(once())
        bad = sum(check.status == "fail" for check in rounds[-1])
        left_s = max(0, end_s - time.monotonic())
        click.echo(f"fabricctl: audit {len(rounds)}: {bad} checks failed; "
                   f"{left_s / 60:.0f} min to go", err=True)  # fmt: skip
    return together(rounds)


def _signature(text: str) -> dict[str, str]:
    from fabricctl.fleet.changes import caller, harmless

    at = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return {"by": caller(), "at": at, "text": harmless(text)}


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
