"""What link failover did, and where it could not, as sentences."""

from collections.abc import Iterator

from fabricctl.units import format_duration
from fabricctl_analysis.model import Finding, Report, Severity
from fabricctl_analysis.moves import Incident, moved_words, what_words, where_words
from fabricctl_analysis.names import folded
from fabricctl_analysis.when import When

# More incidents of one rail than this are summed up in one sentence; the table has each.
MANY = 4
MAX_OFF = 3
# fabricctl/paths/launch.py says these.
ONE_NODE = "the job has one node"
FEW_RAILS = "two are needed"


def findings_of_moves(report: Report, when: When) -> Iterator[Finding]:
    """What was moved, where link failover was not at work, and who was silent."""
    for rail in sorted({one.rail for one in report.moves.incidents}):
        mine = [one for one in report.moves.incidents if one.rail == rail]
        if len(mine) > MANY:
            yield _often(mine, when)
        else:
            yield from (_moved(one, when) for one in mine)
    yield from _off(report)
    for peer, begin, end in report.moves.stalls:
        took = f"for {format_duration((end - begin) / 1e9)} " if end is not None else ""
        text = (
            f"{peer} was silent on every rail {took}from {when.clock(begin)}"
            f"{'' if end is not None else ' on'}: a host that stood still, not a link."
        )
        yield Finding("warning", "host_silent", (peer,), None, begin, end, text)


def _off(report: Report) -> Iterator[Finding]:
    """Where link failover was not at work; that a site has one rail is no news."""
    reasons: dict[str, list[str]] = {}
    for row in report.moves.off:
        why = "fewer than two rails have an address there" if FEW_RAILS in row.text else row.text
        if ONE_NODE not in row.text:
            reasons.setdefault(why, []).append(row.node)
    for why, names in list(reasons.items())[:MAX_OFF]:
        nodes = tuple(dict.fromkeys(names))
        severity: Severity = "info" if why.startswith("fewer than two") else "warning"
        text = f"Traffic of {folded(nodes)} is not moved between rails: {why}."
        yield Finding(severity, "paths_off", nodes, None, None, None, text)


def _moved(one: Incident, when: When) -> Finding:
    where = where_words(one)
    used = (
        f"used again after {format_duration((one.end_ns - one.begin_ns) / 1e9)}"
        if one.end_ns is not None
        else "not used again"
    )
    text = (
        f"Rail r{one.rail} {what_words(one)} between {folded(one.nodes)} at "
        f"{when.clock(one.begin_ns)}{f' ({where})' if where else ''}: {moved_words(one)}, {used}."
    )
    severity: Severity = "info" if one.reasons == ("drained",) else "warning"
    return Finding(severity, "moved", one.nodes, one.rail, one.begin_ns, one.end_ns, text)


def _often(mine: list[Incident], when: When) -> Finding:
    nodes = tuple(sorted({name for one in mine for name in one.nodes}))
    moved = max((one.moved_ns[1] for one in mine if one.moved_ns), default=None)
    waited = max((one.waited_ns for one in mine if one.waited_ns is not None), default=None)
    text = (
        f"Rail r{mine[0].rail} was left {len(mine)} times between {folded(nodes)}, "
        f"{when.clock(mine[0].begin_ns)} to {when.clock(mine[-1].begin_ns)}"
    )
    if moved is not None:
        text += f"; moved within {format_duration(moved / 1e9)}"
    if waited is not None:
        text += f", streams ran again within {format_duration(waited / 1e9)}"
    ends = [one.end_ns for one in mine]
    last = None if None in ends else max(end for end in ends if end is not None)
    return Finding("warning", "moved", nodes, mine[0].rail, mine[0].begin_ns, last, text + ".")
