"""What happens on the cluster: changes between two looks at Slurm, and what it remembers."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fabricctl import hostlist
from fabricctl.errors import SlurmError
from fabricctl.fleet.overview import node_state
from fabricctl.slurm.model import FINISHED, WAITING, Job, Node, Slurm, Usage

_BAD_ENDS = frozenset({"NODE_FAIL", "BOOT_FAIL", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE"})


@dataclass(frozen=True)
class ClusterEvent:
    """One line; seconds of CLOCK_REALTIME of the controller, as Slurm keeps them."""

    at_real_s: int
    kind: str  # node, job, slurm
    severity: str  # error, warning, info
    text: str
    nodes: tuple[str, ...] = ()
    job: int | None = None
    user: str | None = None


def past(
    nodes: Sequence[Node], usages: Sequence[Usage], since_real_s: int
) -> list[ClusterEvent]:  # fmt: skip
    """From what Slurm remembers: jobs of the accounting, and reasons that nodes still have."""
    found = []
    for use in usages:
        if use.start_real_s is not None and use.start_real_s >= since_real_s:
            found.append(_began(use.start_real_s, use.job, use.user, use.nodes))
        if use.end_real_s is not None and use.end_real_s >= since_real_s:
            found.append(_ended(use.end_real_s, use.job, use.user, use.nodes, use.state))
    for node in nodes:
        if node.reason and node.reason_real_s and node.reason_real_s >= since_real_s:
            found.append(_node_event(node, node.reason_real_s))
    return sorted(found, key=lambda event: event.at_real_s)


def node_changes(
    before: Mapping[str, Node], after: Mapping[str, Node], now_s: int
) -> Iterator[ClusterEvent]:
    """Nodes that went out, came back, booted, appeared or vanished."""
    for name, node in after.items():
        old = before.get(name)
        if old is None:
            yield ClusterEvent(now_s, "node", "info", f"{name} is new", (name,))
            continue
        was, now = _fitness(old), _fitness(node)
        if (was, old.reason if was else None) != (now, node.reason if now else None):
            yield _node_event(node, now_s)
        if old.boot_real_s and node.boot_real_s and node.boot_real_s > old.boot_real_s + 1:
            said = f"{name} has booted"
            yield ClusterEvent(node.boot_real_s, "node", "warning", said, (name,))
    for name in before.keys() - after.keys():
        yield ClusterEvent(now_s, "node", "warning", f"{name} is gone from Slurm", (name,))


def job_changes(
    before: Mapping[int, Job], after: Mapping[int, Job], now_s: int
) -> Iterator[ClusterEvent]:
    """Jobs that began, ended or were requeued."""
    for number, job in after.items():
        old = before.get(number)
        ran = old is not None and old.state not in WAITING and old.state not in FINISHED
        started = old is None or old.state in WAITING or job.restarts > old.restarts
        if old is not None and job.restarts > old.restarts:
            said = f"job {number} of {job.user} was requeued ({job.restarts})"
            yield ClusterEvent(now_s, "job", "warning", said, old.nodes, number, job.user)
        # One that is new and over was submitted before the first look, or is told by its end.
        told = old is not None or not job.finished
        if started and told and job.state not in WAITING and job.start_real_s is not None:
            yield _began(job.start_real_s, number, job.user, job.nodes)
            ran = True
        if ran and job.finished:
            ended_s = job.end_real_s or now_s
            yield _ended(ended_s, number, job.user, job.nodes, job.state)


def follow(
    slurm: Slurm,
    poll_s: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.time,
) -> Iterator[ClusterEvent]:
    """Changes as they are seen, for ever. While Slurm is away there are none, and that is told."""
    nodes, jobs = _look(slurm)
    away = False
    while True:
        sleep(poll_s)
        now_s = int(now())
        try:
            new_nodes, new_jobs = _look(slurm)
        except SlurmError as error:
            if not away:
                yield ClusterEvent(now_s, "slurm", "error", f"Slurm does not answer: {error}")
            away = True
            continue
        if away:
            yield ClusterEvent(now_s, "slurm", "info", "Slurm answers again")
        away = False
        changes = [*node_changes(nodes, new_nodes, now_s), *job_changes(jobs, new_jobs, now_s)]
        yield from sorted(changes, key=lambda event: event.at_real_s)
        nodes, jobs = new_nodes, new_jobs


def _look(slurm: Slurm) -> tuple[dict[str, Node], dict[int, Job]]:
    nodes = {node.name: node for node in slurm.nodes()}
    return nodes, {job.id: job for job in slurm.jobs()}


def _fitness(node: Node) -> str:
    """The state, as far as it matters whether jobs can start; empty: they can."""
    state = node_state(node)
    return "" if state in ("idle", "mixed", "allocated") else state


def _node_event(node: Node, at_s: int) -> ClusterEvent:
    state = _fitness(node)
    if not state:
        said = f"{node.name} takes jobs again"
        return ClusterEvent(at_s, "node", "info", said, (node.name,))
    who = f" ({node.reason_user})" if node.reason_user else ""
    said = f"{node.name} is {state}" + (f": {node.reason}{who}" if node.reason else "")
    severity = "error" if state in ("down", "unknown") else "warning"
    return ClusterEvent(at_s, "node", severity, said, (node.name,))


def _began(at_s: int, job: int, user: str | None, nodes: tuple[str, ...]) -> ClusterEvent:
    said = f"job {job} of {user or '?'} began on {_folded(nodes)}"
    return ClusterEvent(at_s, "job", "info", said, nodes, job, user)


def _ended(
    at_s: int, job: int, user: str | None, nodes: tuple[str, ...], state: str
) -> ClusterEvent:  # fmt: skip
    severity = "info"
    if state in _BAD_ENDS:
        severity = "error" if state.endswith("NODE_FAIL") or state == "BOOT_FAIL" else "warning"
    said = f"job {job} of {user or '?'} ended: {state.lower().replace('_', ' ')}"
    return ClusterEvent(at_s, "job", severity, said, nodes, job, user)


def _folded(nodes: tuple[str, ...]) -> str:
    return hostlist.fold(nodes) if nodes else "no node"
