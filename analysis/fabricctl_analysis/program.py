"""What the program itself did instead of going on: checkpoints, as it told them or as the tracker
saw them, and phases that it marked (docs/checkpoints.md, docs/tracker.md).
"""

from collections.abc import Iterator

import numpy as np

from fabricctl.store.schema import CheckpointEvent
from fabricctl.units import format_duration
from fabricctl_analysis import coverage
from fabricctl_analysis.counters import increments
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.evidence import Evidence
from fabricctl_analysis.groups import groups
from fabricctl_analysis.rows import NodeRows, clean
from fabricctl_analysis.windows import FOREVER_NS, Grid, windowed

SAVING = b"checkpoint"  # the tracker's name of a program's own saving
# Times in calls are summed once a second, on nodes of many ranks every 16 s at least.
SAMPLE_NS = 1_000_000_000
TOGETHER_NS = 2_500_000_000
# Saving that took less of the time than this slowed nothing that would be seen.
LEAST_SHARE = 0.1
# A window is of the phase in which the rank was for most of it.
HALF = 0.5
_WORDS = {
    CheckpointEvent.SAVED: "a checkpoint was written",
    CheckpointEvent.RESTORED: "a checkpoint was read back from memory",
    CheckpointEvent.RESTORED_SHARED: "a checkpoint was read back from the shared file system",
}


def checkpoints(rows: NodeRows, shift_ns: int) -> Iterator[Evidence]:
    """From one node's tables, on the time that all nodes share; their place is the whole job."""
    yield from _told(rows, shift_ns)
    yield from _tracked(rows, shift_ns)


def _told(rows: NodeRows, shift_ns: int) -> Iterator[Evidence]:
    table, times = rows.tables["checkpoint"], rows.real_ns["checkpoint"] + shift_ns
    for event, words in _WORDS.items():
        spans = []
        for at, row in zip(times[table["event"] == event], table[table["event"] == event],
                           strict=True):  # fmt: skip
            stall_ns = min(int(row["stall_ns"]), int(at))
            spans.append(Span(int(at) - stall_ns, int(at)))
        for span in coverage.union([one for one in spans if one.length_ns], TOGETHER_NS):
            took = format_duration(span.length_ns / 1e9)
            text = f"{words}, and kept the ranks for {took} at most"
            yield Evidence("checkpoint", (), None, span, 1.0, text)


def _tracked(rows: NodeRows, shift_ns: int) -> Iterator[Evidence]:
    table, times = rows.tables["mpi_time"], rows.real_ns["mpi_time"] + shift_ns
    saving = np.flatnonzero(table["op"] == SAVING)
    spans = []
    for mine in groups(table, ("rank", "launch"), saving):
        before_ns, took_before = -(1 << 62), 0
        for at in mine.tolist():
            end_ns, took = int(times[at]), int(table["time_ns"][at])
            grown = took - took_before if took >= took_before else took
            begin_ns = max(before_ns, end_ns - grown - SAMPLE_NS)
            if grown > LEAST_SHARE * (end_ns - begin_ns):
                spans.append(Span(begin_ns, end_ns))
            before_ns, took_before = end_ns, took
    for span in coverage.union(spans, TOGETHER_NS):
        text = f"ranks on {rows.name} wrote a checkpoint"
        yield Evidence("checkpoint", (), None, span, 1.0, text)


def phases(rows: NodeRows, shift_ns: int, grid: Grid) -> Iterator[Evidence]:
    """Where ranks here were in a phase that the program is in for the smaller part of its time: it
    may have another pace. Told by the first rank of the node."""
    table, times = rows.tables["phase"], rows.real_ns["phase"] + shift_ns
    if not len(table):
        return
    first = table["rank"] == table["rank"].min()
    names = np.unique(table["name"][first])
    shares = []
    for name in names:
        mine = first & (table["name"] == name)
        grown = windowed(increments(times[mine], table["time_ns"][mine]), grid, FOREVER_NS)
        shares.append(np.clip(np.nan_to_num(grown) / grid.width_ns, 0, 1))
    share = np.array(shares)
    usual = int(share.sum(axis=1).argmax())
    main = share.argmax(axis=0)
    there = (share.max(axis=0) > HALF) & (main != usual)
    at = np.flatnonzero(there)
    for group in np.split(at, np.flatnonzero((np.diff(at) > 1) | (np.diff(main[at]) != 0)) + 1):
        if len(group):
            name = clean(names[main[group[0]]])
            span = grid.span(int(group[0]), int(group[-1]))
            text = f"the program was in its phase {name}"
            yield Evidence("phase", (), None, span, 1.0, text)
