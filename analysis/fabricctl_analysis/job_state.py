"""Stalls of the ranks, deaths and starts, as they were recorded (tables ``stall``, ``launch``)."""

from collections.abc import Iterator
from dataclasses import dataclass

from fabricctl.store.schema import LaunchEvent, StallKind
from fabricctl_analysis.rows import NodeRows, clean


@dataclass(frozen=True)
class Stall:
    """Ranks waited; ``end_ns`` None: until the last that is known."""

    kind: StallKind
    begin_ns: int
    end_ns: int | None
    waiting: int
    text: str


@dataclass(frozen=True)
class Launched:
    """One event of `fabricctl run`."""

    event: LaunchEvent
    at_ns: int
    launch: int
    nodes: str
    text: str


@dataclass(frozen=True)
class JobState:
    """What one node's agent recorded for the whole job."""

    stalls: tuple[Stall, ...] = ()
    launches: tuple[Launched, ...] = ()


def job_state(rows: NodeRows) -> JobState:
    """Rows whose kind or event is not known are left out."""
    return JobState(tuple(_stalls(rows)), tuple(_launches(rows)))


def _stalls(rows: NodeRows) -> Iterator[Stall]:
    kinds = {kind.value: kind for kind in StallKind}
    open_one: Stall | None = None
    for row, at_ns in zip(rows.tables["stall"], rows.real_ns["stall"].tolist(), strict=True):
        kind = kinds.get(int(row["kind"]))
        if open_one is not None:
            yield Stall(open_one.kind, open_one.begin_ns, at_ns, open_one.waiting, open_one.text)
            open_one = None
        if kind is None or kind == StallKind.NONE:
            continue
        waited_ns = int(row["time_mono_ns"]) - int(row["since_mono_ns"])
        begin_ns = at_ns - waited_ns if 0 <= waited_ns < 10**15 else at_ns
        open_one = Stall(kind, begin_ns, None, int(row["waiting"]), clean(row["text"]))
    if open_one is not None:
        yield open_one


def _launches(rows: NodeRows) -> Iterator[Launched]:
    events = {event.value: event for event in LaunchEvent}
    for row, at_ns in zip(rows.tables["launch"], rows.real_ns["launch"].tolist(), strict=True):
        event = events.get(int(row["event"]))
        if event is not None:
            words = (clean(row["node"]), clean(row["text"]))
            yield Launched(event, at_ns, int(row["launch"]), *words)
