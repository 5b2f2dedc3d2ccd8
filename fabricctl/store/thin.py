"""Thins a table's rows to a rollup (:mod:`fabricctl.store.rollups` says what stays)."""

import numpy as np
from numpy.typing import NDArray

from fabricctl.store import dtypes, rollups
from fabricctl.store.dtypes import Rows
from fabricctl.store.rollups import Rollup

Bools = NDArray[np.bool_]
Indices = NDArray[np.intp]

# A rollup that keeps more than this share of its table's rows saves nobody anything, and a table
# of so few rows is read in no time.
WORTH, FEW_ROWS = 0.25, 600
# Samples further apart than so many usual distances have a gap between them, and a timer that is
# late by the rest has not (fabricctl_analysis.coverage judges by the same figures).
GAP_PERIODS, GAP_SLACK_NS = 2.5, 100_000_000


def thinned(rows: Rows, rollup: Rollup, width: str) -> Rows | None:
    """The rollup of rows in the order of time; None when it would not be worth its place."""
    if len(rows) < FEW_ROWS:
        return None
    result = thin(rows, rollup, width)
    return result if len(result) <= WORTH * len(rows) else None


def thin(rows: Rows, rollup: Rollup, width: str) -> Rows:
    """The rollup, worth it or not."""
    if not len(rows):
        return dtypes.empty(rollup.tables[width])
    kept = [_of_one(group, rollup, width) for group in _groups(rows, rollup)]
    result: Rows = np.concatenate(kept)
    return result[np.argsort(result["time_mono_ns"], kind="stable")]


def _groups(rows: Rows, rollup: Rollup) -> list[Rows]:
    """The rows of each rail, path or whatever the table has several of in one sample."""
    if not rollup.keys:
        return [rows]
    order = np.lexsort([rows[key] for key in reversed(rollup.keys)])
    sorted_rows = rows[order]
    changes = np.zeros(len(rows) - 1, dtype=bool)
    for key in rollup.keys:
        changes |= sorted_rows[key][1:] != sorted_rows[key][:-1]
    return list(np.split(sorted_rows, np.flatnonzero(changes) + 1))


def _of_one(rows: Rows, rollup: Rollup, width: str) -> Rows:
    times = rows["time_mono_ns"]
    apart = np.diff(times, prepend=times[:1])
    limit_ns = int(np.median(apart[1:]) * GAP_PERIODS) + GAP_SLACK_NS if len(rows) > 1 else 0
    kept = np.flatnonzero(_kept(rows, apart, limit_ns, rollup, width))
    result = dtypes.empty(rollup.tables[width], len(kept))
    for name in rows.dtype.names or ():
        result[name] = rows[name][kept]
    begins = np.concatenate([[0], kept[:-1] + 1])
    result["rows"] = np.diff(kept, prepend=-1)
    result["longest_ns"] = np.maximum.reduceat(apart, begins)
    for name, parts in rollup.peaks.items():
        counter = dtypes.summed([rows[part] for part in parts])
        result[rollups.peak(name)] = _peaks(counter, apart, limit_ns, begins)
    for name in rollup.lowest:
        result[rollups.lowest(name)] = np.minimum.reduceat(rows[name], begins)
    for name in rollup.highest:
        result[rollups.highest(name)] = _highest(rows[name], begins)
    return result


def _kept(rows: Rows, apart: NDArray[np.int64], limit_ns: int, rollup: Rollup, width: str) -> Bools:
    period_ns = rollups.WIDTHS_S[width] * 1_000_000_000
    bins = rows["time_mono_ns"] // period_ns
    kept = np.zeros(len(rows), dtype=bool)
    kept[:-1] = bins[1:] != bins[:-1]  # the last of each bin
    kept[0] = kept[-1] = True
    both = apart > limit_ns
    for name in rollup.states:
        both[1:] |= rows[name][1:] != rows[name][:-1]
    for name in rollup.counters:
        both[1:] |= rows[name][1:] < rows[name][:-1]
    for name in (*rollup.counters, *rollup.lowest, *rollup.highest):
        if rows[name].dtype.kind == "u":
            missing = rows[name] == np.iinfo(rows[name].dtype).max
            both[1:] |= missing[1:] != missing[:-1]
    at = np.flatnonzero(both)
    kept[at] = True
    kept[at[at > 0] - 1] = True
    return kept


def _peaks(
    counter: NDArray[np.uint64], apart: NDArray[np.int64], limit_ns: int, begins: Indices
) -> NDArray[np.uint64]:
    """Not measured where no interval of the span gives a rate."""
    none = np.iinfo(np.uint64).max
    grew = np.diff(counter.astype(np.uint64), prepend=counter[:1])
    valid = (apart > 0) & (apart <= limit_ns) & (counter != none)
    valid[1:] &= (counter[:-1] != none) & (counter[1:] >= counter[:-1])
    valid[0] = False
    rate = np.where(valid, grew.astype(np.float64) * 1e9 / np.maximum(apart, 1), -1.0)
    highest = np.maximum.reduceat(rate, begins)
    result = np.full(len(highest), none)
    known = (highest >= 0) & (highest < 2.0**63)
    result[known] = np.rint(highest[known]).astype(np.uint64)
    return result


def _highest(values: NDArray[np.integer], begins: Indices) -> NDArray[np.integer]:
    """Of what was measured."""
    if values.dtype.kind == "i":
        found: NDArray[np.integer] = np.maximum.reduceat(values, begins)
        return found
    none = np.iinfo(np.uint64).max
    known = values != np.iinfo(values.dtype).max
    highest = np.maximum.reduceat(np.where(known, values, 0).astype(np.uint64), begins)
    return np.where(np.logical_or.reduceat(known, begins), highest, none)
