"""``fabricctl place``: where a job lies on the fabric, and where the next one should."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fabricctl.errors import DataError, NotFoundError, SystemRefusedError, UsageError

if TYPE_CHECKING:
    from fabricctl.slurm.model import Slurm

JSON_VERSION = 1


@click.command()
@click.argument("job", required=False)
@click.option("--nodes", "count", type=click.IntRange(1), metavar="N",
              help="What to ask for at submit, for a job of N nodes now.")  # fmt: skip
@click.option("--spares", type=click.IntRange(0), default=0, metavar="K",
              help="Also name K free nodes in other failure groups.")  # fmt: skip
@click.option("--topology", type=click.Path(path_type=Path, dir_okay=False), metavar="REPORT",
              help="Print a topology.conf, from an `audit --full --json`.")  # fmt: skip
@click.option("--publish", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write what the plugin tells who submits (its hint=).")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def command(
    job: str | None,
    count: int | None,
    spares: int,
    topology: Path | None,
    publish: Path | None,
    *,
    as_json: bool,
) -> None:
    """Which switches JOB's nodes hang on, how many it needs at least, and what crosses them.

    Switches are Slurm's (topology.conf); one that was measured comes with --topology. What
    --publish writes counts for 15 minutes: have it done every few (docs/administration.md).
    """
    from fabricctl.slurm.choose import open_slurm

    if sum(each is not None for each in (job, count, topology, publish)) != 1:
        ways = "a job, --nodes N, --topology REPORT or --publish FILE"
        raise UsageError(f"place: {ways}: one of them")
    if topology is not None:
        click.echo(_topology(topology), nl=False)
        return
    if publish is not None:
        _publish(publish)
        return
    slurm = open_slurm()
    said = _job(slurm, job, spares) if job is not None else _hint(slurm, count or 1, spares)
    if as_json:
        click.echo(json.dumps({"version": JSON_VERSION, **said}))
    else:
        click.echo("\n".join(said["text"]))


def _job(slurm: "Slurm", text: str, spares: int) -> dict[str, Any]:
    from fabricctl import hostlist, layout
    from fabricctl.cli.role import caller
    from fabricctl.config import load
    from fabricctl.fleet import place
    from fabricctl.slurm.topology import switches

    found = slurm.job(layout.job_number(text))
    if not caller(slurm).sees_job(found.user, found.account, load().access):
        raise SystemRefusedError(f"job {found.id}: is {found.user}'s: ask them, or an operator")
    if not found.nodes:
        raise NotFoundError(f"job {found.id}: has no nodes now: {found.state.lower()}")
    tree = switches()
    how = place.lie(found.nodes, tree)
    words = [f"job {found.id} of {found.user}: {len(found.nodes)} nodes "
             f"{hostlist.fold(found.nodes)}"]  # fmt: skip
    if not tree:
        words.append("Slurm has no topology.conf: see fabricctl place --topology")
    for name, mine in how.leaves.items() if tree else ():
        words.append(f"  {name or 'no switch':12} {len(mine):5}  {hostlist.fold(mine)}")
    if tree:
        crossing = f"{100 * how.across:.0f} % of its pairs of nodes cross them"
        words.append(f"{len(how.leaves)} switches, {how.fewest} would do; {crossing}, "
                     f"{100 * how.across_best:.0f} % at best")  # fmt: skip
    free = [n.name for n in slurm.nodes() if n.usable and n.state == "IDLE"]
    chosen = place.spares(found.nodes, free, tree, spares)
    if spares:
        words.append(f"spares in other failure groups: {hostlist.fold(chosen) or 'none is free'}")
    return {"job": found.id, "leaves": how.leaves, "fewest": how.fewest, "across": how.across,
            "across_best": how.across_best, "spares": chosen, "text": words}  # fmt: skip


def _hint(slurm: "Slurm", count: int, spares: int) -> dict[str, Any]:
    from fabricctl.fleet import place
    from fabricctl.slurm.topology import switches

    tree = switches()
    free = [n.name for n in slurm.nodes() if n.usable and n.state == "IDLE"]
    total = count + spares
    found = place.hint(total, free, tree)
    options = [
        f"-N{total}",
        "--fabric-resilience",
        *([f"--fabric-spares={spares}"] if spares else []),
    ]
    words = []
    if found is None:
        words.append(f"{len(free)} nodes are free now; it will wait, or there is no topology.conf")
    else:
        options.append(f"--switches={found[0]}@10:00")
        words.append(f"{len(free)} nodes are free, {found[1]} of them on one switch; "
                     f"{total} fit on {found[0]}")  # fmt: skip
    return {"options": options, "switches": found[0] if found else None, "free": len(free),
            "text": [f"sbatch {' '.join(options)} ...", *words]}  # fmt: skip


def _publish(path: Path) -> None:
    """What a login node's plugin reads in a few system calls, whole or not at all."""
    from fabricctl import fields
    from fabricctl.cli.status import look
    from fabricctl.fleet.place import most_under_one
    from fabricctl.slurm.topology import switches

    rails = "; ".join(one["text"] for one in look()["findings"] if one["kind"] == "rail_down")
    said = {"under_one_switch": str(most_under_one(switches())), "rails": rails}
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.write_text(fields.encode(said) + "\n")
        fresh.chmod(0o644)
        fresh.replace(path)
    except OSError as error:
        raise SystemRefusedError(f"place: {path}: {error.strerror}") from None


def _topology(path: Path) -> str:
    from fabricctl.fleet import place
    from fabricctl.fleet.audit import report

    try:
        given = report.read(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise SystemRefusedError(f"place: {path}: {error}") from None
    pairs = given.get("pairs") or []
    try:
        rtts = [(str(a), str(b), float(rtt)) for a, b, _, rtt in pairs]
    except (TypeError, ValueError):
        raise DataError(f"{path}: its pairs cannot be read") from None
    if not rtts:
        raise DataError(f"{path}: has no pairs: it is not of an audit --full")
    groups = place.groups_of(rtts)
    if groups is None:
        raise NotFoundError(f"{path}: {len(rtts)} pairs are alike: one switch, or none to be seen")
    return place.topology_conf(groups)
