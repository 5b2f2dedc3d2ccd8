"""The report as one HTML file: plots, scripts and styles inside, nothing from a network."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from bokeh.document import Document
from bokeh.embed import components
from bokeh.model import Model
from bokeh.resources import Resources

import fabricctl
from fabricctl_analysis import phrases
from fabricctl_analysis.choose import most_telling
from fabricctl_analysis.html_accounts import accounts_section, heat_map, pace_plot
from fabricctl_analysis.html_strips import strip_plot, strips_section
from fabricctl_analysis.html_tables import of_many, tables
from fabricctl_analysis.model import Finding, RailSummary, Report
from fabricctl_analysis.plot_clock import clock_chart, section
from fabricctl_analysis.plot_hosts import CHARTS, colours, host_chart
from fabricctl_analysis.plot_overview import overview
from fabricctl_analysis.plot_rails import traffic
from fabricctl_analysis.plots import DOWN, GAP, RECEIVED, SENT, STEP, UNSEEN, Axis, time_axis
from fabricctl_analysis.repeated import first, readable
from fabricctl_analysis.when import When

# All rails are drawn when there are at most so many, few when there are more: a page of plots
# that look alike hides the ones that do not. 24 plots of 800 points are 1.5 MB, Bokeh is 1.3.
MAX_TRAFFIC, FEW_TRAFFIC = 24, 12
TIMES_EVERY = 6  # plots: that many fit on a screen, and each screen shows the times once
MAX_OVERVIEW, FEW_OVERVIEW = 48, 24
MAX_FINDINGS = 50

# Nothing may be fetched, whatever a trace's texts hold; Bokeh compiles its formatters (eval).
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)


def render_html(report: Report, found: Sequence[Finding], when: When) -> str:
    """The whole page."""
    axis = time_axis(report, when)
    plots = _plots(report, axis)
    script, places = _embedded(plots)
    resources = Resources(mode="inline", components=["bokeh"], log_level="warn")
    here = Path(__file__)
    body = "\n".join(
        [
            *_head(report, when),
            *_findings(report, readable(found, when), axis),
            *accounts_section(report, axis, places),
            *_time_line(report, places),
            *strips_section(report.strips, places),
            *_traffic(report, places),
            *_hosts(report, places),
            *section(report, when, places.get("clock")),
            *tables(report, when),
            *_foot(report),
        ]
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>Job {escape(report.job.title)}</title>
<style>{here.with_name("page.css").read_text(encoding="utf-8")}</style>
{resources.render_js()}
<script>{here.with_name("page.js").read_text(encoding="utf-8")}</script>
</head>
<body>
<main>
{body}
</main>
{script}
</body>
</html>
"""


def _embedded(plots: dict[str, Model]) -> tuple[str, dict[str, str]]:
    """The script with all plots, and each one's place in the page."""
    if not plots:
        return "", {}
    document = Document()
    # Bokeh walks over all models whenever a root is added, 30 roots take it 12 s: once is enough.
    with document.models.freeze():
        for made in plots.values():
            document.add_root(made)
    script, places = components(plots)
    return script, places


def _in_overview(report: Report) -> list[RailSummary]:
    many = len(report.rails) > MAX_OVERVIEW
    return most_telling(report.rails, FEW_OVERVIEW if many else MAX_OVERVIEW)


def _in_traffic(report: Report) -> list[RailSummary]:
    many = len(report.rails) > MAX_TRAFFIC
    return most_telling(report.rails, FEW_TRAFFIC if many else MAX_TRAFFIC)


def _plots(report: Report, axis: Axis) -> dict[str, Model]:
    plots: dict[str, Model] = {}
    if report.whole.length_ns == 0:
        return plots
    if report.accounts is not None and report.accounts.signal != "none":
        plots["pace"] = pace_plot(report.accounts, report.whole, axis)
        if report.accounts.heat is not None and len(report.accounts.heat.nodes) > 1:
            plots["heat"] = heat_map(report.accounts.heat, report.whole, axis)
    if report.nodes:
        plots["overview"] = overview(report, _in_overview(report), axis)
    rails = _in_traffic(report)
    peaks = [rail.peaks[way].value or 0.0 for rail in rails for way in ("rx", "tx")]
    for nth, rail in enumerate(rails):
        last = nth % TIMES_EVERY == TIMES_EVERY - 1 or nth == len(rails) - 1
        plots[f"rail{nth}"] = traffic(report, rail, axis, max(peaks), last)
    for name, _, _ in CHARTS:
        made = host_chart(report, name, axis)
        if made is not None:
            plots[name] = made
    for strip in report.strips:
        plots[f"strip-{strip.name}"] = strip_plot(strip, report.whole, axis)
    if (drawn := clock_chart(report, axis)) is not None:
        plots["clock"] = drawn
    return plots


def _head(report: Report, when: When) -> Iterator[str]:
    job = report.job
    measured = sum(1 for node in report.nodes if node.measured)
    down = sum(1 for rail in report.rails if rail.link.downs or rail.link.missed)
    carrier = [rail for rail in report.rails if rail.link.measured]
    facts = [
        ("Ran", phrases.took(report), phrases.span(report, when)),
        ("Nodes measured", f"{measured} of {len(report.nodes)}",
         f"{phrases.percent(report.coverage)} of the nodes' time"),
        ("Rails that went down", f"{down} of {len(carrier)}" if carrier else "not measured",
         _carrier_words(len(report.rails) - len(carrier))),
        ("Mode", job.mode or "not known",
         f"{job.spares} nodes to spare" if job.spares else "no nodes to spare"),
    ]  # fmt: skip
    yield f"<h1>{escape(phrases.who(report))}</h1>"
    if report.steps:
        yield f'<p class="soft">{escape(phrases.steps(report, when))}</p>'
    yield '<dl class="facts">'
    for term, value, more in facts:
        yield (
            f"<div><dt>{escape(term)}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd>"
            "</div>"
        )
    yield "</dl>"
    yield f'<p class="soft small">{escape(phrases.protection(report))}</p>'


def _carrier_words(unmeasured: int) -> str:
    return f"{unmeasured} more were not measured" if unmeasured else "of the rails measured"


def _findings(report: Report, found: Sequence[Finding], axis: Axis) -> Iterator[str]:
    yield "<h2>What stands out</h2>"
    if not found:
        yield f"<p>{escape(phrases.nothing(report))}</p>"
        return
    yield '<ol class="findings">'
    for one in first(found, MAX_FINDINGS):
        show = ""
        if one.begin_ns is not None and one.end_ns is not None:
            begin, end = axis.ms(one.begin_ns), axis.ms(one.end_ns)
            show = f'<button data-begin="{begin:.6f}" data-end="{end:.6f}">Show</button>'
        yield (
            f'<li class="{one.severity}"><b>{one.severity}</b>'
            f"<span>{escape(one.text)}</span>{show}</li>"
        )
    yield "</ol>"
    if len(found) > MAX_FINDINGS:
        yield f'<p class="soft">and {len(found) - MAX_FINDINGS} more: see --json</p>'


def _legend(entries: Sequence[tuple[str, str, bool]]) -> str:
    """Colour, words, hatched."""
    items = "".join(
        f'<li><i style="--swatch:{colour}"{" class=hatch" if hatched else ""}></i>{escape(words)}'
        "</li>"
        for colour, words, hatched in entries
    )
    return f'<ul class="legend">{items}</ul>'


def _time_line(report: Report, places: dict[str, str]) -> Iterator[str]:
    if "overview" not in places:
        return
    yield '<h2 id="timeline">Time line</h2>'
    yield (
        '<div class="bar"><button data-time="all">Whole job</button>'
        '<button data-time="in" aria-label="Zoom in">+</button>'
        '<button data-time="out" aria-label="Zoom out">&minus;</button>'
        '<button data-time="left" aria-label="Earlier">&larr;</button>'
        '<button data-time="right" aria-label="Later">&rarr;</button>'
        '<span class="soft">Drag over any plot, or Ctrl and wheel: all zoom together.</span></div>'
    )
    shown = len(_in_overview(report))
    if shown < len(report.rails):
        yield of_many(shown, len(report.rails), "rails")
    yield _legend([
        (STEP, "measured, with carrier", False), (DOWN, "down", False),
        (UNSEEN, "perhaps down: between two samples", False),
        (GAP, "not measured", True), (RECEIVED, "job step", False),
    ])  # fmt: skip
    yield f"<figure>{places['overview']}</figure>"


def _traffic(report: Report, places: dict[str, str]) -> Iterator[str]:
    rails = _in_traffic(report)
    if "rail0" not in places:
        return
    yield "<h2>Traffic of each rail</h2>"
    if len(rails) < len(report.rails):
        yield of_many(len(rails), len(report.rails), "rails")
    yield _legend([
        (RECEIVED, "received (upwards)", False), (SENT, "sent (downwards)", False),
        (DOWN, "down", False), (UNSEEN, "perhaps down", False), (GAP, "not measured", True),
    ])  # fmt: skip
    for nth, rail in enumerate(rails):
        down = phrases.down(rail)
        told = "" if down == "-" else f' <span class="bad">down {escape(down)}</span>'
        caption = (
            f"<b>{escape(rail.node)} r{rail.index}</b> {escape(rail.interface)} &middot; received "
            f"{escape(phrases.volume(rail.counters['rx_bytes']))}, sent "
            f"{escape(phrases.volume(rail.counters['tx_bytes']))}{told}"
        )
        yield f"<figure><figcaption>{caption}</figcaption>{places[f'rail{nth}']}</figure>"


def _hosts(report: Report, places: dict[str, str]) -> Iterator[str]:
    yield "<h2>CPU and memory</h2>"
    lines = colours(report)
    if lines:
        yield _legend([(colour, node, False) for node, colour in lines.items()])
    else:
        yield '<p class="soft small">Line: median of the nodes; band: lowest to highest.</p>'
    for name, title, what in CHARTS:
        caption = f"<figcaption><b>{escape(title)}</b> {escape(what)}</figcaption>"
        plot = places.get(name, '<p class="soft">Not measured on any node.</p>')
        yield f"<figure>{caption}{plot}</figure>"


def _foot(report: Report) -> Iterator[str]:
    yield f'<h2>Times</h2><p class="small">{escape(phrases.clock(report))}</p>'
    words = (
        f"Counters are differences of the kernel's own between a node's first and last sample; "
        f"“>” marks a lower bound (the counter was reset). Trace {report.job.source}, schema "
        f"version {report.job.schema_version}; report by fabricctl {fabricctl.__version__}."
    )
    if cost := phrases.overhead(report):
        yield f'<p class="small">{escape(cost)}</p>'
    yield f'<p class="small soft">{escape(words)}</p>'
