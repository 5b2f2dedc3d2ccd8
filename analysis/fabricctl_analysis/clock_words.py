"""What the report says of the job clock: sentences, findings, the JSON section."""

from collections.abc import Iterator, Sequence
from math import isnan

from fabricctl.store.schema import StampSource
from fabricctl.units import format_duration
from fabricctl_analysis import phrases
from fabricctl_analysis.clock_findings import WORTH_TELLING_NS, spell, spells
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.job_clock import ClockSummary, apart_ns
from fabricctl_analysis.model import NodeSummary, Report
from fabricctl_analysis.when import When, iso

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None

MAX_TOLD = 4  # spells without measurements, in the terminal
TABLE_HEAD = ("node", "job time from", "likely error", "99 %", "worst", "certain", "held over",
              "without", "system clock", "stamps")  # fmt: skip
_STAMPED = {
    StampSource.HARDWARE: "NIC",
    StampSource.SOFTWARE: "kernel",
    StampSource.SCHED: "kernel, early",
    StampSource.USER: "program",
}


def sentences(report: Report, when: When) -> Iterator[str]:
    """A paragraph a sentence; none when no node should have had a job clock."""
    clocks = [(node, node.clock) for node in report.nodes if node.clock is not None]
    measured = [node.name for node in report.nodes if node.measured]
    if len(report.nodes) < 2 or not measured:
        return
    if not clocks:
        yield "Job clock: no node had one."
        return
    yield _errors([clock for _, clock in clocks], len(measured))
    by_nic = [node.name for node, clock in clocks if clock.stamps == StampSource.HARDWARE]
    if by_nic:
        who = "all nodes" if len(by_nic) == len(clocks) else phrases.some(by_nic)
        yield f"The NICs of {who} stamped its probes."
    without = [node.name for node in report.nodes if node.measured and node.clock is None]
    if without:
        yield f"{phrases.some(without)} never had job time."
    told = [
        f"{node.name} {spell(span, when)} ({words})"
        for node, clock in clocks
        for span, words in spells(clock)
        if span.length_ns >= WORTH_TELLING_NS
    ]
    if told:
        more = f"; and {len(told) - MAX_TOLD} more" if len(told) > MAX_TOLD else ""
        yield f"Not measured for a while: {'; '.join(told[:MAX_TOLD])}{more}."


def _errors(clocks: Sequence[ClockSummary], measured: int) -> str:
    likely = [clock.likely_ns for clock in clocks if clock.likely_ns is not None]
    text = f"Job clock: {len(clocks)} of {measured} nodes on one time"
    if not likely:
        return f"{text}, with an error not known."
    median = sorted(one[0] for one in likely)[len(likely) // 2]
    text += f", each likely within {_ns(median)}, {_ns(max(one[2] for one in likely))} at worst"
    certain = [clock.certain_ns for clock in clocks if clock.certain_ns is not None]
    if certain:
        usual = sorted(one[0] for one in certain)[len(certain) // 2]
        text += f"; certainly within {_ns(usual)} as a rule"
    return f"{text}."


def _ns(span_ns: float) -> str:
    return format_duration(span_ns / 1e9)


def cells(node: NodeSummary, when: When) -> tuple[str, ...]:
    """A row under TABLE_HEAD."""
    clock = node.clock
    if clock is None:
        return (node.name, *[phrases.UNKNOWN] * (len(TABLE_HEAD) - 1))
    likely: Sequence[int | None] = clock.likely_ns or (None, None, None)
    held = sum(one.span.length_ns for one in clock.holdovers)
    lost = sum(span.length_ns for span in clock.lost)
    return (
        node.name,
        when.clock(clock.first_ns, 1),
        *(phrases.UNKNOWN if value is None else _ns(value) for value in likely),
        phrases.UNKNOWN if clock.certain_ns is None else _ns(clock.certain_ns[0]),
        _ns(held) if held else "-",
        _ns(lost) if lost else "-",
        phrases.UNKNOWN if clock.ahead_ns is None else _ahead(*clock.ahead_ns),
        phrases.UNKNOWN if clock.stamps is None else _STAMPED[clock.stamps],
    )


def _ahead(least_ns: int, most_ns: int) -> str:
    middle = (least_ns + most_ns) / 2
    return f"{_ns(abs(middle))} {'ahead' if middle >= 0 else 'behind'} \N{PLUS-MINUS SIGN} " + _ns(
        (most_ns - least_ns) / 2
    )


def json_section(report: Report) -> Json:
    """Documented in docs/report-json.md under ``job_clock``."""
    begin = report.whole.begin_ns
    nodes: list[Json] = [
        {"node": node.name, **_node_json(node.clock, begin)}
        for node in report.nodes
        if node.clock is not None
    ]
    return {"nodes": nodes}


def _node_json(clock: ClockSummary, begin: int) -> dict[str, Json]:
    likely: Sequence[int | None] = clock.likely_ns or (None, None, None)
    certain: Sequence[int | None] = clock.certain_ns or (None, None)
    ahead: Sequence[int | None] = clock.ahead_ns or (None, None)
    return {
        "first": iso(clock.first_ns),
        "first_s": (clock.first_ns - begin) / 1e9,
        "rows": clock.rows,
        "synchronised_s": clock.synchronised_ns / 1e9,
        "likely_ns": dict(zip(("median", "p99", "max"), likely, strict=True)),
        "certain_ns": dict(zip(("median", "max"), certain, strict=True)),
        "stamps": None if clock.stamps is None else clock.stamps.name.lower(),
        "system_clock_ahead_ns": dict(zip(("least", "most"), ahead, strict=True)),
        "holdover": [
            {**_span_json(one.span, begin), "likely_ns": one.likely_ns} for one in clock.holdovers
        ],
        "lost": [_span_json(span, begin) for span in clock.lost],
        "error_over_time": [
            {"end_s": (int(end) - begin) / 1e9, "likely_ns": None if isnan(most) else round(most)}
            for end, most in zip(clock.error.end_ns, clock.error.high.tolist(), strict=True)
        ],
    }


def _span_json(span: Span, begin: int) -> dict[str, Json]:
    return {
        "begin": iso(span.begin_ns),
        "begin_s": (span.begin_ns - begin) / 1e9,
        "end": iso(span.end_ns),
        "end_s": (span.end_ns - begin) / 1e9,
    }


def between_nodes_ns(report: Report) -> int | None:
    """How far two nodes' system clocks may have been apart."""
    return apart_ns([node.clock for node in report.nodes if node.measured])
