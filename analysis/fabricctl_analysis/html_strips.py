"""The page's maps of delays, waiting and GPUs."""

from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np
from bokeh.models import CustomJSHover, FixedTicker, HoverTool, LinearColorMapper
from bokeh.plotting import figure

from fabricctl_analysis.coverage import Span
from fabricctl_analysis.model import Strip
from fabricctl_analysis.plots import GAP, Axis, plot

# From YlOrRd of ColorBrewer: more is darker, also without colours.
_PALETTE = ("#ffffcc", "#ffeda0", "#fed976", "#feb24c", "#fd8d3c", "#fc4e2a", "#e31a1c", "#bd0026",
            "#800026")  # fmt: skip
_WORDS = {
    "delay": ("One-way delay to each rail of each node",
              "99th percentile of the job clock's probes, the worst of the part: pale is a "
              "microsecond, each shade five times more, dark a tenth of a second."),
    "waiting": ("Time in MPI of each rank",
                "Dark waits. A pale row among dark ones is the rank that the others wait for."),
    "gpu": ("GPUs at work", "Share of time in which a kernel ran; pale is idle."),
}  # fmt: skip
_TOP = {"delay": 200, "waiting": 100, "gpu": 100}
_HOVER = {
    "delay": "(v => v < 1e3 ? v.toPrecision(2) + ' us' : (v / 1e3).toPrecision(2) + ' ms')"
    "(10 ** (value / 40))",
    "waiting": "value + ' % of its time in MPI'",
    "gpu": "value + ' % in use'",
}


def strip_plot(strip: Strip, whole: Span, axis: Axis) -> figure:
    """Rows from top to bottom in the strip's order."""
    count = len(strip.rows)
    made = plot(axis, min(max(14 * count, 60), 420), values=(0.0, float(count)))
    step = max(1, -(-count // 12))
    ticks = list(range(0, count, step))
    made.yaxis.ticker = FixedTicker(ticks=[count - nth - 0.5 for nth in ticks])
    made.yaxis.major_label_overrides = {count - n - 0.5: strip.rows[n][-11:] for n in ticks}
    made.ygrid.visible = False
    colours = LinearColorMapper(palette=_PALETTE, low=0, high=_TOP[strip.name], high_color=GAP)
    if strip.name != "delay":
        colours = LinearColorMapper(palette=_PALETTE, low=0, high=100.5, high_color=GAP)
    left, right = axis.ms(whole.begin_ns), axis.ms(whole.end_ns)
    look: dict[str, Any] = {"image": [np.flipud(strip.levels)], "color_mapper": colours}
    drawn = made.image(x=left, y=0, dw=right - left, dh=count, **look)
    words = CustomJSHover(code=f"return value > 200 ? 'not measured' : {_HOVER[strip.name]}")
    made.add_tools(
        HoverTool(renderers=[drawn], tooltips=[("", "@image{custom}")],
                  formatters={"@image": words}, point_policy="follow_mouse")
    )  # fmt: skip
    return made


def strips_section(strips: tuple[Strip, ...], places: dict[str, str]) -> Iterator[str]:
    """Each with what its shades mean."""
    there = [one for one in strips if f"strip-{one.name}" in places]
    if not there:
        return
    yield "<h2>At a glance</h2>"
    for one in there:
        title, what = _WORDS[one.name]
        if len(one.rows) < one.of:
            words = f"The {len(one.rows)} of {one.of} rows with the highest values."
            yield f'<p class="soft small">{words}</p>'
        caption = f"<b>{escape(title)}</b> {escape(what)} Grey: not measured."
        place = places[f"strip-{one.name}"]
        yield f"<figure><figcaption>{caption}</figcaption>{place}</figure>"
