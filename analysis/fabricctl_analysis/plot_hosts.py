"""Plots of CPU and memory: a line a node, or a band over many nodes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import (
    AdaptiveTicker,
    ColumnDataSource,
    CustomJSHover,
    DataRange1d,
    NumeralTickFormatter,
    TickFormatter,
)
from bokeh.plotting import figure

from fabricctl_analysis.model import NodeSummary, Report
from fabricctl_analysis.plots import (
    CLOCK,
    GRID,
    NODES,
    RECEIVED,
    Axis,
    bytes_ticks,
    hover,
    hover_value,
    plot,
)
from fabricctl_analysis.spark import binned

BINS = 500

CHARTS: tuple[tuple[str, str, str], ...] = (
    ("cpu", "CPU of the node", "cores in use"),
    ("job_cpu", "CPU of the job", "cores in use"),
    ("memory", "Memory of the node", "in use: all less what is available"),
    ("job_memory", "Memory of the job", "in use by its processes"),
)


def host_chart(report: Report, name: str, axis: Axis) -> figure | None:
    """The series ``name`` of all nodes; None when no node measured it."""
    nodes = [node for node in report.nodes if name in node.series and len(node.series[name].mean)]
    nodes = [node for node in nodes if not np.isnan(node.series[name].mean).all()]
    if not nodes:
        return None
    made = plot(axis, 110)
    made.yaxis.formatter = _formatter(name)
    made.yaxis.ticker = _ticker(name)
    made.y_range = DataRange1d(start=0)
    if len(nodes) <= len(NODES):
        _lines(made, nodes, name, axis)
    else:
        _band(made, nodes, name, report, axis)
    return made


def colours(report: Report) -> dict[str, str]:
    """Colour of each node's line; empty when there are too many for lines."""
    nodes = [node.name for node in report.nodes if node.measured]
    return dict(zip(nodes, NODES, strict=False)) if len(nodes) <= len(NODES) else {}


def _formatter(name: str) -> TickFormatter:
    return bytes_ticks() if "memory" in name else NumeralTickFormatter(format="0.[00]")


def _ticker(name: str) -> AdaptiveTicker:
    if "memory" in name:
        powers = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]
        return AdaptiveTicker(base=1024, mantissas=powers, desired_num_ticks=4)
    return AdaptiveTicker(desired_num_ticks=4)


def _value(name: str) -> CustomJSHover:
    return hover_value("bytes" if "memory" in name else "cores")


def _lines(made: figure, nodes: Sequence[NodeSummary], name: str, axis: Axis) -> None:
    value = _value(name)
    for node, colour in zip(nodes, NODES, strict=False):
        series = node.series[name]
        columns: dict[str, Any] = {
            "end": axis.all_ms(series.end_ns),
            "mean": series.mean.astype(np.float32),
        }
        source = ColumnDataSource(columns)
        look: dict[str, Any] = {"source": source, "line_color": colour, "line_width": 1.6}
        if "memory" in name:
            made.line("end", "mean", **look)
        else:  # a mean that holds from the sample before
            made.step("end", "mean", mode="before", **look)
        drawn = made.scatter("end", "mean", source=source, size=7, alpha=0, hover_alpha=1,
                             color=colour)  # fmt: skip
        rows = [("node", node.name), ("at", f"@end{{{CLOCK}}}"), ("", "@mean{custom}")]
        made.add_tools(hover(drawn, rows, value))


def _band(
    made: figure, nodes: Sequence[NodeSummary], name: str, report: Report, axis: Axis
) -> None:
    """Lowest, median and highest of the nodes over time."""
    values = np.stack([binned(node.series[name], report.whole, BINS) for node in nodes])
    edges = np.linspace(report.whole.begin_ns, report.whole.end_ns, BINS + 1).astype(np.int64)
    known = ~np.isnan(values).all(axis=0)
    low, median, high = (np.full(BINS, np.nan) for _ in range(3))
    low[known], high[known] = np.nanmin(values[:, known], 0), np.nanmax(values[:, known], 0)
    median[known] = np.nanmedian(values[:, known], 0)
    source = ColumnDataSource({
        "begin": axis.all_ms(edges[:-1]), "end": axis.all_ms(edges[1:]),
        "low": low.astype(np.float32), "mean": median.astype(np.float32),
        "high": high.astype(np.float32), "nodes": (~np.isnan(values)).sum(axis=0),
    })  # fmt: skip
    made.varea("end", "low", "high", source=source, fill_color=RECEIVED, fill_alpha=0.3)
    made.line("end", "mean", source=source, line_color=RECEIVED, line_width=1.6)
    top = float(np.nanmax(high))
    area = made.quad(left="begin", right="end", bottom=0, top=top, source=source, fill_alpha=0,
                     line_color=None, hover_fill_color=GRID, hover_fill_alpha=0.25)  # fmt: skip
    rows = [
        ("from", f"@begin{{{CLOCK}}}"),
        ("lowest", "@low{custom}"),
        ("median", "@mean{custom}"),
        ("highest", "@high{custom}"),
        ("nodes", "@nodes"),
    ]
    made.add_tools(hover(area, rows, _value(name)))
