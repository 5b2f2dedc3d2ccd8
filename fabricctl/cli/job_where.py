"""``fabricctl job where``: where the ranks of a running job stand."""

import json
import sys
import time

import click

from fabricctl import config, hostlist, layout
from fabricctl.agent.ask import Asker, job_here
from fabricctl.cli.hop import hop
from fabricctl.errors import DataError, NotFoundError
from fabricctl.membership import Member
from fabricctl.state.track import position, verdict
from fabricctl.state.track.position import Position
from fabricctl.state.track.verdict import Verdict
from fabricctl.store.schema import StallKind
from fabricctl.units import format_duration

JSON_VERSION = 1
ANSWER_S = 1.5
GROUPS = 24  # lines of one screen


@click.command(name="where")
@click.argument("job", required=False)
@click.option("--json", "as_json", is_flag=True, help="For scripts (docs/tracker.md).")
@click.option("--every", type=click.FloatRange(0.5), metavar="S", help="Again every S seconds.")
def command(job: str | None, as_json: bool, every: float | None) -> None:
    """Which call each rank of JOB is in and since when, who is missing, and why they wait.

    JOB may be left out inside of a job. From elsewhere the question is asked on one of its nodes.
    """
    number = job_here(job)
    settings = config.load()
    try:
        member = Member.here(layout.NodeFiles(settings.node.run_dir), number)
    except NotFoundError:
        words = ["job", "where", str(number), *(["--json"] if as_json else [])]
        hop(number, words + (["--every", str(every)] if every else []))
        return
    asker = Asker(member, settings)
    try:
        while True:
            positions, silent, links, paths = _look(asker, member)
            found = verdict.judge(positions, silent, links, paths=paths)
            if as_json:
                click.echo(_as_json(number, positions, silent, found))
            else:
                if every and sys.stdout.isatty():
                    click.clear()
                click.echo(_as_text(number, positions, silent, found))
            if not every:
                return
            time.sleep(every)
    finally:
        asker.close()


def _look(
    asker: Asker, member: Member
) -> tuple[list[Position], list[str], dict[str, str], dict[str, str]]:
    """Every rank of the newest launch, nodes that did not answer, what is wrong with links, dead
    paths."""
    found: list[Position] = []
    links: dict[str, str] = {}
    paths: dict[str, str] = {}
    missing = set(member.nodes)
    for node, message in asker.ask(member.nodes, ANSWER_S):
        missing.discard(node)
        try:
            found += position.decode(message.get("ranks", ""), node)
        except DataError as error:
            raise DataError(f"{node}: {error}") from None
        if message.get("links"):
            links[node] = message["links"]
        paths[node] = message.get("paths", "")
    launch = max((at.launch for at in found), default=0)
    newest = sorted((at for at in found if at.launch == launch), key=lambda at: at.rank)
    return newest, [node for node in member.nodes if node in missing], links, paths


def _as_json(job: int, positions: list[Position], silent: list[str], found: Verdict) -> str:
    ranks = [
        {
            "rank": at.rank,
            "node": at.node,
            "pid": at.pid,
            "state": at.state.name.lower(),
            "process_state": at.letter or None,
            "inside": at.inside,
            "op": at.op_name if at.calls else None,
            "age_s": at.age_ms / 1000,
            "comm": at.comm,
            "collective": at.coll or None,
            "peer": at.peer if at.peer >= 0 else None,
            "iteration": at.step or None,
        }
        for at in positions
    ]
    stall = {
        "kind": found.kind.name.lower(),
        "hard": found.hard,
        "rank": found.rank,
        "node": found.node or None,
        "text": found.text,
        "waiting": found.waiting,
    }
    shown = {"version": JSON_VERSION, "job": job, "ranks": ranks, "silent_nodes": silent}
    return json.dumps({**shown, "verdict": stall})


def _as_text(job: int, positions: list[Position], silent: list[str], found: Verdict) -> str:
    if not positions:
        lines = [f"job {job}: no rank is tracked (docs/tracker.md tells how to have them tracked)"]
    else:
        total = max(at.ranks for at in positions)
        launch = f", start {positions[0].launch + 1}" if positions[0].launch else ""
        steps = [at.step for at in positions if at.step]
        told = f", iteration {_range(steps)}" if steps else ""
        head = f"job {job}: {len(positions)} of {total} ranks{launch}{told}"
        lines = [head, f"{'RANKS':24} {'WHERE':44} {'FOR':>16}  NODES"]
        lines += _group_lines(positions)
    if silent:
        lines.append(f"not heard: {hostlist.fold(silent)}")
    mark = "!! " if found.hard else ""
    if found.kind != StallKind.NONE or found.waiting:
        kind = f"{found.kind.name.lower()}: " if found.kind != StallKind.NONE else ""
        lines.append(f"{mark}{kind}{found.text}; {found.waiting} ranks wait")
    return "\n".join(lines)


def _range(values: list[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def _group_lines(positions: list[Position]) -> list[str]:
    """Ranks that stand at the same place on one line, the biggest group first."""
    groups: dict[str, list[Position]] = {}
    for at in positions:
        groups.setdefault(_place(at), []).append(at)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    lines = []
    for place, members in ordered[:GROUPS]:
        ages = sorted(at.age_ms / 1000 for at in members)
        age = format_duration(ages[0])
        if ages[-1] > 1.5 * ages[0] + 0.001:
            age += f" to {format_duration(ages[-1])}"
        nodes = hostlist.fold({at.node for at in members})
        nodes = nodes if len(nodes) <= 32 else nodes[:29] + "..."
        ranks = verdict.name_ranks(members)
        many = f"{len(members)}: " if len(members) > 1 else ""
        lines.append(f"{(many + ranks)[:24]:24} {place[:44]:44} {age:>16}  {nodes}")
    if len(ordered) > GROUPS:
        rest = sum(len(members) for _, members in ordered[GROUPS:])
        lines.append(f"and {rest} ranks at {len(ordered) - GROUPS} other places")
    return lines


def _place(at: Position) -> str:
    state = at.state.name.lower()
    if state not in ("running", "stopped", "gone"):
        return state if at.of_mpi else state.replace("finalized", "ended")
    before = "" if state == "running" else f"{state}, "
    if not at.inside:
        doing = {"D": "waiting for a device or file", "S": "asleep", "T": "stopped"}
        what = doing.get(at.letter, "computing") if state == "running" else "last"
        return f"{before}{what} after {at.op_name}" if at.calls else f"{before}{what}"
    call = f"{before}{at.op_name}"
    if at.coll:
        call += f" #{at.coll}"
    if at.peer >= 0:
        call += f" {'root' if at.coll else 'with'} {at.peer}"
    return call if at.comm in (0, 1) else f"{call} on {verdict.comm_name(at)}"
