"""Reads a table's chunks past HDF5's filters, whose unshuffling byte by byte and whose checksums
were a quarter of a wide job's report; zlib looks at its own checksum.

Only for what :mod:`fabricctl.store.checked` has found to be stored as ours is. Whatever is not as
expected is left to HDF5, which reads it or says what is wrong with it.
"""

import zlib

import h5py
import numpy as np

from fabricctl.store import dtypes

# Of fewer rows the detour costs more than it saves.
LEAST_ROWS = 1000
_CHECKSUM_BYTES = 4  # fletcher32's, behind the data
_OURS = [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32]


def read(found: h5py.Dataset) -> dtypes.Rows:
    """All rows of a table."""
    rows = _unshuffled(found) if len(found) >= LEAST_ROWS else None
    return found[()] if rows is None else rows


def _unshuffled(found: h5py.Dataset) -> dtypes.Rows | None:
    layout = found.id.get_create_plist()
    filters = [layout.get_filter(nth)[0] for nth in range(layout.get_nfilters())]
    if filters != _OURS or found.chunks is None:
        return None
    wide, high = found.dtype.itemsize, int(found.chunks[0])
    rows = np.empty(len(found), found.dtype)
    raw = rows.view(np.uint8).reshape(len(rows), wide)
    for first in range(0, len(rows), high):
        planes = _chunk(found, first, wide * high)
        if planes is None:
            return None
        mine = raw[first : first + high]
        mine[:] = planes.reshape(wide, high).T[: len(mine)]
    return rows


def _chunk(found: h5py.Dataset, first: int, size: int) -> np.ndarray | None:
    """One chunk as it was before it was compressed: the rows' first bytes, their second ones..."""
    told = found.id.get_chunk_info_by_coord((first,))
    # Of rows that were never written there is none; deflate adds next to nothing to what is there,
    # and nobody allocates what a forged chunk claims to have.
    if told.byte_offset is None or told.filter_mask or told.size > size + (size >> 3) + 64:
        return None
    if told.size < _CHECKSUM_BYTES:  # HDF5 2.0 reads before its begin
        raise OSError(f"a chunk of {told.size} bytes")
    try:
        _, stored = found.id.read_direct_chunk((first,))
    except (OSError, RuntimeError, ValueError):
        return None
    inflate = zlib.decompressobj()
    try:
        plain = inflate.decompress(memoryview(stored)[:-_CHECKSUM_BYTES], size)
        # What is at the end has to come too, or its checksum is not looked at.
        more = inflate.decompress(inflate.unconsumed_tail, 1)
    except zlib.error:
        return None
    if len(plain) != size or more or not inflate.eof:
        return None
    return np.frombuffer(plain, np.uint8)
