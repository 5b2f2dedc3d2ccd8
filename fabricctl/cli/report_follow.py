"""``fabricctl report --follow``: what a running job loses time to, as it happens."""

import json
import time
from collections.abc import Iterator

import click

from fabricctl import config, layout
from fabricctl.agent import tail
from fabricctl.agent.ask import Asker, job_here
from fabricctl.cli.hop import hop
from fabricctl.errors import DataError, NotFoundError
from fabricctl.membership import Member
from fabricctl_analysis import live, verdicts
from fabricctl_analysis.live import Tail
from fabricctl_analysis.model import Report, Verdict
from fabricctl_analysis.when import When

EVERY_S = 1.0
ANSWER_S = 0.6
PIECES = 40  # of one node at one look
GONE = 5  # looks without any answer: the job is over


def follow(job: str, as_json: bool) -> None:
    """Until the job ends: a line for each verdict as soon as it is one."""
    number = job_here(job)
    settings = config.load()
    try:
        member = Member.here(layout.NodeFiles(settings.node.run_dir), number)
    except NotFoundError:
        hop(number, ["report", str(number), "--follow", *(["--json"] if as_json else [])])
        return
    asker = Asker(member, settings)
    tails = {node: Tail() for node in member.nodes}
    told: set[tuple[object, ...]] = set()
    silent = 0
    try:
        while silent < GONE:
            begin_s = time.monotonic()
            silent = 0 if _look(asker, tails) else silent + 1
            found = live.report(number, member.nodes, tails)
            for one in _fresh(found, told):
                assert found is not None
                click.echo(_as_json(one) if as_json else _as_text(one, found))
            time.sleep(max(0.1, EVERY_S - (time.monotonic() - begin_s)))
    finally:
        asker.close()
    click.echo(f"job {number} has ended: fabricctl report {number}", err=True)


def _look(asker: Asker, tails: dict[str, Tail]) -> bool:
    """Whether any node answered."""
    heard = False
    for node, known in tails.items():
        for _ in range(PIECES):
            asked = {"from": str(known.offset)}
            answers = list(asker.ask([node], ANSWER_S, "journal", asked))
            if not answers:
                break
            heard = True
            try:
                piece, size = tail.taken(answers[0][1], known.offset)
            except DataError:
                break
            if not known.put(piece, size):
                break
    return heard


def _fresh(found: Report | None, told: set[tuple[object, ...]]) -> Iterator[Verdict]:
    """Verdicts that were not told yet; how a step begins or seems to end is none."""
    accounts = found.accounts if found is not None else None
    for one in sorted(accounts.verdicts if accounts else (), key=lambda one: one.begin_ns):
        # As it grows, a stretch may be said to have begun a window or two earlier.
        near = {one.begin_ns // live.S + shift for shift in range(-3, 4)}
        said = (one.cause, one.nodes, one.rail)
        if one.cause in ("start_end", "unknown") or any((*said, at) in told for at in near):
            continue
        told.add((*said, one.begin_ns // live.S))
        yield one


def _as_text(one: Verdict, found: Report) -> str:
    when = When(found.whole)
    return f"{when.clock(time.time_ns(), 1)}  {verdicts.sentence(one, when)}"


def _as_json(one: Verdict) -> str:
    return json.dumps({
        "version": 1,
        "told_real_ns": time.time_ns(),
        "cause": one.cause,
        "nodes": list(one.nodes),
        "rail": one.rail,
        "begin_real_ns": one.begin_ns,
        "loss_ns": one.loss_ns,
        "evidence": list(one.evidence),
    })  # fmt: skip
