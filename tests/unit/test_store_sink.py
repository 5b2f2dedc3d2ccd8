"""HDF5 on a disk that fills up: what happens without our file beneath it, and what with it."""

import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from fabricctl.store.sink import Sink

BARE = """
import sys
import h5py, numpy as np
file = h5py.File(sys.argv[1], "w")
try:
    file.create_dataset("x", data=np.random.default_rng(1).integers(0, 255, 10**6, "u1"))
    file.close()
except Exception as error:
    print(type(error).__name__)
"""


def test_hdf5_alone_does_not_survive_a_full_disk_which_is_why_there_is_a_sink(
    tmp_path: Path,
) -> None:
    """Should this test fail, HDF5 has become better and the sink may go."""
    limited = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 10**9))\n{BARE}"
    )
    command = [sys.executable, "-c", limited, str(tmp_path / "x.h5")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode != 0 or "Exception ignored" in answer.stderr


class SmallDisk(Sink):
    """A descriptor that takes writes below an offset only."""

    def __init__(self, fd: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(fd)
        real = os.pwrite

        def pwrite(fd: int, data: bytes, at: int) -> int:
            if at >= limit:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(fd, data[: limit - at], at)

        monkeypatch.setattr(os, "pwrite", pwrite)


@pytest.mark.parametrize("limit", [1, 100, 2000, 10_000, 100_000])
def test_hdf5_over_a_sink_reads_back_what_the_disk_refused(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(1).integers(0, 255, 200_000, "u1")
    with (tmp_path / "x").open("w+b") as stream:
        sink = SmallDisk(stream.fileno(), limit, monkeypatch)
        with h5py.File(sink, "w") as file:
            for nth in range(4):
                file.create_dataset(f"{nth}", data=rows, chunks=(10_000,))
            assert (file["0"][:] == rows).all()
        with h5py.File(sink, "r") as file:
            assert all((file[f"{nth}"][:] == rows).all() for nth in range(4))
        assert sink.error is not None
        assert sink.error.errno == errno.ENOSPC
        assert os.fstat(stream.fileno()).st_size <= limit


@pytest.mark.parametrize("seed", range(10))
def test_a_sink_is_a_file(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random writes and reads, before and after the disk is full, beside a plain bytearray."""
    rng, model = random.Random(seed), bytearray()
    with (tmp_path / "x").open("w+b") as stream:
        sink = SmallDisk(stream.fileno(), rng.randrange(3000), monkeypatch)
        for _ in range(300):
            at = sink.seek(rng.randrange(5000))
            if rng.random() < 0.5:
                data = rng.randbytes(rng.randrange(1, 200))
                if at > len(model):
                    model += bytes(at - len(model))
                model[at : at + len(data)] = data
                assert sink.write(data) == len(data)
            else:
                buffer = bytearray(rng.randrange(1, 200))
                got = sink.readinto(buffer)
                expected = bytes(model[at : at + len(buffer)])
                # A hole at the end of what the disk has reads as zeros only up to a kept piece.
                assert buffer[:got] == expected[:got].ljust(got, b"\0")
                assert got == len(expected) or expected[got:].strip(b"\0") == b""
            assert sink.tell() >= at
        assert sink.seek(0, os.SEEK_END) == len(model)
