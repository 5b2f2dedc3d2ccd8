"""What the report's plots share: one time axis (zooming one zooms all), colours, look.

Colours are such that they read on white and on near-black, and all backgrounds are transparent:
one drawing serves light, dark and paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from bokeh.models import (
    BoxZoomTool,
    CrosshairTool,
    CustomJSHover,
    CustomJSTickFormatter,
    DatetimeTickFormatter,
    HoverTool,
    NoOverlap,
    Range1d,
    WheelZoomTool,
)
from bokeh.models.annotations import Span
from bokeh.models.renderers import DataRenderer
from bokeh.plotting import figure
from numpy.typing import NDArray

from fabricctl_analysis.coverage import Span as Interval
from fabricctl_analysis.model import Report
from fabricctl_analysis.when import When

TEXT = "#757b84"  # 4.3:1 on white and on #101216
GRID = "#8a9099"
RECEIVED, SENT = "#3b82c4", "#d9822b"
DOWN, UNSEEN, GAP, STEP = "#d03f3f", "#c79a00", "#8a9099", "#2a9d6f"
NODES = (RECEIVED, SENT, STEP, "#b565c9", "#c44f4f", "#8a8f3c", "#3aa6b0", "#9a7b5f")

LEFT_PX = 64  # for the axis' labels, the same in all plots: their times stand above each other
TIME = "time"  # name of the common range, for page.js


@dataclass(frozen=True)
class Axis:
    """What all plots have in common, in one piece each: the page's size and the time to make it
    go with the number of Bokeh's models.

    Bokeh's dates are milliseconds since 1970; here they are of the reader's zone, so that the
    ticks show its time.
    """

    when: When
    range: Range1d
    cursor: Span
    ticks: DatetimeTickFormatter
    spaced: NoOverlap
    rate: CustomJSHover

    @property
    def shift_ms(self) -> float:
        return self.when.offset.total_seconds() * 1e3

    def ms(self, at_ns: int) -> float:
        """One instant."""
        return at_ns / 1e6 + self.shift_ms

    def all_ms(self, at_ns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Many."""
        return at_ns / 1e6 + self.shift_ms


Told = tuple[Interval, str]  # an interval and what to say of it
MAX_BARS = 400  # of one kind in one row: a rail that flaps for days has 100,000


def thinned(told: Sequence[Told]) -> list[Told]:
    """At most ``MAX_BARS`` of them: the ones that lie closest to each other become one."""
    told = sorted(told, key=lambda one: one[0].begin_ns)
    if len(told) <= MAX_BARS:
        return told
    apart = np.array([b[0].begin_ns - a[0].end_ns for a, b in pairwise(told)])
    cuts = np.sort(np.argsort(apart)[-(MAX_BARS - 1) :]) + 1
    groups = np.split(np.arange(len(told)), cuts)
    return [_one_of(told[group[0] : group[-1] + 1]) for group in groups]


def _one_of(told: Sequence[Told]) -> Told:
    if len(told) == 1:
        return told[0]
    whole = Interval(told[0][0].begin_ns, max(span.end_ns for span, _ in told))
    return whole, f"{len(told)} times within: zoom does not part them, --json does"


def time_axis(report: Report, when: When) -> Axis:
    """The axis over the whole job."""
    shift_ms = when.offset.total_seconds() * 1e3
    begin = report.whole.begin_ns / 1e6 + shift_ms
    end = max(report.whole.end_ns / 1e6 + shift_ms, begin + 1)
    edge = (end - begin) * 0.01
    low, high = begin - edge, end + edge
    common = Range1d(start=low, end=high, bounds=(low, high), name=TIME)
    cursor = Span(dimension="height", line_color=GRID, line_dash="dotted")
    return Axis(when, common, cursor, _ticks(), NoOverlap(min_distance=10), hover_value("rate"))


def plot(
    axis: Axis,
    height_px: int,
    last: bool = True,
    values: tuple[float, float] | None = None,
    *,
    log: bool = False,
) -> figure:
    """An empty plot; only the ``last`` of a group shows the times below it."""
    made = figure(
        height=height_px + (24 if last else 4),
        sizing_mode="stretch_width",
        x_axis_type="datetime",
        y_axis_type="log" if log else "auto",
        x_range=axis.range,
        tools=[
            BoxZoomTool(dimensions="width"),
            WheelZoomTool(dimensions="width", modifiers={"ctrl": True}),
            CrosshairTool(dimensions="height", overlay=axis.cursor),
        ],
        toolbar_location=None,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=GRID,
        outline_line_alpha=0.35,
        min_border_left=LEFT_PX,
        min_border_right=8,
        min_border_top=4,
        min_border_bottom=0,
    )
    if values is not None:
        made.y_range = Range1d(start=values[0], end=values[1])
    for ruler in (made.xaxis, made.yaxis):
        ruler.axis_line_color = ruler.major_tick_line_color = ruler.minor_tick_line_color = None
        ruler.major_label_text_color = TEXT
        ruler.major_label_text_font_size = "11px"
        ruler.major_label_text_font = "system-ui, sans-serif"
    made.xaxis.visible = last
    made.xaxis.formatter = axis.ticks
    made.xaxis.major_label_policy = axis.spaced
    made.xgrid.grid_line_color = made.ygrid.grid_line_color = GRID
    made.xgrid.grid_line_alpha = made.ygrid.grid_line_alpha = 0.25
    return made


def _ticks() -> DatetimeTickFormatter:
    return DatetimeTickFormatter(
        microseconds="%H:%M:%S.%f",
        milliseconds="%H:%M:%S.%3N",
        seconds="%H:%M:%S",
        minsec="%H:%M:%S",
        minutes="%H:%M",
        hourmin="%H:%M",
        hours="%H:%M",
        days="%m-%d",
    )


def hover(
    drawn: DataRenderer, rows: list[tuple[str, str]], value: CustomJSHover | None = None
) -> HoverTool:
    """A box of label and value; texts of columns (``@text``) are escaped by Bokeh.

    A value written ``@{name}{custom}`` is formatted by ``value``, ``@begin{...}`` as a time.
    """
    formatters: dict[str, Any] = {"@begin": "datetime", "@end": "datetime"}
    if value is not None:
        formatters |= dict.fromkeys(("@mean", "@high", "@low"), value)
    return HoverTool(
        renderers=[drawn], tooltips=rows, formatters=formatters, point_policy="follow_mouse"
    )


CLOCK = "%H:%M:%S.%3N"  # of instants under the pointer


def hover_value(unit: Literal["rate", "bytes", "cores"]) -> CustomJSHover:
    """Numbers under the pointer; NaN is what was not measured."""
    write = {
        "rate": "scaled(value, 1000, ['bit/s', 'kbit/s', 'Mbit/s', 'Gbit/s', 'Tbit/s', 'Pbit/s'])",
        "bytes": "scaled(value, 1024, ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'])",
        "cores": "value.toFixed(2) + ' cores'",
    }[unit]
    return CustomJSHover(
        code=f"""
        function scaled(value, base, units) {{
          let step = 0
          for (; value >= base && step < units.length - 1; step++) value /= base
          return +value.toPrecision(3) + ' ' + units[step]
        }}
        return Number.isNaN(value) ? 'not measured' : {write}
        """
    )


def rate_ticks() -> CustomJSTickFormatter:
    """Bit/s with a decimal prefix; sent traffic is drawn below zero and written without sign."""
    return CustomJSTickFormatter(
        code="""
        let value = Math.abs(tick), step = 0
        for (; value >= 1000 && step < 5; step++) value /= 1000
        return +value.toPrecision(3) + ' ' + ['b/s', 'kb/s', 'Mb/s', 'Gb/s', 'Tb/s', 'Pb/s'][step]
        """
    )


def bytes_ticks() -> CustomJSTickFormatter:
    """Bytes with a binary prefix."""
    return CustomJSTickFormatter(
        code="""
        let value = tick, step = 0
        for (; value >= 1024 && step < 5; step++) value /= 1024
        return +value.toPrecision(3) + ' ' + ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'][step]
        """
    )
