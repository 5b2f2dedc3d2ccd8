"""A node whose job clock was not measured for a while: how that is told."""

from collections.abc import Iterator

from fabricctl.units import format_duration
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.job_clock import ClockSummary
from fabricctl_analysis.model import Finding, Report
from fabricctl_analysis.when import When

# Holding over for less is what a busy second looks like; the bounds say how little it costs.
WORTH_TELLING_NS = 3_000_000_000


def clock_findings(report: Report, when: When) -> Iterator[Finding]:
    """A node that was without measurements, told by its longest spell."""
    for node in report.nodes:
        all_spells = [] if node.clock is None else list(spells(node.clock))
        told = [one for one in all_spells if one[0].length_ns >= WORTH_TELLING_NS]
        if not told:
            continue
        longest, words = max(told, key=lambda one: one[0].length_ns)
        more = f", the longest of {len(told)} spells" if len(told) > 1 else ""
        what = f"was not measured {spell(longest, when)} ({words}){more}"
        text = f"The job clock of {node.name} {what}."
        ends = longest.begin_ns, longest.end_ns
        yield Finding("info", "clock_lost", (node.name,), None, *ends, text)


def spells(clock: ClockSummary) -> Iterator[tuple[Span, str]]:
    """Without measurements, in the order of time, and what that did."""
    held = [
        (
            one.span,
            "held over"
            if one.likely_ns is None
            else f"held over to {format_duration(one.likely_ns / 1e9)}",
        )
        for one in clock.holdovers
    ]
    lost = [(span, "no job time") for span in clock.lost]
    yield from sorted([*held, *lost], key=lambda one: one[0].begin_ns)


def spell(span: Span, when: When) -> str:
    """``4.20 s, 14:13:40.1 to 14:13:44.3``."""
    length = format_duration(span.length_ns / 1e9)
    return f"{length}, {when.clock(span.begin_ns, 1)} to {when.clock(span.end_ns, 1)}"
