"""What the tracker's rows say about the work: calls that the ranks made, and how many ranks."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fabricctl_analysis.align import MAX_TIME_NS
from fabricctl_analysis.counters import Floats, Increments, increments
from fabricctl_analysis.groups import groups
from fabricctl_analysis.rows import NodeRows
from fabricctl_analysis.windows import FOREVER_NS, Grid, windowed

MAX_RANKS = 512  # of a node; a forged trace may name any number
MAX_WORLD = 100_000_000  # ranks; more are forged
NOT_WAITING = (b"checkpoint", b"torch.step")  # of what the tracker times, not MPI's or NCCL's
_LOOKS = (b"MPI_Test", b"MPI_Iprobe", b"MPI_Improbe", b"MPI_Probe", b"MPI_Mprobe")


_Places = NDArray[np.intp]
_Who = tuple[int, int]  # rank, launch


@dataclass(frozen=True)
class Tracked:
    """What the node's ranks did in each window: NaN where none is tracked."""

    calls: Floats
    waiting: dict[int, Floats]  # by rank: share of its time in MPI


def tracked(rows: NodeRows, grid: Grid) -> Tracked:
    """Of the rows of ``mpi_time`` and ``rank_position``."""
    by = groups(rows.tables["mpi_time"], ("rank", "launch", "op"))
    positions = rows.tables["rank_position"]
    stands = {_who(positions[at[0]]): at for at in groups(positions, ("rank", "launch"))}
    return Tracked(_calls(rows, grid, by, stands), _waiting(rows, grid, by, stands))


def _calls(
    rows: NodeRows, grid: Grid, by: Sequence[_Places], stands: Mapping[_Who, _Places]
) -> Floats:
    """Of all ranks together.

    Calls that only look whether something has come (MPI_Test*, probes) are no work: a rank that
    waits makes millions of them. A rank that stays in one call has no row of ``mpi_time`` until it
    returns; its samples in ``rank_position`` say that it made none meanwhile.
    """
    table, times = rows.tables["mpi_time"], rows.real_ns["mpi_time"]
    sampled = rows.real_ns["rank_position"]
    total = np.full(grid.count, np.nan)
    of_rank: dict[_Who, list[_Places]] = defaultdict(list)
    for at in by:
        if not table["op"][at[0]].startswith(_LOOKS):
            of_rank[_who(table[at[0]])].append(at)
    for who in sorted(of_rank)[:MAX_RANKS]:
        ends = [times[at] for at in of_rank[who]]
        grown = np.concatenate([_grown(table["calls"][at]) for at in of_rank[who]])
        if who in stands:
            ends.append(sampled[stands[who]])
        instants, which = np.unique(np.concatenate(ends), return_inverse=True)
        so_far = np.cumsum(np.bincount(which[: len(grown)], grown, len(instants)))
        found = windowed(increments(instants, so_far.astype(np.uint64)), grid, FOREVER_NS)
        seen = ~np.isnan(found)
        total[seen] = np.nan_to_num(total[seen]) + found[seen]
    return total


def _waiting(
    rows: NodeRows, grid: Grid, by: Sequence[_Places], stands: Mapping[_Who, _Places]
) -> dict[int, Floats]:
    table, times = rows.tables["mpi_time"], rows.real_ns["mpi_time"]
    of_rank: dict[_Who, list[_Places]] = defaultdict(list)
    for at in by:
        of_rank[_who(table[at[0]])].append(at)
    total: dict[int, Floats] = {}
    for who in sorted(of_rank)[:MAX_RANKS]:
        ops = of_rank[who]
        exact = _spent(rows, stands[who], ops) if who in stands else None
        known = [exact] if exact else [
            increments(times[at], table["time_ns"][at]) for at in ops
            if table["op"][at[0]] not in NOT_WAITING
        ]  # fmt: skip
        for one in known:
            grown = windowed(one, grid, FOREVER_NS)
            mine = total.setdefault(who[0], np.full(grid.count, np.nan))
            seen = ~np.isnan(grown)
            mine[seen] = np.nan_to_num(mine[seen]) + grown[seen]
    return {rank: np.clip(spent / grid.width_ns, 0, 1) for rank, spent in total.items()}


def _spent(rows: NodeRows, at: _Places, ops: Sequence[_Places]) -> Increments | None:
    """A rank's time in MPI between the instants at which it is known to the ns.

    The sums hold calls that have returned: a call of eight seconds shows at its end, and then may
    lie anywhere since the row before. But a sample of where the rank stands says since when it is
    in its call, or out of it: what it had spent by then, and by the sample itself, is no guess.
    None where the samples and the sums are not of the same calls.
    """
    table, times = rows.tables["mpi_time"], rows.real_ns["mpi_time"]
    stands, sampled = rows.tables["rank_position"], rows.real_ns["rank_position"][at]
    calls = stands["calls"][at]
    returned, spent = np.zeros(len(at)), np.zeros(len(at))
    for op in ops:
        last = np.searchsorted(times[op], sampled, side="right")
        returned += np.concatenate([[0], table["calls"][op]])[last]
        if table["op"][op[0]] not in NOT_WAITING:
            spent += np.concatenate([[0], table["time_ns"][op]])[last]
    # Read while the rank went on, or in part: such a sample tells nothing.
    whole = (returned == calls // 2) & np.concatenate([[True], np.diff(sampled) > 0])
    if whole.sum() < 2 or whole.sum() < len(at) / 2:
        return None
    at, calls, sampled, spent = at[whole], calls[whole], sampled[whole], spent[whole]
    ago = stands["time_mono_ns"][at].astype(np.float64) - stands["since_mono_ns"][at]
    ago = np.clip(ago, 0, MAX_TIME_NS)
    op_now = stands["op"][at]
    inside = (calls % 2 == 1) & np.all([op_now != name for name in NOT_WAITING], axis=0)
    since = np.maximum(sampled[1:] - ago[1:].astype(np.int64), sampled[:-1])
    by_now = spent + np.where(inside, ago, 0.0)
    by_since = np.where(ago[1:] < np.diff(sampled), spent[1:], by_now[:-1])
    ends = np.column_stack([since, sampled[1:]]).ravel()
    had = np.column_stack([by_since, by_now[1:]]).ravel()
    begins, before = (np.concatenate([first[:1], rest[:-1]])
                      for first, rest in ((sampled, ends), (by_now, had)))  # fmt: skip
    real = ends > begins
    begins, ends, grown = begins[real], ends[real], (had - before)[real]
    longest = ends - begins
    return Increments(begins, ends, np.clip(grown, 0, longest), 0, 0, longest)


def _who(row: np.void) -> _Who:
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
