"""``fabricctl maintenance``: a command on every node, with a bounded share of nodes out."""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from fabricctl.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from fabricctl.fleet.maintenance.journal import Files, Standing
    from fabricctl.fleet.maintenance.plan import Plan
    from fabricctl.slurm.model import Node, Partition

JSON_VERSION = 1
_json = click.option("--json", "as_json", is_flag=True, help="For scripts.")
_name = click.argument("name")


@click.group()
def command() -> None:
    """Updates, reboots, firmware: node by node, jobs run to their end, and a bounded share is out.

    plan writes down what is to be done; start does it, and goes on with it after a crash.
    """


@command.command()
@_name
@click.option("--nodes", "node_list", metavar="LIST", help="Host list: n[1-8].")
@click.option("--partition", metavar="NAME", help="All nodes of a partition.")
@click.option("--budget", required=True, metavar="N|P%", help="Nodes that may be out at once.")
@click.option("--by", metavar="switch|feature:PREFIX",
              help="What nodes share: a leaf switch, or a feature such as rack7.")  # fmt: skip
@click.option("--per-group", type=click.IntRange(min=1), metavar="N",
              help="Nodes of one switch or feature that may be out at once.")  # fmt: skip
@click.option("--verify", metavar="CMD",
              help="Words of a command; status 0: the node may return.")  # fmt: skip
@click.option("--expect-reboot", is_flag=True, help="Return a node only after it has booted anew.")
@click.option("--migrate", is_flag=True, help="Jobs of `fabricctl run` with a spare left go there; "
              "others run to their end.")  # fmt: skip
@click.option("--max-failures", type=click.IntRange(min=0), default=0, show_default=True,
              help="Begin no further node when more have failed.")  # fmt: skip
@click.option("--command-timeout", type=click.FloatRange(min=1), default=3600.0,
              show_default=True, metavar="SECONDS", help="Then the node has failed.")  # fmt: skip
@click.option("--return-timeout", type=click.FloatRange(min=1), default=900.0,
              show_default=True, metavar="SECONDS", help="For the way back, verified.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
def plan(
    *,
    name: str,
    node_list: str | None,
    partition: str | None,
    budget: str,
    by: str | None,
    per_group: int | None,
    verify: str | None,
    expect_reboot: bool,
    migrate: bool,
    max_failures: int,
    command_timeout: float,
    return_timeout: float,
    dry_run: bool,
    argv: tuple[str, ...],
) -> None:
    """Write down maintenance NAME: run ARGV for each node, here, with {node} for its name.

    fabricctl maintenance plan kernel --partition main --budget 10% -- ssh {node} dnf -y update
    """
    import shlex

    from fabricctl.fleet.maintenance.controller import preview
    from fabricctl.fleet.maintenance.plan import Plan, parse_budget
    from fabricctl.slurm.choose import open_slurm

    slurm = open_slurm()
    known = {node.name: node for node in slurm.nodes()}
    names = _chosen(slurm.partitions(), known, node_list, partition)
    if bool(by) != bool(per_group):
        raise UsageError("maintenance plan: --by and --per-group go together")
    made = Plan(
        name=name,
        nodes=names,
        command=argv,
        budget=parse_budget(budget, len(names)),
        verify=tuple(shlex.split(verify or "")),
        groups=_groups(by, names, known) if by else {},
        per_group=per_group or 0,
        expect_reboot=expect_reboot,
        migrate=migrate,
        max_failures=max_failures,
        command_timeout_s=command_timeout,
        return_timeout_s=return_timeout,
        created_real_s=int(time.time()),
    )
    _print_plan(made)
    for node, what in preview(made, known):
        click.echo(f"  {node}: {what}")
    if dry_run:
        return
    _files(name).create(made)
    click.echo(f"planned: fabricctl maintenance start {name}", err=True)


@command.command()
@_name
@click.option("--poll", type=click.FloatRange(0.1, 600), default=2.0, show_default=True,
              metavar="SECONDS", help="Between questions to Slurm.")  # fmt: skip
@click.option("--retry", is_flag=True, help="Also try nodes again that have failed.")
@click.option("--dry-run", is_flag=True, help="Say what would be done first, and do nothing.")
def start(name: str, poll: float, retry: bool, dry_run: bool) -> None:
    """Carry maintenance NAME out, or go on with it after a pause or a crash, until it is over.

    Exit status 0: every node is done (or was left to whoever has it); 1: nodes failed; 75: paused,
    aborted or stopped by a signal, start goes on.
    """
    files, made = _existing(name)
    if dry_run:
        _dry_run(files, made, retry)
        return
    files.ask_for("run")
    sys.exit(_carry_out(files, made, poll, retry))


def _carry_out(files: "Files", made: "Plan", poll_s: float, retry: bool = False) -> int:
    from fabricctl.cli.role import demand_operator
    from fabricctl.fleet.maintenance.controller import Controller
    from fabricctl.slurm.choose import open_slurm

    slurm = open_slurm()
    demand_operator(slurm, "maintenance")
    lock = files.take_lock()
    if lock is None:
        raise UsageError(
            f"maintenance {made.name}: a controller is at work already (one at a time): "
            f"that of {files.holder() or 'another'}"
        )
    try:
        controller = Controller(made, files, slurm, _say, poll_s)
        if retry:
            for node, standing in controller.journal.standings.items():
                if standing.state == "failed":
                    controller.journal.write(node, "begun", "again")
        word = controller.run()
        controller.journal.close()
    finally:
        os.close(lock)
    _print_standings(made, controller.journal.standings, word)
    return {"done": 0, "failed": 1}.get(word, 75)


@command.command()
@_name
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
def pause(name: str, dry_run: bool) -> None:
    """Begin no further node: nodes that wait for their jobs' end return, commands run to theirs."""
    _ask_for(name, "pause", dry_run)


@command.command()
@_name
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
def abort(name: str, dry_run: bool) -> None:
    """The same as pause, for good. Only nodes that this maintenance drained are returned."""
    _ask_for(name, "abort", dry_run)


@command.command()
@click.argument("name", required=False)
@_json
def status(name: str | None, as_json: bool) -> None:
    """How a maintenance stands; without NAME one line for each."""
    if name is None:
        _list(as_json)
        return
    files, made = _existing(name)
    found = _read(files, made)
    word = _state_word(files, made, found)
    if as_json:
        nodes = {
            node: {"state": one.state, "since_real_s": round(one.since_real_s, 3),
                   "text": one.text or None, "group": made.groups.get(node)}
            for node, one in found.items()
        }  # fmt: skip
        said = {"version": JSON_VERSION, "name": name, "state": word, "budget": made.budget,
                "command": made.command, "nodes": nodes}  # fmt: skip
        click.echo(json.dumps(said))
        return
    _print_plan(made)
    _print_standings(made, found, word)


@command.command()
@click.argument("node")
@click.option("--limit", type=click.FloatRange(min=1), default=300.0, show_default=True,
              metavar="SECONDS", help="For a job to save and to start again.")  # fmt: skip
def leave(node: str, limit: float) -> None:
    """Have the jobs on NODE leave it for spares of theirs, and give NODE back to Slurm.

    `start` does it for plans with --migrate, once NODE is drained. Exit status 1: a job stays.
    """
    from fabricctl.cli.role import demand_operator
    from fabricctl.fleet.maintenance.leave import by_user
    from fabricctl.fleet.maintenance.leave import leave as go
    from fabricctl.slurm.choose import open_slurm

    slurm = open_slurm()
    demand_operator(slurm, "maintenance leave")
    said = go(node, slurm, by_user, limit)
    for job, why in said:
        click.echo(f"job {job}: " + (f"stays on {node}: {why}" if why else f"has left {node}"))
    sys.exit(1 if any(why for _, why in said) else 0)


# What the commands share --------------------------------------------------------------------------


def _say(text: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {text}", err=True)


def _files(name: str) -> "Files":
    from fabricctl import config
    from fabricctl.fleet.maintenance.journal import Files
    from fabricctl.fleet.maintenance.plan import NAME

    if not NAME.fullmatch(name):
        raise UsageError(f"maintenance {name[:40]!r}: a name is a-z, 0-9, '.', '_' and '-'")
    return Files(config.load().fleet.dir / "maintenance", name)


def _existing(name: str) -> tuple["Files", "Plan"]:
    files = _files(name)
    return files, files.read_plan()


def _chosen(
    partitions: Sequence["Partition"],
    known: Mapping[str, "Node"],
    node_list: str | None,
    partition: str | None,
) -> tuple[str, ...]:
    from fabricctl import hostlist

    if bool(node_list) == bool(partition):
        raise UsageError("maintenance plan: --nodes or --partition: one of them")
    if node_list:
        names = tuple(dict.fromkeys(hostlist.expand(node_list)))
    else:
        found = next((each for each in partitions if each.name == partition), None)
        if found is None:
            there = ", ".join(each.name for each in partitions)
            raise NotFoundError(f"partition {partition}: there is none; there are {there}")
        names = found.nodes
    strange = [name for name in names if name not in known]
    if strange:
        raise NotFoundError(f"nodes {hostlist.fold(strange)}: Slurm does not know them: sinfo -N")
    return names


def _groups(by: str, names: tuple[str, ...], known: Mapping[str, "Node"]) -> dict[str, str]:
    from fabricctl import hostlist
    from fabricctl.slurm.topology import switches

    groups: dict[str, str] = {}
    if by == "switch":
        leaves = [each for each in switches() if each.level == 0]
        groups = {node: leaf.name for leaf in leaves for node in leaf.nodes}
    elif by.startswith("feature:"):
        prefix = by.removeprefix("feature:")
        for node in known.values():
            mine = [feature for feature in node.features if feature.startswith(prefix)]
            groups |= dict.fromkeys([node.name] if mine else [], next(iter(mine), ""))
    else:
        raise UsageError(f"--by {by[:40]!r}: switch, or feature:PREFIX")
    alone = [name for name in names if name not in groups]
    if alone:
        raise UsageError(f"--by {by}: {hostlist.fold(alone)} belong to none")
    return {name: groups[name] for name in names}


def _ask_for(name: str, word: str, dry_run: bool) -> None:
    files, made = _existing(name)
    found = _read(files, made)
    back = [node for node, one in found.items() if one.state in ("begun", "draining")]
    going = [node for node, one in found.items() if one.state in ("working", "verifying")]
    would = "would return" if dry_run else "returns"
    click.echo(f"{would}: {' '.join(back) or 'no node'}; let run to the end: "
               f"{' '.join(going) or 'none'}", err=True)  # fmt: skip
    if dry_run:
        return
    files.ask_for(word)
    lock = files.take_lock()
    if lock is None and (other := files.holder()) not in ("", name):
        raise UsageError(
            f"maintenance {name}: the controller of {other} is at work, one at a time: nothing was "
            f"returned yet: {word} it again when that has ended"
        )
    if lock is not None:  # no controller is there to do it
        os.close(lock)
        status = _carry_out(files, made, 1.0)
        sys.exit(0 if status == 75 else status)


def _read(files: "Files", made: "Plan") -> dict[str, "Standing"]:
    from fabricctl.fleet.maintenance.journal import standings

    try:
        text = files.journal.read_text(errors="replace")
    except FileNotFoundError:
        text = ""
    return standings(made, text)


def _state_word(files: "Files", made: "Plan", found: Mapping[str, "Standing"]) -> str:
    from fabricctl.fleet.maintenance.journal import ACTIVE, ENDED

    every = [one.state for one in found.values()]
    states = set(every)
    wish = files.wish()
    if states <= ENDED:
        if wish == "abort":
            return "aborted"
        return "failed" if "failed" in states else "done"
    if states == {"waiting"} and wish == "run":
        return "planned"
    if wish == "run" and every.count("failed") > made.max_failures and not states & ACTIVE:
        return "failed"  # it begins no further node
    words = {"pause": "paused", "abort": "aborting"}
    return words.get(wish, "under way")


def _list(as_json: bool) -> None:
    from fabricctl import config
    from fabricctl.cli.table import table, terminal_width

    directory = config.load().fleet.dir / "maintenance"
    rows = []
    for path in sorted(directory.glob("*/plan.json")) if directory.is_dir() else []:
        files, made = _existing(path.parent.name)
        found = _read(files, made)
        counts = Counter(one.state for one in found.values())
        rows.append((made.name, _state_word(files, made, found), len(made.nodes), made.budget,
                     counts["done"], counts["failed"]))  # fmt: skip
    head = ("NAME", "STATE", "NODES", "BUDGET", "DONE", "FAILED")
    if as_json:
        every = [dict(zip(map(str.lower, head), row, strict=True)) for row in rows]
        click.echo(json.dumps({"version": JSON_VERSION, "maintenances": every}))
    elif rows:
        right = "NODES BUDGET DONE FAILED"
        click.echo(table(head, rows, right=right, width=terminal_width()))
    else:
        click.echo(f"no maintenance in {directory}")


def _dry_run(files: "Files", made: "Plan", retry: bool) -> None:
    from fabricctl.fleet.maintenance.decide import decide
    from fabricctl.fleet.maintenance.journal import Standing
    from fabricctl.slurm.choose import open_slurm

    known = {node.name: node for node in open_slurm().nodes()}
    found = _read(files, made)
    if retry:
        found |= {n: Standing("begun") for n, one in found.items() if one.state == "failed"}
    steps = decide(made, found, known, {}, wish="run", now_s=time.time())
    for step in steps:
        click.echo(f"{step.node}: would be {step.state}" + (f": {step.text}" if step.text else ""))
    if not steps:
        click.echo("nothing to do now")


def _print_plan(made: "Plan") -> None:
    import shlex

    from fabricctl import hostlist

    bound = f", {made.per_group} of a group" if made.per_group else ""
    click.echo(f"Maintenance {made.name}: {len(made.nodes)} nodes {hostlist.fold(made.nodes)}, "
               f"at most {made.budget} out{bound}")  # fmt: skip
    click.echo(f"  runs: {shlex.join(made.command)}")
    if made.verify:
        click.echo(f"  verifies: {shlex.join(made.verify)}")


def _print_standings(made: "Plan", found: Mapping[str, "Standing"], word: str) -> None:
    from fabricctl import hostlist
    from fabricctl.fleet.maintenance.journal import STATES

    click.echo(f"Maintenance {made.name} is {word}")
    for state in STATES:
        plain = [node for node, one in found.items() if one.state == state and not one.text]
        if plain:
            click.echo(f"  {state:10} {hostlist.fold(plain)}")
        for node, one in found.items():
            if one.state == state and one.text:
                click.echo(f"  {state:10} {node}: {one.text}")
