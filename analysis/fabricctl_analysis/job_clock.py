"""The job clock in the report: how far it may have erred over time, who was without it and when.

From the table ``job_clock``: a row a second while a node had job time. Times are the node's own
CLOCK_REALTIME, as everywhere in the report; bounds are of the job clock.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from fabricctl.store import rollups, schema
from fabricctl.store.schema import ClockStatus, StampSource
from fabricctl_analysis.counters import measured_floats
from fabricctl_analysis.coverage import Span, measured_spans
from fabricctl_analysis.rows import NodeRows, thinned
from fabricctl_analysis.rows import apart_ns as rows_apart_ns
from fabricctl_analysis.series import Floats, Ns, Series, as_intervals, reduce_series

# Rows come once a second (fabricctl/agent/clockwork.py); a node without one for longer had no job
# time or no agent, or not enough of the CPU to say so.
GAP_NS = 3_500_000_000
BINS = 200  # of the error over time: what a plot shows
_FAR_NS = 1 << 61  # job times beyond are forged


@dataclass(frozen=True)
class Holdover:
    """The node measured nothing, and its clock ran on; ``likely_ns``: the worst it may have erred
    by then."""

    span: Span
    likely_ns: int | None


@dataclass(frozen=True)
class ClockSummary:
    """One node's job clock over the job.

    ``first_ns``: since when it had job time. ``likely_ns`` (median, 99th percentile, most) and
    ``certain_ns`` (median, most): the error's bounds. ``ahead_ns``: least and most that the node's
    CLOCK_REALTIME was ahead of job time. ``stamps``: where those of its probes came from as a rule;
    None: not said. ``lost``: without job time after the first.
    """

    first_ns: int
    rows: int
    synchronised_ns: int
    likely_ns: tuple[int, int, int] | None
    certain_ns: tuple[int, int] | None
    ahead_ns: tuple[int, int] | None
    stamps: StampSource | None
    holdovers: tuple[Holdover, ...]
    lost: tuple[Span, ...]
    error: Series = field(repr=False)  # likely error, ns


def clock_summary(rows: NodeRows) -> ClockSummary | None:
    """None: the node never had job time."""
    table, real_ns = rows.tables["job_clock"], rows.real_ns["job_clock"]
    if not len(table):
        return None
    likely, most = _measured(table["likely_ns"]), _most(table, "likely_ns")
    certain = np.maximum(_measured(table["early_ns"]), _measured(table["late_ns"]))
    certainly = np.maximum(_most(table, "early_ns"), _most(table, "late_ns"))
    held = table["status"] == ClockStatus.HOLDOVER.value
    apart = rows_apart_ns(table, real_ns)
    spans = measured_spans(real_ns, GAP_NS, apart)
    ends = [rows.end_ns] if rows.end_ns is not None else []
    last = Span(spans[-1].end_ns, max([spans[-1].end_ns, *ends]))
    lost = [Span(a.end_ns, b.begin_ns) for a, b in pairwise(spans)]
    begin, end, value = as_intervals(real_ns, likely)
    holdovers = tuple(_holdovers(real_ns, held, most))
    drawn = (
        reduce_series(
            begin,
            end,
            value,
            GAP_NS,
            None if apart is None else apart[1:],
            bins=BINS,
            peaks=most[1:],
        )
        if len(begin)
        else _nothing()
    )
    held_ns = sum(one.span.length_ns for one in holdovers)
    return ClockSummary(
        first_ns=int(real_ns[0]),
        rows=int(table["rows"].sum()) if thinned(table) else len(table),
        synchronised_ns=max(sum(span.length_ns for span in spans) - held_ns, 0),
        likely_ns=_three(likely, most),
        certain_ns=None if np.isnan(certain).all() else _two(certain, certainly),
        ahead_ns=_ahead(real_ns, table["job_ns"]),
        stamps=_stamps(table),
        holdovers=holdovers,
        lost=(*lost, *([last] if last.length_ns > GAP_NS else [])),
        error=drawn,
    )


def apart_ns(clocks: Sequence[ClockSummary | None]) -> int | None:
    """How far two nodes' CLOCK_REALTIME were apart at most, by the job clock; None when some
    node had none."""
    known = [one for one in clocks if one is not None and one.ahead_ns and one.likely_ns]
    if len(known) < len(clocks) or len(known) < 2:
        return None
    most = max(one.ahead_ns[1] for one in known if one.ahead_ns)
    least = min(one.ahead_ns[0] for one in known if one.ahead_ns)
    error = max(one.likely_ns[2] for one in known if one.likely_ns)
    return most - least + 2 * error


def _measured(values: np.ndarray) -> Floats:
    return np.where(values == schema.NOT_MEASURED["I"], np.nan, values.astype(np.float64))


def _stamps(table: np.ndarray) -> StampSource | None:
    said = table["stamps"] if "stamps" in (table.dtype.names or ()) else np.empty(0, np.uint8)
    known = said[(said > StampSource.NONE) & (said <= max(StampSource))]
    return StampSource(int(np.bincount(known).argmax())) if len(known) else None


def _most(table: np.ndarray, name: str) -> Floats:
    """Of each row, and of those that were left out before it where rows are thinned."""
    if thinned(table):
        return measured_floats(table[rollups.highest(name)])
    return _measured(table[name])


def _two(values: Floats, tops: Floats) -> tuple[int, int]:
    return round(float(np.nanmedian(values))), round(float(np.nanmax(np.fmax(values, tops))))


def _three(values: Floats, tops: Floats) -> tuple[int, int, int] | None:
    if np.isnan(values).all():
        return None
    median, most = _two(values, tops)
    return median, round(float(np.nanquantile(values, 0.99))), most


def _ahead(real_ns: Ns, job_ns: Ns) -> tuple[int, int] | None:
    good = (job_ns > 0) & (job_ns < _FAR_NS)
    if not good.any():
        return None
    ahead = real_ns[good] - job_ns[good]
    return int(ahead.min()), int(ahead.max())


def _holdovers(real_ns: Ns, held: np.ndarray, likely: Floats) -> Iterator[Holdover]:
    """From the last row that was measured to the first one again."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], held, [False]]).astype(np.int8)))
    for first, after in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        begin = int(real_ns[max(first - 1, 0)])
        end = int(real_ns[min(after, len(real_ns) - 1)])
        worst = likely[first:after]
        known = not np.isnan(worst).all()
        yield Holdover(Span(begin, end), round(float(np.nanmax(worst))) if known else None)


def _nothing() -> Series:
    none, empty = np.empty(0, np.int64), np.empty(0)
    return Series(none, none, empty, empty, empty)
