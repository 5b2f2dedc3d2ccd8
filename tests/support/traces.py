"""Synthetic traces, written by the store itself, with a truth that tests can hold a report to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fabricctl import hostlist, layout
from fabricctl.store import collect, dtypes, schema
from fabricctl.store.journal_reader import Journal
from fabricctl.store.part import write_part
from fabricctl.store.schema import (
    CheckpointEvent,
    ClockStatus,
    LaunchEvent,
    LinkEvent,
    PathEvent,
    PathLevel,
    PathReason,
    Severity,
    StallKind,
    StampSource,
    StepEvent,
)
from tests.support.filled import filled

S = 1_000_000_000
BEGIN_REAL_NS = 1_790_000_000 * S  # 2026-09-21 14:13:20 UTC
MONO_AT_BEGIN_NS = 5_000 * S  # of the first node; each further one booted a day earlier
RATE_BYTES_PER_S = 100_000_000


@dataclass(frozen=True)
class Cut:
    """A rail without carrier; ``told``: the kernel's events were caught."""

    node: str
    rail: int
    begin_s: float
    end_s: float | None  # None: never heals
    told: bool = True


@dataclass(frozen=True)
class Moved:
    """A rail left by one end of a pair of nodes, and taken again; seconds since the job began."""

    node: str
    peer: str
    rail: int
    begin_s: float
    moved_s: float | None = None
    recovered_s: float | None = None
    good_s: float | None = None
    reason: PathReason = PathReason.SILENT
    level: PathLevel = PathLevel.DEAD
    streams: int = 2


@dataclass(frozen=True)
class Plan:
    """What happened to a job; everything in seconds since its begin."""

    nodes: Sequence[str] = ("n1", "n2", "n3", "n4")
    without_trace: Sequence[str] = ()
    rails: Sequence[str] = ("r0", "r1")
    seconds: float = 60.0
    hz: float = 1.0
    cuts: Sequence[Cut] = ()
    away: dict[str, tuple[float, float]] = field(default_factory=dict)  # agent dead, by node
    not_measured: Sequence[str] = ()  # columns of host, job and rail
    reset_at_s: dict[str, float] = field(default_factory=dict)  # rail counters begin anew
    notes: Sequence[tuple[str, float, Severity, str, str]] = ()  # node, at, severity, source, text
    clock_step: dict[str, tuple[float, int]] = field(default_factory=dict)  # at, by ns
    errors: Sequence[tuple[str, int, str, int]] = ()  # node, rail, column, count
    clock_from_s: float | None = None  # when the job clock was there; None: never
    clock_held: dict[str, tuple[float, float]] = field(default_factory=dict)  # held over, by node
    clock_lost: dict[str, tuple[float, float]] = field(default_factory=dict)  # no job time
    nic_stamps: Sequence[str] = ()  # nodes whose NICs stamp the clock's probes
    moved: Sequence[Moved] = ()
    path_events: Sequence[tuple[str, float, PathEvent, dict[str, object]]] = ()  # node, at, columns
    checkpoints: Sequence[tuple[str, float, CheckpointEvent, int]] = ()  # node, at, event, step
    stalls: Sequence[tuple[str, float, StallKind, str]] = ()  # node, at, kind, text
    launches: Sequence[tuple[str, float, LaunchEvent, str]] = ()  # node, at, event, nodes
    job: int = 4711
    user: str = "alice"
    mode: str = "on"
    array: tuple[int, int] | None = None
    het: tuple[int, int] | None = None
    begin_real_ns: int = BEGIN_REAL_NS
    every_table: bool = False  # rows in those that nothing above fills


def write(plan: Plan, user_dir: Path) -> Path:
    """The job's trace, merged from parts as on a cluster."""
    user_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    for nth, node in enumerate(plan.nodes):
        if node not in plan.without_trace:
            part = layout.part_file(user_dir, plan.job, node, plan.begin_real_ns)
            write_part(journals(plan, node, nth), _attributes(plan, node), part)
    end_ns = plan.begin_real_ns + int(plan.seconds * S)
    path = collect.merge(user_dir, plan.job, list(plan.nodes), end_ns, complete_only=False)
    assert path is not None
    return path


def journals(plan: Plan, node: str, nth: int) -> list[Journal]:
    """The lives of one node's agent."""
    away = plan.away.get(node)
    lives = [(0.0, plan.seconds)] if not away else [(0.0, away[0]), (away[1], plan.seconds)]
    return [_journal(plan, node, nth, begin, end) for begin, end in lives]


def _attributes(plan: Plan, node: str) -> dict[str, str | int | float]:
    given: dict[str, str | int | float] = {
        "job": plan.job,
        "user": plan.user,
        "uid": 1000,
        "cluster": "lab",
        "mode": plan.mode,
        "spares": 0,
        "nodes": hostlist.fold(plan.nodes),
        "node": node,
        "rails": " ".join(plan.rails),
        "sample_hz": plan.hz,
        "boot_id": f"boot-{node}",
        "begin_real_ns": plan.begin_real_ns,
        "end_real_ns": plan.begin_real_ns + int(plan.seconds * S),
    }
    if plan.array:
        given |= {"array_job": plan.array[0], "array_task": plan.array[1]}
    if plan.het:
        given |= {"het_job": plan.het[0], "het_offset": plan.het[1]}
    return given


@dataclass(frozen=True)
class _Life:
    plan: Plan
    node: str
    nth: int
    begin_s: float
    end_s: float

    @property
    def at_s(self) -> np.ndarray:
        """Of the samples; the first a tenth of a second after the agent's begin."""
        return np.arange(self.begin_s + 0.1, self.end_s, 1 / self.plan.hz)

    def mono(self, at_s: np.ndarray | float) -> np.ndarray:
        base = MONO_AT_BEGIN_NS + self.nth * 86_400 * S
        return base + np.rint(np.asarray(at_s, float) * S).astype(np.int64)

    def real(self, at_s: np.ndarray | float) -> np.ndarray:
        at_s = np.asarray(at_s, float)
        real = self.plan.begin_real_ns + np.rint(at_s * S).astype(np.int64)
        step = self.plan.clock_step.get(self.node)
        return real + (np.where(at_s >= step[0], step[1], 0) if step else 0)

    def within(self, at_s: float) -> bool:
        return self.begin_s <= at_s < self.end_s


def _journal(plan: Plan, node: str, nth: int, begin_s: float, end_s: float) -> Journal:
    life = _Life(plan, node, nth, begin_s, end_s)
    tables = {table.name: dtypes.empty(table) for table in schema.TABLES}
    tables["host"] = _host(life)
    tables["job"] = _job(life)
    tables["rail"] = np.sort(
        np.concatenate([_rail(life, rail) for rail in range(len(plan.rails))]),
        order="time_mono_ns",
        kind="stable",
    )
    tables["link_event"] = _events(life)
    tables["clock"] = _clock(life)
    tables["job_clock"] = _job_clock(life)
    tables["note"] = _notes(life)
    tables["step"] = _steps(life)
    tables["stall"] = _stalls(life)
    tables["launch"] = _launches(life)
    tables["checkpoint"] = _checkpoints(life)
    tables["path_event"] = _paths(life)
    if plan.every_table:
        tables = filled(tables, nth)
    return Journal({"boot_id": f"boot-{node}"}, schema.SCHEMA_VERSION, tables, None)


def _host(life: _Life) -> np.ndarray:
    at = life.at_s
    rows = _blank("host", life, at)
    share = {"user": 0.6, "nice": 0.0, "system": 0.1, "idle": 1.2, "iowait": 0.05}
    for name in ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"):
        rows[f"cpu_{name}_ns"] = np.rint(at * share.get(name, 0.05 / 3) * S) + 10**12
    rows["memory_total_bytes"] = 8 << 30
    rows["memory_available_bytes"] = (6 << 30) - np.rint(at * 1e6)
    for name in ("cpu_some", "memory_some", "memory_full", "io_some", "io_full"):
        rows[f"psi_{name}_us"] = np.rint(at * 1e4)
    return _forget(life, rows)


def _job(life: _Life) -> np.ndarray:
    rows = _blank("job", life, life.at_s)
    rows["cpu_ns"] = np.rint(life.at_s * 0.5 * S)
    rows["memory_bytes"] = (1 << 30) + np.rint(life.at_s * 1e6)
    rows["processes"] = 3
    return _forget(life, rows)


def _rail(life: _Life, rail: int) -> np.ndarray:
    at = life.at_s
    rows = _blank("rail", life, at)
    rows["rail"] = rail
    cuts = [cut for cut in life.plan.cuts if (cut.node, cut.rail) == (life.node, rail)]
    down_s, down, changes = np.zeros(len(at)), np.zeros(len(at), bool), np.full(len(at), 1)
    for cut in cuts:
        end_s = cut.end_s if cut.end_s is not None else np.inf
        down |= (at >= cut.begin_s) & (at < end_s)
        changes = changes + (at >= cut.begin_s) + (at >= end_s)
        down_s += np.clip(at - cut.begin_s, 0, end_s - cut.begin_s)
    rows["carrier"], rows["carrier_changes"] = ~down, changes
    # Traffic that swings, so that plots show something, and is exactly known in sum.
    moved = (at - down_s) * RATE_BYTES_PER_S * (1 + rail) + 1e7 * np.sin(at - down_s)
    moved -= np.where(at >= life.plan.reset_at_s.get(life.node, np.inf), moved, 0)
    for way, factor in (("rx", 1.0), ("tx", 0.5)):
        rows[f"{way}_bytes"] = np.rint(moved * factor + 1e9)
        rows[f"{way}_packets"] = np.rint(moved * factor / 1500)
        rows[f"{way}_errors"] = rows[f"{way}_dropped"] = 0
    for node, index, column, count in life.plan.errors:
        if (node, index) == (life.node, rail):
            rows[column] = np.where(at > life.plan.seconds / 2, count, 0)
    return _forget(life, rows)


def _events(life: _Life) -> np.ndarray:
    found = []
    for cut in life.plan.cuts:
        before = sum(
            2
            for o in life.plan.cuts
            if (o.node, o.rail) == (cut.node, cut.rail) and o.begin_s < cut.begin_s
        )
        if cut.node != life.node or not cut.told:
            continue
        found.append((cut.begin_s, cut.rail, LinkEvent.CARRIER_DOWN, before + 2))
        if cut.end_s is not None:
            found.append((cut.end_s, cut.rail, LinkEvent.CARRIER_UP, before + 3))
    found = sorted(event for event in found if life.within(event[0]))
    rows = _blank("link_event", life, np.array([event[0] for event in found]))
    for row, (_, rail, event, changes) in zip(rows, found, strict=True):
        row["rail"], row["event"], row["carrier_changes"] = rail, event, changes
    return rows


def _clock(life: _Life) -> np.ndarray:
    rows = _blank("clock", life, np.arange(life.begin_s + 0.05, life.end_s, 1.0))
    rows["width_ns"] = 300
    return rows


def _job_clock(life: _Life) -> np.ndarray:
    """Likely within 60 ns, 1 us a second more in holdover; the n-th node's system clock is n ms
    ahead of job time."""
    plan, begin_s = life.plan, life.plan.clock_from_s
    at = np.empty(0) if begin_s is None else life.at_s[life.at_s >= begin_s]
    lost = plan.clock_lost.get(life.node, (0.0, 0.0))
    at = at[(at < lost[0]) | (at >= lost[1])]
    rows = _blank("job_clock", life, at)
    held = plan.clock_held.get(life.node, (0.0, 0.0))
    holds = (at >= held[0]) & (at < held[1])
    rows["job_ns"] = life.real(at) - life.nth * 1_000_000
    rows["status"] = np.where(holds, ClockStatus.HOLDOVER, ClockStatus.SYNCHRONISED)
    rows["likely_ns"] = 60 + np.where(holds, np.rint((at - held[0]) * 1_000), 0)
    rows["early_ns"], rows["late_ns"] = rows["likely_ns"] + 5_000, rows["likely_ns"] + 6_000
    rows["probe_hz"] = 50
    by_nic = life.node in plan.nic_stamps
    rows["stamps"] = StampSource.HARDWARE if by_nic else StampSource.SOFTWARE
    return rows


def _stalls(life: _Life) -> np.ndarray:
    """Found 0.8 s after they began, on four ranks."""
    mine = [one for one in life.plan.stalls if one[0] == life.node and life.within(one[1])]
    rows = _blank("stall", life, np.array([at for _, at, _, _ in mine], float))
    for row, (_, at, kind, text) in zip(rows, mine, strict=True):
        row["time_real_ns"] = life.real(at)
        row["kind"], row["text"] = kind, text.encode()
        row["since_mono_ns"] = life.mono(at - 0.8)
        row["waiting"] = 4
    return rows


def _checkpoints(life: _Life) -> np.ndarray:
    """Of 1 MiB; each held the ranks up for 10 ms."""
    mine = [one for one in life.plan.checkpoints if one[0] == life.node and life.within(one[1])]
    rows = _blank("checkpoint", life, np.array([at for _, at, _, _ in mine], float))
    launch = 0  # the next one begins with a restore, or anew
    for nth, (row, (_, at, event, step)) in enumerate(zip(rows, mine, strict=True)):
        launch += nth > 0 and event != CheckpointEvent.SAVED
        row["time_real_ns"] = life.real(at)
        row["event"], row["step"], row["ranks"], row["launch"] = event, step, 4, launch
        row["bytes"], row["stall_ns"] = 1 << 20, 10_000_000
    return rows


def _launches(life: _Life) -> np.ndarray:
    mine = [one for one in life.plan.launches if one[0] == life.node and life.within(one[1])]
    rows = _blank("launch", life, np.array([at for _, at, _, _ in mine], float))
    launch = -1
    for row, (_, at, event, nodes) in zip(rows, mine, strict=True):
        launch += event == LaunchEvent.START
        row["time_real_ns"], row["launch"] = life.real(at), max(launch, 0)
        row["event"], row["node"] = event, nodes.encode()
    return rows


def _notes(life: _Life) -> np.ndarray:
    mine = [n for n in life.plan.notes if n[0] == life.node and life.within(n[1])]
    rows = _blank("note", life, np.array([note[1] for note in mine]))
    for row, (_, _, severity, source, text) in zip(rows, mine, strict=True):
        row["severity"], row["source"], row["text"] = severity, source.encode(), text.encode()
    return rows


def _steps(life: _Life) -> np.ndarray:
    plan = life.plan
    found = [(0.5, b"batch", StepEvent.BEGIN), (2.0, b"0", StepEvent.BEGIN),
             (plan.seconds - 1, b"0", StepEvent.END)]  # fmt: skip
    found = [one for one in found if life.within(one[0])]
    if life.nth:
        found = [one for one in found if one[1] != b"batch"]
    rows = _blank("step", life, np.array([one[0] for one in found]))
    for row, (_, step, event) in zip(rows, found, strict=True):
        row["step"], row["event"] = step, event
    return rows


def _paths(life: _Life) -> np.ndarray:
    found = [(at, event, columns) for node, at, event, columns in life.plan.path_events
             if node == life.node]  # fmt: skip
    for one in life.plan.moved:
        if one.node != life.node:
            continue
        whom: dict[str, object] = {"peer": one.peer.encode(), "rail": one.rail}
        times = {"begin_mono_ns": int(life.mono(one.begin_s))}
        if one.moved_s is not None:
            times["moved_mono_ns"] = int(life.mono(one.moved_s))
        bad = {"level": one.level, "reason": one.reason}
        found.append((one.moved_s or one.begin_s, PathEvent.PATH, {**whom, **times, **bad}))
        if one.recovered_s is not None:
            more = {"recovered_mono_ns": int(life.mono(one.recovered_s)), "streams": one.streams,
                    "waiting_bytes": 65536}  # fmt: skip
            found.append((one.recovered_s, PathEvent.RECOVERED, {**whom, **times, **more}))
        if one.good_s is not None:
            found.append((one.good_s, PathEvent.PATH, {**whom, "level": PathLevel.GOOD}))
    found.sort(key=lambda one: one[0])
    rows = _blank("path_event", life, np.array([at for at, _, _ in found]))
    for row, (_, event, columns) in zip(rows, found, strict=True):
        row["event"], row["rail"], row["level"], row["reason"] = event, 0xFF, 0xFF, 0xFF
        for name, value in columns.items():
            row[name] = value
    return rows


def _blank(table: str, life: _Life, at_s: np.ndarray) -> np.ndarray:
    rows = dtypes.empty(schema.BY_NAME[table], len(at_s))
    rows["time_mono_ns"] = life.mono(at_s)
    if "time_real_ns" in (rows.dtype.names or ()):
        rows["time_real_ns"] = life.real(at_s)
    return rows


def _forget(life: _Life, rows: np.ndarray) -> np.ndarray:
    for column in life.plan.not_measured:
        if column in (rows.dtype.names or ()):
            rows[column] = np.iinfo(rows[column].dtype).max
    return rows
