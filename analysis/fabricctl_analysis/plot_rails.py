"""Each rail's traffic over time."""

from typing import Any, TypeVar

import numpy as np
from bokeh.models import BasicTicker, ColumnDataSource
from bokeh.models.annotations import Span as Line
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
    UNSEEN,
    Axis,
    hover,
    plot,
    rate_ticks,
)
from fabricctl_analysis.series import Floats

Told = tuple[Span, str]  # an interval and what to say of it
_Number = TypeVar("_Number", np.int64, np.float64)


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
        if rail.series[column].high is not rail.series[column].mean:  # points were put together
            made.varea_step(x="end", y1=0, y2=f"{column}_high", fill_alpha=0.3, **look)
        made.varea_step(x="end", y1=0, y2=column, fill_alpha=0.85, **look)
    area = made.quad(
        left="begin", right="end", bottom=-limit, top=limit, source=source, fill_alpha=0,
        line_color=None, hover_fill_color=GRID, hover_fill_alpha=0.25,
    )  # fmt: skip
    made.add_tools(hover(area, [("from", "@at"), ("received", "@rx_text"), ("sent", "@tx_text")]))
    made.add_layout(Line(location=0, dimension="width", line_color=GRID, line_alpha=0.6))
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
        columns[name] = _drawn(series.mean * sign)
        columns[f"{name}_high"] = _drawn(series.high * sign)
        columns[f"{name}_text"] = [
            _rate_text(mean, top)
            for mean, top in zip(
                _twice(series.mean, series.mean), _twice(series.high, series.high), strict=True
            )
        ]
    return columns


def _drawn(values: Floats) -> NDArray[np.float32]:
    """Heights of areas without an outline: of height 0 nothing is seen. NaN, for which Bokeh
    would join the neighbours, becomes 0; the gap's hatching and its words say what it is."""
    return _twice(np.nan_to_num(values), np.nan_to_num(values)).astype(np.float32)


def _twice(values: NDArray[_Number], first: NDArray[_Number]) -> NDArray[_Number]:
    return np.concatenate([first[:1], values])


def _rate_text(mean: float, top: float) -> str:
    if np.isnan(mean):
        return "not measured"
    more = f" (up to {format_rate(top)})" if top > mean * 1.005 else ""
    return format_rate(mean) + more


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
    _strip(made, gaps, axis, limit, fill_alpha=0, line_color=None, hatch_color=GAP,
           hatch_pattern="right_diagonal_line", hatch_alpha=0.6, hatch_scale=8)  # fmt: skip


def _strip(
    made: figure, spans: list[tuple[Span, str]], axis: Axis, limit: float, **look: Any
) -> None:
    if not spans:
        return
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
        if sure_end_ns >= down.begin_ns:
            sure.append((Span(down.begin_ns, sure_end_ns), text))
        if down.begin_error_ns or down.end_error_ns:
            perhaps.append((Span(down.begin_ns - down.begin_error_ns, end_ns), text))
    for missed in rail.link.missed:
        text = f"{missed.changes} changes of carrier in here, told by a counter alone"
        perhaps.append((Span(missed.begin_ns, missed.end_ns), text))
    return sure, perhaps
