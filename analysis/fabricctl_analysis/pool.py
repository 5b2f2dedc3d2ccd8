"""Work on many traces at once: by processes of this machine, or by the ranks of an MPI job."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from fabricctl.errors import SystemRefusedError

Result = TypeVar("Result")


def spread(
    work: Callable[[Path], Result], paths: Sequence[Path], processes: int | None, mpi: bool
) -> list[Result]:
    """``work`` of each path, in their order. ``mpi``: on the ranks of
    ``srun python -m mpi4py.futures ...``. Raises :class:`SystemRefusedError` without mpi4py."""
    if not paths:
        return []
    with _pool(min(processes or len(os.sched_getaffinity(0)), len(paths)), mpi) as pool:
        return list(pool.map(work, paths))


def _pool(count: int, mpi: bool) -> Executor:
    if not mpi:
        return ProcessPoolExecutor(count, mp_context=get_context("fork"))
    try:
        from mpi4py.futures import MPIPoolExecutor
    except ImportError as error:
        raise SystemRefusedError(f"--mpi: mpi4py cannot be used: {error}") from None
    return MPIPoolExecutor()
