"""Checkpoints on the node's disk and the shared file system: what fails there, and what stays."""

import errno
import os
import time
from pathlib import Path

import numpy as np
import pytest

from fabricctl.state.ckpt import bytes as raw
from fabricctl.state.ckpt import partfile, parts
from fabricctl.state.ckpt.api import Checkpoint
from fabricctl.state.ckpt.holding import Holding
from fabricctl.state.ckpt.items import item_of
from tests.support.keepers import KeeperSet
from tests.support.ranks import run


def test_memory_that_is_being_written_to_a_file_is_not_used_again(tmp_path: Path) -> None:
    """Also where a step is not safe, as on a single node: no copy of it can be anywhere."""
    held = parts.Parts(1 << 30)
    part = held.room(("main", 0, 1), 1, 1000, set())
    part.wanted = parts.Wanted(copies=1, shared=tmp_path)
    part.problem = "there is no other node"
    assert held.room(("main", 0, 2), 1, 1000, set()).memory is not part.memory
    held.clear("main")


def test_a_level_that_fails_keeps_no_other_from_having_the_step(tmp_path: Path) -> None:
    disk, shared = tmp_path / "disk", tmp_path / "shared"
    with KeeperSet(tmp_path, nodes=1, disk=disk) as keepers:
        (disk / "n0" / "main.1").touch()  # where its directory would be

        def saves(checkpoint: Checkpoint, _rank: int) -> tuple[bool, str]:
            checkpoint.protect(grid=np.zeros(10)).restore()
            checkpoint.save(1)
            return checkpoint.wait_copied()

        options = {"scheme": "single", "disk_every": 1, "shared": shared}
        ((good, why),) = run(keepers, saves, ranks=1, **options)
        assert not good
        assert "File exists" in why
        deadline = time.monotonic() + 120
        while not (shared / "main.1" / "0-of-1.part").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_file_that_does_not_fit_leaves_no_piece_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        partfile.save(tmp_path, "main", (0, 1, 7), {"a": item_of("a", np.zeros(9))}, "")
    assert not list((tmp_path / "main.7").iterdir())


def test_a_step_on_the_disk_is_that_of_the_last_number_of_ranks(tmp_path: Path) -> None:
    """Both may be of one size, and the keeper is asked for a rank and a step alone."""
    holding = Holding(1 << 30, tmp_path)
    for ranks in (8, 6):
        part = holding.parts.room(("main", 0, 1), ranks, 10, set())
        part.used = 10
        part.view[:] = bytes([ranks]) * 10
        part.describe(b"[]")
        part.crc, part.whole = raw.crc(part.view), True
        holding.put_on_disk(part, ())
    holding.parts.clear("main")
    fresh = Holding(1 << 30, tmp_path)  # the keeper has died
    assert fresh.listed("main")["parts"] == [(0, 6, 1)]
    assert bytes(fresh.part("main", 0, 1).view) == bytes([6]) * 10
