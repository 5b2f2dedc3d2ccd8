"""Which rails and nodes to show when there are more than a page takes."""

from collections.abc import Sequence

from fabricctl_analysis.model import NodeSummary, RailSummary


def most_telling(rails: Sequence[RailSummary], limit: int) -> list[RailSummary]:
    """All in their order or, of too many, those that were not measured, down, erred or moved
    most, in the order of that."""
    if len(rails) <= limit:
        return list(rails)
    return sorted(rails, key=_rail_weight, reverse=True)[:limit]


def most_telling_nodes(nodes: Sequence[NodeSummary], limit: int) -> list[NodeSummary]:
    """All in their order or, of too many, those measured least and then the busiest."""
    if len(nodes) <= limit:
        return list(nodes)
    return sorted(nodes, key=_node_weight)[:limit]


def _rail_weight(rail: RailSummary) -> tuple[float, ...]:
    def total(what: str) -> float:
        return sum(rail.counters[f"{way}_{what}"].value or 0.0 for way in ("rx", "tx"))

    changed = sum(missed.changes for missed in rail.link.missed)
    return rail.down_ns, not rail.link.measured, changed, total("errors"), total("bytes")


def _node_weight(node: NodeSummary) -> tuple[float, float]:
    busy = node.figures.get("cpu_mean")
    seconds = round(node.measured_ns / 1e9)  # edges differ by less than a sample
    return seconds, -(busy.value or 0.0) if busy else 0.0
