"""The overview: one row a rail, the job's steps on top."""

from collections.abc import Sequence
from typing import Any

from bokeh.models import ColumnDataSource, FixedTicker
from bokeh.models.text import BaseText
from bokeh.plotting import figure

from fabricctl_analysis.coverage import Span
from fabricctl_analysis.model import RailSummary, Report
from fabricctl_analysis.plot_rails import down_spans
from fabricctl_analysis.plots import DOWN, GAP, RECEIVED, STEP, UNSEEN, Axis, hover, plot, thinned

MAX_MARKS = 2000  # events drawn; a rail that flaps for days has more, the tables count all
MAX_STEPS = 50
MAX_MISSING = 16  # rows of nodes without a trace; the tables name all
_LABEL = 11  # characters of a row's label that fit beside the plot
_EVENTS = {
    "carrier_down": ("inverted_triangle", "lost carrier"),
    "carrier_up": ("triangle", "carrier back"),
    "admin_down": ("square_x", "switched off"),
    "admin_up": ("square", "switched on"),
    "removed": ("x", "interface removed"),
    "added": ("cross", "interface added"),
}


_Rows = dict[tuple[str, int | None], float]  # node and rail -> row; None: a node without rails
_Bar = tuple[float, Span, str]  # row, interval, what to say of it


def overview(report: Report, rails: Sequence[RailSummary], axis: Axis) -> figure:
    """Where each rail was measured, up and down, with its events; nodes that the trace lacks."""
    have = {rail.node for rail in report.rails}
    missing = [node.name for node in report.nodes if node.name not in have][:MAX_MISSING]
    keys = [*((rail.node, rail.index) for rail in rails), *((name, None) for name in missing)]
    top = len(keys)
    rows: _Rows = {key: float(top - 1 - nth) for nth, key in enumerate(keys)}
    made = plot(axis, 20 * (top + 1) + 8, values=(-0.7, top + 0.7))
    labels: dict[float | str, str | BaseText] = {row: _label(*key) for key, row in rows.items()}
    labels[float(top)] = "steps"
    made.yaxis.ticker = FixedTicker(ticks=list(range(top + 1)))
    made.yaxis.major_label_overrides = labels
    made.ygrid.visible = False
    _measured(made, report, rails, rows, axis)
    _unmeasured(made, report, rails, rows, axis)
    _downs(made, rails, rows, axis)
    _steps(made, report, float(top), axis)
    _marks(made, report, rows, axis)
    return made


def _label(node: str, rail: int | None) -> str:
    """``n1 r0``, short enough for the axis; the end of a long name tells more than its begin."""
    end = "" if rail is None else f" r{rail}"
    room = _LABEL - len(end)
    return (node if len(node) <= room else "~" + node[-(room - 1) :]) + end


def _bars(made: figure, bars: list[_Bar], axis: Axis, height: float, **look: Any) -> None:
    """Horizontal bars."""
    if not bars:
        return
    source = ColumnDataSource(
        {
            "y": [row for row, _, _ in bars],
            "left": [axis.ms(span.begin_ns) for _, span, _ in bars],
            "right": [axis.ms(span.end_ns) for _, span, _ in bars],
            "text": [text for _, _, text in bars],
        }
    )
    drawn = made.hbar(y="y", left="left", right="right", height=height, source=source, **look)
    made.add_tools(hover(drawn, [("", "@text")]))


def _measured(
    made: figure, report: Report, rails: Sequence[RailSummary], rows: _Rows, axis: Axis
) -> None:
    spans = {node.name: node.measured for node in report.nodes}
    bars = [
        (rows[rail.node, rail.index], span, f"{rail.node} r{rail.index}: measured")
        for rail in rails
        if rail.link.measured
        for span in _shown(spans.get(rail.node, ()))
    ]
    _bars(made, bars, axis, 0.3, fill_color=STEP, fill_alpha=0.55, line_color=None)


def _shown(spans: Sequence[Span]) -> list[Span]:
    return [span for span, _ in thinned([(span, "") for span in spans])]


def _unmeasured(
    made: figure, report: Report, rails: Sequence[RailSummary], rows: _Rows, axis: Axis
) -> None:
    silent = {(rail.node, rail.index) for rail in rails if not rail.link.measured}
    bars: list[_Bar] = []
    for (name, index), row in rows.items():
        if index is None:
            bars.append((row, report.whole, f"{name}: nothing was measured"))
        elif (name, index) in silent:
            bars.append((row, report.whole, f"{name} r{index}: carrier not measured"))
        else:
            gaps = [
                (one.span, f"{name}: not measured, {one.why}")
                for one in report.unmeasured
                if one.span is not None and name in one.nodes
            ]
            bars += [(row, span, text) for span, text in thinned(gaps)]
    _bars(made, bars, axis, 0.5, fill_alpha=0, line_color=None, hatch_pattern="right_diagonal_line",
          hatch_color=GAP, hatch_alpha=0.8, hatch_scale=6)  # fmt: skip


def _downs(made: figure, rails: Sequence[RailSummary], rows: _Rows, axis: Axis) -> None:
    sure_bars: list[_Bar] = []
    perhaps_bars: list[_Bar] = []
    for rail in rails:
        row, name = rows[rail.node, rail.index], f"{rail.node} r{rail.index}"
        sure, perhaps = down_spans(rail, axis)
        sure_bars += [(row, span, f"{name}: {text}") for span, text in thinned(sure)]
        perhaps_bars += [(row, span, f"{name}: {text}") for span, text in thinned(perhaps)]
    _bars(made, perhaps_bars, axis, 0.7, fill_color=UNSEEN, fill_alpha=0.6, line_color=UNSEEN)
    # The line keeps an outage of milliseconds visible in a job of days.
    _bars(made, sure_bars, axis, 0.7, fill_color=DOWN, line_color=DOWN, line_width=1.5)


def _steps(made: figure, report: Report, row: float, axis: Axis) -> None:
    bars = []
    for step in report.steps[:MAX_STEPS]:
        begin = report.whole.begin_ns if step.begin_ns is None else step.begin_ns
        end = report.whole.end_ns if step.end_ns is None else step.end_ns
        bars.append((row, Span(begin, end), f"step {step.step} on {len(step.nodes)} nodes"))
    _bars(made, bars, axis, 0.5, fill_color=RECEIVED, fill_alpha=0.35, line_color=RECEIVED)


def _marks(made: figure, report: Report, rows: _Rows, axis: Axis) -> None:
    marks = [mark for mark in report.marks if (mark.node, mark.rail) in rows][:MAX_MARKS]
    if not marks:
        return
    known = [_EVENTS.get(mark.event, ("diamond", mark.event)) for mark in marks]
    source = ColumnDataSource(
        {
            "x": [axis.ms(mark.at_ns) for mark in marks],
            "y": [rows[mark.node, mark.rail] for mark in marks],
            "marker": [marker for marker, _ in known],
            "colour": [STEP if mark.event.endswith("_up") else DOWN for mark in marks],
            "text": [
                f"{m.node} r{m.rail}: {words}" for m, (_, words) in zip(marks, known, strict=True)
            ],
            "at": [axis.when.clock(mark.at_ns, 6) for mark in marks],
        }
    )
    drawn = made.scatter(
        "x", "y", marker="marker", size=10, source=source, fill_color="colour", line_color="#ffffff"
    )
    made.add_tools(hover(drawn, [("", "@text"), ("at", "@at")]))
