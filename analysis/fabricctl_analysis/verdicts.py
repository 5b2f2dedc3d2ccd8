"""Where the time went, in words: a sentence a verdict, and what to do about it when that is sure.

Losses are node-seconds: one node standing still for a second, or four nodes at three quarters of
their pace.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fabricctl import hostlist
from fabricctl.errors import DataError
from fabricctl.units import format_duration
from fabricctl_analysis.model import Accounts, Cause, NodeSummary, Report, Verdict
from fabricctl_analysis.when import When

CAUSES: dict[Cause, str] = {
    "link_down": "link down",
    "restart": "program started anew",
    "suspended": "suspended by Slurm",
    "gpu": "GPU",
    "path": "bad path",
    "queueing": "network loss or queues",
    "host_stopped": "processes stopped",
    "host_memory": "short of memory",
    "storage": "waiting for files",
    "host_cpu": "CPU taken by others",
    "steal": "CPU taken by hypervisor",
    "rank_slow": "slower than the others",
    "rail_slow": "rail carried less",
    "checkpoint": "checkpoint",
    "phase": "another phase",
    "start_end": "start or end of the step",
    "unknown": "unknown",
}
_SIGNALS = {
    "iterations": "the iterations that the program told",
    "traffic": "the traffic of its rails",
    "mpi": "the MPI calls of its ranks",
    "cpu": "the CPU time of its processes",
    "none": "nothing",
}
# Advice is given for what cost more than this share of the time in which steps ran.
WORTH = 0.01
# Verdicts that cost less than this share are summed up in one line.
SMALL = 0.002
_ADVICE: dict[Cause, str] = {
    "link_down": "have the cable and the port of {rail} of {nodes} looked at; a job on the "
    "fabric's addresses (docs/options.md) rides such a loss out",
    "gpu": "have the GPUs of {nodes} looked at (nvidia-smi -q, the kernel log); --exclude={nodes} "
    "until then",
    "queueing": "see which links {nodes} share: packets were lost or waited there",
    "path": "see which switch port the path shares: fabricctl path show, and the switch's counters",
    "host_stopped": "look at {nodes}: its kernel log at that time, and whether something froze the "
    "job's processes; leave it out with --exclude={nodes} until it is known",
    "host_memory": "ask for more memory on a node, or fewer ranks: on {nodes} tasks waited for "
    "memory to be freed",
    "storage": "write less often or to a faster file system: the tasks of {nodes} waited for files",
    "host_cpu": "see what else ran on {nodes}; --exclusive keeps other jobs away, daemons belong "
    "on cores that the job does not use",
    "steal": "{nodes} shares its CPU with other machines: ask for nodes that do not",
    "rank_slow": "the processes on {nodes} got less CPU than those elsewhere: compare their "
    "binding (srun --cpu-bind=verbose), clock and temperature with the other nodes'",
    "rail_slow": "compare {rail} of {nodes} with the others: speed, errors, cable",
}


@dataclass(frozen=True)
class Line:
    """One line of the accounts: node-ns, and which verdict it is, if any."""

    what: str
    amount_ns: int
    verdict: Verdict | None = None


def lines(accounts: Accounts) -> list[Line]:
    """Everything that the elapsed time was spent on; the amounts add up to it exactly."""
    worth = [one for one in accounts.verdicts if one.loss_ns >= SMALL * _ran_ns(accounts)]
    small = [one for one in accounts.verdicts if one not in worth]
    found = [Line("work at the usual pace", accounts.ideal_ns)]
    found += [Line(place(one), one.loss_ns, one) for one in worth]
    if small:
        found.append(Line(f"{len(small)} smaller losses", sum(one.loss_ns for one in small)))
    found.append(Line("small ups and downs of the pace", accounts.variation_ns))
    if accounts.no_step_ns:
        found.append(Line("no step ran", accounts.no_step_ns))
    if accounts.unknown_pace_ns:
        found.append(Line("pace not measured", accounts.unknown_pace_ns))
    return found


def _ran_ns(accounts: Accounts) -> int:
    return accounts.elapsed_ns - accounts.no_step_ns - accounts.unknown_pace_ns


def place(one: Verdict) -> str:
    """``link down: n2 r0``."""
    where = folded(one.nodes)
    rail = "" if one.rail is None else f" r{one.rail}"
    return f"{CAUSES[one.cause]}: {where}{rail}" if where else CAUSES[one.cause]


def folded(nodes: Sequence[str]) -> str:
    """``n[1-3]``; names that are none stay as they are, many are cut."""
    try:
        text = hostlist.fold(nodes)
    except DataError:
        text = ",".join(nodes)
    return text if len(text) <= 40 else f"{text[:37]}..."


def amount(ns: int) -> str:
    """``12.3 node-s``, ``5.1 node-h``."""
    seconds = ns / 1e9
    if abs(seconds) >= 36_000:
        return f"{seconds / 3600:.1f} node-h"
    return f"{seconds:.1f} node-s" if abs(seconds) >= 10 else f"{seconds:.2f} node-s"


def share(ns: int, accounts: Accounts) -> str:
    """Of the elapsed time."""
    return f"{100 * ns / accounts.elapsed_ns:.1f} %" if accounts.elapsed_ns else "-"


def interval(one: Verdict) -> str:
    """``12.1 (11.2 to 13.0) node-s``."""
    seconds = [ns / 1e9 for ns in (one.loss_ns, one.low_ns, one.high_ns)]
    scale, unit = (3600, "node-h") if seconds[0] >= 36_000 else (1, "node-s")
    loss, low, high = (f"{value / scale:.3g}" for value in seconds)
    return f"{loss} ({low} to {high}) {unit}"


def rank_seconds(one: Verdict, accounts: Accounts) -> str:
    """``, 48 rank-s``; nothing where ranks are not tracked."""
    value = accounts.rank_s(one.loss_ns)
    return "" if value is None else f", {value:,.3g} rank-s"


def sentence(one: Verdict, when: When, accounts: Accounts | None = None) -> str:
    """What was lost to what, where, when, how surely and by which evidence."""
    span = f"{when.clock(one.begin_ns)} to {when.clock(one.end_ns)}"
    text = f"{place(one)}, {span}: cost {interval(one)}"
    if accounts is not None:
        text += rank_seconds(one, accounts)
    if one.evidence:
        text += f"; {'; '.join(one.evidence[:3])}"
        text += f" and {len(one.evidence) - 3} more" if len(one.evidence) > 3 else ""
    if one.also:
        text += f". At the same time: {'; '.join(one.also[:2])}"
    if one.cause == "unknown":
        text += "; nothing that was measured explains it"
    if one.coverage < 0.99:
        text += f". Measured: {100 * one.coverage:.0f} % of the nodes' time in it"
    return text + "."


def quiet_sentence(one: Verdict, when: When) -> str:
    """Of a trouble that the job did not feel."""
    what = "; ".join(one.evidence[:2]) or CAUSES[one.cause]
    high = max(0.0, one.high_ns / 1e9)
    return (
        f"{when.clock(one.begin_ns)}: {what}, and the job kept its pace (lost at most "
        f"{high:.3g} node-s)."
    )


def basis(accounts: Accounts) -> str:
    """What the figures rest on."""
    window = format_duration(accounts.window_ns / 1e9)
    if accounts.signal == "none":
        return "The job's pace is not known: no traffic, MPI calls or CPU time show work."
    text = (
        f"Pace by {_SIGNALS[accounts.signal]} in windows of {window}, against the job's own usual "
        "pace"
    )
    if accounts.deviation is not None:
        text += f" (which varies by {100 * accounts.deviation:.1f} % from window to window)"
    if accounts.iteration_s is not None:
        text += f"; iterations of {format_duration(accounts.iteration_s)}"
    return (
        text + ". Losses in node-seconds, with intervals of 95 % confidence; they add up exactly."
    )


def advice(report: Report) -> list[str]:
    """What to do, for causes that were found surely enough and cost enough."""
    accounts = report.accounts
    if accounts is None:
        return []
    given: dict[str, None] = {}
    for one in accounts.verdicts:
        words = _ADVICE.get(one.cause, "")
        if not one.nodes and "{nodes}" in words:
            continue  # nobody knows where
        if words and one.low_ns > WORTH * _ran_ns(accounts):
            rail = "the rails" if one.rail is None else f"rail r{one.rail}"
            given[words.format(nodes=folded(one.nodes), rail=rail)] = None
    given.update(dict.fromkeys(_general(report, accounts)))
    return list(given)


def _general(report: Report, accounts: Accounts) -> Iterator[str]:
    tight = [node.name for node in report.nodes if _full(node)]
    if tight:
        yield (
            f"memory of {folded(tight)} was over 95 % full: ask for more, or a larger problem will "
            "be killed"
        )
    if accounts.elapsed_ns and accounts.no_step_ns > 0.2 * accounts.elapsed_ns:
        part = 100 * accounts.no_step_ns / accounts.elapsed_ns
        yield (
            f"no step ran for {part:.0f} % of the allocation: stage data before the job, or end it "
            "when the work is done"
        )


def _full(node: NodeSummary) -> bool:
    peak, total = node.figures.get("memory_max"), node.figures.get("memory_total")
    if peak is None or total is None or peak.value is None or not total.value:
        return False
    return peak.value > 0.95 * total.value
