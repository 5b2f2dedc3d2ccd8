"""What one node did and suffered in each window of the job: what attribution stands on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fabricctl.store import rollups, schema
from fabricctl_analysis.counters import Increments, increments
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.host import cpu_time
from fabricctl_analysis.mpi_calls import Tracked
from fabricctl_analysis.rows import NodeRows, apart_ns, of_rail, thinned
from fabricctl_analysis.series import Floats
from fabricctl_analysis.windows import FOREVER_NS, Grid, shares, windowed

_SECONDLY_NS = 2_600_000_000  # longest between two rows of what is read once a second
MAX_LAUNCHES = 1000  # of a job; a forged trace may name any number
# Of fewer segments a share says nothing.
LEAST_SEGMENTS_PER_S = 100
# nvml.h, nvmlClocksThrottleReason*: hardware slowdown, thermal by software, by hardware, power.
THROTTLED = 0x8 | 0x20 | 0x40 | 0x80
_PRESSURES = {"memory": "memory_full", "io": "io_full", "cpu": "cpu_some"}


@dataclass(frozen=True)
class Activity:
    """One node's windows: ``bytes`` moved on all rails, the rest in units of time per time.

    ``job_cpu`` and ``other_cpu`` in cores, ``steal`` too; ``pressure`` is the share of time in
    which tasks stalled, by ``cpu``, ``memory`` and ``io``. ``rails`` are the bytes of each rail.
    """

    node: str
    bytes: Floats
    job_cpu: Floats
    other_cpu: Floats
    steal: Floats
    pressure: dict[str, Floats]
    rails: dict[int, Floats]
    measured: Floats  # share of each window in which the node was measured
    resent: Floats  # TCP segments sent again, of those sent
    throttled: Floats  # share of the GPUs' readings with the clock held down by heat or power
    mpi: Floats  # share of its time that the rank which waits least spent in MPI
    mpi_rank: NDArray[np.int64]  # which rank that is; -1: no rank is tracked
    iterations: Floats  # that the program told; NaN: it tells none
    calls: Floats  # of MPI, by all ranks; NaN: none is tracked


def activity(
    rows: NodeRows, grid: Grid, limit_ns: int, measured: Sequence[Span], mpi: Tracked
) -> Activity:
    """Samples further apart than ``limit_ns`` measure nothing between them."""
    rails = {}
    for rail in np.unique(rows.tables["rail"]["rail"]).tolist():
        times, samples = of_rail(rows, "rail", rail)
        apart = apart_ns(samples, times)
        both = [increments(times, samples[f"{way}_bytes"], apart) for way in ("rx", "tx")]
        rails[int(rail)] = sum((windowed(one, grid, limit_ns) for one in both), np.zeros(1))
    host_ns, host = rows.real_ns["host"], rows.tables["host"]
    apart = apart_ns(host, host_ns)
    busy = windowed(increments(host_ns, cpu_time(host, rollups.BUSY), apart), grid, limit_ns)
    times, job = rows.real_ns["job"], rows.tables["job"]
    own = windowed(increments(times, job["cpu_ns"], apart_ns(job, times)), grid, limit_ns)
    steal = windowed(increments(host_ns, host["cpu_steal_ns"], apart), grid, limit_ns)
    pressure = {
        name: windowed(increments(host_ns, host[f"psi_{column}_us"], apart), grid, limit_ns) * 1e3
        for name, column in _PRESSURES.items()
    }
    share, mpi_rank = _least(mpi, grid)
    empty = np.full(grid.count, np.nan)
    moved = [values for values in rails.values() if not np.isnan(values).all()]
    return Activity(
        node=rows.name,
        bytes=np.fmax(np.sum(moved, axis=0) if moved else empty, _ports(rows, grid, limit_ns)),
        job_cpu=own / grid.width_ns,
        other_cpu=np.maximum(busy - np.nan_to_num(own), 0) / grid.width_ns,
        steal=steal / grid.width_ns,
        pressure={name: values / grid.width_ns for name, values in pressure.items()},
        rails=rails,
        measured=shares(measured, grid),
        resent=_resent(rows, grid, limit_ns),
        throttled=_throttled(rows, grid),
        mpi=share,
        mpi_rank=mpi_rank,
        iterations=_iterations(rows, grid),
        calls=mpi.calls,
    )


def _ports(rows: NodeRows, grid: Grid, limit_ns: int) -> Floats:
    """Bytes through the node's InfiniBand and RoCE ports. What goes past the kernel is in no
    interface's counters; a port counts both."""
    limit_ns, total = max(limit_ns, _SECONDLY_NS), np.full(grid.count, np.nan)
    for port in np.unique(rows.tables["rdma_port"]["port"]).tolist():
        mine = rows.tables["rdma_port"]["port"] == port
        times, table = rows.real_ns["rdma_port"][mine], rows.tables["rdma_port"][mine]
        apart = apart_ns(table, times)
        for way in ("rx", "tx"):
            found = windowed(increments(times, table[f"{way}_bytes"], apart), grid, limit_ns)
            seen = ~np.isnan(found)
            total[seen] = np.nan_to_num(total[seen]) + found[seen]
    return total


def _resent(rows: NodeRows, grid: Grid, limit_ns: int) -> Floats:
    """NaN where too little was sent for a share to mean something."""
    times, table = rows.real_ns["tcp"], rows.tables["tcp"]
    # Read once a second, whatever the pace of the samples.
    limit_ns, apart = max(limit_ns, _SECONDLY_NS), apart_ns(table, times)
    again, sent = (
        windowed(increments(times, table[name], apart), grid, limit_ns)
        for name in ("retransmitted", "out_segments")
    )
    share = np.full(grid.count, np.nan)
    enough = sent > LEAST_SEGMENTS_PER_S * grid.width_ns / 1e9
    np.divide(again, sent + again, out=share, where=enough | (again > 0))
    return share


def _throttled(rows: NodeRows, grid: Grid) -> Floats:
    times, table = rows.real_ns["gpu"], rows.tables["gpu"]
    known = table["throttle_reasons"] != schema.NOT_MEASURED["Q"]
    held = known & ((table["throttle_reasons"] & THROTTLED) != 0)
    # Thinned, a reading stands for those before it too: between two that are kept none is another.
    readings = table["rows"] if thinned(table) else np.ones(len(table))
    at = times.astype(np.float64), grid.edges_ns.astype(np.float64)
    counts, hits = (
        np.histogram(*at, weights=np.where(mask, readings, 0.0))[0] for mask in (known, held)
    )
    share = np.full(grid.count, np.nan)
    np.divide(hits, counts, out=share, where=counts > 0)
    return share


def _least(mpi: Tracked, grid: Grid) -> tuple[Floats, NDArray[np.int64]]:
    """The node's rank that waits least, window by window. A rank in a call has no row until
    it returns, and then its time covers the whole interval: nothing is a gap here."""
    shares_of = mpi.waiting
    if not shares_of:
        return np.full(grid.count, np.nan), np.full(grid.count, -1, np.int64)
    ranks, values = np.array(list(shares_of)), np.array(list(shares_of.values()))
    seen = ~np.isnan(values).all(axis=0)
    least = np.where(np.isnan(values), np.inf, values).argmin(axis=0)
    share = np.where(seen, values[least, np.arange(grid.count)], np.nan)
    return share, np.where(seen, ranks[least].astype(np.int64), -1)


def _iterations(rows: NodeRows, grid: Grid) -> Floats:
    """By the first rank here of each launch: all ranks of a program count alike.

    A program tells the numbers of its iterations, and one that goes on from a checkpoint begins
    with a large one: what it did until it told its first is not known. Between two launches none
    is done.
    """
    times, table = rows.real_ns["rank_position"], rows.tables["rank_position"]
    total, over_ns = np.full(grid.count, np.nan), None
    told = table["step"] != schema.NOT_MEASURED["Q"]
    if not (table["step"][told] > 0).any():
        return total
    for launch in np.unique(table["launch"][told])[:MAX_LAUNCHES]:
        at = np.flatnonzero(told & (table["launch"] == launch))
        at = at[table["rank"][at] == table["rank"][at].min()]
        ends, steps = times[at], table["step"][at].astype(np.float64)
        grown, apart = np.diff(steps), apart_ns(table[at], ends)
        grown[(grown < 0) | ((grown > 0) & (steps[:-1] == 0))] = np.nan
        if over_ns is not None and over_ns < ends[0]:
            ends, grown = np.insert(ends, 0, over_ns), np.insert(grown, 0, 0.0)
        over_ns = max(ends[-1], over_ns or 0)
        lengths = np.diff(ends)
        if apart is not None and len(apart) > 1:
            lengths[1 - len(apart) :] = apart[1:]
        one = Increments(ends[:-1], ends[1:], grown, 0, 0, lengths)
        found = windowed(one, grid, FOREVER_NS)
        seen = ~np.isnan(found)
        total[seen] = np.nan_to_num(total[seen]) + found[seen]
    return total
