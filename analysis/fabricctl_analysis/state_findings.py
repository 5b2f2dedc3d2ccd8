"""Stalls, deaths and restarts: how they are told."""

from collections.abc import Iterator, Sequence

from fabricctl.store.schema import CheckpointEvent, LaunchEvent
from fabricctl.units import format_bytes, format_duration
from fabricctl_analysis.job_state import Checkpoints, Launched, Stall
from fabricctl_analysis.model import Finding, Report
from fabricctl_analysis.recovery import Loss, Recovery, recoveries
from fabricctl_analysis.when import When


def state_findings(report: Report, when: When) -> Iterator[Finding]:
    """Each stall; each death with the start that followed it."""
    runs = recoveries((node.state for node in report.nodes), report.whole.end_ns)
    losses = [loss for run in runs for loss in run.losses]
    for node in report.nodes:
        if node.state is None:
            continue
        for stall in node.state.stalls:
            yield _stall(stall, report, when)
        yield from _deaths(node.state.launches, losses, when)
        if node.state.checkpoints is not None:
            yield _checkpoints(node.name, node.state.checkpoints)
    for one in runs:
        yield _recovery(one, when)


_ROADS = {
    CheckpointEvent.RESTORED: "from memory",
    CheckpointEvent.RESTORED_SHARED: "from the shared file system",
}


def _recovery(one: Recovery, when: When) -> Finding:
    """What of the time counted, and what each failure cost."""
    whole = format_duration((one.end_ns - one.begin_ns) / 1e9)
    ratio = "is not known" if one.ettr is None else f"{one.ettr:.3f}"
    text = f"ETTR {ratio}: of {whole} from {when.clock(one.begin_ns, 1)} on"
    text += f", checkpoints took {format_duration(one.stall_ns / 1e9)}"
    count = len(one.losses)
    text += f", {count} failure{'s' if count != 1 else ''}"
    known = [loss for loss in one.losses if loss.lost_ns is not None]
    if known:
        lost_s = sum(loss.lost_ns or 0 for loss in known) / 1e9
        rank_seconds = sum(loss.rank_seconds or 0 for loss in known)
        text += f" {format_duration(lost_s)} ({rank_seconds:.1f} rank-seconds)"
    if one.goodput is not None:
        text += f"; goodput {one.goodput:.3g} steps a second"
    return Finding("info", "ettr", (), None, one.begin_ns, one.end_ns, f"{text}.")


def _cost(at_ns: int, losses: Sequence[Loss]) -> str:
    """Of the failure that was seen then."""
    loss = next((loss for loss in losses if loss.seen_ns == at_ns), None)
    if loss is None or loss.lost_ns is None or loss.rank_seconds is None:
        return ""
    lost = f"{format_duration(loss.lost_ns / 1e9)} lost ({loss.rank_seconds:.1f} rank-seconds)"
    if loss.road in _ROADS:
        return f"; {lost}, it went on from step {loss.step}, {_ROADS[loss.road]}"
    return f"; {lost}, it began anew"


def _stall(stall: Stall, report: Report, when: When) -> Finding:
    end_ns = stall.end_ns if stall.end_ns is not None else report.whole.end_ns
    length = format_duration(max(end_ns - stall.begin_ns, 0) / 1e9)
    at = when.clock(stall.begin_ns, 1)
    open_end = "" if stall.end_ns is not None else " and to the end"
    text = (
        f"{stall.waiting} ranks waited {length} from {at} on{open_end} "
        f"({stall.kind.name.lower()}): {stall.text}."
    )
    return Finding("error", "stall", (), None, stall.begin_ns, end_ns, text)


_WHAT = {
    LaunchEvent.NODE_DEAD: "Node {nodes} was found dead",
    LaunchEvent.RANKS_DEAD: "The program died on living nodes",
    LaunchEvent.HANG: "The program hung ({text}) and was ended",
    LaunchEvent.SCRIPT_LOST: "The job script's node {nodes} was lost ({text})",
}


def _deaths(
    launches: tuple[Launched, ...], losses: Sequence[Loss], when: When
) -> Iterator[Finding]:
    for nth, one in enumerate(launches):
        if one.event not in (*_WHAT, LaunchEvent.GIVE_UP):
            continue
        after = next((e for e in launches[nth + 1 :] if e.event != LaunchEvent.NODE_DEAD), None)
        at = when.clock(one.at_ns, 1)
        if one.event == LaunchEvent.GIVE_UP:
            text = f"The program was not started again at {at}: {one.text}."
            yield Finding("error", "gave_up", (), None, one.at_ns, one.at_ns, text)
            continue
        what = _WHAT[one.event].format(nodes=one.nodes, text=one.text)
        text, end_ns = f"{what} at {at}", one.at_ns
        if after is not None and after.event == LaunchEvent.START:
            end_ns = after.at_ns
            took = format_duration((end_ns - one.at_ns) / 1e9)
            if after.text.endswith(", live"):
                text += f"; the others ran on, on {after.nodes} {took} later"
            else:
                text += f"; it was started again on {after.nodes} {took} later, without a requeue"
            text += _cost(one.at_ns, losses)
        yield Finding("warning", "restart", (), None, one.at_ns, end_ns, f"{text}.")


def _checkpoints(node: str, made: Checkpoints) -> Finding:
    """What they cost: the share of the time between the first and the last."""
    whole_ns = max(made.last_ns - made.first_ns, 1)
    usual = format_duration(made.usual_stall_ns / 1e9)
    text = (
        f"{made.saved} checkpoints up to step {made.last_step}, {format_bytes(made.rank0_bytes)} "
        f"of rank 0, each usually held the ranks up for {usual}"
    )
    if made.saved > 1:
        text += f", together {100 * made.stall_ns / whole_ns:.2g} % of the time"
    if made.restored:
        steps = ", ".join(f"{n}{'' if memory else ' (shared)'}" for n, memory in made.restored[-5:])
        text += f"; restored at step {steps}"
    return Finding("info", "checkpoints", (node,), None, made.first_ns, made.last_ns, f"{text}.")
