"""The job clock's section of the HTML report: its error over time, and a table."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, CustomJSHover, CustomJSTickFormatter, LogTicker
from bokeh.plotting import figure

from fabricctl_analysis import clock_words
from fabricctl_analysis.choose import most_telling_nodes
from fabricctl_analysis.html_tables import MAX_ROWS, of_many, table
from fabricctl_analysis.model import Report
from fabricctl_analysis.plots import CLOCK, GRID, NODES, RECEIVED, Axis, hover, plot
from fabricctl_analysis.series import Floats, Series
from fabricctl_analysis.when import When

BINS = 400
_AT = ("at", f"@end{{{CLOCK}}}")
_SCALED = """
let value = Math.abs(%s), step = 0
for (; value >= 1000 && step < 3; step++) value /= 1000
return +value.toPrecision(3) + ' ' + ['ns', 'us', 'ms', 's'][step]
"""


def clock_chart(report: Report, axis: Axis) -> figure | None:
    """The likely error of every node's clock; None when there is none to draw."""
    drawn = [(node, node.clock.error) for node in report.nodes if node.clock is not None]
    drawn = [(node, error) for node, error in drawn if not np.isnan(error.high).all()]
    if not drawn:
        return None
    made = plot(axis, 110, log=True)
    made.yaxis.formatter = CustomJSTickFormatter(code=_SCALED % "tick")
    made.yaxis.ticker = LogTicker(desired_num_ticks=4, mantissas=[1, 3])
    value = CustomJSHover(code=_SCALED % "value")
    colours = _colours(report)
    if len(drawn) <= len(NODES):
        for node, error in drawn:
            columns: dict[str, Any] = {
                "end": axis.all_ms(error.end_ns),
                "high": error.high.astype(np.float32),
            }
            look: dict[str, Any] = {"source": ColumnDataSource(columns)}
            look["color"] = colours[node.name]
            made.line("end", "high", line_width=1.6, **look)
            shown = made.scatter("end", "high", size=7, alpha=0, hover_alpha=1, **look)
            rows = [("node", node.name), _AT, ("likely within", "@high{custom}")]
            made.add_tools(hover(shown, rows, value))
    else:
        _band(made, [error for _, error in drawn], report, axis, value)
    return made


def _colours(report: Report) -> dict[str, str]:
    """As in the other plots: by the place among the nodes measured."""
    measured = [node.name for node in report.nodes if node.measured or node.clock is not None]
    return {name: NODES[nth % len(NODES)] for nth, name in enumerate(measured)}


def _band(
    made: figure, errors: Sequence[Series], report: Report, axis: Axis, value: CustomJSHover
) -> None:
    """The least, the median and the worst of the nodes."""
    edges = np.linspace(report.whole.begin_ns, report.whole.end_ns, BINS + 1).astype(np.int64)
    values = np.stack([_worst(error, edges) for error in errors])
    known = ~np.isnan(values).all(axis=0)
    low, median, high = (
        pick(values[:, known], axis=0) for pick in (np.nanmin, np.nanmedian, np.nanmax)
    )
    source = ColumnDataSource({
        "end": axis.all_ms(edges[1:][known]), "low": low.astype(np.float32),
        "mean": median.astype(np.float32), "high": high.astype(np.float32),
    })  # fmt: skip
    made.varea("end", "low", "high", source=source, fill_color=RECEIVED, fill_alpha=0.3)
    made.line("end", "mean", source=source, line_color=RECEIVED, line_width=1.6)
    drawn = made.scatter("end", "high", source=source, size=7, alpha=0, hover_alpha=1, color=GRID)
    rows = [
        ("at", f"@end{{{CLOCK}}}"),
        ("median node", "@mean{custom}"),
        ("worst", "@high{custom}"),
    ]
    made.add_tools(hover(drawn, rows, value))


def _worst(error: Series, edges: np.ndarray) -> Floats:
    """The most in each part of the job."""
    parts = np.full(len(edges) - 1, -np.inf)
    place = np.clip(np.searchsorted(edges, error.end_ns) - 1, 0, len(parts) - 1)
    known = ~np.isnan(error.high)
    np.maximum.at(parts, place[known], error.high[known])
    return np.where(np.isinf(parts), np.nan, parts)


def section(report: Report, when: When, place: str | None) -> Iterator[str]:
    """The heading and all below it; nothing for a job of one node."""
    words = list(clock_words.sentences(report, when))
    if not words:
        return
    yield "<h2>Job clock</h2>"
    yield f"<p>{escape(' '.join(words))}</p>"
    if place is not None:
        caption = "<b>Error of the job clock</b> likely within, of every node"
        yield f"<figure><figcaption>{caption}</figcaption>{place}</figure>"
    if any(node.clock is not None for node in report.nodes):
        nodes = most_telling_nodes(report.nodes, MAX_ROWS)
        if len(nodes) < len(report.nodes):
            yield of_many(len(nodes), len(report.nodes), "nodes")
        yield from table(clock_words.TABLE_HEAD, [clock_words.cells(node, when) for node in nodes])
