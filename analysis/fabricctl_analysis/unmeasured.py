"""What the report cannot say, and why: missing nodes, gaps, sources that gave nothing."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from fabricctl_analysis import coverage
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.model import Figure, NodeSummary, RailSummary, Unmeasured

# Figures that stem from one source are one thing to a reader.
_SOURCES = {
    "cores": "CPU of the node",
    "memory_max": "memory of the node",
    "job_cpu": "CPU of the job",
    "job_memory_max": "memory of the job",
    "psi_cpu_some": "CPU pressure (PSI)",
    "psi_memory_some": "memory pressure (PSI)",
    "psi_io_some": "I/O pressure (PSI)",
}
_COUNTERS = ("rx_bytes", "rx_errors", "rx_dropped")


def missing_nodes(allocation: Sequence[str], present: Iterable[str]) -> list[Unmeasured]:
    """Nodes of the job from which the trace has nothing."""
    have = set(present)
    lost = tuple(name for name in allocation if name not in have)
    why = "the trace has nothing from there: no agent ran, or its part was never collected"
    return [Unmeasured(lost, "everything", why)] if lost else []


def gaps_of(
    node: NodeSummary, begun_ns: Sequence[int], whole: Span, limit_ns: int
) -> Iterator[Unmeasured]:
    """Intervals without samples; ``begun_ns``: when each life of the agent began."""
    for gap in coverage.gaps(list(node.measured), whole, limit_ns):
        restarted = any(gap.begin_ns < at <= gap.end_ns for at in begun_ns)
        if gap.begin_ns == whole.begin_ns:
            why = "before the agent's first sample"
        elif gap.end_ns == whole.end_ns:
            why = "after the agent's last sample"
        elif restarted:
            why = "the agent was away and began anew"
        else:
            why = "the agent took no samples"
        yield Unmeasured((node.name,), "all samples", why, gap)


def empty_figures(
    nodes: Sequence[NodeSummary], rails: Sequence[RailSummary]
) -> Iterator[Unmeasured]:
    """Figures without one value, and those that rest on part of their readings."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for node in nodes:
        _judge(found, node.name, node.figures, _SOURCES)
    for rail in rails:
        label = f"rail r{rail.index}"
        _judge(found, rail.node, rail.counters, {n: f"{label} {n}" for n in _COUNTERS})
        if not rail.link.measured:
            found[f"{label} carrier", "no reading gave a value"].append(rail.node)
        elif rail.link.changes is None:
            why = "the kernel's counter was not read: changes between samples go unseen"
            found[f"{label} carrier changes", why].append(rail.node)
    for (what, why), names in found.items():
        yield Unmeasured(tuple(dict.fromkeys(names)), what, why)


def _judge(
    found: dict[tuple[str, str], list[str]],
    node: str,
    figures: Mapping[str, Figure],
    labels: Mapping[str, str],
) -> None:
    for name, label in labels.items():
        figure = figures.get(name)
        if figure is None:
            continue
        if figure.value is None:
            why = "no reading gave a value" if figure.readings == 0 else "too few readings"
            found[label, why].append(node)
        elif figure.not_measured:
            found[label, "some of the readings gave no value"].append(node)
        if figure.at_least:
            why = "the counter was reset: what was counted in between is lost, sums are minima"
            found[label, why].append(node)
