"""``fabricctl report --follow``: what a running job loses time to, as it happens."""

import json
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence

import click

from fabricctl import config, layout
from fabricctl.agent import tail
from fabricctl.agent.ask import Asker, job_here
from fabricctl.cli.hop import hop
from fabricctl.errors import DataError, NotFoundError
from fabricctl.membership import Member
from fabricctl_analysis import verdicts
from fabricctl_analysis.live import Live, S
from fabricctl_analysis.model import Report, Verdict
from fabricctl_analysis.when import When

# Agents hand on what they have once a second; who looks more often sees it sooner.
LOOK_S = 0.2
ANSWER_S, SILENT_S = 0.5, 0.02  # of nodes that answered the last time, and of others
TOGETHER = 32  # nodes asked at once: their answers must fit into a socket's buffer
PIECES = 40  # of one node at one look
# What the usual pace of a longer job makes of a time that was judged is left to the report on it.
PAST_NS = 10 * S
GONE_S = 5.0  # without any answer: the job is over


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
    look = _Look(asker, Live(number, member.nodes))
    told: set[tuple[object, ...]] = set()
    heard_s, since_ns = time.monotonic(), 0
    try:
        while time.monotonic() - heard_s < GONE_S:
            begin_s = time.monotonic()
            if look.take():
                heard_s = time.monotonic()
            found = look.live.report(look.answering)
            for one in _fresh(found, told, since_ns):
                assert found is not None
                click.echo(_as_json(one) if as_json else _as_text(one, found))
            if found is not None:
                since_ns = look.live.until_ns - PAST_NS
            took_s = time.monotonic() - begin_s
            time.sleep(max(LOOK_S - took_s, min(took_s, LOOK_S)))
    finally:
        asker.close()
    click.echo(f"job {number} has ended: fabricctl report {number}", err=True)


class _Look:
    """Fetches what the nodes' journals have grown by. A node that is silent holds up one look, and
    none of the others after that; what it says late is taken at the next."""

    def __init__(self, asker: Asker, live: Live) -> None:
        self.live = live
        self._asker = asker
        self._token = secrets.token_hex(8)
        self._waited_for = set(live.tails)
        self._now: set[str] = set()  # who answered at this look, with whatever
        self._before: set[str] = set()  # and at the one before
        self._begun = False

    @property
    def answering(self) -> Collection[str]:
        """Nodes whose agents live."""
        return self._now | self._before

    def take(self) -> bool:
        """Whether any node answered."""
        self._before, self._now = self._now, set()
        heard: set[str] = set()
        nodes = list(self.live.tails)
        # At first all have much to tell, one after the other.
        step = TOGETHER if self._begun else 1
        for first in range(0, len(nodes), step):
            some = nodes[first : first + step]
            more: list[str] = []
            for node, answer in self._answers(some):
                heard.add(node)
                if self._put(node, answer):
                    more.append(node)
            for node in more:
                self._rest(node)
        self._waited_for, self._begun = heard, True
        return bool(heard)

    def _answers(self, nodes: Sequence[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
        """Until all have answered who did the last time."""
        missing = self._waited_for.intersection(nodes)
        for node, answer in self._ask(nodes, ANSWER_S if missing else SILENT_S):
            yield node, answer
            missing.discard(node)
            if not missing:
                return

    def _ask(self, nodes: Sequence[str], wait_s: float) -> Iterator[tuple[str, Mapping[str, str]]]:
        more, good = self._from, self._is_next
        return self._asker.ask(nodes, wait_s, "journal", more, token=self._token, good=good)

    def _from(self, node: str) -> dict[str, str]:
        return {"from": str(self.live.tails[node].offset)}

    def _is_next(self, node: str, answer: Mapping[str, str]) -> bool:
        """Of the place that is asked for, and not one that was."""
        self._now.add(node)
        return answer.get("from") == str(self.live.tails[node].offset)

    def _put(self, node: str, answer: Mapping[str, str]) -> bool:
        """Whether there is more."""
        known = self.live.tails[node]
        try:
            return known.put(*tail.taken(answer, known.offset))
        except DataError:
            return False

    def _rest(self, node: str) -> None:
        for _ in range(PIECES):
            answers = list(self._ask([node], ANSWER_S))
            if not answers or not self._put(*answers[0]):
                return


def _fresh(
    found: Report | None, told: set[tuple[object, ...]], since_ns: int = 0
) -> Iterator[Verdict]:
    """Verdicts that were not told yet, on what went on after ``since_ns``; how a step begins or
    seems to end is none."""
    accounts = found.accounts if found is not None else None
    for one in sorted(accounts.verdicts if accounts else (), key=lambda one: one.begin_ns):
        # As it grows, a stretch may be said to have begun a window or two earlier.
        near = {one.begin_ns // S + shift for shift in range(-3, 4)}
        said = (one.cause, one.nodes, one.rail)
        if one.cause in ("start_end", "unknown") or any((*said, at) in told for at in near):
            continue
        if one.end_ns <= since_ns:
            continue
        told.add((*said, one.begin_ns // S))
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
