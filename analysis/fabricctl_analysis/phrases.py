"""The sentences and cells that the terminal and the HTML report share."""

import math
from collections.abc import Sequence

from fabricctl.units import format_bytes, format_duration
from fabricctl_analysis.findings import bounds_ns
from fabricctl_analysis.host import PRESSURES
from fabricctl_analysis.job_clock import apart_ns
from fabricctl_analysis.model import Figure, NodeSummary, RailSummary, Report, Unmeasured
from fabricctl_analysis.names import folded
from fabricctl_analysis.when import When

UNKNOWN = "?"  # in cells: not measured
UNSEEN = "unseen"  # in cells: it was down, nobody saw for how long
_PREFIXES = ("", "k", "M", "G", "T", "P")
MAX_STEPS = 4
MAX_NAMES = 40  # characters of a host list within a sentence

_MODES = {"observe": "observe (measure only)", "on": "on (measure and act)"}


def who(report: Report) -> str:
    """``Job 4711: alice on lab, 4 nodes n[1-4]``."""
    job = report.job
    names = job.nodes or tuple(node.name for node in report.nodes)
    count = f"{len(names)} node" + ("" if len(names) == 1 else "s")
    owner = f"{job.user or 'user not known'} on {job.cluster or 'a cluster not named'}"
    return f"Job {job.title}: {owner}, {count} {some(names)}"


def some(names: Sequence[str]) -> str:
    """A host list that fits into a sentence; --json has all of it."""
    text = folded(names)
    return text if len(text) <= MAX_NAMES else f"{text[: MAX_NAMES - 3]}..."


def span(report: Report, when: When) -> str:
    """``2026-09-21 14:13:20.0 to 14:14:20.0 UTC``."""
    whole = report.whole
    return f"{when.full(whole.begin_ns)} to {when.clock(whole.end_ns, 1)} {when.zone_name}"


def took(report: Report) -> str:
    """``1 min 0 s``."""
    return format_duration(report.whole.length_ns / 1e9)


def steps(report: Report, when: When) -> str:
    """``Steps: batch on n1, from 14:13:20.5; 0 on n[1-4], 14:13:22.0 to 14:14:19.0``."""
    shown = []
    for step in report.steps[:MAX_STEPS]:
        begin = "begin not seen" if step.begin_ns is None else when.clock(step.begin_ns, 1)
        end = "end not seen" if step.end_ns is None else f"to {when.clock(step.end_ns, 1)}"
        shown.append(f"{step.step} on {_where(step.nodes)}, {begin} {end}")
    more = len(report.steps) - MAX_STEPS
    return "Steps: " + "; ".join([*shown, *([f"and {more} more"] if more > 0 else [])])


def _where(nodes: Sequence[str]) -> str:
    return folded(nodes) if len(folded(nodes)) <= MAX_NAMES else f"{len(nodes)} nodes"


def protection(report: Report) -> str:
    """How the job was protected, as far as the trace tells."""
    job, nodes = report.job, report.nodes
    measured = [node for node in nodes if node.measured]
    mode = _MODES.get(job.mode or "", job.mode or "not known")
    periods = sorted({node.period_ns for node in measured if node.period_ns})
    text = (
        f"Mode {mode}; agents measured {len(measured)} of {len(nodes)} nodes, "
        f"{percent(report.coverage)} of the nodes' time"
    )
    if periods:
        text += f", a sample every {format_duration(periods[0] / 1e9)}"
        text += f" to {format_duration(periods[-1] / 1e9)}" if len(periods) > 1 else ""
    if job.spares:
        text += f"; {job.spares} nodes to spare"
    return text + "."


def nothing(report: Report) -> str:
    """When there is no finding; never more than what was measured allows."""
    if not any(node.measured for node in report.nodes):
        return "Nothing was measured."
    return (
        "Nothing stands out in what was measured: no rail went down, no errors were counted, "
        "no warning was noted."
    )


def clock(report: Report) -> str:
    """What the report's times are worth."""
    error = report.clock_error_ns
    within = (
        "with an error not known" if error is None else f"within {format_duration(error / 1e9)}"
    )
    apart = apart_ns([node.clock for node in report.nodes if node.measured])
    between = (
        "How far the nodes' clocks were apart was not measured: times of two nodes compare only "
        "as well as the site keeps its clocks."
        if apart is None
        else f"By the job clock these clocks were never further apart than "
        f"{format_duration(apart / 1e9)}: times of two nodes compare as well as that."
    )
    return (
        f"Times are each node's own CLOCK_REALTIME, converted from CLOCK_MONOTONIC {within}. "
        f"{between}"
    )


def overhead(report: Report) -> str:
    """What measuring itself took; empty where nobody knows."""
    cores = {node.name: node.own_cores for node in report.nodes if node.own_cores is not None}
    held = [node.own_bytes for node in report.nodes if node.own_bytes is not None]
    if not cores or not held:
        return ""
    most = max(cores, key=lambda name: cores[name])
    mean, worst = 100 * sum(cores.values()) / len(cores), 100 * cores[most]
    return (
        f"Measuring took {mean:.2f} % of a core on each node ({most}: {worst:.2f} %) and "
        f"{max(held) / (1 << 20):.0f} MiB of memory at most."
    )


def unmeasured(one: Unmeasured, when: When) -> str:
    """``n4: everything (the trace has nothing from there)``."""
    text = f"{folded(one.nodes)}: {one.what}" if one.nodes else one.what
    if one.span is not None:
        length = format_duration(one.span.length_ns / 1e9)
        text += f", {length} from {when.clock(one.span.begin_ns)} to {when.clock(one.span.end_ns)}"
    return f"{text} ({one.why})"


def volume(figure: Figure) -> str:
    """Bytes; ``>`` marks a lower bound."""
    if figure.value is None:
        return UNKNOWN
    return (">" if figure.at_least else "") + format_bytes(figure.value)


def rate(figure: Figure) -> str:
    """``877 Mbit/s``: three digits say all that a peak is worth."""
    if figure.value is None:
        return UNKNOWN
    scaled, step = figure.value * 8, 0
    while scaled >= 999.5 and step < len(_PREFIXES) - 1:
        scaled, step = scaled / 1000, step + 1
    return f"{scaled:.3g} {_PREFIXES[step]}bit/s"


def count(figure: Figure) -> str:
    if figure.value is None:
        return UNKNOWN
    number = f"{figure.value:.0f}" if figure.value < 1e6 else f"{figure.value:.1e}"
    return (">" if figure.at_least else "") + number


def both(rail: RailSummary, what: str) -> str:
    """Errors or drops of both directions, ``3+0`` when there are any."""
    cells = [count(rail.counters[f"{way}_{what}"]) for way in ("rx", "tx")]
    return cells[0] if cells[0] == cells[1] and cells[0] in ("0", UNKNOWN) else "+".join(cells)


def down(rail: RailSummary) -> str:
    """``3.02 s``, ``<2.00 s``, ``1.00-3.00 s``; ``-`` for a rail that was measured and up,
    ``unseen`` for one whose carrier changed by the kernel's count alone (``+``: that too)."""
    if not rail.link.measured:
        return UNKNOWN
    if not rail.link.downs:
        return UNSEEN if rail.link.missed else "-"
    missed = "+" if rail.link.missed else ""
    shortest = longest = 0
    for one in rail.link.downs:
        still = rail.measured_end_ns - one.begin_ns
        low, high = (still, still) if one.end_ns is None else bounds_ns(one)
        shortest, longest = shortest + low, longest + high
    most = format_duration(longest / 1e9)
    if shortest == longest:
        return most + missed
    return (f"{shortest / 1e9:.2f}-{most}" if shortest else f"<{most}") + missed


def percent(share: float) -> str:
    """``98.5 %``; 100 % only when it is whole."""
    if share >= 1:
        return "100 %"
    return f"{min(math.floor(share * 1000) / 10, 99.9):.1f} %"


def cpu_share(node: NodeSummary, name: str) -> str:
    """CPU use of all cores in percent."""
    used, cores = node.figures.get(name), node.figures.get("cores")
    if used is None or used.value is None or cores is None or not cores.value:
        return UNKNOWN
    return f"{100 * used.value / cores.value:.0f} %"


def cell(node: NodeSummary, name: str) -> str:
    """A node's figure by its unit."""
    figure = node.figures.get(name)
    if figure is None or figure.value is None:
        return UNKNOWN
    if figure.unit == "B":
        return volume(figure)
    if figure.unit == "s":
        return (">" if figure.at_least else "") + format_duration(figure.value)
    return count(figure)


def memory(node: NodeSummary) -> str:
    """``2.1/8.0 GiB``: the peak of all."""
    peak, total = node.figures.get("memory_max"), node.figures.get("memory_total")
    if peak is None or peak.value is None or total is None or not total.value:
        return cell(node, "memory_max")
    number, unit = format_bytes(total.value).split()
    return f"{peak.value / total.value * float(number):.1f}/{number} {unit}"


def stalled(node: NodeSummary) -> str:
    """The pressure that held tasks up longest, as a share of the measured time."""
    known = [
        (figure.value, name)
        for name in PRESSURES
        if (figure := node.figures.get(f"psi_{name}")) is not None and figure.value is not None
    ]
    if not known or not node.measured_ns:
        return UNKNOWN
    seconds, name = max(known)
    share = percent(min(1.0, seconds * 1e9 / node.measured_ns))
    return f"{name.split('_')[0].replace('memory', 'mem')} {share}"
