"""File mode: programs in any language write files, and a command makes them a checkpoint.

Every rank has a directory of its own. Without a communicator there is no message between ranks:
a step counts when the keepers hold it for every rank, and the two newest such steps are kept.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabricctl.errors import DataError, NotFoundError, SystemRefusedError
from fabricctl.state.ckpt.api import Checkpoint

FILES_MOST = 1000


@dataclass(frozen=True)
class Alone:
    """The part of a communicator that a rank without one has."""

    rank: int
    ranks: int

    def Get_rank(self) -> int:  # noqa: N802 - as mpi4py has it
        return self.rank

    def Get_size(self) -> int:  # noqa: N802
        return self.ranks

    def allgather(self, value: Any) -> list[Any]:
        return [value]


class Files(Checkpoint):
    """One rank's files."""

    def __init__(self, who: Alone, *, name: str = "files", copies: int = 1) -> None:
        """Raises :class:`SystemRefusedError` without a keeper."""
        super().__init__(who, name=name, copies=copies)
        if self._link is None:
            raise SystemRefusedError("checkpoint: no keeper on this node: is the job protected?")

    def commit(self, directory: Path, step: int) -> int:
        """The directory's files as the state of ``step``; how many. Returns when they are safe.

        Raises :class:`DataError`, :class:`SystemRefusedError`.
        """
        files = sorted(path for path in directory.iterdir() if path.is_file())
        if not 0 < len(files) <= FILES_MOST:
            raise DataError(f"{directory}: {len(files)} files, 1 to {FILES_MOST} can be committed")
        for path in files:
            self.protect(path.name, path)
        self._committed = sorted(self.steps())[-2:]
        self._copy_out(step)
        answer = self._ask({"kind": "safe", "step": str(step), "wait_ms": "120000"})
        if answer.get("state") != "safe":
            raise SystemRefusedError(f"checkpoint: step {step} is not safe: {answer.get('why')}")
        return len(files)

    def steps(self) -> list[int]:
        """Steps that all ranks have, in any order."""
        return list(self._find())

    def fetch(self, directory: Path, before: int | None = None) -> int:
        """Writes the newest step's files, older than ``before`` where given; which it was.

        Raises :class:`NotFoundError` when there is none.
        """
        found = {
            step: nodes for step, nodes in self._find().items() if before is None or step < before
        }
        if not found:
            raise NotFoundError("checkpoint: there is none that all ranks have")
        step = max(found)
        self._target = directory
        if not self._load(step, found[step]):
            raise DataError(f"checkpoint: step {step} cannot be read; all ranks: --before {step}")
        return step

    def _fill(self, manifest: list[Any], view: memoryview) -> None:
        for name, *_ in manifest:
            if not isinstance(name, str) or "/" in name or name in ("", ".", ".."):
                raise DataError("checkpoint: a file name that leaves the directory")
            self.protect(name, self._target / name)
        super()._fill(manifest, view)
