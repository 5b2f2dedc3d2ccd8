"""Where the time went, in the HTML report: the accounts, the verdicts, the job's pace over time."""

from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np
from bokeh.models import BasicTicker, ColumnDataSource, FixedTicker, LinearColorMapper
from bokeh.models.annotations import Span as Line
from bokeh.plotting import figure

from fabricctl_analysis import verdicts
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.model import Accounts, Heat, Report, Verdict
from fabricctl_analysis.plots import DOWN, GAP, GRID, RECEIVED, UNSEEN, Axis, hover, plot

MAX_VERDICTS = 50


def accounts_section(report: Report, axis: Axis, places: dict[str, str]) -> Iterator[str]:
    accounts = report.accounts
    if accounts is None or accounts.signal == "none":
        return
    yield "<h2>Where the time went</h2>"
    yield from _lines(accounts)
    told = [one for one in accounts.verdicts if one.cause != "start_end"]
    if told or accounts.harmless:
        yield '<ol class="findings">'
        for one in told[:MAX_VERDICTS]:
            weight = "info" if one.certainty == "none" else "error"
            yield _item(weight, one, verdicts.sentence(one, axis.when, accounts), axis)
        for one in accounts.harmless[:MAX_VERDICTS]:
            yield _item("info", one, verdicts.quiet_sentence(one, axis.when), axis)
        yield "</ol>"
    if "pace" in places:
        caption = "<b>Pace of the job</b>: 1 is its usual pace; shaded where time was lost"
        yield f"<figure><figcaption>{caption}</figcaption>{places['pace']}</figure>"
    if "heat" in places:
        caption = (
            "<b>Pace of each node</b>: blue slower, red faster than its usual; grey not measured"
        )
        yield f"<figure><figcaption>{caption}</figcaption>{places['heat']}</figure>"
    yield f'<p class="soft small">{escape(verdicts.basis(accounts))}</p>'
    advice = verdicts.advice(report)
    if advice:
        items = "".join(f"<li>{escape(words)}.</li>" for words in advice)
        yield f'<h2>Advice</h2><ul class="advice">{items}</ul>'


def _lines(accounts: Accounts) -> Iterator[str]:
    yield '<div class="scroll"><table><thead><tr><th>what</th><th>amount</th><th>share</th></tr>'
    yield "</thead><tbody>"
    for line in verdicts.lines(accounts):
        yield (
            f"<tr><td>{escape(line.what)}</td><td>{verdicts.amount(line.amount_ns)}</td>"
            f"<td>{verdicts.share(line.amount_ns, accounts)}</td></tr>"
        )
    whole = verdicts.amount(accounts.elapsed_ns)
    yield f"<tr><td><b>all nodes, begin to end</b></td><td><b>{whole}</b></td><td>100 %</td></tr>"
    yield "</tbody></table></div>"


def _item(weight: str, one: Verdict, text: str, axis: Axis) -> str:
    begin, end = axis.ms(one.begin_ns), axis.ms(one.end_ns)
    label = one.certainty if one.certainty != "none" else "unknown"
    return (
        f'<li class="{weight}"><b>{label}</b><span>{escape(text)}</span>'
        f'<button data-begin="{begin:.6f}" data-end="{end:.6f}">Show</button></li>'
    )


def pace_plot(accounts: Accounts, whole: Span, axis: Axis) -> figure:
    """The pace as a line, with the verdicts' intervals behind it."""
    values = np.array(accounts.pace)
    top = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
    top = min(max(1.2, top * 1.05), 3.0)
    made = plot(axis, 120, values=(0.0, top))
    made.yaxis.ticker = BasicTicker(desired_num_ticks=4)
    _shade(made, accounts, axis, top)
    edges = np.linspace(whole.begin_ns, whole.end_ns, len(values) + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    source = ColumnDataSource(
        {"x": axis.all_ms(middle.astype(np.int64)), "y": values.astype(np.float32)}
    )
    made.line("x", "y", source=source, line_color=RECEIVED, line_width=1.5)
    made.add_layout(Line(location=1, dimension="width", line_color=GRID, line_dash="dashed"))
    return made


def heat_map(heat: Heat, whole: Span, axis: Axis) -> figure:
    """Nodes by time, the first on top."""
    count = len(heat.nodes)
    made = plot(axis, min(max(8 * count, 60), 420), values=(0.0, float(count)))
    step = max(1, -(-count // 12))
    ticks = list(range(0, count, step))
    made.yaxis.ticker = FixedTicker(ticks=[count - nth - 0.5 for nth in ticks])
    made.yaxis.major_label_overrides = {count - nth - 0.5: heat.nodes[nth][-11:] for nth in ticks}
    made.ygrid.visible = False
    colours = LinearColorMapper(palette=_PALETTE, low=0, high=200, high_color=GAP)
    left, right = axis.ms(whole.begin_ns), axis.ms(whole.end_ns)
    look: dict[str, Any] = {"image": [np.flipud(heat.levels)], "color_mapper": colours}
    drawn = made.image(x=left, y=0, dw=right - left, dh=count, **look)
    made.add_tools(hover(drawn, [("% of its usual pace", "@image")]))
    return made


# Diverging, from RdBu of ColorBrewer: told apart with any colour vision.
_PALETTE = (
    "#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7", "#fddbc7", "#f4a582",
    "#d6604d", "#b2182b", "#67001f",
)  # fmt: skip


def _shade(made: figure, accounts: Accounts, axis: Axis, top: float) -> None:
    shown = accounts.verdicts[:MAX_VERDICTS]
    if not shown:
        return
    source = ColumnDataSource(
        {
            "left": [axis.ms(one.begin_ns) for one in shown],
            "right": [axis.ms(one.end_ns) for one in shown],
            "colour": [UNSEEN if one.certainty == "none" else DOWN for one in shown],
            "text": [f"{verdicts.CAUSES[one.cause]}: {verdicts.interval(one)}" for one in shown],
        }
    )
    drawn = made.quad(
        left="left", right="right", bottom=0.0, top=top, source=source, fill_color="colour",
        fill_alpha=0.25, line_color="colour", line_alpha=0.6,
    )  # fmt: skip
    made.add_tools(hover(drawn, [("", "@text")]))
