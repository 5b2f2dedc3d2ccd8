"""Ranks as threads of one process, with real keepers: programs for checkpoint tests."""

import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from fabricctl.state.ckpt.api import Checkpoint
from tests.support.keepers import KeeperSet

RANKS = 3


class Comm:
    """A communicator of threads, as mpi4py's looks."""

    def __init__(self, ranks: int = RANKS) -> None:
        self.ranks = ranks
        self._barrier = threading.Barrier(ranks, timeout=120)
        self._values: list[Any] = [None] * ranks

    def of(self, rank: int) -> "Member":
        return Member(self, rank)

    def gather(self, rank: int, value: Any) -> list[Any]:
        self._barrier.wait()
        self._values[rank] = value
        self._barrier.wait()
        return list(self._values)


class Member:
    """One rank's view of it."""

    def __init__(self, comm: Comm, rank: int) -> None:
        self._comm, self._rank = comm, rank

    def Get_rank(self) -> int:
        return self._rank

    def Get_size(self) -> int:
        return self._comm.ranks

    def allgather(self, value: Any) -> list[Any]:
        return self._comm.gather(self._rank, value)


def run(
    keepers: KeeperSet,
    program: Callable[[Checkpoint, int], Any],
    *,
    places: list[str] | None = None,
    ranks: int = RANKS,
    **options: Any,
) -> list[Any]:
    """The program on all ranks, rank i on the i-th of ``places``; what each returned."""
    comm: Comm = Comm(ranks)
    results: list[Any] = [None] * ranks
    places = places or keepers.nodes
    lock = threading.Lock()

    def one(rank: int) -> None:
        with lock:  # the environment is the process's
            os.environ["FABRIC_KEEPER"] = str(keepers.where / places[rank])
            checkpoint = Checkpoint(comm.of(rank), **options)
        try:
            results[rank] = program(checkpoint, rank)
        finally:
            if checkpoint._keeper is not None:  # it died there
                checkpoint._keeper.link.close()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
    os.environ.pop("FABRIC_KEEPER")
    assert None not in results, "a rank failed; see above"
    return results


def program(steps: int, *, done: bool = False) -> Callable[..., Any]:
    """A sum over steps in an array and a dict: both must come back."""

    def of(checkpoint: Checkpoint, rank: int) -> tuple[int, float, int]:
        grid, other = np.zeros(50_000), {"sum": 0}
        checkpoint.protect(grid=grid, other=other)
        begin = checkpoint.restore()
        for n in range(begin, steps):
            grid += n + rank
            other["sum"] += n
            checkpoint.step(n + 1)
        checkpoint.close(done=done)
        assert (grid == grid[0]).all()
        return begin, float(grid[0]), int(other["sum"])

    return of


def expected(steps: int, begin: int) -> list[tuple[int, float, int]]:
    total = steps * (steps - 1) // 2
    return [(begin, float(total + steps * rank), total) for rank in range(RANKS)]
