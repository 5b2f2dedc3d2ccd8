"""Link failover as rows of the report's tables and as JSON."""

from fabricctl.units import format_bytes, format_duration
from fabricctl_analysis import phrases, shared_rails
from fabricctl_analysis.model import Report
from fabricctl_analysis.moves import Incident, what_words, where_words
from fabricctl_analysis.names import folded
from fabricctl_analysis.when import When, iso

HEAD = ("rail", "between", "what", "where", "began", "detected", "moved", "ran again", "streams",
        "waiting", "used again")  # fmt: skip
TEXT_COLUMNS = (2, 3, 10)  # of HEAD, for alignment
SHORT_HEAD = ("MOVED", "nodes", "began", "detected", "moved", "ran again", "used again after")

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


def cells(one: Incident, when: When) -> tuple[str, ...]:
    """One row under HEAD."""
    begin, moved, waited = _times(one)
    return (
        f"r{one.rail}",
        f"{folded(one.nodes)} ({one.pairs})",
        what_words(one),
        where_words(one) or "not found out",
        when.clock(one.begin_ns),
        begin,
        moved,
        waited,
        str(one.streams),
        format_bytes(one.waiting_bytes),
        _back(one),
    )


def short_cells(one: Incident, when: When) -> tuple[str, ...]:
    """One row under SHORT_HEAD."""
    return (f"r{one.rail} {one.reasons[0]}", folded(one.nodes), when.clock(one.begin_ns),
            *_times(one), _back(one))  # fmt: skip


def _times(one: Incident) -> tuple[str, str, str]:
    moved = "no move" if one.moved_ns is None else format_duration(one.moved_ns[1] / 1e9)
    waited = phrases.UNKNOWN if one.waited_ns is None else format_duration(one.waited_ns / 1e9)
    if one.waited_ns is None and not one.streams:
        waited = "none waited"
    return format_duration(one.detected_ns / 1e9), moved, waited


def _back(one: Incident) -> str:
    if one.end_ns is None:
        return "no"
    return format_duration((one.end_ns - one.begin_ns) / 1e9)


def document(report: Report, begin_ns: int) -> Json:
    """The ``paths`` object of docs/report-json.md."""
    moves = report.moves
    return {
        "measured": moves.measured,
        "incidents": [_incident(one, begin_ns) for one in moves.incidents],
        "requests": [
            {"node": row.node, "text": row.text, **_at("at", row.at_ns, begin_ns)}
            for row in moves.requests
        ],
        "off": [{"node": row.node, "why": row.text} for row in moves.off],
        "silent_hosts": [
            {"node": peer, **_at("begin", begin, begin_ns), **_at("end", end, begin_ns)}
            for peer, begin, end in moves.stalls
        ],
        **shared_rails.document(report, begin_ns),
    }


def _incident(one: Incident, begin_ns: int) -> Json:
    first, last = one.moved_ns or (None, None)
    return {
        "rail": one.rail,
        "nodes": list(one.nodes),
        "pairs": one.pairs,
        "reasons": list(one.reasons),
        "cause": one.cause,
        "cause_nodes": list(one.cause_nodes),
        **_at("begin", one.begin_ns, begin_ns),
        "detected_s": one.detected_ns / 1e9,
        "first_moved_s": None if first is None else first / 1e9,
        "last_moved_s": None if last is None else last / 1e9,
        "streams": one.streams,
        "waiting_bytes": one.waiting_bytes,
        "recovered_s": None if one.waited_ns is None else one.waited_ns / 1e9,
        **_at("end", one.end_ns, begin_ns),
    }


def _at(name: str, at_ns: int | None, begin: int) -> dict[str, Json]:
    if at_ns is None:
        return {name: None, f"{name}_s": None}
    return {name: iso(at_ns), f"{name}_s": (at_ns - begin) / 1e9}
