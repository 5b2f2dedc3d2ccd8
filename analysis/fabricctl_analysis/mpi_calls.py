"""What the tracker's rows say about the work: calls that the ranks made, and how many ranks."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fabricctl_analysis.counters import Floats, increments
from fabricctl_analysis.groups import groups
from fabricctl_analysis.rows import NodeRows
from fabricctl_analysis.windows import FOREVER_NS, Grid, windowed

MAX_RANKS = 512  # of a node; a forged trace may name any number
MAX_WORLD = 100_000_000  # ranks; more are forged
NOT_WAITING = (b"checkpoint", b"torch.step")  # of what the tracker times, not MPI's or NCCL's
_LOOKS = (b"MPI_Test", b"MPI_Iprobe", b"MPI_Improbe", b"MPI_Probe", b"MPI_Mprobe")


@dataclass(frozen=True)
class Tracked:
    """What the node's ranks did in each window: NaN where none is tracked."""

    calls: Floats
    waiting: dict[int, Floats]  # by rank: share of its time in MPI


def tracked(rows: NodeRows, grid: Grid) -> Tracked:
    """Of the rows of ``mpi_time`` and ``rank_position``."""
    by = groups(rows.tables["mpi_time"], ("rank", "launch", "op"))
    return Tracked(_calls(rows, grid, by), _waiting(rows, grid, by))


def _calls(rows: NodeRows, grid: Grid, by: Sequence[NDArray[np.intp]]) -> Floats:
    """Of all ranks together.

    Calls that only look whether something has come (MPI_Test*, probes) are no work: a rank that
    waits makes millions of them. A rank that stays in one call has no row of ``mpi_time`` until it
    returns; its samples in ``rank_position`` say that it made none meanwhile.
    """
    table, times = rows.tables["mpi_time"], rows.real_ns["mpi_time"]
    positions, sampled = rows.tables["rank_position"], rows.real_ns["rank_position"]
    total = np.full(grid.count, np.nan)
    still = {_who(positions[at[0]]): at for at in groups(positions, ("rank", "launch"))}
    of_rank: dict[tuple[int, int], list[NDArray[np.intp]]] = defaultdict(list)
    for at in by:
        if not table["op"][at[0]].startswith(_LOOKS):
            of_rank[_who(table[at[0]])].append(at)
    for who in sorted(of_rank)[:MAX_RANKS]:
        ends = [times[at] for at in of_rank[who]]
        grown = np.concatenate([_grown(table["calls"][at]) for at in of_rank[who]])
        if who in still:
            ends.append(sampled[still[who]])
        instants, which = np.unique(np.concatenate(ends), return_inverse=True)
        so_far = np.cumsum(np.bincount(which[: len(grown)], grown, len(instants)))
        found = windowed(increments(instants, so_far.astype(np.uint64)), grid, FOREVER_NS)
        seen = ~np.isnan(found)
        total[seen] = np.nan_to_num(total[seen]) + found[seen]
    return total


def _waiting(rows: NodeRows, grid: Grid, by: Sequence[NDArray[np.intp]]) -> dict[int, Floats]:
    table, times = rows.tables["mpi_time"], rows.real_ns["mpi_time"]
    total: dict[int, Floats] = {}
    for at in by:
        if table["op"][at[0]] in NOT_WAITING:
            continue
        grown = windowed(increments(times[at], table["time_ns"][at]), grid, FOREVER_NS)
        mine = total.setdefault(int(table["rank"][at[0]]), np.full(grid.count, np.nan))
        seen = ~np.isnan(grown)
        mine[seen] = np.nan_to_num(mine[seen]) + grown[seen]
    known = sorted(total)[:MAX_RANKS]
    return {rank: np.clip(total[rank] / grid.width_ns, 0, 1) for rank in known}


def _who(row: np.void) -> tuple[int, int]:
    return int(row["rank"]), int(row["launch"])


def _grown(calls_so_far: NDArray[np.uint64]) -> Floats:
    """Calls since the row before; of the first, all. A call that was counted is not taken back;
    what a forged row may say has an end."""
    return np.clip(np.diff(calls_so_far.astype(np.float64), prepend=0.0), 0, 1e15)


def ranks_of(rows: NodeRows) -> int | None:
    """Ranks of the whole program, by what those of this node say; None without the tracker."""
    said = rows.tables["rank"]["ranks"]
    said = said[(said > 0) & (said < MAX_WORLD)]
    return int(said.max()) if len(said) else None
