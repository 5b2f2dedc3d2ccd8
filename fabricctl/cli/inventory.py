"""``fabricctl inventory``: what the cluster has, against what it should have."""

import fnmatch
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fabricctl.errors import NotFoundError, SystemRefusedError, UsageError

if TYPE_CHECKING:
    from fabricctl.fleet.inventory.store import Inventory
    from fabricctl.slurm.model import Node, Slurm
    from fabricctl.slurm.topology import Switch

JSON_VERSION = 1
FORMATS = ("yaml", "csv", "netbox", "topology")
_json = click.option("--json", "as_json", is_flag=True, help="For scripts.")
_dry = click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
_nodes = click.option("--nodes", metavar="LIST", help="Host list: n[1-8]; default: all.")
_format = click.option("--format", "form", type=click.Choice(FORMATS),
                       help="Default: by the file's name.")  # fmt: skip


@click.group()
def command() -> None:
    """What hardware and software each node has, since when, and what is not as it should be."""


@command.command()
@_nodes
@click.option("--via", metavar="CMD", help="Ask by this, not by a Slurm job: 'ssh {node}'.")
@_dry
@_json
def discover(nodes: str | None, via: str | None, dry_run: bool, as_json: bool) -> None:
    """Ask every node what it has, and write it down.

    By a Slurm job of a task a node, where one can start now; drained and full nodes are asked with
    --via. Exit status 1 when a node could not be asked.
    """
    from fabricctl.fleet.inventory import collect
    from fabricctl.slurm.choose import open_slurm

    chosen, switches = _chosen(open_slurm(), nodes), _switches()
    if dry_run:
        fit, why = (chosen, dict[str, str]()) if via else collect.reachable(chosen)
        for node in fit:
            click.echo(f"{node.name}: would be asked")
        for name, reason in why.items():
            click.echo(f"{name}: cannot be asked: {reason}")
        return
    found, why = collect.by_way(chosen, via) if via else collect.by_slurm(chosen)
    changes = {}
    with _open() as inventory:
        for node in chosen:
            if node.name in found:
                facts = {**found[node.name], **collect.slurm_facts(node, switches)}
                changes[node.name] = inventory.record(node.name, facts)
    if as_json:
        said = {"version": JSON_VERSION, "asked": len(chosen), "changes": changes, "problems": why}
        click.echo(json.dumps(said))
    else:
        moved = sum(1 for count in changes.values() if count)
        click.echo(f"{len(changes)} of {len(chosen)} nodes asked, {moved} with something new")
        for name, reason in sorted(why.items()):
            click.echo(f"{name}: not asked: {reason}", err=True)
    sys.exit(1 if why else 0)


@command.command()
@click.argument("file", type=click.File())
def take(file: Iterable[str]) -> None:
    """Take in lines of `fabricctl node facts --json`, however they came here; - is stdin."""
    from fabricctl.fleet.inventory.collect import parse

    taken = [parse(line) for line in file if line.strip()]
    names = list(dict.fromkeys(node for node, _ in taken))
    with _open() as inventory, _logged("take", names, "facts of nodes"):
        for node, facts in taken:
            click.echo(f"{node}: {inventory.record(node, facts)} changes")


@command.command()
@click.argument("node", required=False)
@click.option("--key", metavar="GLOB", default="*", help="Only these: 'nic.*', 'bios.*'.")
@click.option("--history", is_flag=True, help="Every value that there ever was.")
@_json
def show(node: str | None, key: str, history: bool, as_json: bool) -> None:
    """What NODE has; without NODE one line for each node."""
    with _open() as inventory:
        if node is None:
            if history:
                raise UsageError("inventory show: --history goes with a node")
            _summary(inventory, as_json)
            return
        seen = inventory.history(node)
    if not seen:
        raise NotFoundError(f"inventory: nothing is known of {node[:60]}: inventory discover")
    seen = [e for e in seen if fnmatch.fnmatch(e.key, key) and (history or e.gone_real_s is None)]
    if as_json:
        values = [asdict(each) for each in seen]
        click.echo(json.dumps({"version": JSON_VERSION, "node": node, "values": values}))
        return
    from fabricctl.cli.table import table, terminal_width

    head = ("KEY", "VALUE", "SINCE", *(("UNTIL",) if history else ()))
    rows = [
        (e.key, e.value, _day(e.first_real_s), *((_day(e.gone_real_s),) if history else ()))
        for e in seen
    ]
    click.echo(table(head, rows, width=terminal_width()))


@command.command()
@_nodes
@click.option("--no-peers", is_flag=True, help="Only against what was declared.")
@_json
def diff(nodes: str | None, no_peers: bool, as_json: bool) -> None:
    """What is not as declared, or not as on nodes that should be alike, and since when.

    Alike are nodes with the same features, CPUs and memory in Slurm; where three quarters of them
    agree the others are told. Exit status 1 when there is something.
    """
    from fabricctl.fleet.inventory.compare import against_declared, against_peers
    from fabricctl.slurm.choose import open_slurm

    with _open() as inventory:
        now, declared = inventory.now(), inventory.declared()
        gone = {
            (seen.node, seen.key): seen.gone_real_s
            for node in declared
            for seen in inventory.history(node)
            if seen.gone_real_s is not None
        }
    if not now:
        raise NotFoundError("inventory: nothing was discovered yet: inventory discover")
    only = None if nodes is None else set(_expand(nodes))
    found = against_declared(declared, now, gone, only)
    if not no_peers:
        groups: dict[str, list[str]] = {}
        for node in open_slurm().nodes():
            kind = f"{node.cpus}/{node.memory_mib}/{','.join(sorted(node.features))}"
            groups.setdefault(kind, []).append(node.name)
        told = {(each.node, each.key) for each in found}
        peers = [e for e in against_peers(groups, now) if only is None or e.node in only]
        # What was declared goes before what the others have.
        found += [e for e in peers if (e.node, e.key) not in told
                  and e.key not in declared.get(e.node, {})]  # fmt: skip
    if as_json:
        click.echo(
            json.dumps({"version": JSON_VERSION, "deviations": [asdict(each) for each in found]})
        )
    elif found:
        from fabricctl.cli.table import table, terminal_width

        rows = [(e.node, e.key, e.found or e.kind, e.expected, e.source, _day(e.since_real_s))
                for e in found]  # fmt: skip
        head = ("NODE", "KEY", "IS", "SHOULD BE", "SAYS", "SINCE")
        click.echo(table(head, rows, width=terminal_width()))
    else:
        click.echo("nothing differs")
    sys.exit(1 if found else 0)


@command.command()
@click.argument("nodes")
@click.option("--key", metavar="GLOB", default="*", help="Only these: 'bios.*'.")
@_dry
def accept(nodes: str, key: str, dry_run: bool) -> None:
    """Declare that NODES should have what they have now."""
    with _open() as inventory:
        now = inventory.now()
        values = {}
        for node in _expand(nodes):
            if node not in now:
                raise NotFoundError(f"inventory: nothing is known of {node}: inventory discover")
            values[node] = {
                k: seen.value for k, seen in now[node].items() if fnmatch.fnmatch(k, key)
            }
        _declare(inventory, values, "accept", dry_run)


@command.command(name="import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_format
@_dry
def import_file(file: Path, form: str | None, dry_run: bool) -> None:
    """Declare what FILE says: YAML, CSV, NetBox's devices as JSON, or Slurm's topology.conf."""
    from fabricctl.fleet.inventory.formats import READERS

    try:
        text = file.read_text()
    except FileNotFoundError:
        raise NotFoundError(f"inventory: {file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SystemRefusedError(f"inventory: {file}: cannot be read: {error}") from None
    values = READERS[form or _by_name(file)](text)
    with _open() as inventory:
        _declare(inventory, values, file.name, dry_run)


@command.command(name="export")
@click.option("--what", type=click.Choice(["declared", "discovered"]), default="discovered",
              show_default=True, help="What nodes should have, or what they have.")  # fmt: skip
@click.option("--format", "form", type=click.Choice((*FORMATS, "groups")), default="yaml",
              show_default=True)  # fmt: skip
@_nodes
def export(what: str, form: str, nodes: str | None) -> None:
    """Print the inventory in a form that others read."""
    from fabricctl.fleet.inventory.formats import WRITERS

    with _open() as inventory:
        now = inventory.now() if what == "discovered" or form == "groups" else {}
        values = {node: {k: s.value for k, s in mine.items()} for node, mine in now.items()}
        if what == "declared" or form == "groups":  # switches are discovered, power is declared
            for node, mine in inventory.declared().items():
                values[node] = {**values.get(node, {}), **mine}
    only = None if nodes is None else set(_expand(nodes))
    chosen = {node: mine for node, mine in values.items() if only is None or node in only}
    click.echo(WRITERS[form](chosen), nl=False)


@command.command()
@click.argument("nodes")
@_dry
def forget(nodes: str, dry_run: bool) -> None:
    """Remove NODES that have left the cluster, with their history."""
    names = _expand(nodes)
    with _open() as inventory:
        known = set(inventory.visits()) | set(inventory.declared())
        strange = [name for name in names if name not in known]
        if strange:
            raise NotFoundError(f"inventory: nothing is known of {', '.join(strange[:5])}")
        if not dry_run:
            with _logged("forget", names, ""):
                inventory.forget(names)
    click.echo(f"{'would forget' if dry_run else 'forgot'} {len(names)} nodes", err=True)


# What the commands share --------------------------------------------------------------------------


def _open() -> "Inventory":
    from fabricctl import config
    from fabricctl.fleet.inventory.store import Inventory

    fleet = config.load().fleet
    return Inventory(fleet.inventory or fleet.dir / "inventory.db")


def _expand(nodes: str) -> list[str]:
    from fabricctl import hostlist

    return list(dict.fromkeys(hostlist.expand(nodes)))


def _chosen(slurm: "Slurm", nodes: str | None) -> Sequence["Node"]:
    every = {node.name: node for node in slurm.nodes()}
    if nodes is None:
        return list(every.values())
    strange = [name for name in _expand(nodes) if name not in every]
    if strange:
        raise NotFoundError(f"nodes {', '.join(strange[:5])}: Slurm does not know them: sinfo -N")
    return [every[name] for name in _expand(nodes)]


def _switches() -> "Sequence[Switch]":
    from fabricctl.slurm.topology import switches

    return switches()


def _declare(
    inventory: "Inventory", values: Mapping[str, Mapping[str, str]], source: str, dry_run: bool
) -> None:
    before = inventory.declared()
    fresh = {
        node: sum(before.get(node, {}).get(key) != value for key, value in mine.items())
        for node, mine in values.items()
    }
    if not dry_run:
        said = f"{source}: {sum(fresh.values())} values declared anew"
        with _logged("accept" if source == "accept" else "import", list(values), said):
            for node, mine in values.items():
                inventory.declare(node, mine, source)
    verb = "would declare" if dry_run else "declared"
    for node, count in fresh.items():
        click.echo(f"{node}: {verb} {count} values, {len(values[node]) - count} were so before")


def _logged(what: str, nodes: Sequence[str], text: str) -> AbstractContextManager[None]:
    from fabricctl import config, hostlist
    from fabricctl.fleet.changes import ChangeLog

    log = ChangeLog(config.load().fleet.dir, "inventory")
    return log.change(what, hostlist.fold(nodes), text)


def _summary(inventory: "Inventory", as_json: bool) -> None:
    from fabricctl.cli.table import table, terminal_width

    now, visits, declared = inventory.now(), inventory.visits(), inventory.declared()
    rows = [(node, len(now.get(node, {})), len(declared.get(node, {})), _day(visits.get(node)))
            for node in sorted({*visits, *declared})]  # fmt: skip
    if as_json:
        keys = ("node", "values", "declared", "visited_real_s")
        every = [dict(zip(keys, (*row[:3], visits.get(row[0])), strict=True)) for row in rows]
        click.echo(json.dumps({"version": JSON_VERSION, "nodes": every}))
    elif rows:
        head = ("NODE", "VALUES", "DECLARED", "VISITED")
        click.echo(table(head, rows, right="VALUES DECLARED", width=terminal_width()))
    else:
        click.echo("nothing was discovered yet: fabricctl inventory discover")


def _by_name(file: Path) -> str:
    if file.name == "topology.conf":
        return "topology"
    found = {".yaml": "yaml", ".yml": "yaml", ".csv": "csv", ".json": "netbox"}.get(file.suffix)
    if found is None:
        raise UsageError(
            f"inventory: {file}: say with --format which of {', '.join(FORMATS)} it is"
        )
    return found


def _day(real_s: int | None) -> str | None:
    return None if real_s is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(real_s))
