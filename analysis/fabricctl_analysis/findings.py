"""What a reader should know first, as sentences, the worst first.

Only what was measured is said; causes are not guessed at.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import takewhile

from fabricctl.units import format_duration
from fabricctl_analysis.attempts import attempt_findings
from fabricctl_analysis.clock_findings import clock_findings
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.links import Cause, Down
from fabricctl_analysis.model import SEVERITIES, Figure, Finding, RailSummary, Report, Severity
from fabricctl_analysis.move_findings import findings_of_moves
from fabricctl_analysis.names import folded
from fabricctl_analysis.saved import findings_of_savings
from fabricctl_analysis.shared_rails import findings_of_shares
from fabricctl_analysis.state_findings import state_findings
from fabricctl_analysis.when import When

# Intervals of one rail index on several nodes that begin and end this close together are told as
# one (a switch, not four cables); nodes' clocks may differ by some of it.
TOGETHER_NS = 500_000_000
# More intervals than this on one rail are summed up in one sentence: it flaps.
FLAPS = 3

_RailDown = tuple[RailSummary, Down]

_WORDS: dict[Cause, str] = {
    "carrier": "without carrier",
    "admin": "switched off (administratively down)",
    "removed": "gone (its interface was removed)",
}


def findings(report: Report, when: When) -> tuple[Finding, ...]:
    """All of them, by severity, then by how long they lasted."""
    found = [
        *_lost_nodes(report),
        *_damage(report),
        *_links(report, when),
        *_missed(report, when),
        *_gaps(report, when),
        *_errors(report),
        *_remarks(report, when),
        *_clock(report, when),
        *clock_findings(report, when),
        *state_findings(report, when),
        *findings_of_moves(report, when),
        *findings_of_savings(report),
        *findings_of_shares(report, when),
        *attempt_findings(report),
    ]
    return tuple(sorted(found, key=_weight))


def _weight(one: Finding) -> tuple[int, int, int]:
    length = (one.end_ns or 0) - (one.begin_ns or 0)
    return SEVERITIES.index(one.severity), -length, one.begin_ns or 0


def _lost_nodes(report: Report) -> Iterator[Finding]:
    for one in report.unmeasured:
        if one.what == "everything":
            verb = "was" if len(one.nodes) == 1 else "were"
            text = f"{folded(one.nodes)} {verb} not measured at all: {one.why}."
            yield Finding("error", "node_missing", one.nodes, None, None, None, text)


def _damage(report: Report) -> Iterator[Finding]:
    """The file's own wounds, in one sentence: the table of what was not measured has each."""
    torn = [one for one in report.unmeasured if one.damaged and one.what != "everything"]
    if not torn:
        return
    nodes = tuple(dict.fromkeys(name for one in torn for name in one.nodes))
    of = f" of {folded(nodes)}" if nodes else ""
    more = f", and {len(torn) - 1} more" if len(torn) > 1 else ""
    text = f"The trace{of} is damaged, this report is part of it: {torn[0].why}{more}."
    yield Finding("error", "damaged", nodes, None, None, None, text)


def _links(report: Report, when: When) -> Iterator[Finding]:
    single: list[_RailDown] = []
    for rail in report.rails:
        if len(rail.link.downs) > FLAPS:
            yield _flapping(rail, when)
        else:
            single += [(rail, down) for down in rail.link.downs]
    for group in _together(single):
        yield _down(group, when)


def _together(single: list[_RailDown]) -> list[list[_RailDown]]:
    """Intervals of one rail index that begin and end at the same time."""
    groups: list[list[_RailDown]] = []
    for one in sorted(single, key=lambda one: (one[0].index, one[1].begin_ns)):
        near = takewhile(lambda group: _near(group[0], one), reversed(groups))  # noqa: B023
        group = next((group for group in near if _alike(group[0][1], one[1])), None)
        if group is None:
            groups.append([one])
        else:
            group.append(one)
    return groups


def _near(first: _RailDown, other: _RailDown) -> bool:
    begin_ns = other[1].begin_ns - first[1].begin_ns
    return first[0].index == other[0].index and begin_ns <= TOGETHER_NS


def _alike(a: Down, b: Down) -> bool:
    if a.cause != b.cause:
        return False
    if a.end_ns is None or b.end_ns is None:
        return a.end_ns is b.end_ns
    return abs(a.end_ns - b.end_ns) <= TOGETHER_NS


def _down(group: list[_RailDown], when: When) -> Finding:
    rail, down = group[0]
    nodes = tuple(dict.fromkeys(one.node for one, _ in group))
    where = f"Rail r{rail.index} of {folded(nodes)}"
    text = f"{where} was {_WORDS[down.cause]} {interval(down, rail.measured_end_ns, when)}."
    end = down.end_ns if down.end_ns is not None else rail.measured_end_ns
    return Finding("error", "link_down", nodes, rail.index, down.begin_ns, end, text)


def interval(down: Down, measured_end_ns: int, when: When) -> str:
    """``3.02 s, 10:02:03.124 to 10:02:06.140``, or what is known of it."""
    begin = when.clock(down.begin_ns - down.begin_error_ns)
    if down.begin_source == "edge":
        begin = f"{begin} (measurement began so)"
    if down.end_ns is None:
        return f"from {begin} on, still so at its last sample, {when.clock(measured_end_ns)}"
    shortest, longest = bounds_ns(down)
    took, end = duration(shortest, longest), when.clock(down.end_ns)
    if shortest == longest:
        return f"{took}, {begin} to {end}"
    if down.begin_source == "edge":
        return f"at least {format_duration(shortest / 1e9)}, {begin} to {end}"
    return f"{took}, between {begin} and {end} (seen by samples, not as it happened)"


def bounds_ns(down: Down) -> tuple[int, int]:
    """Shortest and longest that a closed interval can have been."""
    assert down.end_ns is not None
    shortest = max(0, down.end_ns - down.end_error_ns - down.begin_ns)
    return shortest, down.end_ns - down.begin_ns + down.begin_error_ns


def duration(shortest_ns: int, longest_ns: int) -> str:
    """``3.02 s``, ``1.00 s to 3.00 s``, ``less than 2.00 s``."""
    longest = format_duration(longest_ns / 1e9)
    if shortest_ns == longest_ns:
        return longest
    return (
        f"{format_duration(shortest_ns / 1e9)} to {longest}"
        if shortest_ns
        else (f"less than {longest}")
    )


def _flapping(rail: RailSummary, when: When) -> Finding:
    downs = rail.link.downs
    begin, last = downs[0].begin_ns, downs[-1].end_ns or rail.measured_end_ns
    text = (
        f"Rail r{rail.index} of {rail.node} went down {len(downs)} times, "
        f"{down_text(rail)} in all, {when.clock(begin)} to {when.clock(last)}."
    )
    return Finding("error", "link_flapping", (rail.node,), rail.index, begin, last, text)


def down_text(rail: RailSummary) -> str:
    """How long the rail was down over the job, with bounds where samples alone told."""
    if not rail.link.measured:
        return "not measured"
    closed = [bounds_ns(down) for down in rail.link.downs if down.end_ns is not None]
    still = [
        rail.measured_end_ns - down.begin_ns for down in rail.link.downs if down.end_ns is None
    ]
    shortest, longest = sum(one[0] for one in closed), sum(one[1] for one in closed)
    return duration(shortest + sum(still), longest + sum(still))


def _missed(report: Report, when: When) -> Iterator[Finding]:
    for rail in report.rails:
        if not rail.link.missed:
            continue
        changes = sum(missed.changes for missed in rail.link.missed)
        begin, end = rail.link.missed[0].begin_ns, rail.link.missed[-1].end_ns
        text = (
            f"Rail r{rail.index} of {rail.node} changed carrier {changes} times between "
            f"{when.clock(begin)} and {when.clock(end)}, as the kernel's counter alone tells: "
            "how long it was down is not known."
        )
        yield Finding("error", "link_missed", (rail.node,), rail.index, begin, end, text)


def _gaps(report: Report, when: When) -> Iterator[Finding]:
    """A node with many gaps is one finding, and so are gaps of several nodes at one time."""
    of_node: dict[tuple[str, ...], list[tuple[Span, str]]] = defaultdict(list)
    for one in report.unmeasured:
        if one.span is not None:
            of_node[one.nodes].append((one.span, one.why))
    groups: list[tuple[list[str], list[tuple[Span, str]]]] = []
    for nodes, gaps in of_node.items():
        same = next((group for group in groups if _same_gaps(group[1], gaps)), None)
        if same is None:
            groups.append((list(nodes), gaps))
        else:
            same[0].extend(nodes)
    for names, gaps in groups:
        yield _gap(tuple(names), gaps, when)


def _same_gaps(a: list[tuple[Span, str]], b: list[tuple[Span, str]]) -> bool:
    return len(a) == len(b) and all(
        why == other_why
        and abs(span.begin_ns - other.begin_ns) <= TOGETHER_NS
        and abs(span.end_ns - other.end_ns) <= TOGETHER_NS
        for (span, why), (other, other_why) in zip(a, b, strict=True)
    )


def _gap(nodes: tuple[str, ...], gaps: list[tuple[Span, str]], when: When) -> Finding:
    begin, end = gaps[0][0].begin_ns, gaps[-1][0].end_ns
    length = format_duration(sum(span.length_ns for span, _ in gaps) / 1e9)
    often = f" in {len(gaps)} gaps" if len(gaps) > 1 else ""
    verb, each = ("was", "") if len(nodes) == 1 else ("were", " each")
    why = "; ".join(dict.fromkeys(why for _, why in gaps))
    text = (
        f"{folded(nodes)} {verb} not measured for {length}{each}{often}, "
        f"{when.clock(begin)} to {when.clock(end)}: {why}."
    )
    return Finding("warning", "gap", nodes, None, begin, end, text)


def _errors(report: Report) -> Iterator[Finding]:
    for rail in report.rails:
        counted = [
            f"{figure_text(rail.counters[name])} {label} errors"
            for name, label in (("rx_errors", "receive"), ("tx_errors", "transmit"))
            if rail.counters[name].value
        ]
        if counted:
            text = f"Rail r{rail.index} of {rail.node} counted {' and '.join(counted)}."
            yield Finding("warning", "errors", (rail.node,), rail.index, None, None, text)


def figure_text(figure: Figure) -> str:
    """A count: ``12``, ``at least 12``."""
    if figure.value is None:
        return "not measured"
    return f"at least {figure.value:.0f}" if figure.at_least else f"{figure.value:.0f}"


def _remarks(report: Report, when: When) -> Iterator[Finding]:
    """What nodes noted, one sentence once: the same words from many nodes are one finding."""
    same: dict[tuple[Severity, str, str], list[tuple[str, int]]] = defaultdict(list)
    for remark in report.remarks:
        if remark.severity != "info":
            key = (remark.severity, remark.source, remark.text)
            same[key].append((remark.node, remark.at_ns))
    for (severity, source, words), told in same.items():
        nodes = tuple(dict.fromkeys(node for node, _ in told))
        text = f"{folded(nodes)} at {when.clock(told[0][1])}, {source}: {words}"
        yield Finding(severity, "note", nodes, None, told[0][1], told[-1][1], text)


def _clock(report: Report, when: When) -> Iterator[Finding]:
    for node, step in report.clock_steps:
        way = "forward" if step.size_ns > 0 else "back"
        text = (
            f"The clock of {node} was set {way} by {format_duration(abs(step.size_ns) / 1e9)} "
            f"between {when.clock(step.begin_real_ns)} and {when.clock(step.end_real_ns)}: "
            "its times before and after do not subtract."
        )
        at = (step.begin_real_ns, step.end_real_ns)
        yield Finding("warning", "clock_step", (node,), None, *at, text)
