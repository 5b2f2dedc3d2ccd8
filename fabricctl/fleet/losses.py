"""When a job's links were down, out of the traces in the site's directory."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path

from fabricctl import layout
from fabricctl.errors import TraceError
from fabricctl.fleet.usage import Spans
from fabricctl.store import schema
from fabricctl.store.schema import LinkEvent
from fabricctl.store.trace import Trace, open_trace
from fabricctl_analysis.guard import Limits, guarded

_DOWN = (LinkEvent.CARRIER_DOWN, LinkEvent.ADMIN_DOWN, LinkEvent.REMOVED)
_UP = (LinkEvent.CARRIER_UP, LinkEvent.ADMIN_UP, LinkEvent.ADDED)


def read(trace_dir: Path, jobs: Collection[int]) -> tuple[Mapping[int, list[Spans]], list[str]]:
    """By job, and what could not be read: a trace that is damaged, a folder that is not ours."""
    found: dict[int, list[Spans]] = {}
    problems: list[str] = []
    try:
        folders = sorted(path for path in trace_dir.iterdir() if path.is_dir())
    except OSError as error:
        return {}, [f"{trace_dir}: {error.strerror}"]
    for folder in folders:
        try:
            paths = sorted(folder.iterdir())
        except OSError:
            continue  # another user's: whoever asks sees their own only
        for path in paths:
            which = layout.parse_trace_file(path)
            if which is None or which[0] not in jobs:
                continue
            try:
                found.setdefault(which[0], []).append(read_one(path))
            except TraceError as error:
                problems.append(str(error))
    return found, problems


def read_one(path: Path) -> Spans:
    """In a child: a trace is its user's, and may be anything. Raises :class:`TraceError`."""

    def work() -> dict[str, str]:
        with open_trace(path) as trace:
            return {"spans": json.dumps(asdict(spans(trace)))}

    given = json.loads(guarded(path, work, Limits.of(path))["spans"])
    return Spans(**{**given, "down": tuple((first, last) for first, last in given["down"])})


def spans(trace: Trace) -> Spans:
    """Of one attempt; a link that does not come back is down to the job's end."""
    job = trace.job
    down: list[tuple[float, float]] = []
    for name in trace.nodes:
        began: dict[int, int] = {}
        for row in trace.table(name, schema.LINK_EVENT):
            rail, kind, at_ns = int(row["rail"]), int(row["event"]), int(row["time_real_ns"])
            if kind in _DOWN:
                began.setdefault(rail, at_ns)
            elif kind in _UP and rail in began:
                down.append((began.pop(rail) / 1e9, at_ns / 1e9))
        down += [(at_ns / 1e9, job.end_real_ns / 1e9) for at_ns in began.values()]
    return Spans(job.job, job.begin_real_ns / 1e9, job.end_real_ns / 1e9, tuple(sorted(down)))
