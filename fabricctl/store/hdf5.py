"""What the trace's writers and readers share of HDF5: names, types, filters, safe files.

The layout is in ``docs/data-format.md``.
"""

import contextlib
import functools
import glob
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from fabricctl.errors import SystemRefusedError, TraceError
from fabricctl.store import dtypes, schema
from fabricctl.store.sink import Sink

FORMAT = "fabricctl-trace"
NODES = "nodes"
SCHEMA = "schema"

# Objects as HDF5 1.10 writes them: checksums over all metadata, small groups, and any reader
# since 2016 (Debian 12 has 1.10.8).
LIBVER = ("v110", "v110")
# Large enough for deflate to see the columns' regularity, small enough to read a part of a
# long table: 8192 rows of the widest ordinary table (host, 128 B) are 1 MiB, HDF5's cache.
CHUNK_ROWS = 8192

# A live writer writes every few seconds; the rest is for the machines' clocks, which differ.
_ABANDONED_S = 600.0

NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
GROUP_NAME = re.compile(NODE_NAME.pattern + r"(@[0-9]{1,19})?")

Value = str | int | float
Attribute = Value | NDArray[np.bytes_]


@dataclass(frozen=True)
class NewFile:
    """A file that is being written."""

    file: h5py.File
    sink: Sink

    def check(self) -> None:
        """Raises :class:`OSError` when a write failed; to be called between larger writes."""
        if self.sink.error:
            raise self.sink.error


@contextlib.contextmanager
def new_file(
    out: Path, check: Callable[[], None] = lambda: None, base: Path | None = None
) -> Iterator["NewFile"]:
    """A new HDF5 file that appears under its name when it is whole and on the disk.

    It begins empty, or as a copy of ``base``. Mode 0600, whatever the umask; one writer at a time
    for each name. ``check`` is called before the file appears and may raise. Raises
    :class:`SystemRefusedError`; then nothing is left.
    """
    temporary = out.with_name(f".{out.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    try:
        _remove_abandoned(out)
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if base:
                with base.open("rb") as source, open(fd, "wb", closefd=False) as target:
                    shutil.copyfileobj(source, target, 1 << 20)
            sink = Sink(fd)
            with h5py.File(sink, "r+" if base else "w", libver=LIBVER) as file:
                yield NewFile(file, sink)
            if sink.error:
                raise sink.error
            os.fsync(fd)
            check()
            temporary.rename(out)
            sync_dir(out.parent)
        finally:
            os.close(fd)
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise SystemRefusedError(
            f"trace {out}: cannot be written: {error.strerror or error}"
        ) from error


def _remove_abandoned(out: Path) -> None:
    """What writers that were killed have left. Of those on other machines nobody knows whether
    they live: what they write is left alone while it still changes."""
    for path in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
        host, _, pid = path.name.removeprefix(f".{out.name}.").removesuffix(".tmp").rpartition(".")
        if host == os.uname().nodename and pid.isdecimal():
            abandoned = pid == str(os.getpid()) or not Path(f"/proc/{pid}").exists()
        else:
            abandoned = time.time() - path.lstat().st_mtime > _ABANDONED_S
        if abandoned:
            path.unlink(missing_ok=True)


def sync_dir(path: Path) -> None:
    """Makes the names in a directory survive a crash of the machine."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _int64(value: Value) -> int:
    number = int(value)
    if not -(1 << 63) <= number < 1 << 63:
        raise OverflowError
    return number


_KINDS: Mapping[str, Callable[[Value], Value]] = {"text": str, "int": _int64, "float": float}


def typed(
    given: Mapping[str, Value], known: tuple[schema.Attribute, ...], name: str
) -> dict[str, Value]:
    """The known attributes among ``given``, in their types; raises :class:`TraceError`."""
    result: dict[str, Value] = {}
    for attribute in known:
        value = given.get(attribute.name)
        if value is None or value == "":
            if attribute.required:
                raise TraceError(f"{name}: attribute {attribute.name} is missing")
            continue
        try:
            result[attribute.name] = _KINDS[attribute.kind](value)
        except (ValueError, OverflowError):
            raise TraceError(f"{name}: attribute {attribute.name} is {str(value)[:40]!r}")
    return result


def set_attributes(item: h5py.Group | h5py.Datatype, given: Mapping[str, Attribute]) -> None:
    """Texts get a fixed length: those of variable length lie in HDF5's global heap, which has no
    checksum, and where a flipped bit makes the library loop for ever (seen with HDF5 2.0)."""
    for name, value in given.items():
        if isinstance(value, str):
            raw = value.encode()
            item.attrs.create(name, raw, dtype=h5py.string_dtype("utf-8", max(1, len(raw))))
        else:
            item.attrs[name] = value


def free_name(file: h5py.File, name: str, begin_real_ns: int) -> str:
    """A second boot or stay of a node in one attempt gets a group of its own."""
    while f"{NODES}/{name}" in file:
        name = f"{name.partition('@')[0]}@{begin_real_ns}"
        begin_real_ns += 1
    return name


def create_node(file: h5py.File, name: str) -> h5py.Group:
    """A node's group. Its attributes stay in the group's header: HDF5 would give more than 8 of
    them a heap and a tree, 1.3 KB more for each node."""
    plist = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
    plist.set_attr_phase_change(64, 0)
    return h5py.Group(h5py.h5g.create(file.require_group(NODES).id, name.encode(), gcpl=plist))


def write_table(file: h5py.File, group: h5py.Group, table: schema.Table, rows: dtypes.Rows) -> None:
    """One dataset of the group; none when there are no rows."""
    if len(rows):
        create_table(file, group, table, len(rows))[...] = rows


def create_table(
    file: h5py.File, group: h5py.Group, table: schema.Table, rows: int
) -> h5py.Dataset:
    return group.create_dataset(
        table.name,
        shape=(rows,),
        dtype=_committed(file, table),
        chunks=(min(rows, CHUNK_ROWS),),
        shuffle=True,
        compression="gzip",
        compression_opts=6,
        fletcher32=True,
    )


def kind_of(found: h5py.Dataset | h5py.Datatype) -> np.dtype[np.void]:
    """Its ``dtype``, which h5py makes anew each time: most of what a wide job's merge took."""
    stored = found.id if isinstance(found, h5py.Datatype) else found.id.get_type()
    return _decoded(stored.encode())


@functools.lru_cache(maxsize=256)
def _decoded(encoded: bytes) -> np.dtype[np.void]:
    kind: np.dtype[np.void] = h5py.h5t.decode(encoded).dtype
    return kind


def _committed(file: h5py.File, table: schema.Table) -> h5py.Datatype | np.dtype[np.void]:
    """The table's named datatype, which carries the columns' documentation once per file. Plain
    where an older version made the file and its type lacks columns."""
    path, kind = f"{SCHEMA}/{table.name}", dtypes.dtype(table)
    if path not in file:
        file[path] = kind
        set_attributes(file[path], documentation(table))
    stored = file[path]
    return stored if kind_of(stored) == kind else kind


def documentation(table: schema.Table) -> dict[str, Attribute]:
    """What is said about a table in the file: ``about``, then an array for each subject with an
    entry for each column."""
    columns = table.columns
    return {
        "about": table.doc,
        "unit": np.array([column.unit for column in columns], "S"),
        "clock": np.array([column.clock for column in columns], "S"),
        "doc": np.array([column.doc for column in columns], "S"),
        "values": np.array([values_of(column) for column in columns], "S"),
    }


def values_of(column: schema.Column) -> str:
    """The names of an enumeration's values, ``0=FIRST 1=SECOND``; empty for other columns."""
    return " ".join(f"{value.value}={value.name}" for value in column.values or ())


def last_real_ns(tables: Mapping[str, dtypes.Rows]) -> int | None:
    """CLOCK_REALTIME of the newest row, by the clock row nearest to it; None without one."""
    clock = tables[schema.CLOCK.name]
    newest = [int(rows["time_mono_ns"].max()) for rows in tables.values() if len(rows)]
    if not len(clock) or not newest:
        return None
    row = clock[int(np.argmax(clock["time_mono_ns"]))]
    return int(row["time_real_ns"]) + max(newest) - int(row["time_mono_ns"])
