"""Looks at pieces of an HDF5 file before anything in them is believed.

What they may do to a reader: lead out of the file (links, external and virtual storage), declare
sizes that nothing backs, name filters that load code, or be broken in ways that make h5py raise
nearly anything.
"""

import contextlib
import os
import re
import struct
from collections.abc import Collection, Iterator
from pathlib import Path

import h5py
import numpy as np

from fabricctl.errors import TraceError
from fabricctl.store import hdf5

MAX_TABLE_BYTES = 8 << 30
_MAX_CHUNK_BYTES = 16 << 20  # ours have at most 2.2 MB (notes); HDF5 allocates a chunk whole
_MAX_TEXT = 1 << 20
# zlib cannot do better than 1032:1 (zlib's technical page); the rest is for the chunks' ends.
_MAX_RATIO = 1100
# HDF5 File Format Specification, II.A, versions 2 and 3: signature, version, size of offsets, and
# the end of the file behind two addresses.
_SUPERBLOCK = struct.Struct("<8sBB2x16xQ")
_ERRNO = re.compile(r"\berrno = ([0-9]{1,3}),")
# Whatever h5py was seen to raise on damaged files; MemoryError for sizes that lie.
DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class NewerTraceError(TraceError):
    """A trace that a later version wrote: whole, but not for us."""


class DamagedTraceError(TraceError):
    """No trace of ours, or one whose content is broken: it will not get better."""


@contextlib.contextmanager
def damage_of(path: Path) -> Iterator[None]:
    """Turns what h5py raises into a :class:`TraceError`."""
    try:
        yield
    except DAMAGE as error:
        if number := _errno(error):
            raise TraceError(f"trace {path}: cannot be read: {os.strerror(number)}")
        raise DamagedTraceError(f"trace {path}: no HDF5 file, or damaged: {_short(error)}")


def _errno(error: BaseException) -> int:
    """The system's word, also where HDF5 passes it on in its own; 0: there is none."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = _ERRNO.search(str(error))
    return int(found[1]) if found else 0


def cut_off(path: Path) -> tuple[int, int] | None:
    """How many bytes there are of how many, for an HDF5 file without its end."""
    with path.open("rb") as file:
        head = file.read(_SUPERBLOCK.size)
        there = os.fstat(file.fileno()).st_size
    if len(head) < _SUPERBLOCK.size:
        return None
    signature, version, offset_bytes, whole = _SUPERBLOCK.unpack(head)
    ours = signature == b"\x89HDF\r\n\x1a\n" and version in (2, 3) and offset_bytes == 8
    return (there, whole) if ours and there < whole else None


def _short(error: BaseException) -> str:
    return printable(str(error).splitlines()[0][:200]) if str(error) else type(error).__name__


def printable(value: str) -> str:
    """Fit for a terminal: control characters and the like replaced."""
    if value.isprintable():
        return value
    return "".join(c if c.isprintable() else "�" for c in value)


def attributes(item: h5py.Group, names: Collection[str]) -> dict[str, hdf5.Value]:
    """Scalar texts and numbers among the named attributes; what is anything else is left out."""
    found = {}
    for name in item.attrs:
        if name in names:
            value = _scalar(item.attrs.get_id(name))
            if value is not None:
                found[name] = value
    return found


def _scalar(attribute: h5py.h5a.AttrID) -> hdf5.Value | None:
    kind = attribute.dtype
    # No text of variable length ("O"): see hdf5.set_attributes.
    if attribute.shape != () or kind.itemsize > _MAX_TEXT or kind.kind not in "iufS":
        return None
    read = np.zeros((), kind)
    attribute.read(read)
    value = read[()]
    if isinstance(value, bytes):
        return printable(value.decode("utf-8", "replace"))
    return int(value) if isinstance(value, np.integer) else float(value)


def child(group: h5py.Group, name: str, kind: type, where: str) -> h5py.Group:
    """A member that lies in this very file and is of the right kind."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise DamagedTraceError(f"{where}: {name} is a link to somewhere else")
    found = group[name]
    if not isinstance(found, kind):
        raise DamagedTraceError(f"{where}: {name} is not a {kind.__name__.lower()}")
    return found


def check_dataset(found: h5py.Dataset, where: str) -> None:
    """Raises :class:`TraceError` unless it can be read within sane time and memory."""
    if found.is_virtual or found.external:
        raise DamagedTraceError(f"{where}: its data lies outside the file")
    kind = hdf5.kind_of(found)
    plain = kind.names and all(kind[n].kind in "iuS" and not kind[n].shape for n in kind.names)
    if found.ndim != 1 or not plain or kind.itemsize > 65_536:
        raise DamagedTraceError(f"{where}: not a table")
    layout = found.id.get_create_plist()
    filters = [layout.get_filter(nth)[0] for nth in range(layout.get_nfilters())]
    ours = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
    if found.chunks is None or not ours.issuperset(filters) or len(filters) > len(ours):
        raise DamagedTraceError(f"{where}: stored in a way that fabricctl does not")
    if found.chunks[0] * kind.itemsize > _MAX_CHUNK_BYTES:
        raise DamagedTraceError(f"{where}: chunks of {found.chunks[0] * kind.itemsize} bytes")
    size, backed = found.shape[0] * kind.itemsize, found.id.get_storage_size() * _MAX_RATIO
    if size > MAX_TABLE_BYTES or size > backed + _MAX_CHUNK_BYTES:
        raise DamagedTraceError(
            f"{where}: {size} bytes declared, {found.id.get_storage_size()} stored"
        )
