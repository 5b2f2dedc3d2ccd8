"""The cluster on one screen: what is there, and what somebody should look at.

Pure: Slurm's records and, where a head service gathers them, the nodes' own reports go in.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fabricctl import hostlist
from fabricctl.slurm.model import FINISHED, WAITING, Job, Node
from fabricctl.units import format_duration

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")

OURS = "fabric:"  # every reason that this project sets begins so; no other is ever touched
# What squeue says of jobs that wait for somebody, not for nodes (src/common/job_state_reason.c).
STUCK = frozenset({"JobHeldAdmin", "launch failed requeued held", "BadConstraints",
                   "AccountNotAllowed", "InvalidAccount", "InvalidQOS"})  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One open matter; ``nodes`` or ``jobs`` are those concerned."""

    severity: Severity
    kind: str  # for scripts: node_down, node_drained, job_stuck, ...
    text: str
    nodes: tuple[str, ...] = ()
    jobs: tuple[int, ...] = ()
    since_real_s: int | None = None


@dataclass(frozen=True)
class Overview:
    """Counts and findings; ``rails`` None: nobody gathers them."""

    nodes: Mapping[str, int]  # state -> how many; states overlap nowhere
    jobs: Mapping[str, int]  # running, waiting, ending
    findings: tuple[Finding, ...]

    @property
    def worst(self) -> Severity | None:
        """The weight of the heaviest finding."""
        return self.findings[0].severity if self.findings else None


def node_state(node: Node) -> str:
    """One word for a node: what an administrator wants to know first."""
    if node.state == "DOWN" or "NOT_RESPONDING" in node.flags or "FAIL" in node.flags:
        return "down"
    if "DRAIN" in node.flags:
        return "draining" if node.cpus_allocated or "COMPLETING" in node.flags else "drained"
    if {"POWERED_DOWN", "POWERING_DOWN", "POWERING_UP"} & node.flags:
        return "powered down"
    return {"IDLE": "idle", "MIXED": "mixed", "ALLOCATED": "allocated"}.get(node.state, "unknown")


def overview(
    nodes: Sequence[Node],
    jobs: Sequence[Job],
    now_s: float | None = None,
    more: Sequence[Finding] = (),
) -> Overview:
    """``more``: findings from elsewhere, such as the nodes' own reports."""
    now_s = time.time() if now_s is None else now_s
    states = Counter(node_state(node) for node in nodes)
    kinds = Counter(kind for job in jobs if (kind := _job_kind(job)))
    found = [*_nodes_out(nodes, now_s), *_stuck(jobs), *more]
    found.sort(key=lambda one: (SEVERITIES.index(one.severity), -len(one.nodes), one.text))
    return Overview(dict(states), dict(kinds), tuple(found))


def _job_kind(job: Job) -> str | None:
    if job.state in FINISHED:
        return None
    if job.state in WAITING:
        return "waiting"
    return "ending" if job.state == "COMPLETING" else "running"


def _nodes_out(nodes: Sequence[Node], now_s: float) -> Iterator[Finding]:
    """Nodes that take no jobs; those that share state and reason are told as one."""
    groups: dict[tuple[str, str], list[Node]] = {}
    for node in nodes:
        state = node_state(node)
        if state in ("down", "draining", "drained", "unknown"):
            groups.setdefault((state, node.reason or ""), []).append(node)
    for (state, reason), members in groups.items():
        since = min((n.reason_real_s for n in members if n.reason_real_s), default=None)
        text = f"{hostlist.fold(n.name for n in members)} {_are(members)} {state}"
        if since is not None:
            text += f" for {format_duration(max(0, round(now_s) - since))}"
        who = next((n.reason_user for n in members if n.reason_user), None)
        text += f": {reason}" if reason else ": no reason was given"
        if reason and who and not reason.startswith(OURS):
            text += f" ({who})"
        severity: Severity = "error" if state in ("down", "unknown") else "warning"
        if state not in ("down", "unknown") and reason.startswith(f"{OURS} maintenance"):
            severity = "info"
        kind = "node_down" if state in ("down", "unknown") else "node_drained"
        names = tuple(n.name for n in members)
        yield Finding(severity, kind, text, names, since_real_s=since)


def _stuck(jobs: Sequence[Job]) -> Iterator[Finding]:
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        if job.state in WAITING and job.reason in STUCK:
            groups.setdefault(job.reason, []).append(job)
    for reason, members in groups.items():
        ids = tuple(job.id for job in members)
        shown = ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")
        many = len(ids) > 1
        text = f"job{'s' if many else ''} {shown} wait{'' if many else 's'} for somebody: {reason}"
        yield Finding("warning", "job_stuck", text, jobs=ids)


def _are(things: Sequence[object]) -> str:
    return "is" if len(things) == 1 else "are"
