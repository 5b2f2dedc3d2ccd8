"""``fabricctl lab``: a real multi-node Slurm on this machine."""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import click

from fabricctl import units
from fabricctl.errors import UsageError
from fabricctl.lab import kinds, plan, rootless
from fabricctl.lab.cluster import Lab
from fabricctl.lab.kinds import KINDS, Fault, Kind
from fabricctl.lab.registry import describe
from fabricctl.lab.spec import CONTROLLER, LabSpec

_COMMAND_LINE = {"ignore_unknown_options": True, "allow_interspersed_args": False}
_STATUS_VERSION = 1

_name = click.option(
    "--name",
    default="lab",
    envvar="FABRICCTL_LAB",
    show_default=True,
    help="Which lab (or FABRICCTL_LAB).",
)


class _LabGroup(click.Group):
    """Keeps the words as they were given, for whoever has to run the same command elsewhere."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["words"] = list(args)
        return super().parse_args(ctx, args)


@click.group(cls=_LabGroup)
@click.pass_context
def command(ctx: click.Context) -> None:
    """A real multi-node Slurm on this machine, with faults to order (docs/lab.md)."""
    words, called = ctx.meta["words"], ctx.invoked_subcommand
    if not rootless.required() or "--help" in words:
        return
    if called == "up":
        click.echo(f"lab: {rootless.LACKS}", err=True)
    # Not ctx.exit(): without click's standalone mode that is only a return value.
    sys.exit(rootless.run(words, create=called == "up", finish=called == "down"))


# Up, down, use -----------------------------------------------------------------------------------


def _conf(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    pairs = [item.partition("=") for item in given]
    for key, equals, _value in pairs:
        if not equals or not key.isalnum():
            raise click.BadParameter(f"{key!r} is not KEY=VALUE")
    return {key: value for key, _, value in pairs}


@command.command()
@_name
@click.option("--nodes", type=int, help="Compute nodes; the last is a spare.  [default: 5]")
@click.option("--rails", type=int, help="Fabric networks.  [default: 2]")
@click.option("--rate", help="Of the rails' links: 100mbit, 1gbit.  [default: no limit]")
@click.option("--bare", is_flag=True, default=None, help="Slurm alone, nothing of fabricctl in it.")
@click.option("--accounting", is_flag=True, default=None, help="With slurmdbd and MariaDB.")
@click.option("--conf", multiple=True, callback=_conf, help="A line of slurm.conf, KEY=VALUE.")
def up(
    *,
    name: str,
    nodes: int | None,
    rails: int | None,
    rate: str | None,
    bare: bool | None,
    accounting: bool | None,
    conf: dict[str, str],
) -> None:
    """Bring a lab up, or back up when part of it died; faults in force are healed.

    Without options a lab that is there keeps its settings.
    """
    begin_s = time.monotonic()
    given = {
        "nodes": nodes,
        "rails": rails,
        "rate_bit_per_s": kinds.rate(rate) if rate else None,
        "bare": bare,
        "accounting": accounting,
        "conf": conf or None,
    }
    chosen = {key: value for key, value in given.items() if value is not None}
    lab = Lab(LabSpec(name=name, **chosen) if chosen else None, name=name)  # type: ignore[arg-type]
    lab.up(say=lambda text: click.echo(f"lab {name}: {text}", err=True))
    took = units.format_duration(time.monotonic() - begin_s)
    click.echo(f"lab {name}: {lab.spec.nodes} nodes ready after {took}", err=True)


@command.command()
@_name
def down(name: str) -> None:
    """Take a lab away: its processes, namespaces, mounts, groups and files."""
    Lab(name=name).down()


@command.command(context_settings=_COMMAND_LINE)
@_name
@click.option("-u", "--user", default="root", show_default=True, help="Who runs it.")
@click.argument("node")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
def exec(name: str, user: str, node: str, argv: tuple[str, ...]) -> None:
    """Run a command on a node: lab exec n1 -- ip addr."""
    _become(Lab(name=name), node, argv, user)


@command.command(context_settings=_COMMAND_LINE)
@_name
@click.option("-u", "--user", default="alice", show_default=True, help="Who runs it.")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
def run(name: str, user: str, argv: tuple[str, ...]) -> None:
    """Run a command on the login node as a job user: lab run -- sbatch job.sh."""
    _become(Lab(name=name), CONTROLLER, argv, user)


def _become(lab: Lab, node: str, argv: tuple[str, ...], user: str) -> None:
    """The command takes this process's place: terminal, signals and exit status are its own."""
    words = argv[1:] if argv[0] == "--" else argv
    if not words:
        raise UsageError("lab: no command given")
    passed = {key: os.environ[key] for key in ("TERM", "COLUMNS", "LINES") if key in os.environ}
    line = lab.exec_argv(node, words, user=user, environment=passed)
    os.execvp(line[0], line)  # noqa: S606


@command.command()
@_name
@click.option("--json", "as_json", is_flag=True, help="For scripts (docs/lab.md has the fields).")
def status(name: str, as_json: bool) -> None:
    """What lives on each node, and the faults in force."""
    lab = Lab(name=name)
    nodes, slurm, faults = lab.status(), lab.slurm_states(), lab.in_force()
    if as_json:
        found = {
            "v": _STATUS_VERSION,
            "name": name,
            "fault_log": str(lab.paths.fault_log),
            "nodes": [
                {
                    "name": node.name,
                    "state": node.state,
                    "pid": node.pid,
                    "slurm": slurm.get(node.name),
                    "services": node.services,
                }
                for node in nodes
            ],
            "faults": [describe(item) for item in faults],
        }
        click.echo(json.dumps(found))
        return
    click.echo(f"{'node':7}{'state':9}{'slurm':9}services")
    for node in nodes:
        services = [word + _ailment(one) for word, one in node.services.items()]
        line = f"{node.name:7}{node.state:9}{slurm.get(node.name, '-'):9}{' '.join(services)}"
        click.echo(line)
    click.echo(f"\nfaults in force: {len(faults) or 'none'}")
    for item in faults:
        pause = "" if item.acting else "  (pausing)"
        click.echo(f"  {item.fault.sentence}{pause}")
    click.echo(f"fault log: {lab.paths.fault_log}")


def _ailment(service: Mapping[str, object]) -> str:
    if not service["up"]:
        return "(dead)"
    return "(stopped)" if service.get("stopped") else ""


# Faults ------------------------------------------------------------------------------------------


class _KindGroup(click.Group):
    """One subcommand a fault, made from the table in fabricctl/lab/kinds.py."""

    healing = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(KINDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in KINDS:
            raise UsageError(f"no fault {cmd_name!r}; known are: {', '.join(KINDS)}")
        return _kind_command(cmd_name, KINDS[cmd_name], self.healing)


class _HealGroup(_KindGroup):
    healing = True


def _kind_command(name: str, kind: Kind, healing: bool) -> click.Command:
    parameters: list[click.Parameter] = [
        click.Argument([role], metavar=role.upper()) for role in kind.targets
    ]
    parameters.append(click.Option(["--name"], help="Which lab."))
    if not healing:
        parameters += [
            click.Option([f"--{key}"], type=option.kind, help=option.doc)
            for key, option in kind.options.items()
        ]
        parameters.append(
            click.Option(
                ["--for", "for_s"], metavar="SECONDS", help="Heal by itself after so long."
            )
        )

    @click.pass_context
    def act(ctx: click.Context, /, **given: object) -> None:
        lab = Lab(name=str(given.pop("name") or ctx.obj))
        target = tuple(str(given.pop(role)) for role in kind.targets)
        if healing:
            lab.heal(name, *target)
            return
        for_s = plan.seconds(given.pop("for_s"))
        options = {key: value for key, value in given.items() if value is not None}
        lab.fault(name, *target, for_s=for_s, **options)

    return click.Command(name, callback=act, params=parameters, help=kind.doc)


@command.group(cls=_KindGroup, invoke_without_command=True)
@_name
@click.option("--list", "listing", is_flag=True, help="The faults that there are.")
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Carry out a plan (docs/lab.md) and return when it is over.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the plan's choices.")
@click.option("--dry-run", is_flag=True, help="Say what the plan would do.")
@click.pass_context
def fault(
    ctx: click.Context,
    *,
    name: str,
    listing: bool,
    plan_file: Path | None,
    seed: int,
    dry_run: bool,
) -> None:
    """Put a fault in: lab fault cut n2 r0."""
    ctx.obj = name
    if listing:
        for kind, item in KINDS.items():
            words = " ".join([kind, *(role.upper() for role in item.targets)])
            click.echo(f"{words:32}{item.doc}")
            for key, option in item.options.items():
                default = "" if option.default in (None, "") else f" [{option.default}]"
                click.echo(f"{'':8}{'--' + key:24}{option.doc}{default}")
    elif plan_file:
        lab = Lab(name=name)
        steps = plan.expand(plan.load(plan_file), lab.spec, seed)
        if dry_run:
            for step in steps:
                click.echo(step.sentence)
            return
        # Whoever ends it, the faults are healed.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        plan.carry_out(lab.faults, steps, say=lambda text: click.echo(text, err=True))
    elif ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        sys.exit(2)


@command.group(cls=_HealGroup, invoke_without_command=True)
@_name
@click.option("--all", "everything", is_flag=True, help="Every fault in force.")
@click.pass_context
def heal(ctx: click.Context, name: str, everything: bool) -> None:
    """Heal a fault: lab heal cut n2 r0."""
    ctx.obj = name
    if everything:
        for fault_id in Lab(name=name).heal_all():
            click.echo(f"healed {fault_id}", err=True)
    elif ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        sys.exit(2)


@command.command()
@_name
@click.option("--json", "as_json", is_flag=True, help="The lines of the file.")
def log(name: str, as_json: bool) -> None:
    """Every fault and heal, with the time at which it took effect."""
    for entry in Lab(name=name).log():
        if as_json:
            click.echo(json.dumps(entry))
            continue
        at_s, rest_ns = divmod(entry["real_ns"], 1_000_000_000)
        clock = time.strftime("%H:%M:%S", time.localtime(at_s))
        words = Fault(entry["kind"], tuple(entry["target"]), entry["options"]).sentence
        width = units.format_duration(entry["width_ns"] / 2e9)
        click.echo(f"{clock}.{rest_ns // 1000:06} ±{width:8} {entry['event']:6}{words}")
