"""One time for all nodes, where there was a job clock: causes and their effects on other nodes are
compared on it, however far apart the nodes' own clocks were.

The report shows each node's CLOCK_REALTIME, as logs do; attribution needs the nodes together. Every
node is shifted to the first one's CLOCK_REALTIME by what the job clock says lies between them.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fabricctl_analysis.model import PathMark, RailSummary, Remark
from fabricctl_analysis.rows import NodeRows

# Clocks that are closer than this move no window by a sample; the site keeps them so by NTP.
WORTH_NS = 1_000_000
_FAR_NS = 1 << 61  # job times beyond are forged


def ahead_ns(rows: NodeRows) -> int | None:
    """By how much the node's CLOCK_REALTIME was ahead of job time, None without job time."""
    table, real_ns = rows.tables["job_clock"], rows.real_ns["job_clock"]
    good = np.abs(table["job_ns"]) < _FAR_NS
    if not good.any():
        return None
    return int(np.median(real_ns[good] - table["job_ns"][good]))


def shifted(rows: NodeRows, by_ns: int) -> NodeRows:
    """All times later by that much."""
    if not by_ns:
        return rows
    return replace(rows, real_ns={name: times + by_ns for name, times in rows.real_ns.items()})


def shifted_rail(rail: RailSummary, by_ns: int) -> RailSummary:
    if not by_ns:
        return rail
    downs = tuple(
        replace(
            down,
            begin_ns=down.begin_ns + by_ns,
            end_ns=None if down.end_ns is None else down.end_ns + by_ns,
        )
        for down in rail.link.downs
    )
    return replace(
        rail,
        link=replace(rail.link, downs=downs),
        measured_end_ns=rail.measured_end_ns + by_ns,
    )


def shifted_paths(marks: Sequence[PathMark], by_ns: int) -> tuple[PathMark, ...]:
    return tuple(
        replace(
            mark,
            at_ns=mark.at_ns + by_ns,
            begin_ns=mark.begin_ns + by_ns if mark.begin_ns else 0,
        )
        for mark in marks
    )


def shifted_remarks(remarks: Sequence[Remark], by_ns: int) -> tuple[Remark, ...]:
    return tuple(replace(remark, at_ns=remark.at_ns + by_ns) for remark in remarks)
