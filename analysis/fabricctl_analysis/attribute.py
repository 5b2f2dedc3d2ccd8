"""Where the job's time went: each window's loss, assigned once, summed in whole nanoseconds.

The loss of a window is the work that its nodes would have done at the job's usual pace and did
not. A slow stretch is cut where its evidence changes, and each piece gets the most specific
evidence that was there; a piece without any is ``unknown``, and small variations that no stretch
holds are one figure of their own, so that all figures add up to the time that passed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fabricctl_analysis.activity import Activity
from fabricctl_analysis.coverage import Span, union
from fabricctl_analysis.evidence import Evidence, gather, suspended
from fabricctl_analysis.model import (
    Accounts,
    Heat,
    Other,
    PathMark,
    RailSummary,
    Remark,
    StepSummary,
    Verdict,
)
from fabricctl_analysis.noise import Bools
from fabricctl_analysis.pace import Pace, luck, pace
from fabricctl_analysis.pieces import AFTER, SURE, Piece, pieces, telling
from fabricctl_analysis.windows import Grid, shares

_Ns = NDArray[np.int64]
# Of a normal distribution: 95 % lie within so many deviations.
_Z95 = 1.96
# A window in which steps ran for less than this has no pace: it would seem slow.
RAN = 0.9
# Evidence that is told even when it cost nothing: that failover kept it so is worth knowing.
HEAT_PARTS = 200
_TOLD = ("link_down", "path", "host_stopped")


@dataclass(frozen=True)
class _Job:
    """What every verdict is reckoned with."""

    pace: Pace
    acts: Sequence[Activity]
    grid: Grid
    widths: _Ns  # of the windows: the last one ends with the job
    nodes: int

    @property
    def lost_ns(self) -> _Ns:
        progress = np.where(self.pace.known, self.pace.progress, 1.0)
        loss = (1 - progress) * self.widths * self.nodes
        return np.rint(np.clip(loss, -(2.0**62), 2.0**62)).astype(np.int64)


def account(
    whole: Span,
    grid: Grid,
    acts: Sequence[Activity],
    nodes: int,
    *,
    rails: Sequence[RailSummary],
    paths: Sequence[PathMark],
    steps: Sequence[StepSummary],
    remarks: Sequence[Remark] = (),
    more: Sequence[Evidence] = (),
    ranks: int | None = None,
    was_suspended: bool = False,
) -> Accounts:
    """``nodes`` of the allocation, measured or not; ``more``: evidence from other sources;
    ``ranks`` of the program, where they are tracked; ``was_suspended``: by the accounting."""
    running = _running(grid, steps)
    window_s = grid.width_ns / 1e9
    work = (_stack(acts, "bytes"), _stack(acts, "job_cpu"))
    evidence = [*gather(acts, rails, paths, remarks, grid=grid, running=running), *more]
    if was_suspended:
        evidence += suspended(acts, grid, running)
    evidence.sort(key=lambda one: one.span.begin_ns)
    suspect = _suspect(evidence, grid)
    told, calls = _stack(acts, "iterations"), _stack(acts, "calls")
    found = pace(*work, running, window_s, told, calls=calls, suspect=suspect)
    widths = np.diff(np.minimum(grid.edges_ns, whole.end_ns))
    job = _Job(found, acts, grid, widths, nodes)
    cut = list(pieces(found, evidence, grid))
    taken = {window for piece in cut for window in piece.windows}
    quiet = [_verdict(piece, job) for piece in _quiet(evidence, taken, job)]
    felt = [one for one in quiet if one.low_ns > 0]
    slow = [_verdict(piece, job) for piece in cut]
    # What may as well be chance is among the small ups and downs.
    verdicts = [*(one for one in slow if one.low_ns > 0), *felt]
    lost_ns, known = job.lost_ns, found.known
    return Accounts(
        signal=found.signal,
        window_ns=grid.width_ns,
        iteration_s=_iteration_s(found, grid),
        deviation=found.deviation if np.isfinite(found.deviation) else None,
        usual_per_s=_per_s(found, grid),
        nodes=nodes,
        ranks=ranks,
        elapsed_ns=whole.length_ns * nodes,
        no_step_ns=int(widths[~running].sum()) * nodes,
        unknown_pace_ns=int(widths[running & ~known].sum()) * nodes,
        ideal_ns=int(widths[known].sum()) * nodes - int(lost_ns[known].sum()),
        variation_ns=int(lost_ns[known].sum()) - sum(one.loss_ns for one in verdicts),
        verdicts=tuple(sorted(verdicts, key=lambda one: -one.loss_ns)),
        harmless=tuple(one for one in quiet if one.low_ns <= 0 and one.cause != "host_stopped"),
        pace=tuple(float(value) for value in _drawn(found.progress)),
        heat=_heat(acts, found, running),
    )


def _iteration_s(found: Pace, grid: Grid) -> float | None:
    told = _per_s(found, grid) if found.signal == "iterations" else None
    if told:
        return 1 / told
    return None if found.pattern is None else found.pattern * grid.width_ns / 1e9


def _per_s(found: Pace, grid: Grid) -> float | None:
    if not np.isfinite(found.usual):
        return None
    if found.signal == "iterations":  # each node tells the same ones
        return found.usual / max(1, int((found.weights > 0).sum())) / (grid.width_ns / 1e9)
    return found.usual if found.signal == "cpu" else found.usual / (grid.width_ns / 1e9)


def _stack(acts: Sequence[Activity], name: str) -> NDArray[np.float64]:
    return np.array([getattr(act, name) for act in acts])


def _running(grid: Grid, steps: Sequence[StepSummary]) -> Bools:
    """Windows that lie in steps of the user's tasks, one or several; all, when none was seen."""
    end_ns = int(grid.edges_ns[-1])
    spans = [
        Span(step.begin_ns, max(step.begin_ns, end_ns if step.end_ns is None else step.end_ns))
        for step in steps
        if step.step.isdecimal() and step.begin_ns is not None
    ]
    if not spans:
        return np.ones(grid.count, dtype=bool)
    return np.asarray(shares(union(spans), grid) >= RAN)


def _suspect(evidence: Sequence[Evidence], grid: Grid) -> Bools:
    """Windows in which something was wrong, or just before: they do not show the usual pace."""
    suspect = np.zeros(grid.count, dtype=bool)
    for one in (one for one in evidence if one.strength > 0):
        touched = grid.touched(one.span.begin_ns, one.span.end_ns)
        suspect[touched.start : touched.stop + AFTER] = True
    return suspect


def _heat(acts: Sequence[Activity], found: Pace, running: Bools) -> Heat | None:
    """The nodes' own paces, whose differences show who was slow and who waited."""
    if found.signal == "none" or not acts:
        return None
    names = {"traffic": "bytes", "cpu": "job_cpu", "mpi": "calls", "iterations": "iterations"}
    work = _stack(acts, names[found.signal])
    rows = []
    for row in work:
        known = row[running & ~np.isnan(row)]
        busy = known[known > 0]
        usual = float(np.median(busy)) if len(busy) else 0.0
        parts = _drawn(row, HEAT_PARTS) / usual if usual else np.full(HEAT_PARTS, np.nan)
        rows.append(np.where(np.isnan(parts), 255, np.clip(parts * 100, 0, 254)))
    width = min(len(row) for row in rows)
    levels = np.array([row[:width] for row in rows]).astype(np.uint8)
    return Heat(tuple(act.node for act in acts), levels)


def _drawn(progress: NDArray[np.float64], points: int = 600) -> NDArray[np.float64]:
    """The pace for a plot: means of equal parts, NaN where nothing is known."""
    parts = np.array_split(progress, min(points, len(progress)))
    known = [part[~np.isnan(part)] for part in parts]
    return np.array([part.mean() if len(part) else np.nan for part in known])


def _others(evidence: Sequence[Evidence], span: Span) -> Iterator[Other]:
    for cause in dict.fromkeys(one.cause for one in evidence if one.strength > 0):
        mine, names = telling([one for one in evidence if one.cause == cause], span)
        rails = {one.rail for one in mine}
        yield Other(cause, names, next(iter(rails)) if len(rails) == 1 else None)


def _quiet(evidence: Sequence[Evidence], taken: set[int], job: _Job) -> Iterator[Piece]:
    """Troubles of links and paths outside slow stretches; those that share time are one."""
    free = set(taken)
    open_piece: Piece | None = None
    for one in (one for one in evidence if one.cause in _TOLD):
        touched = job.grid.touched(one.span.begin_ns, one.span.end_ns)
        windows = [w for w in range(touched.start, touched.stop) if job.pace.known[w]]
        if not windows:
            continue
        if open_piece and windows[0] <= open_piece.windows[-1]:
            more = [w for w in windows if w > open_piece.windows[-1] and w not in taken]
            open_piece = Piece(open_piece.cause, open_piece.windows + more,
                                [*open_piece.evidence, one], [])  # fmt: skip
            continue
        if open_piece:
            yield open_piece
        open_piece = None
        if not free.intersection(windows):
            open_piece = Piece(one.cause, windows, [one], [])
    if open_piece:
        yield open_piece


def _verdict(piece: Piece, job: _Job) -> Verdict:
    windows, grid = np.array(piece.windows), job.grid
    added, error = luck(job.pace, windows)
    node_ns = grid.width_ns * job.nodes
    loss_ns = int(job.lost_ns[windows].sum()) + round(added * node_ns)
    error_ns = _Z95 * error * node_ns
    span = grid.span(int(windows[0]), int(windows[-1]))
    mine, names = telling(piece.evidence, span)
    rails = {one.rail for one in mine}
    sure = piece.cause in SURE and not any(one.cause in SURE for one in piece.others)
    measured = [float(act.measured[windows].mean()) for act in job.acts]
    return Verdict(
        cause=piece.cause,
        nodes=names,
        rail=next(iter(rails)) if len(rails) == 1 else None,
        begin_ns=min([span.begin_ns, *(one.span.begin_ns for one in mine)])
        if piece.cause in SURE
        else span.begin_ns,
        end_ns=span.end_ns,
        loss_ns=loss_ns,
        low_ns=int(loss_ns - error_ns),
        high_ns=int(loss_ns + error_ns),
        certainty="none" if piece.cause == "unknown" else ("sure" if sure else "likely"),
        evidence=tuple(dict.fromkeys(one.text for one in mine))[:8],
        also=tuple(dict.fromkeys(one.text for one in piece.others))[:4],
        others=tuple(_others(piece.others, span)),
        windows=tuple(piece.windows),
        coverage=sum(measured) / max(1, job.nodes),
    )
