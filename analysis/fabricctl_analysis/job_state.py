"""Stalls of the ranks, deaths and starts, as they were recorded (tables ``stall``, ``launch``)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fabricctl.store.schema import CheckpointEvent, LaunchEvent, StallKind
from fabricctl_analysis.rows import NodeRows, clean

_LONGEST_NS = 86_400_000_000_000  # a stall beyond is forged


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
class Checkpoints:
    """Of one node's programs; ``stall_ns`` in all, of the slowest ranks; ``restored``: step, and
    whether from memory."""

    saved: int
    first_ns: int
    last_ns: int
    last_step: int
    rank0_bytes: int
    stall_ns: int
    usual_stall_ns: int
    restored: tuple[tuple[int, bool], ...]


@dataclass(frozen=True)
class Told:
    """One event of a program's checkpoints."""

    event: CheckpointEvent
    at_ns: int
    step: int
    ranks: int
    stall_ns: int
    launch: int


@dataclass(frozen=True)
class JobState:
    """What one node's agent recorded for the whole job."""

    stalls: tuple[Stall, ...] = ()
    launches: tuple[Launched, ...] = ()
    checkpoints: Checkpoints | None = None
    told: tuple[Told, ...] = ()


def job_state(rows: NodeRows) -> JobState:
    """Rows whose kind or event is not known are left out."""
    stalls, launches = tuple(_stalls(rows)), tuple(_launches(rows))
    return JobState(stalls, launches, _checkpoints(rows), tuple(_told(rows)))


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


def _told(rows: NodeRows) -> Iterator[Told]:
    events = {event.value: event for event in CheckpointEvent}
    real_ns = rows.real_ns["checkpoint"].tolist()
    for row, at_ns in zip(rows.tables["checkpoint"], real_ns, strict=True):
        event = events.get(int(row["event"]))
        if event is not None:
            stall_ns = min(int(row["stall_ns"]), _LONGEST_NS)
            step, ranks, launch = (int(row[name]) for name in ("step", "ranks", "launch"))
            yield Told(event, at_ns, step, ranks, stall_ns, launch)


def _checkpoints(rows: NodeRows) -> Checkpoints | None:
    table, real_ns = rows.tables["checkpoint"], rows.real_ns["checkpoint"]
    saved = table["event"] == CheckpointEvent.SAVED.value
    if not saved.any():
        return None
    stalls = np.minimum(table["stall_ns"][saved], _LONGEST_NS).astype(np.int64)
    kinds = (CheckpointEvent.RESTORED.value, CheckpointEvent.RESTORED_SHARED.value)
    restored = [
        (int(row["step"]), int(row["event"]) == kinds[0]) for row in table if row["event"] in kinds
    ]
    return Checkpoints(
        saved=int(saved.sum()),
        first_ns=int(real_ns[saved][0]),
        last_ns=int(real_ns[saved][-1]),
        last_step=int(table["step"][saved][-1]),
        rank0_bytes=int(table["bytes"][saved][-1]),
        stall_ns=int(stalls.sum()),
        usual_stall_ns=int(np.median(stalls)),
        restored=tuple(restored),
    )
