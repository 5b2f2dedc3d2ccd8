"""From rows on the time line to the report's figures.

Nodes are taken one by one, so that a wide job's rows are never in memory together.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fabricctl.store import schema
from fabricctl.store.trace import Damage
from fabricctl_analysis import coverage
from fabricctl_analysis.activity import Activity, activity
from fabricctl_analysis.align import ClockStep, Ns, instants
from fabricctl_analysis.attribute import account
from fabricctl_analysis.common_time import (
    WORTH_NS,
    ahead_ns,
    shifted,
    shifted_paths,
    shifted_rail,
    shifted_remarks,
)
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.evidence import Evidence, silent, without_carrier
from fabricctl_analysis.host import host_figures, own_cost
from fabricctl_analysis.job_clock import clock_summary
from fabricctl_analysis.job_state import job_state
from fabricctl_analysis.model import (
    Attempt,
    JobFacts,
    LinkMark,
    NodeSummary,
    PathMark,
    RailSummary,
    Remark,
    Report,
    Severity,
    StepSummary,
    Unmeasured,
)
from fabricctl_analysis.moves import PathRow, moves_of, path_rows
from fabricctl_analysis.mpi_calls import ranks_of, tracked
from fabricctl_analysis.probes import Edge, edges, troubles
from fabricctl_analysis.rails import rail_summary
from fabricctl_analysis.rows import NodeRows, apart_ns, clean, of_rail, once, thinned
from fabricctl_analysis.shared_rails import shared_rails
from fabricctl_analysis.streams import Stream, as_edges, streams
from fabricctl_analysis.strips import NodeStrips, joined, node_strips
from fabricctl_analysis.told import told
from fabricctl_analysis.unmeasured import empty_figures, gaps_of, missing_nodes
from fabricctl_analysis.windows import Grid

_SEVERITY: dict[int, Severity] = {
    schema.Severity.INFO: "info",
    schema.Severity.WARNING: "warning",
    schema.Severity.ERROR: "error",
}
_SAMPLED = ("rail", "host", "job")
# Finer windows hold more chance than work; a job longer than this is a forged one.
MIN_WINDOW_NS = 100_000_000
MAX_JOB_NS = 10 * 365 * 86_400 * 10**9


@dataclass(frozen=True)
class NodePart:
    """What one node adds to the report."""

    summary: NodeSummary
    ends_ns: tuple[int, ...]  # instants that the job lasted to or began at, at least
    limit_ns: int  # samples further apart leave a gap
    lives_ns: tuple[int, ...]
    rails: tuple[RailSummary, ...]
    marks: tuple[LinkMark, ...]
    remarks: tuple[Remark, ...]
    steps: tuple[tuple[str, int, int], ...]  # step, schema.StepEvent, real ns
    clock_steps: tuple[ClockStep, ...]
    path_rows: tuple[PathRow, ...]
    unmeasured: tuple[Unmeasured, ...]
    paths: tuple[PathMark, ...] = ()
    activity: Activity | None = None
    shift_ns: int = 0  # from the node's clock to the first node's
    edges: tuple[Edge, ...] = ()
    told: tuple[Evidence, ...] = ()
    streams: tuple[Stream, ...] = ()
    addresses: tuple[str, ...] = ()
    strips: NodeStrips | None = None
    ranks: int | None = None


def summarise(
    job: JobFacts,
    nodes: Iterable[NodeRows],
    begin_ns: int | None,
    end_ns: int | None,
    *,
    damage: Sequence[Damage] = (),
    attempts: tuple[Attempt, ...] = (),
) -> Report:
    """The report; ``begin_ns`` and ``end_ns`` of the job on CLOCK_REALTIME, as far as known.

    ``damage`` is looked at after the last node: reading nodes may add to it. ``attempts``: all of
    the job's, by the accounting.
    """
    grid = Grids(begin_ns, end_ns)
    parts = [node_part(rows, grid, job.nodes) for rows in nodes]
    return put_together(job, parts, grid, damage=damage, attempts=attempts)


def put_together(
    job: JobFacts,
    parts: Sequence[NodePart],
    grid: "Grids",
    *,
    damage: Sequence[Damage] = (),
    attempts: tuple[Attempt, ...] = (),
) -> Report:
    """The report of all nodes' parts, in the order of the trace."""
    begin_ns, end_ns = grid.begin_ns, grid.end_ns
    ends = [at for part in parts for at in part.ends_ns]
    ends += instants(begin_ns, end_ns)
    whole = Span(min(ends), max(ends)) if ends else Span(0, 0)
    present = [part.summary for part in parts]
    torn = _torn(damage)
    have = [*(node.name for node in present), *(name for one in torn for name in one.nodes)]
    missing = missing_nodes(job.nodes, have)
    rails = tuple(rail for part in parts for rail in part.rails)
    named = dict.fromkeys(name for one in (*missing, *torn) for name in one.nodes)
    lost = [NodeSummary(name) for name in named if name not in {node.name for node in present}]
    steps = _steps(parts)
    paths = tuple(sorted((m for p in parts for m in p.paths), key=lambda mark: mark.at_ns))
    everyone = tuple(sorted([*present, *lost], key=_order(job.nodes)))
    remarks = tuple(sorted((r for p in parts for r in p.remarks), key=lambda r: r.at_ns))
    accounts = None
    if grid.grid is not None and grid.whole is not None:
        on_line = [shifted_rail(r, part.shift_ns) for part in parts for r in part.rails]
        accounts = account(
            grid.whole,
            grid.grid,
            [part.activity for part in parts if part.activity is not None],
            len(everyone),
            rails=on_line,
            paths=[m for part in parts for m in shifted_paths(part.paths, part.shift_ns)],
            steps=steps,
            remarks=[r for part in parts for r in shifted_remarks(part.remarks, part.shift_ns)],
            more=[
                *troubles(
                    _all_edges(parts, job.nodes),
                    job.nodes,
                    grid.grid,
                    {p.activity.node: silent(p.activity) for p in parts if p.activity},
                    without_carrier(on_line, grid.grid),
                ),
                *(one for part in parts for one in part.told),
            ],
            was_suspended=any(one.suspended_s for one in attempts[job.requeue : job.requeue + 1]),
            ranks=max((part.ranks for part in parts if part.ranks), default=None),
        )
    return Report(
        job=job,
        whole=whole,
        nodes=everyone,
        rails=rails,
        marks=tuple(sorted((m for p in parts for m in p.marks), key=lambda mark: mark.at_ns)),
        steps=steps,
        remarks=remarks,
        unmeasured=(*missing, *torn, *_unmeasured(parts, whole, rails)),
        clock_steps=tuple((p.summary.name, step) for p in parts for step in p.clock_steps),
        paths=paths,
        accounts=accounts,
        moves=moves_of(row for part in parts for row in part.path_rows),
        shared=shared_rails(row for part in parts for row in part.path_rows),
        attempts=attempts,
        strips=joined([(p.summary.name, p.strips) for p in parts if p.strips], job.nodes),
    )


def _all_edges(parts: Sequence[NodePart], names: Sequence[str]) -> list[tuple[str, Sequence[Edge]]]:
    """Of the job clock's probes, and of the job's own connections."""
    of = {text: part.summary.name for part in parts for text in part.addresses}
    flows = as_edges([(part.summary.name, part.streams) for part in parts], of, names)
    return [*((part.summary.name, part.edges) for part in parts), *flows]


@dataclass
class Grids:
    """The windows of the job, which go with the pace of the first node's samples."""

    begin_ns: int | None
    end_ns: int | None
    grid: Grid | None = None
    ahead_ns: int | None = None  # of job time, the first node's clock

    def shift_ns(self, rows: NodeRows) -> int:
        """From the node's clock to the first node's; 0 where no job clock tells."""
        ahead = ahead_ns(rows)
        if ahead is None:
            return 0
        if self.ahead_ns is None:
            self.ahead_ns = ahead
        shift = self.ahead_ns - ahead
        return shift if abs(shift) >= WORTH_NS else 0

    @property
    def whole(self) -> Span | None:
        known = instants(self.begin_ns, self.end_ns)
        if len(known) != 2 or not 0 < known[1] - known[0] < MAX_JOB_NS:
            return None
        return Span(*known)

    def of(self, rows: NodeRows, period_ns: int | None) -> Grid | None:
        if self.grid is None and self.whole is not None and period_ns is not None:
            host = rows.tables["host"]
            thin_ns = 60 * 10**9 if thinned(host) else 0
            self.grid = Grid.over(self.whole, max(period_ns, thin_ns, MIN_WINDOW_NS))
        return self.grid


def node_part(rows: NodeRows, grids: Grids, names: Sequence[str]) -> NodePart:
    """One node's part, whatever the other nodes hold; ``names``: the job's list of nodes."""
    rows = once(rows)
    times = _sample_times(rows)
    period_ns = _period_ns(rows, times)
    limit_ns = coverage.gap_limit_ns(period_ns or 0)
    grid = grids.of(rows, period_ns)
    shift_ns = grids.shift_ns(rows)
    spans = coverage.union(_measured(rows, limit_ns), limit_ns)
    figures, series = host_figures(rows, limit_ns)
    errors = [clock.error_ns for clock in rows.clocks]
    known = [error for error in errors if error is not None]
    indices = {*range(len(rows.rails)), *np.unique(rows.tables["rail"]["rail"]).tolist()}
    own_cores, own_bytes = own_cost(rows)
    summary = NodeSummary(
        name=rows.name,
        measured=tuple(spans),
        period_ns=period_ns,
        agent_lives=len(rows.tables["life"]),
        clock_error_ns=max(known) if known and len(known) == len(errors) else None,
        figures=figures,
        series=series,
        clock=clock_summary(rows),
        state=job_state(rows),
        own_cores=own_cores,
        own_bytes=own_bytes,
    )
    done, strips = None, None
    if grid is not None:
        own = names.index(rows.name) if rows.name in names else None
        done, strips = _in_windows(rows, grid, limit_ns, spans, shift_ns, own)
    ends = instants(rows.begin_ns, rows.end_ns)
    ends += [int(times[0]), int(times[-1])] if len(times) else []
    return NodePart(
        summary=summary,
        ends_ns=tuple(ends),
        limit_ns=limit_ns,
        lives_ns=tuple(rows.real_ns["life"].tolist()),
        rails=tuple(rail_summary(rows, index, limit_ns) for index in sorted(indices)),
        marks=_marks(rows),
        remarks=_remarks(rows),
        steps=_step_rows(rows),
        clock_steps=tuple(step for clock in rows.clocks for step in clock.steps),
        path_rows=path_rows(rows),
        unmeasured=_of_node(rows),
        paths=_paths(rows),
        activity=done,
        shift_ns=shift_ns,
        edges=() if grid is None else edges(rows, shift_ns),
        told=() if grid is None else told(rows, shift_ns, grid),
        streams=streams(rows, shift_ns),
        addresses=rows.addresses,
        ranks=ranks_of(rows),
        strips=strips,
    )


def _in_windows(  # noqa: PLR0917  what one node has
    rows: NodeRows, grid: Grid, limit_ns: int, spans: Sequence[Span], shift_ns: int, own: int | None
) -> tuple[Activity, NodeStrips]:  # fmt: skip
    """On the time that all nodes share."""
    moved = [Span(span.begin_ns + shift_ns, span.end_ns + shift_ns) for span in spans]
    rows = shifted(rows, shift_ns)
    mpi = tracked(rows, grid)
    return activity(rows, grid, limit_ns, moved, mpi), node_strips(rows, grid, own, mpi)


def _paths(rows: NodeRows) -> tuple[PathMark, ...]:
    """Marks of single paths and their levels; what a later version may write is passed over."""
    levels = {int(level): level.name.lower() for level in schema.PathLevel}
    reasons = {int(reason): reason.name.lower() for reason in schema.PathReason}
    events = {int(event): event.name.lower() for event in schema.PathEvent}
    marks = []
    for at, row in zip(rows.real_ns["path_event"], rows.tables["path_event"], strict=True):
        shift = int(at) - int(row["time_mono_ns"])

        def real(name: str, row: Any = row, shift: int = shift) -> int:
            (found,) = instants(int(row[name])) or (0,)
            return found + shift if found else 0

        if int(row["event"]) == schema.PathEvent.PATH:
            marks.append(PathMark(
                rows.name, clean(row["peer"]), int(row["rail"]), int(at),
                events[int(row["event"])], levels.get(int(row["level"]), "unknown"),
                reasons.get(int(row["reason"]), "unknown"), real("begin_mono_ns"),
                real("moved_mono_ns"), real("recovered_mono_ns"), clean(row["text"]),
            ))  # fmt: skip
    return tuple(marks)


def _sample_times(rows: NodeRows) -> Ns:
    """Instants at which something was sampled, each once."""
    return np.unique(np.concatenate([rows.real_ns[name] for name in _SAMPLED]))


def _measured(rows: NodeRows, limit_ns: int) -> Iterator[Span]:
    """Of each source, and of each rail."""
    for name in ("host", "job"):
        table = rows.tables[name]
        times = rows.real_ns[name]
        yield from coverage.measured_spans(times, limit_ns, apart_ns(table, times))
    for rail in np.unique(rows.tables["rail"]["rail"]).tolist():
        times, table = of_rail(rows, "rail", rail)
        yield from coverage.measured_spans(times, limit_ns, apart_ns(table, times))


def _period_ns(rows: NodeRows, times: Ns) -> int | None:
    """What was asked for; without that, the usual distance of the node's samples."""
    if rows.sample_hz is not None and rows.sample_hz > 0:
        return int(1e9 / rows.sample_hz)
    host = rows.real_ns["host"]
    apart = apart_ns(rows.tables["host"], host)
    if apart is not None and len(apart) > 1:
        return int(np.median(apart[1:]))
    return coverage.sampling_period_ns(host if len(host) > 1 else times)


def _marks(rows: NodeRows) -> tuple[LinkMark, ...]:
    events = rows.tables["link_event"]
    known = {int(event): event.name.lower() for event in schema.LinkEvent}
    return tuple(
        LinkMark(rows.name, int(row["rail"]), int(at), known.get(int(row["event"]), "unknown"))
        for at, row in zip(rows.real_ns["link_event"], events, strict=True)
    )


def _remarks(rows: NodeRows) -> tuple[Remark, ...]:
    return tuple(
        Remark(
            rows.name,
            int(at),
            _SEVERITY.get(int(row["severity"]), "error"),
            clean(row["source"]),
            clean(row["text"]),
        )
        for at, row in zip(rows.real_ns["note"], rows.tables["note"], strict=True)
    )


def _step_rows(rows: NodeRows) -> tuple[tuple[str, int, int], ...]:
    return tuple(
        (clean(row["step"]), int(row["event"]), int(at))
        for at, row in zip(rows.real_ns["step"], rows.tables["step"], strict=True)
    )


def _of_node(rows: NodeRows) -> tuple[Unmeasured, ...]:
    found = [
        Unmeasured((rows.name,), "part of a journal", f"damaged: {clean(row['damage'])}")
        for row in rows.tables["life"]
        if row["damage"]
    ]
    if rows.stored_rows and not rows.clocks:
        why = f"{rows.stored_rows} rows carry no reading of CLOCK_REALTIME to place them by"
        found.append(Unmeasured((rows.name,), "everything", why))
    elif not rows.stored_rows:
        found.append(Unmeasured((rows.name,), "everything", "its trace holds no rows"))
    return tuple(found)


def _steps(parts: Sequence[NodePart]) -> tuple[StepSummary, ...]:
    nodes: dict[str, dict[str, None]] = defaultdict(dict)  # in their order
    begins: dict[str, list[int]] = defaultdict(list)
    ends: dict[str, list[int]] = defaultdict(list)
    for part in parts:
        over: dict[str, int] = {}
        for step, event, at in part.steps:
            nodes[step][part.summary.name] = None
            if event == schema.StepEvent.BEGIN:
                begins[step].append(at)
                over.pop(step, None)  # an agent that ended early had called it over
            elif event == schema.StepEvent.END:
                over.setdefault(step, at)  # one that came later knows only that it is
        for step, at in over.items():
            ends[step].append(at)
    steps = [
        StepSummary(
            step,
            tuple(names),
            min(begins[step], default=None),
            max(ends[step], default=None),
        )
        for step, names in nodes.items()
    ]
    return tuple(sorted(steps, key=lambda step: (step.begin_ns or step.end_ns or 0, step.step)))


def _unmeasured(
    parts: Sequence[NodePart], whole: Span, rails: Sequence[RailSummary]
) -> list[Unmeasured]:
    placed = [part for part in parts if part.summary.measured]
    return [
        *(one for part in parts for one in part.unmeasured),
        *(
            gap
            for part in placed
            for gap in gaps_of(part.summary, part.lives_ns, whole, part.limit_ns)
        ),
        *empty_figures([p.summary for p in placed], [r for r in rails if r.counters]),
    ]


def _torn(damage: Iterable[Damage]) -> tuple[Unmeasured, ...]:
    """What the file should hold and does not: the same damage of several nodes is told once."""
    same: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in damage:
        same[one.what, clean(one.why)].append(clean(one.node))
    return tuple(
        Unmeasured(tuple(dict.fromkeys(name for name in names if name)), what, why, damaged=True)
        for (what, why), names in same.items()
    )


def _order(allocation: Sequence[str]) -> Callable[[NodeSummary], tuple[int, str]]:
    at = {name: nth for nth, name in enumerate(allocation)}
    return lambda node: (at.get(node.name, len(at)), node.name)
