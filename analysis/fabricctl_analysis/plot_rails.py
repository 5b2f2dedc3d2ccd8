"""Plots of rails: the overview, one row a rail, and each rail's traffic."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from bokeh.models import BasicTicker, ColumnDataSource, FixedTicker
from bokeh.models.text import BaseText
from bokeh.plotting import figure
from numpy.typing import NDArray

from fabricctl.units import format_rate
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.findings import interval
from fabricctl_analysis.model import RailSummary, Report
from fabricctl_analysis.plots import (
    DOWN,
    GAP,
    GRID,
    RECEIVED,
    SENT,
    STEP,
    UNSEEN,
    Axis,
    hover,
    plot,
    rate_ticks,
)

MAX_MARKS = 2000  # events drawn; a rail that flaps for days has more, the tables count all
_Number = TypeVar("_Number", np.int64, np.float64)
_LABEL = 11  # characters of a row's label that fit beside the plot
_EVENTS = {
    "carrier_down": ("inverted_triangle", "lost carrier"),
    "carrier_up": ("triangle", "carrier back"),
    "admin_down": ("square_x", "switched off"),
    "admin_up": ("square", "switched on"),
    "removed": ("x", "interface removed"),
    "added": ("cross", "interface added"),
}


def label(rail: RailSummary) -> str:
    """``n1 r0``, short enough for the axis."""
    node = rail.node if len(rail.node) <= _LABEL - 3 else "~" + rail.node[-(_LABEL - 4) :]
    return f"{node} r{rail.index}"


def overview(report: Report, rails: Sequence[RailSummary], axis: Axis) -> figure:
    """One row a rail: measured or not, up or down, events; the job's steps on top."""
    count = len(rails)
    made = plot(axis, 20 * (count + 1) + 8, values=(-0.7, count + 0.7))
    rows = {(rail.node, rail.index): count - 1 - nth for nth, rail in enumerate(rails)}
    made.yaxis.ticker = FixedTicker(ticks=list(range(count + 1)))
    labels: dict[float | str, str | BaseText] = {
        row: label(rail) for rail, row in zip(rails, reversed(range(count)), strict=True)
    }
    labels[count] = "steps"
    made.yaxis.major_label_overrides = labels
    made.ygrid.visible = False
    _measured(made, report, rows, axis)
    _unmeasured(made, report, rows, axis)
    _downs(made, rails, rows, axis)
    _steps(made, report, count, axis)
    _marks(made, report, rows, axis)
    return made


def _bars(
    made: figure, rows: list[tuple[float, Span, str]], axis: Axis, height: float, **look: Any
) -> None:
    """Horizontal bars ``(row, interval, what to say)``."""
    source = ColumnDataSource(
        {
            "y": [row for row, _, _ in rows],
            "left": [axis.ms(span.begin_ns) for _, span, _ in rows],
            "right": [axis.ms(span.end_ns) for _, span, _ in rows],
            "text": [text for _, _, text in rows],
        }
    )
    drawn = made.hbar(y="y", left="left", right="right", height=height, source=source, **look)
    made.add_tools(hover(drawn, [("", "@text")]))


def _measured(made: figure, report: Report, rows: dict[tuple[str, int], int], axis: Axis) -> None:
    spans = {node.name: node.measured for node in report.nodes}
    bars = [
        (float(row), span, f"{node} r{index}: measured")
        for (node, index), row in rows.items()
        for span in spans.get(node, ())
    ]
    _bars(made, bars, axis, 0.3, fill_color=STEP, fill_alpha=0.55, line_color=None)


def _unmeasured(made: figure, report: Report, rows: dict[tuple[str, int], int], axis: Axis) -> None:
    gaps = [(node, one) for one in report.unmeasured if one.span for node in one.nodes]
    bars = [
        (float(row), one.span, f"{node}: not measured, {one.why}")
        for node, one in gaps
        if one.span is not None
        for (name, _), row in rows.items()
        if name == node
    ]
    _bars(made, bars, axis, 0.5, fill_alpha=0, line_color=None, hatch_pattern="right_diagonal_line",
          hatch_color=GAP, hatch_alpha=0.8, hatch_scale=6)  # fmt: skip


def _downs(
    made: figure, rails: Sequence[RailSummary], rows: dict[tuple[str, int], int], axis: Axis
) -> None:
    down, unseen = [], []
    for rail in rails:
        row, name = float(rows[rail.node, rail.index]), f"{rail.node} r{rail.index}"
        for span, text in down_spans(rail, axis):
            down.append((row, span, f"{name} {text}"))
        for missed in rail.link.missed:
            text = f"{name}: {missed.changes} changes of carrier in here that nobody saw"
            unseen.append((row, Span(missed.begin_ns, missed.end_ns), text))
    _bars(made, unseen, axis, 0.7, fill_color=UNSEEN, fill_alpha=0.7, line_color=UNSEEN)
    # The line keeps an outage of milliseconds visible in a job of days.
    _bars(made, down, axis, 0.7, fill_color=DOWN, line_color=DOWN, line_width=1.5)


def down_spans(rail: RailSummary, axis: Axis) -> list[tuple[Span, str]]:
    """Each interval without use and what is known of it."""
    return [
        (
            Span(down.begin_ns, rail.measured_end_ns if down.end_ns is None else down.end_ns),
            f"down ({down.cause}) {interval(down, rail.measured_end_ns, axis.when)}",
        )
        for down in rail.link.downs
    ]


def _steps(made: figure, report: Report, row: int, axis: Axis) -> None:
    bars = []
    for step in report.steps[:50]:
        begin = report.whole.begin_ns if step.begin_ns is None else step.begin_ns
        end = report.whole.end_ns if step.end_ns is None else step.end_ns
        bars.append((float(row), Span(begin, end), f"step {step.step} on {len(step.nodes)} nodes"))
    _bars(made, bars, axis, 0.5, fill_color=RECEIVED, fill_alpha=0.35, line_color=RECEIVED)


def _marks(made: figure, report: Report, rows: dict[tuple[str, int], int], axis: Axis) -> None:
    marks = [mark for mark in report.marks if (mark.node, mark.rail) in rows][:MAX_MARKS]
    known = [_EVENTS.get(mark.event, ("diamond", mark.event)) for mark in marks]
    source = ColumnDataSource(
        {
            "x": [axis.ms(mark.at_ns) for mark in marks],
            "y": [rows[mark.node, mark.rail] for mark in marks],
            "marker": [marker for marker, _ in known],
            "text": [
                f"{m.node} r{m.rail}: {words}" for m, (_, words) in zip(marks, known, strict=True)
            ],
            "at": [axis.when.clock(mark.at_ns, 6) for mark in marks],
        }
    )
    drawn = made.scatter(
        "x", "y", marker="marker", size=9, source=source, fill_color=DOWN, line_color="#ffffff"
    )
    made.add_tools(hover(drawn, [("", "@text"), ("at", "@at")]))


def traffic(report: Report, rail: RailSummary, axis: Axis, highest: float, last: bool) -> figure:
    """Received above zero, sent below, in bits a second; ``highest`` in B/s scales all alike."""
    limit = max(highest * 8, 1.0) * 1.08
    made = plot(axis, 92, last, values=(-limit, limit))
    made.yaxis.formatter = rate_ticks()
    made.yaxis.ticker = BasicTicker(desired_num_ticks=4)
    _strips(made, report, rail, axis, limit)
    source = ColumnDataSource(_columns(rail, axis))
    for column, colour in (("rx", RECEIVED), ("tx", SENT)):
        look: dict[str, Any] = {"fill_color": colour, "source": source, "step_mode": "before"}
        made.varea_step(x="end", y1=0, y2=f"{column}_high", fill_alpha=0.3, **look)
        made.varea_step(x="end", y1=0, y2=column, fill_alpha=0.85, **look)
    area = made.quad(
        left="begin", right="end", bottom=-limit, top=limit, source=source, fill_alpha=0,
        line_color=None, hover_fill_color=GRID, hover_fill_alpha=0.25,
    )  # fmt: skip
    made.add_tools(hover(area, [("from", "@at"), ("received", "@rx_text"), ("sent", "@tx_text")]))
    made.line([axis.range.start, axis.range.end], [0, 0], line_color=GRID, line_alpha=0.6)
    return made


def _columns(rail: RailSummary, axis: Axis) -> dict[str, Any]:
    """Both directions; the first point is there twice, as the left end of the first step."""
    columns: dict[str, Any] = {}
    received, sent = rail.series["rx"], rail.series["tx"]
    if len(received.end_ns) != len(sent.end_ns):  # one way was not measured
        sent = received if len(received.end_ns) else sent
    begin, end = axis.all_ms(received.begin_ns), axis.all_ms(received.end_ns)
    columns["begin"] = _twice(begin, begin)
    columns["end"] = _twice(end, begin)
    columns["at"] = [
        axis.when.clock(int(at), 3) for at in _twice(received.begin_ns, received.begin_ns)
    ]
    for name, series, sign in (("rx", received, 8.0), ("tx", sent, -8.0)):
        columns[name] = _twice(series.mean * sign, series.mean * sign).astype(np.float32)
        high = series.high * sign
        columns[f"{name}_high"] = _twice(high, high).astype(np.float32)
        columns[f"{name}_text"] = [
            _rate_text(mean, top)
            for mean, top in zip(
                _twice(series.mean, series.mean), _twice(series.high, series.high), strict=True
            )
        ]
    return columns


def _twice(values: NDArray[_Number], first: NDArray[_Number]) -> NDArray[_Number]:
    return np.concatenate([first[:1], values])


def _rate_text(mean: float, top: float) -> str:
    if np.isnan(mean):
        return "not measured"
    more = f" (up to {format_rate(top)})" if top > mean * 1.005 else ""
    return format_rate(mean) + more


def _strips(made: figure, report: Report, rail: RailSummary, axis: Axis, limit: float) -> None:
    """Intervals without carrier and without measurement, over the plot's whole height."""
    spans = down_spans(rail, axis)
    _strip(made, spans, axis, limit, fill_color=DOWN, fill_alpha=0.3, line_color=DOWN)
    gaps = [
        (one.span, f"not measured: {one.why}")
        for one in report.unmeasured
        if one.span is not None and rail.node in one.nodes
    ]
    _strip(made, gaps, axis, limit, fill_alpha=0, line_color=None, hatch_color=GAP,
           hatch_pattern="right_diagonal_line", hatch_alpha=0.6, hatch_scale=8)  # fmt: skip


def _strip(
    made: figure, spans: list[tuple[Span, str]], axis: Axis, limit: float, **look: Any
) -> None:
    source = ColumnDataSource(
        {
            "left": [axis.ms(span.begin_ns) for span, _ in spans],
            "right": [axis.ms(span.end_ns) for span, _ in spans],
            "text": [text for _, text in spans],
        }
    )
    drawn = made.quad(left="left", right="right", bottom=-limit, top=limit, source=source, **look)
    made.add_tools(hover(drawn, [("", "@text")]))
