"""Maps of the whole job at a glance: one row a rail of a node, a rank or a GPU, time from left to
right in two hundred parts at most.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fabricctl.store import schema
from fabricctl_analysis.model import Strip
from fabricctl_analysis.mpi_calls import Tracked
from fabricctl_analysis.rows import NodeRows
from fabricctl_analysis.series import Floats
from fabricctl_analysis.windows import Grid

PARTS = 200
MAX_ROWS = 256  # drawn: of 1,024 nodes those with the most; a page of 5 MB holds them
UNKNOWN = 255
Key = tuple[int, ...]


@dataclass(frozen=True)
class NodeStrips:
    """What one node adds: rows by their keys, of which some are told by several nodes."""

    delay: Mapping[Key, Floats]  # rail, place of the destination in the job's nodes: p99, ns
    waiting: Mapping[Key, Floats]  # rank: share of its time in MPI
    gpu: Mapping[Key, Floats]  # GPU: utilisation


def coarse(grid: Grid) -> Grid:
    """The same time in no more parts than are drawn."""
    times = max(1, -(-grid.count // PARTS))
    return Grid(grid.begin_ns, grid.width_ns * times, -(-grid.count // times))


def node_strips(rows: NodeRows, grid: Grid, own: int | None, mpi: Tracked) -> NodeStrips:
    """``own``: the node's place in the job's list."""
    parts = coarse(grid)
    times = parts.width_ns // grid.width_ns
    waits: dict[Key, Floats] = {}
    for rank, share in mpi.waiting.items():
        waits[rank,] = _coarser(share, times)
    return NodeStrips(dict(_delays(rows, parts, own)), waits, dict(_gpus(rows, parts)))


def _coarser(values: Floats, times: int) -> Floats:
    """Means of so many windows each, of those that are known."""
    parts = -(-len(values) // times)
    whole = np.full(parts * times, np.nan)
    whole[: len(values)] = values
    known = whole.reshape(parts, -1)
    counts = (~np.isnan(known)).sum(axis=1)
    mean = np.full(parts, np.nan)
    np.divide(np.nansum(known, axis=1), counts, out=mean, where=counts > 0)
    return mean


def _delays(rows: NodeRows, grid: Grid, own: int | None) -> Iterator[tuple[Key, Floats]]:
    table, times = rows.tables["delay"], rows.real_ns["delay"]
    part = (times - grid.begin_ns) // grid.width_ns
    keep = (table["size_class"] == 0) & (table["count"] > 0) & (table["p99_ns"] >= 0)
    keep &= (part >= 0) & (part < grid.count)
    # Some columns of many: whole rows take ten times as long.
    part, p99, rail = part[keep], table["p99_ns"][keep].astype(np.float64), table["rail"][keep]
    inbound, peer = table["inbound"][keep] == 1, table["peer"][keep].astype(np.int64)
    to = np.where(inbound, -1 if own is None else own, peer)
    ends = to * 256 + rail
    order = np.argsort(ends, kind="stable")
    for mine in np.split(order, np.flatnonzero(np.diff(ends[order])) + 1):
        if len(mine) and to[mine[0]] >= 0:
            most = np.full(grid.count, -np.inf)
            np.maximum.at(most, part[mine], p99[mine])
            most[np.isinf(most)] = np.nan
            yield (int(rail[mine[0]]), int(to[mine[0]])), most


def _gpus(rows: NodeRows, grid: Grid) -> Iterator[tuple[Key, Floats]]:
    table, times = rows.tables["gpu"], rows.real_ns["gpu"]
    part = (times - grid.begin_ns) // grid.width_ns
    used = table["utilisation_percent"]
    good = (used != schema.NOT_MEASURED["B"]) & (part >= 0) & (part < grid.count)
    for gpu in np.unique(table["gpu"][good]).tolist():
        mine = good & (table["gpu"] == gpu)
        counts = np.bincount(part[mine], minlength=grid.count)
        sums = np.bincount(part[mine], used[mine].astype(np.float64), minlength=grid.count)
        mean = np.full(grid.count, np.nan)
        np.divide(sums, counts, out=mean, where=counts > 0)
        yield (gpu,), mean


def joined(nodes: Sequence[tuple[str, NodeStrips]], names: Sequence[str]) -> tuple[Strip, ...]:
    """All nodes' rows together, those that have something to show."""
    delay: dict[Key, Floats] = {}
    waits: dict[Key, tuple[str, Floats]] = {}
    gpus: list[tuple[str, Floats]] = []
    for node, one in nodes:
        for key, values in one.delay.items():
            delay[key] = np.fmax(delay[key], values) if key in delay else values
        for key, values in one.waiting.items():
            waits[key] = (f"{key[0]} on {node}", values)
        gpus += [(f"{node} g{key[0]}", values) for key, values in one.gpu.items()]
    to = [(f"{names[place]} r{rail}", delay[rail, place])
          for rail, place in sorted(delay, key=lambda key: (key[1], key[0]))
          if place < len(names)]  # fmt: skip
    made = (
        _strip("delay", [(name, _log(values)) for name, values in to]),
        _strip("waiting", [(waits[key][0], 100 * waits[key][1]) for key in sorted(waits)]),
        _strip("gpu", gpus),
    )
    return tuple(one for one in made if one is not None)


def _log(ns: Floats) -> Floats:
    """40 a factor of ten, from 0 at a microsecond: 200 is a tenth of a second."""
    return 40 * np.log10(np.maximum(ns, 1000.0) / 1000)


def _strip(name: str, rows: Sequence[tuple[str, Floats]]) -> Strip | None:
    rows = [(label, values) for label, values in rows if not np.isnan(values).all()]
    if not rows:
        return None
    count = len(rows)
    if count > MAX_ROWS:
        order = sorted(range(count), key=lambda nth: -float(np.nanmax(rows[nth][1])))
        rows = [rows[nth] for nth in sorted(order[:MAX_ROWS])]
    width = min(len(values) for _, values in rows)
    stacked = np.array([values[:width] for _, values in rows])
    levels = np.where(np.isnan(stacked), UNKNOWN, np.clip(stacked, 0, 200)).astype(np.uint8)
    return Strip(name, tuple(label for label, _ in rows), levels, count)
