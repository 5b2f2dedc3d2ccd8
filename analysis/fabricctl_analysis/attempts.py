"""What Slurm's accounting adds to a trace: how long the job waited, and what its other attempts
came to. A trace is of one attempt; waiting, requeues and preemption lie between them.
"""

from collections.abc import Iterator, Sequence

from fabricctl.slurm.model import Usage
from fabricctl.units import format_duration
from fabricctl_analysis.model import Attempt, Finding, Report

# How Slurm ends an attempt through no fault of its user.
TAKEN = {"PREEMPTED": "preempted for another job", "NODE_FAIL": "ended, as a node failed",
         "BOOT_FAIL": "ended, as a node did not boot"}  # fmt: skip
# Seconds of the accounting are whole ones at both ends.
LEAST_SUSPENDED_S = 2


def attempts_of(usages: Sequence[Usage], job: int) -> tuple[Attempt, ...]:
    """Of one job, in their order."""
    found: list[Attempt] = []
    ended_s: int | None = None
    mine = (use for use in usages if use.job == job and use.start_real_s is not None)
    for use in sorted(mine, key=lambda use: use.start_real_s or 0):
        start_s = use.start_real_s or 0
        since_s = use.submit_real_s if ended_s is None else ended_s
        suspended_s = 0
        if use.end_real_s is not None:
            suspended_s = max(0, use.end_real_s - start_s - use.elapsed_s)
        found.append(Attempt(
            state=use.state,
            waited_s=None if since_s is None else max(0, start_s - since_s),
            begin_s=start_s,
            end_s=use.end_real_s,
            elapsed_s=use.elapsed_s,
            suspended_s=suspended_s if suspended_s >= LEAST_SUSPENDED_S else 0,
            nodes=use.node_count,
            account=use.account,
            partition=use.partition,
        ))  # fmt: skip
        ended_s = use.end_real_s
    return tuple(found)


def attempt_findings(report: Report) -> Iterator[Finding]:
    """Waiting, attempts that Slurm ended, and suspension."""
    every = report.attempts
    if not every:
        return
    yield Finding("info", "waited", (), None, None, None, _waited(every))
    for nth, one in enumerate(every):
        if one.state not in TAKEN:
            continue
        low_h, high_h = cost_node_h(report, nth)
        ran = format_duration(one.elapsed_s)
        text = f"Attempt {nth} was {TAKEN[one.state]} after {ran} on {one.nodes} nodes: "
        text += _cost(low_h, high_h)
        yield Finding("warning", one.state.lower(), (), None, None, None, text)


def cost_node_h(report: Report, nth: int) -> tuple[float, float]:
    """What is lost of an attempt that Slurm ended: what was computed since its last checkpoint.
    That is known of this trace's; of others only that it is no more than all of it."""
    one = report.attempts[nth]
    whole_h = one.elapsed_s * one.nodes / 3600
    if nth != report.job.requeue:
        return 0.0, whole_h
    saved = [node.state.checkpoints.last_ns for node in report.nodes
             if node.state and node.state.checkpoints]  # fmt: skip
    if not saved:
        return whole_h, whole_h
    since_h = max(0.0, (report.whole.end_ns - max(saved)) / 3.6e12) * one.nodes
    return min(since_h, whole_h), min(since_h, whole_h)


def _waited(every: Sequence[Attempt]) -> str:
    first, *again = every
    words = "the accounting does not say how long"
    if first.waited_s is not None:
        words = format_duration(first.waited_s)
    text = f"In Slurm's queue before the first start: {words}"
    if again:
        between_s = sum(one.waited_s or 0 for one in again)
        text += f"; {len(again)} requeue{'s' if len(again) > 1 else ''}, in the queue again for "
        text += format_duration(between_s)
    if suspended_s := sum(one.suspended_s for one in every):
        text += f"; suspended for {format_duration(suspended_s)}"
    return f"{text}."


def _cost(low_h: float, high_h: float) -> str:
    if low_h == high_h:
        return f"{high_h:.3g} node-h computed since the last checkpoint are lost."
    span = f"{low_h:.3g} to {high_h:.3g} node-h"
    return f"{span} are lost: what was computed since its last checkpoint."
