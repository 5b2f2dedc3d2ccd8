"""All that a keeper holds: parts in memory, parity of sets, and parts on the node's disk."""

import json
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fabricctl import wire
from fabricctl.errors import DataError
from fabricctl.state.ckpt import bytes as raw
from fabricctl.state.ckpt import partfile
from fabricctl.state.ckpt.parity import Parities
from fabricctl.state.ckpt.parts import Part, Parts

CHECKED_S = 10.0  # for how long a part's checksum, once checked, is not checked again
_NAME_MAX = 40


class Holding:
    """``disk``: the job's directory on the node's disk, where the site gives one."""

    def __init__(self, quota_bytes: int, disk: Path | None) -> None:
        self.parts = Parts(quota_bytes)
        self.parities = Parities(self.parts)
        self.disk = disk
        self._checked_s: dict[int, float] = {}
        self._reading = threading.Lock()

    def listed(self, name: str) -> dict[str, Any]:
        """``parts``: ``[rank, ranks, step]``; ``parity``: sets of which a member's is here."""
        mine = {(p.rank, p.ranks, p.step) for p in self.parts.whole() if p.name == name}
        if self.disk is not None:
            mine |= set(partfile.found(self.disk, name))
        return {"parts": sorted(mine), "parity": self.parities.listed(name)}

    def part(self, name: str, rank: int, step: int) -> Part:
        """From memory, else from the disk; raises :class:`DataError`."""
        part = self.parts.get(name, rank, step)
        if part is None and self.disk is not None:
            with self._reading:  # by one of all who ask for it
                part = self.parts.get(name, rank, step)
                part = part or self._from_disk(self.disk, name, rank, step)
        if part is None:
            raise DataError(f"keeper: rank {rank}, step {step} is not here")
        return part

    def _from_disk(self, root: Path, name: str, rank: int, step: int) -> Part | None:
        for have, ranks, at in partfile.found(root, name):
            if (have, at) != (rank, step):
                continue
            try:
                head, state = partfile.read(partfile.place(root, name, rank, ranks, step))
            except OSError as error:
                raise DataError(f"keeper: rank {rank}, step {step}: {error.strerror}") from None
            keep = {part.step for part in self.parts.whole() if part.rank == rank}
            part = self.parts.room((name, rank, step), ranks, state.nbytes, keep)
            part.used = head.used
            part.describe(json.dumps(head.manifest).encode())
            part.crc = raw.copy_crc(part.view, state)
            part.whole = True
            return part
        return None

    def check(self, part: Part) -> None:
        """Raises :class:`DataError` when it is not what it was; it is forgotten then."""
        now_s = time.monotonic()
        if now_s - self._checked_s.get(id(part), -CHECKED_S) < CHECKED_S:
            return
        if not part.good:
            self.parts.drop((part.name, part.rank, part.step))
            raise DataError(f"keeper: the checksum of rank {part.rank}, step {part.step} is wrong")
        self._checked_s = {id(part): now_s}

    def put_on_disk(self, part: Part, keep: Collection[int]) -> None:
        """Raises :class:`DataError`: with what the disk said."""
        if self.disk is None:
            raise DataError("keeper: this node has no disk for checkpoints (state.disk_dir)")
        try:
            path = partfile.place(self.disk, part.name, part.rank, part.ranks, part.step)
            for other in path.parent.glob(f"{part.rank}-of-*.part"):
                if (
                    other != path
                ):  # of a start with another number of ranks, which goes in memory, too
                    other.unlink(missing_ok=True)
            partfile.write(self.disk, head_of(part), [part.view])
        except OSError as error:
            raise DataError(f"keeper: {self.disk}: {error.strerror}") from None
        partfile.keep_only(self.disk, part.name, {*keep, part.step})

    def clear(self, name: str) -> None:
        """Forgets all of a checkpoint."""
        self.parts.clear(name)
        self.parities.clear(name)
        if self.disk is not None:
            partfile.keep_only(self.disk, name, ())

    def wipe(self) -> None:
        """The job's time is over."""
        if self.disk is not None:
            names = {path.name.rpartition(".")[0] for path in _entries(self.disk)}
            for name in names:
                partfile.keep_only(self.disk, name, ())

    @property
    def empty(self) -> bool:
        """Whether there is nothing worth holding."""
        return not self.parts.whole() and not (self.disk and _entries(self.disk))


def head_of(part: Part) -> partfile.Head:
    """What stands before the part in a file."""
    manifest = json.loads(part.manifest)
    return partfile.Head(part.name, part.rank, part.ranks, part.step, part.used, part.crc, manifest)


def _entries(root: Path) -> list[Path]:
    try:
        return list(root.iterdir())
    except OSError:
        return []


def key_of(message: Mapping[str, str]) -> tuple[str, int, int]:
    """Name, rank and step; raises :class:`DataError`."""
    return name_of(message), wire.number(message, "rank"), wire.number(message, "step")


def name_of(message: Mapping[str, str]) -> str:
    """Of the checkpoint; raises :class:`DataError`."""
    name = message.get("name", "")
    if partfile.CALLED.fullmatch(name) is None:
        raise DataError(f"keeper: {name[:_NAME_MAX]!r} is no name of a checkpoint")
    return name
