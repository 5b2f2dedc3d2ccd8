"""File mode: programs in any language write files, and a command makes them a checkpoint.

Every rank has a directory of its own. Without a communicator there is no message between ranks:
a step counts when the keepers hold it for every rank, and the two newest such steps are kept.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabricctl.errors import DataError, FabricError, NotFoundError, SystemRefusedError
from fabricctl.state.ckpt import client, sets
from fabricctl.state.ckpt.api import Checkpoint
from fabricctl.state.ckpt.client import Manifest
from fabricctl.state.ckpt.items import ready
from fabricctl.state.ckpt.sets import Scheme
from fabricctl.state.ckpt.sources import Step, from_keepers

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

    def __init__(
        self,
        who: Alone,
        *,
        name: str = "files",
        copies: int = 1,
        scheme: str = "partner",
        losses: int = 2,
    ) -> None:
        """Raises :class:`SystemRefusedError` without a keeper."""
        super().__init__(who, name=name, copies=copies, scheme=scheme, losses=losses)
        if self._keeper is None:
            raise SystemRefusedError("checkpoint: no keeper on this node: is the job protected?")

    def _meet(self) -> None:
        """Where the other ranks are is known from `fabricctl run` alone."""
        if self._met:
            return
        self._met = True
        places = os.environ.get("FABRIC_PLACES", "").split(",")
        self._serial = f"{os.environ.get('FABRIC_LAUNCH', '0')}.files"
        if not self._scheme.losses:
            return
        if len(places) == self._ranks:
            self._members = sets.set_of(self._rank, [(node, {}) for node in places], self._scheme)
        if self._members is None:
            client.warn("no sets can be made, copies instead: they need `fabricctl run` and nodes")
            self._scheme = Scheme(copies=self._scheme.losses)

    def commit(self, directory: Path, step: int) -> int:
        """The directory's files as the state of ``step``; how many. Returns when they are safe.

        Raises :class:`DataError`, :class:`SystemRefusedError`.
        """
        assert self._keeper is not None
        self._meet()
        files = sorted(directory.iterdir())
        for path in files:
            if not path.is_file():  # it would not come back, and nobody would know
                raise DataError(f"{path}: is no file: all must lie in one directory")
        if not 0 < len(files) <= FILES_MOST:
            raise DataError(f"{directory}: {len(files)} files, 1 to {FILES_MOST} can be committed")
        for path in files:
            self.protect(path.name, path)
        self._committed = self.steps()[-2:]
        self._keeper.fill(step, self._items, self._wanted(step, share=False))
        good, why = self._keeper.safe(step)
        if not good:
            raise SystemRefusedError(f"checkpoint: step {step} is not safe: {why}")
        return len(files)

    def steps(self) -> list[int]:
        """Steps that all ranks have, oldest first."""
        return sorted(step for step, ranks in self._find() if ranks == self._ranks)

    def fetch(self, directory: Path, before: int | None = None) -> int:
        """Writes the newest step's files, older than ``before`` where given; which it was.

        Raises :class:`NotFoundError` when there is none.
        """
        assert self._keeper is not None
        found = {step: parts for step, parts in self._find().items() if step[1] == self._ranks}
        wanted: list[Step] = [step for step in found if before is None or step[0] < before]
        if not wanted:
            raise NotFoundError("checkpoint: there is none that all ranks have")
        step = max(wanted)
        nodes = [one.node for one in found[step] if one.rank == self._rank]
        try:
            manifest, view = from_keepers(self._keeper, self._rank, step[0], nodes)
        except FabricError:
            raise DataError(
                f"checkpoint: step {step[0]} cannot be read; all ranks: --before {step[0]}"
            ) from None
        self._write(directory, manifest, view)
        return step[0]

    def _write(self, directory: Path, manifest: Manifest, view: memoryview) -> None:
        for name, *_ in manifest:
            if not isinstance(name, str) or "/" in name or name in ("", ".", ".."):
                raise DataError("checkpoint: a file name that leaves the directory")
            self.protect(name, directory / name)
        ready(self._items, manifest, view)()
