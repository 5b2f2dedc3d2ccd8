"""Each rail's traffic over time."""

from typing import Any

import numpy as np
from bokeh.models import BasicTicker, ColumnDataSource
from bokeh.models.annotations import Span as Line
from bokeh.plotting import figure
from numpy.typing import NDArray

from fabricctl_analysis.coverage import Span
from fabricctl_analysis.findings import interval
from fabricctl_analysis.model import RailSummary, Report
from fabricctl_analysis.plots import (
    CLOCK,
    DOWN,
    GAP,
    GRID,
    RECEIVED,
    SENT,
    UNSEEN,
    Axis,
    Told,
    hover,
    plot,
    rate_ticks,
    thinned,
)
from fabricctl_analysis.series import Floats, Series


def traffic(report: Report, rail: RailSummary, axis: Axis, highest: float, last: bool) -> figure:
    """Received above zero, sent below, in bits a second; ``highest`` in B/s scales all alike."""
    limit = max(highest * 8, 1.0) * 1.08
    made = plot(axis, 92, last, values=(-limit, limit))
    made.yaxis.formatter = rate_ticks()
    made.yaxis.ticker = BasicTicker(desired_num_ticks=4)
    _strips(made, report, rail, axis, limit)
    _way(made, rail.series["rx"], axis, ("received", RECEIVED, limit))
    _way(made, rail.series["tx"], axis, ("sent", SENT, -limit))
    made.add_layout(Line(location=0, dimension="width", line_color=GRID, line_alpha=0.6))
    return made


def _way(made: figure, series: Series, axis: Axis, words: tuple[str, str, float]) -> None:
    """One direction: ``words`` are its name, its colour and the end of the axis on its side."""
    name, colour, limit = words
    if not len(series.mean):
        return
    begin, end = axis.all_ms(series.begin_ns), axis.all_ms(series.end_ns)
    bits = np.float32(8 * np.sign(limit))
    columns: dict[str, Any] = {
        # The first point is there twice, as the left end of the first step.
        "begin": _after(begin[:1], begin),
        "end": _after(begin[:1], end),
        "drawn": _drawn(series.mean * bits),
        "mean": _after(series.mean[:1], series.mean * 8).astype(np.float32),
    }
    rows = [("from", f"@begin{{{CLOCK}}}"), ("to", f"@end{{{CLOCK}}}"), (name, "@mean{custom}")]
    put_together = series.high is not series.mean
    if put_together:
        columns["drawn_high"] = _drawn(series.high * bits)
        columns["high"] = _after(series.high[:1], series.high * 8).astype(np.float32)
        rows.append(("up to", "@high{custom}"))
    source = ColumnDataSource(columns)
    look: dict[str, Any] = {"fill_color": colour, "source": source, "step_mode": "before"}
    if put_together:
        made.varea_step(x="end", y1=0, y2="drawn_high", fill_alpha=0.3, **look)
    made.varea_step(x="end", y1=0, y2="drawn", fill_alpha=0.85, **look)
    area = made.quad(
        left="begin", right="end", bottom=min(0.0, limit), top=max(0.0, limit), source=source,
        fill_alpha=0, line_color=None, hover_fill_color=GRID, hover_fill_alpha=0.25,
    )  # fmt: skip
    made.add_tools(hover(area, rows, axis.rate))


def _drawn(values: Floats) -> NDArray[np.float32]:
    """Heights of areas without an outline: of height 0 nothing is seen. NaN, for which Bokeh
    would join the neighbours, becomes 0; the gap's hatching and its words say what it is."""
    heights = np.nan_to_num(values)
    return _after(heights[:1], heights).astype(np.float32)


def _after(first: Floats, values: Floats) -> Floats:
    return np.concatenate([first, values])


def _strips(made: figure, report: Report, rail: RailSummary, axis: Axis, limit: float) -> None:
    """Intervals without carrier and without measurement, over the plot's whole height."""
    sure, perhaps = down_spans(rail, axis)
    _strip(made, perhaps, axis, limit, fill_color=UNSEEN, fill_alpha=0.25, line_color=None)
    _strip(made, sure, axis, limit, fill_color=DOWN, fill_alpha=0.3, line_color=DOWN)
    gaps = [
        (one.span, f"not measured: {one.why}")
        for one in report.unmeasured
        if one.span is not None and rail.node in one.nodes
    ]
    gaps += [
        (report.whole, f"{name} traffic not measured")
        for way, name in (("rx", "received"), ("tx", "sent"))
        if not len(rail.series[way].mean)
    ]
    _strip(made, gaps, axis, limit, fill_alpha=0, line_color=None, hatch_color=GAP,
           hatch_pattern="right_diagonal_line", hatch_alpha=0.6, hatch_scale=8)  # fmt: skip


def _strip(made: figure, spans: list[Told], axis: Axis, limit: float, **look: Any) -> None:
    if not spans:
        return
    spans = thinned(spans)
    source = ColumnDataSource(
        {
            "left": [axis.ms(span.begin_ns) for span, _ in spans],
            "right": [axis.ms(span.end_ns) for span, _ in spans],
            "text": [text for _, text in spans],
        }
    )
    drawn = made.quad(left="left", right="right", bottom=-limit, top=limit, source=source, **look)
    made.add_tools(hover(drawn, [("", "@text")]))


def down_spans(rail: RailSummary, axis: Axis) -> tuple[list[Told], list[Told]]:
    """Intervals in which the rail was down for sure, and such in which it may have been, with
    what is known of each."""
    sure, perhaps = [], []
    for down in rail.link.downs:
        text = f"down ({down.cause}) {interval(down, rail.measured_end_ns, axis.when)}"
        end_ns = rail.measured_end_ns if down.end_ns is None else down.end_ns
        sure_end_ns = end_ns - down.end_error_ns
        sure_end_ns = max(sure_end_ns, down.begin_ns)
        sure.append((Span(down.begin_ns, sure_end_ns), text))
        if down.begin_error_ns:
            perhaps.append((Span(down.begin_ns - down.begin_error_ns, down.begin_ns), text))
        if end_ns > sure_end_ns:
            perhaps.append((Span(sure_end_ns, end_ns), text))
    for missed in rail.link.missed:
        text = f"{missed.changes} changes of carrier in here, told by a counter alone"
        perhaps.append((Span(missed.begin_ns, missed.end_ns), text))
    return sure, perhaps
