"""What happened to a job, event by event, out of its trace."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from fabricctl.store import schema
from fabricctl.store.schema import LinkEvent, PathEvent, PathLevel, PathReason, StepEvent
from fabricctl.store.trace import NodeInfo, Trace, open_trace, text
from fabricctl.units import format_duration
from fabricctl_analysis.guard import Limits, guarded

_LINK_WORDS: Mapping[int, str] = {
    LinkEvent.CARRIER_DOWN: "lost carrier",
    LinkEvent.CARRIER_UP: "has carrier again",
    LinkEvent.ADMIN_DOWN: "was switched off",
    LinkEvent.ADMIN_UP: "was switched on",
    LinkEvent.REMOVED: "is gone",
    LinkEvent.ADDED: "is there again",
}
_BAD_LINK: Collection[int] = (LinkEvent.CARRIER_DOWN, LinkEvent.ADMIN_DOWN, LinkEvent.REMOVED)
NOT_SAID = 0xFF  # of every column of one byte


@dataclass(frozen=True)
class Event:
    """One line; ``at_real_ns`` is CLOCK_REALTIME of the node that saw it."""

    at_real_ns: int
    node: str
    kind: str  # job, step, link, path, note
    severity: str  # error, warning, info
    text: str
    rail: int | None = None


def job_events(path: Path) -> tuple[Event, ...]:
    """All events of a trace, oldest first. Raises :class:`~fabricctl.errors.TraceError`.

    Read in a child: a trace is its user's, and may be anything.
    """

    def work() -> dict[str, str]:
        return {"events": json.dumps([asdict(event) for event in _events(path)])}

    texts = guarded(path, work, Limits.of(path))
    return tuple(Event(**given) for given in json.loads(texts["events"]))


def _events(path: Path) -> tuple[Event, ...]:
    with open_trace(path) as trace:
        job = trace.job
        found = [Event(job.begin_real_ns, "", "job", "info", "the job began")]
        for name, info in trace.nodes.items():
            found += _links(trace, name, info)
            found += _paths(trace, name, info)
            found += _steps(trace, name, info)
            found += _notes(trace, name, info)
        for node in job.missing_nodes:
            said = f"{node} left no trace"
            found.append(Event(job.end_real_ns, node, "job", "warning", said))
        found.append(Event(job.end_real_ns, "", "job", "info", "the job ended"))
    return tuple(sorted(found, key=lambda event: event.at_real_ns))


def _links(trace: Trace, name: str, info: NodeInfo) -> Iterator[Event]:
    for row in trace.table(name, schema.LINK_EVENT):
        kind, rail = int(row["event"]), int(row["rail"])
        said = f"{_rail(info, rail)} {_LINK_WORDS.get(kind, f'had event {kind}')}"
        severity = "error" if kind in _BAD_LINK else "info"
        yield Event(int(row["time_real_ns"]), info.node, "link", severity, said,
                    None if rail == NOT_SAID else rail)  # fmt: skip


def _paths(trace: Trace, name: str, info: NodeInfo) -> Iterator[Event]:
    for row in trace.table(name, schema.PATH_EVENT):
        kind, rail = int(row["event"]), int(row["rail"])
        severity = "info"
        if kind in (PathEvent.STALLED, PathEvent.TROUBLE):
            severity = "error"
        elif kind == PathEvent.PATH and int(row["level"]) != PathLevel.GOOD:
            severity = "warning"
        yield Event(int(row["time_real_ns"]), info.node, "path", severity,
                    _path_text(row, info), None if rail == NOT_SAID else rail)  # fmt: skip


def _path_text(row: Any, info: NodeInfo) -> str:
    kind, peer = int(row["event"]), text(row["peer"])
    words = [_word(PathEvent, kind)]
    if peer:
        words.append(f"to {peer}")
    if int(row["rail"]) != NOT_SAID:
        words.append(f"on {_rail(info, int(row['rail']))}")
    level, reason = int(row["level"]), int(row["reason"])
    if kind == PathEvent.PATH:
        words.append(_word(PathLevel, level))
    if reason not in (PathReason.NONE, NOT_SAID):
        words.append(f"({_word(PathReason, reason)})")
    at, begin, moved = (int(row[key]) for key in ("time_mono_ns", "begin_mono_ns", "moved_mono_ns"))
    if moved:
        since = begin if 0 < begin <= moved else at
        words.append(f"moved after {format_duration(max(0, moved - since) / 1e9)}")
    extra = text(row["text"])
    return " ".join(words) + (f": {extra}" if extra else "")


def _steps(trace: Trace, name: str, info: NodeInfo) -> Iterator[Event]:
    for row in trace.table(name, schema.STEP):
        verb = "began" if int(row["event"]) == StepEvent.BEGIN else "ended"
        said = f"step {text(row['step'])} {verb}"
        yield Event(int(row["time_real_ns"]), info.node, "step", "info", said)


def _notes(trace: Trace, name: str, info: NodeInfo) -> Iterator[Event]:
    for row in trace.table(name, schema.NOTE):
        weight = int(row["severity"])
        severity = _word(schema.Severity, min(weight, schema.Severity.ERROR))
        said = f"{text(row['source'])}: {text(row['text'])}"
        yield Event(int(row["time_real_ns"]), info.node, "note", severity, said)


def _rail(info: NodeInfo, rail: int) -> str:
    return info.rails[rail] if rail < len(info.rails) else f"rail {rail}"


def _word(names: type[IntEnum], value: int) -> str:
    """A value's name; its number when a newer writer knows more of them."""
    try:
        return names(value).name.lower().replace("_", " ")
    except ValueError:
        return str(value)
