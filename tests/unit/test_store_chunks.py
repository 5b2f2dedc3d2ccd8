"""Chunks are read past HDF5's filters, to the same rows; what is odd is left to HDF5."""

import contextlib
import zlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from fabricctl.store import chunks, dtypes, hdf5, schema
from fabricctl.store.dtypes import Rows

HIGH = hdf5.CHUNK_ROWS
WIDE = dtypes.dtype(schema.TCP).itemsize


def rows(count: int) -> Rows:
    made = np.zeros(count, dtypes.dtype(schema.TCP))
    random = np.random.default_rng(count)
    for name in made.dtype.names or ():
        made[name] = np.cumsum(random.integers(0, 1000, count))
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.h5"


@contextlib.contextmanager
def stored(path: Path, count: int, chunk: bytes | None = None, mask: int = 0) -> Iterator[
    h5py.Dataset
]:  # fmt: skip
    """``chunk``: in the place of the first one."""
    with h5py.File(path, "w", libver=hdf5.LIBVER) as file:
        hdf5.write_table(file, file.create_group("n1"), schema.TCP, rows(count))
        if chunk is not None:
            file["n1/tcp"].id.write_direct_chunk((0,), chunk, filter_mask=mask)
    with h5py.File(path) as file:
        yield file["n1/tcp"]


def chunk(plain: bytes) -> bytes:
    """As HDF5's deflate leaves it; nobody here looks at fletcher32's four bytes."""
    return zlib.compress(plain) + bytes(4)


@pytest.mark.parametrize("count", [1, 999, 1000, HIGH - 1, HIGH, HIGH + 1, 3 * HIGH, 3 * HIGH + 7])
def test_the_rows_are_those_that_hdf5_reads(path: Path, count: int) -> None:
    with stored(path, count) as found:
        read = chunks.read(found)
        assert read.dtype == found.dtype and (read == found[()]).all()
    assert (read == rows(count)).all()


def test_large_tables_do_not_go_through_hdf5s_filters(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stored(path, 2 * HIGH) as found:
        monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda *_: pytest.fail("read by HDF5"))
        assert len(chunks.read(found)) == 2 * HIGH


def test_a_chunk_without_its_filters_is_left_to_hdf5(path: Path) -> None:
    with stored(path, HIGH, rows(HIGH).tobytes(), mask=0b111) as found:
        assert chunks._unshuffled(found) is None
        assert (chunks.read(found) == rows(HIGH)).all()


def test_a_chunk_that_was_never_written_is_left_to_hdf5(path: Path) -> None:
    with h5py.File(path, "w", libver=hdf5.LIBVER) as file:
        found = hdf5.create_table(file, file.create_group("n1"), schema.TCP, 2 * HIGH)
        found[:HIGH] = rows(HIGH)
        assert (chunks.read(found)[:HIGH] == rows(HIGH)).all()


@pytest.mark.parametrize(
    "bad",
    [
        chunk(bytes(HIGH * WIDE))[:-40],  # its end is missing
        chunk(bytes(HIGH * WIDE - 1)),
        chunk(bytes(HIGH * WIDE + 1)),
        chunk(bytes(64 << 20)),  # what it claims to be is nobody's to allocate
        chunk(np.random.default_rng(1).bytes(2 * HIGH * WIDE)),  # more than any of ours has
        b"no deflate at all, but for some bytes",
        chunk(bytes(HIGH * WIDE))[:-8] + bytes(8),  # another sum of what is in it
    ],
)
def test_a_broken_chunk_is_hdf5s_to_tell(path: Path, bad: bytes) -> None:
    with stored(path, HIGH, bad) as found:
        assert chunks._unshuffled(found) is None
        with pytest.raises((OSError, RuntimeError)):
            chunks.read(found)


def test_a_chunk_too_short_for_its_checksum_is_never_hdf5s(path: Path) -> None:
    """HDF5 2.0 ends the process by it."""
    with stored(path, HIGH, b"1") as found, pytest.raises(OSError, match="a chunk of 1 bytes"):
        chunks.read(found)
