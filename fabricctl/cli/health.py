"""``fabricctl health``: what findings about nodes lead to."""

import json
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fabricctl.errors import NotFoundError, SystemRefusedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fabricctl.config import Config
    from fabricctl.fleet.health.run import Health, Outcome
    from fabricctl.fleet.health.store import HealthStore
    from fabricctl.slurm.model import Node, Slurm

JSON_VERSION = 1
KEEP_REPORTS = 200
_MARKS = {"done": "  ", "would be done": "  ", "refused": " -", "failed": "!!"}
_json = click.option("--json", "as_json", is_flag=True, help="For scripts.")
_dry = click.option("--dry-run", is_flag=True, help="Say what would be done; record nothing.")


@click.group()
def command() -> None:
    """What findings about nodes lead to: note, reason, drain, a rail excluded (site-config).

    In mode observe, the default, nothing is touched: it says and records what would be done.
    """


@command.command()
@click.argument("nodes", required=False)
@click.option("--partition", metavar="NAME", help="All nodes of a partition.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Take this report (audit --json) in place of an audit now.")  # fmt: skip
@click.option("--live", is_flag=True, help="What fabricd on this host knows just now, in place of "
              "an audit: rails without carrier, nodes that are silent.")  # fmt: skip
@click.option("--via", metavar="CMD", help="Audit not by Slurm jobs, but by this: 'ssh {node}'.")
@_dry
@_json
def look(
    nodes: str | None, partition: str | None, report: Path | None, via: str | None, *,
    live: bool, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Audit NODES, take a report, or what fabricd knows, and do what the policy says.

    Exit status 0: nothing was to be done, or all was; 1: something was refused or failed.
    """
    from fabricctl import config
    from fabricctl.cli.audit import named
    from fabricctl.cli.role import demand_operator
    from fabricctl.fleet.audit import report as reports
    from fabricctl.fleet.health.run import check_report, only_one
    from fabricctl.slurm.choose import open_slurm

    settings = config.load()
    slurm = open_slurm()
    if not dry_run:
        demand_operator(slurm, "health look")
    cluster = slurm.configuration().get("ClusterName", "?")
    if report is not None:
        if nodes or partition or via or live:
            raise UsageError("health look: --report names its nodes itself")
        try:
            given = reports.read(report.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise SystemRefusedError(f"health: {report}: {error}") from None
        check_report(given, cluster, settings.health, time.time())
    elif live:
        if partition or via:
            raise UsageError("health look: --live asks fabricd, of NODES or of all")
        given = _live(settings, slurm, cluster, nodes)
    else:
        chosen = named(slurm, nodes, partition)
        given = _audited(chosen, cluster, settings, via)
    names, sha = sorted(given["nodes"]), str(given["sha256"])
    if not names:  # no node has reported since it was looked at
        _say([], settings.health.mode, as_json, dry_run)
    with only_one(settings.fleet.dir):
        store = _store(settings)
        if dry_run:
            store.begin_trial()
        store.take(sha, int(given["end_real_s"]), names, given["checks"], whole=not live)
        if not dry_run:
            _keep(settings.fleet.dir / "reports", given)
        health = _health(settings, slurm, store, dry=dry_run)
        outcomes = health.look(names, f"{'fabricd' if live else 'audit'} {sha[:12]}")
        store.close()
    _say(outcomes, settings.health.mode, as_json, dry_run)


@command.command(name="return")
@click.argument("nodes")
@_dry
@_json
def give_back(nodes: str, *, dry_run: bool, as_json: bool) -> None:
    """Return NODES, and rails of theirs, that `fabricctl health` took out; no others."""
    from fabricctl import config, hostlist
    from fabricctl.cli.role import demand_operator
    from fabricctl.fleet.health.run import only_one
    from fabricctl.slurm.choose import open_slurm

    settings = config.load()
    slurm = open_slurm()
    if not dry_run:
        demand_operator(slurm, "health return")
    with only_one(settings.fleet.dir):
        store = _store(settings)
        health = _health(settings, slurm, store, dry=dry_run)
        outcomes = health.give_back(hostlist.expand(nodes))
        store.close()
    if not outcomes:
        click.echo("nothing of theirs was taken out by fabricctl health", err=True)
    _say(outcomes, "on", as_json, dry_run)


@command.command()
@click.option("--log", "log_only", is_flag=True, help="What was decided in the last seven days.")
@_json
def status(*, log_only: bool, as_json: bool) -> None:
    """What is open, what we have taken out, and the bounds."""
    from fabricctl import config
    from fabricctl.cli.table import table, terminal_width
    from fabricctl.fleet.health.policy import PREFIX
    from fabricctl.fleet.maintenance.plan import parse_budget
    from fabricctl.fleet.overview import OURS
    from fabricctl.slurm.choose import open_slurm

    settings = config.load()
    store = _store(settings)
    nodes = open_slurm().nodes()
    records = store.records(store.nodes())
    drained = {n.name: n.reason or "" for n in nodes
               if "DRAIN" in n.flags and (n.reason or "").startswith(OURS)}  # fmt: skip
    matters = [matter for record in records.values() for matter in record.matters]
    excluded = store.excluded()
    taken = store.decisions(int(time.time()) - 7 * 86_400)
    store.close()
    most = parse_budget(settings.health.max_drained, max(1, len(nodes)))
    if as_json:
        said = {"version": JSON_VERSION, "mode": settings.health.mode, "max_drained": most,
                "drained": drained, "matters": [asdict(each) for each in matters],
                "excluded": [dict(zip(("node", "rail", "text", "since_real_s"), row, strict=True))
                             for row in excluded],
                "decisions": [asdict(each) for each in taken]}  # fmt: skip
        click.echo(json.dumps(said))
        return
    if log_only:
        rows: list[tuple[object, ...]] = [
            (_when(t.at_real_s), t.node, t.rail, t.action, t.outcome, t.text) for t in taken
        ]
        head: tuple[str, ...] = ("WHEN", "NODE", "RAIL", "ACTION", "OUTCOME", "TEXT")
        click.echo(table(head, rows, width=terminal_width()) if rows else "nothing was decided")
        return
    click.echo(f"mode {settings.health.mode}; {len(drained)} nodes are drained by fabricctl, "
               f"at most {most} may be")  # fmt: skip
    for name, reason in drained.items():
        click.echo(
            f"  {name}: {reason}" + ("" if reason.startswith(PREFIX) else " (not by health)")
        )
    for name, rail, text, _ in excluded:
        click.echo(f"  {name} {rail}: excluded: {text}")
    rows = [(m.node, m.rail, f"{m.area} {m.name}", m.weight, m.looks, _when(m.since_real_s), m.text)
            for m in matters]  # fmt: skip
    head = ("NODE", "RAIL", "CHECK", "WEIGHT", "LOOKS", "SINCE", "FOUND")
    click.echo(table(head, rows, width=terminal_width()) if rows else "nothing is open")


def _when(at_s: int) -> str:
    return time.strftime("%m-%d %H:%M:%S", time.localtime(at_s))


def _store(settings: "Config") -> "HealthStore":
    from fabricctl.fleet.health.store import HealthStore

    return HealthStore(settings.fleet.dir / "health.db")


def _health(settings: "Config", slurm: "Slurm", store: "HealthStore", *, dry: bool) -> "Health":
    from fabricctl.fleet.changes import ChangeLog
    from fabricctl.fleet.health.run import Health, by_way

    program = shutil.which("fabricctl") or "fabricctl"
    on_node = by_way(settings.health.way, program)
    log = ChangeLog(settings.fleet.dir, "health")
    return Health(settings.health, slurm, store, log, on_node, dry=dry)


def _audited(
    nodes: "Sequence[Node]", cluster: str, settings: "Config", via: str | None
) -> dict[str, Any]:
    from fabricctl.cli.audit import PORT
    from fabricctl.fleet.audit import report
    from fabricctl.fleet.audit.run import audit

    begin_s = int(time.time())
    checks = audit(nodes, PORT, settings.audit, via=via)
    given = report.document(checks, [n.name for n in nodes], cluster, begin_s, int(time.time()))
    return {**given, "checks": checks}


def _live(
    settings: "Config", slurm: "Slurm", cluster: str, nodes: str | None
) -> dict[str, Any]:  # fmt: skip
    from fabricctl import hostlist
    from fabricctl.fleet.audit import report
    from fabricctl.fleet.head.service import ask
    from fabricctl.fleet.health.live import checks

    now_s = int(time.time())
    try:
        snapshot = json.loads(ask(settings.head.socket, "snapshot"))
    except ValueError:
        snapshot = {}
    known = {node.name for node in slurm.nodes()}
    only = known.intersection(hostlist.expand(nodes)) if nodes else known
    store = _store(settings)
    looked_s = {name: now_s - at_s for name, at_s in store.looked().items()}
    store.close()
    found = checks(snapshot, sorted(only), looked_s)
    if not found and not checks(snapshot, sorted(only)):
        raise NotFoundError("health look: fabricd has heard of none of these nodes")
    names = sorted({check.node for check in found})
    return {**report.document(found, names, cluster, now_s, now_s), "checks": found}


def _keep(directory: Path, given: dict[str, Any]) -> None:
    """The evidence that reasons name, as long as there are not too many."""
    from fabricctl.cli.write_file import write_private

    body = {**given, "checks": [asdict(check) for check in given["checks"]]}
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        write_private(directory / f"{given['sha256'][:12]}.json", json.dumps(body))
        old = sorted(directory.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in old[:-KEEP_REPORTS]:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise SystemRefusedError(f"health: {directory}: {error.strerror}") from None


def _say(outcomes: list["Outcome"], mode: str, as_json: bool, dry_run: bool) -> None:
    if as_json:
        every = [{**asdict(each.decision), "outcome": each.word, "why": each.why}
                 for each in outcomes]  # fmt: skip
        click.echo(json.dumps({"version": JSON_VERSION, "mode": mode, "decisions": every}))
    else:
        for each in outcomes:
            what = each.decision
            where = f"{what.node} {what.rail}".rstrip()
            click.echo(f"{_MARKS[each.word]} {where:12} {what.action}: {each}: {what.text}")
        if not outcomes:
            click.echo("nothing is to be done")
        elif mode != "on" and not dry_run:
            click.echo(
                "mode observe: nothing was touched (health.mode in fabricctl.toml)", err=True
            )
    bad = [each for each in outcomes if each.word in ("refused", "failed")]
    # What is merely waiting for a second look is as it should be.
    sys.exit(1 if any(each.why != "not confirmed yet" for each in bad) else 0)
