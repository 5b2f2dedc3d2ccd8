"""What the tracker's rows say about the work: calls that the ranks made, and how many ranks."""

import numpy as np

from fabricctl_analysis.counters import Floats, increments
from fabricctl_analysis.rows import NodeRows
from fabricctl_analysis.windows import FOREVER_NS, Grid, windowed

MAX_RANKS = 512  # of a node; a forged trace may name any number
MAX_WORLD = 100_000_000  # ranks; more are forged
_LOOKS = (b"MPI_Test", b"MPI_Iprobe", b"MPI_Improbe", b"MPI_Probe", b"MPI_Mprobe")


def calls(rows: NodeRows, grid: Grid) -> Floats:
    """Of the node's ranks in each window; NaN where none is tracked.

    Calls that only look whether something has come (MPI_Test*, probes) are no work: a rank that
    waits makes millions of them. A rank that stays in one call has no row of ``mpi_time`` until it
    returns; its samples in ``rank_position`` say that it made none meanwhile.
    """
    table, times = rows.tables["mpi_time"], rows.real_ns["mpi_time"]
    positions, sampled = rows.tables["rank_position"], rows.real_ns["rank_position"]
    total = np.full(grid.count, np.nan)
    work = np.flatnonzero(~np.isin(table["op"], _polling(table["op"])))
    for rank in np.unique(table["rank"][work])[:MAX_RANKS]:
        at = work[table["rank"][work] == rank]
        here = positions["rank"] == rank
        for launch in np.unique(table["launch"][at]):
            mine = at[table["launch"][at] == launch]
            grown = _grown(table[mine])
            still = sampled[here & (positions["launch"] == launch)]
            instants, which = np.unique(np.concatenate([times[mine], still]), return_inverse=True)
            amounts = np.zeros(len(instants))
            np.add.at(amounts, which[: len(mine)], grown)
            so_far = np.cumsum(amounts).astype(np.uint64)
            found = windowed(increments(instants, so_far), grid, FOREVER_NS)
            seen = ~np.isnan(found)
            total[seen] = np.nan_to_num(total[seen]) + found[seen]
    return total


def _polling(ops: np.ndarray) -> np.ndarray:
    names = np.unique(ops)
    return np.array([name for name in names if name.startswith(_LOOKS)], dtype=names.dtype)


def _grown(table: np.ndarray) -> Floats:
    """Calls of one rank's rows since the row before of the same operation; of the first, all."""
    order = np.argsort(table["op"], kind="stable")
    counts = table["calls"][order].astype(np.float64)
    same = np.concatenate([[False], table["op"][order][1:] == table["op"][order][:-1]])
    before = np.where(same, np.concatenate([[0.0], counts[:-1]]), 0.0)
    grown = np.empty(len(table))
    # A call that was counted is not taken back; what a forged row may say has an end.
    grown[order] = np.clip(counts - before, 0, 1e15)
    return grown


def ranks_of(rows: NodeRows) -> int | None:
    """Ranks of the whole program, by what those of this node say; None without the tracker."""
    said = rows.tables["rank"]["ranks"]
    said = said[(said > 0) & (said < MAX_WORLD)]
    return int(said.max()) if len(said) else None
