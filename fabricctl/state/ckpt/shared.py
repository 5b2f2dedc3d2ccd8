"""The level on the shared file system: every so manieth checkpoint, read when memory is gone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fabricctl.errors import UsageError
from fabricctl.state.ckpt import client, partfile
from fabricctl.state.ckpt.client import Manifest
from fabricctl.state.ckpt.items import Item


@dataclass(frozen=True)
class SharedLevel:
    """``root``: a directory that all nodes see; None: there is none. Every ``every``-th checkpoint
    goes there, and the ``keep`` newest whole ones stay."""

    root: Path | None
    name: str
    every: int
    keep: int

    def __post_init__(self) -> None:
        for option, value in (("shared_every", self.every), ("shared_keep", self.keep)):
            if value < 1:
                raise UsageError(f"checkpoint: {option}={value}: 1 at least")

    def due(self, saves: int) -> bool:
        """Whether the checkpoint after so many goes there, too."""
        return self.root is not None and saves % self.every == 0

    def save(self, who: tuple[int, int, int], items: Mapping[str, Item], serial: str) -> None:
        """By the rank itself, where there is no keeper that could do it meanwhile; ``who``: rank,
        ranks, step; ``serial``: of the save. Raises OSError."""
        if self.root is not None:
            partfile.save(self.root, self.name, who, items, serial)

    def thin(self) -> None:
        """Away with old ones."""
        if self.root is not None:
            partfile.thin(self.root, self.name, self.keep)

    def whole(self) -> list[tuple[int, int]]:
        """Steps that all ranks have written, each with their number."""
        if self.root is None:
            return []
        return list(partfile.whole_steps(self.root, self.name).items())

    def part(self, rank: int, step: tuple[int, int]) -> tuple[Manifest, memoryview]:
        """Raises OSError and :class:`DataError`."""
        assert self.root is not None
        head, view = partfile.read(partfile.place(self.root, self.name, rank, step[1], step[0]))
        client.check(head.manifest, view)
        return head.manifest, view
