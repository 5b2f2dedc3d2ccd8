"""Reads traces: job traces and the node parts they are made of.

A trace may come from anywhere (mailed, half copied, edited, forged), so nothing in it is
believed before it was looked at: no link or storage outside the file is followed, nothing is
walked deeper than the format is deep, and no size is allocated that the file does not back.
"""

import contextlib
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np

from fabricctl import hostlist
from fabricctl.errors import DataError, TraceError
from fabricctl.store import dtypes, hdf5, schema

MAX_TABLE_BYTES = 8 << 30
_MAX_CHUNK_BYTES = 16 << 20  # ours have at most 2.2 MB (notes); HDF5 allocates a chunk whole
_MAX_TEXT = 1 << 20
# zlib cannot do better than 1032:1 (zlib's technical page); the rest is for the chunks' ends.
_MAX_RATIO = 1100
# Whatever h5py was seen to raise on damaged files; MemoryError for sizes that lie.
_DAMAGE = (
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


@dataclass(frozen=True)
class JobInfo:
    """JOB_ATTRIBUTES of the schema; None or "" where nobody knew."""

    job: int
    user: str
    uid: int | None
    cluster: str
    mode: str
    spares: int | None
    nodes: tuple[str, ...]
    missing_nodes: tuple[str, ...]  # of the allocation, but without a trace (yet)
    begin_real_ns: int
    end_real_ns: int
    array_job: int | None
    array_task: int | None
    het_job: int | None
    het_offset: int | None
    written_by: str


@dataclass(frozen=True)
class NodeInfo:
    """NODE_ATTRIBUTES of the schema; None or "" where nobody knew."""

    name: str  # of the group: the node's, with ``@<begin_real_ns>`` for a second boot or stay
    node: str
    hostname: str
    boot_id: str
    agent_version: str
    rails: tuple[str, ...]
    sample_hz: float | None
    begin_real_ns: int
    end_real_ns: int
    lives: int


class Trace:
    """An open trace; a context manager. ``nodes`` is in the order of the job's host list."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self.file = file
        with damage_of(path):
            self.schema_version = _version(path, file)
            self.job = _job(path, file)
            self.nodes: Mapping[str, NodeInfo] = _nodes(path, file, self.job)

    def __enter__(self) -> "Trace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(*_DAMAGE):
            self.file.close()

    def table(self, node: str, table: schema.Table) -> dtypes.Rows:
        """All rows of one node's table, in time order; no rows when it has none.

        ``node`` is a key of :attr:`nodes`. Raises :class:`TraceError` when it is damaged.
        """
        with damage_of(self.path):
            found = self.dataset(node, table)
            if found is None:
                return dtypes.empty(table)
            return dtypes.conform(found[()], table)

    def dataset(self, node: str, table: schema.Table) -> h5py.Dataset | None:
        """The table's dataset, after it was found to be one of ours."""
        name = f"{hdf5.NODES}/{node}/{table.name}"
        group = self.file[hdf5.NODES][self.nodes[node].name]
        if group.get(table.name, getclass=True) is None:
            return None
        found = _child(group, table.name, h5py.Dataset, f"{self.path}: {name}")
        _check_dataset(found, f"trace {self.path}: {name}")
        return found


def open_trace(path: Path) -> Trace:
    """Opens and checks a trace; raises :class:`TraceError` for whatever is not one of ours."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise TraceError(f"trace {path}: cannot be opened: {error.strerror}")
    if not stat.S_ISREG(mode):
        raise TraceError(f"trace {path}: not a regular file")
    try:
        # Traces appear by rename and are never written again: nobody needs HDF5's own locks,
        # which some parallel file systems refuse.
        file = h5py.File(path, "r", locking=False)
    except _DAMAGE as error:
        if isinstance(error, PermissionError):
            raise TraceError(f"trace {path}: cannot be opened: {error.strerror}")
        raise TraceError(f"trace {path}: not an HDF5 file, or cut short: {_short(error)}")
    try:
        return Trace(path, file)
    except BaseException:
        with contextlib.suppress(*_DAMAGE):
            file.close()
        raise


def text(value: bytes | np.bytes_) -> str:
    """A text column's value, fit to be shown: control characters replaced."""
    return _printable(bytes(value).decode("utf-8", "replace"))


@contextlib.contextmanager
def damage_of(path: Path) -> Iterator[None]:
    """Turns what h5py raises into a :class:`TraceError`."""
    try:
        yield
    except _DAMAGE as error:
        raise TraceError(f"trace {path}: damaged: {_short(error)}")


def _short(error: BaseException) -> str:
    return _printable(str(error).splitlines()[0][:200]) if str(error) else type(error).__name__


def _printable(value: str) -> str:
    return "".join(c if c.isprintable() else "�" for c in value)


def _version(path: Path, file: h5py.File) -> int:
    if _attribute(file, "format") != hdf5.FORMAT:
        raise TraceError(f"trace {path}: HDF5, but not a fabricctl trace")
    version = _attribute(file, "schema_version")
    if not isinstance(version, int) or version < 1:
        raise TraceError(f"trace {path}: schema version {str(version)[:20]!r} is not a number")
    if version > schema.SCHEMA_VERSION:
        raise NewerTraceError(
            f"trace {path}: schema version {version}, this fabricctl reads up to "
            f"{schema.SCHEMA_VERSION}: use a newer one"
        )
    return version


def _job(path: Path, file: h5py.File) -> JobInfo:
    known = (*schema.JOB_ATTRIBUTES, *schema.TRACE_ATTRIBUTES)
    get = _Typed(file, known, f"trace {path}")
    return JobInfo(
        job=get.int("job") or 0,
        user=get.text("user"),
        uid=get.int("uid"),
        cluster=get.text("cluster"),
        mode=get.text("mode"),
        spares=get.int("spares"),
        nodes=_hosts(path, get.text("nodes")),
        missing_nodes=_hosts(path, get.text("missing_nodes")),
        begin_real_ns=get.int("begin_real_ns") or 0,
        end_real_ns=get.int("end_real_ns") or 0,
        array_job=get.int("array_job"),
        array_task=get.int("array_task"),
        het_job=get.int("het_job"),
        het_offset=get.int("het_offset"),
        written_by=get.text("written_by"),
    )


def _nodes(path: Path, file: h5py.File, job: JobInfo) -> dict[str, NodeInfo]:
    if file.get(hdf5.NODES, getclass=True) is None:
        return {}
    group = _child(file, hdf5.NODES, h5py.Group, f"trace {path}")
    if len(group) > 2 * hostlist.MAX_HOSTS:
        raise TraceError(f"trace {path}: {len(group)} nodes")
    infos = {str(name): _node(path, group, str(name)) for name in group}
    order = {node: nth for nth, node in enumerate(job.nodes)}
    last = len(order)
    return dict(sorted(infos.items(), key=lambda i: (order.get(i[1].node, last), i[0])))


def _node(path: Path, nodes: h5py.Group, name: str) -> NodeInfo:
    if not hdf5.GROUP_NAME.fullmatch(name):
        raise TraceError(f"trace {path}: {_printable(name[:40])!r} is not a node's name")
    group = _child(nodes, name, h5py.Group, f"trace {path}")
    get = _Typed(group, schema.NODE_ATTRIBUTES, f"trace {path}: node {name}")
    return NodeInfo(
        name=name,
        node=get.text("node"),
        hostname=get.text("hostname"),
        boot_id=get.text("boot_id"),
        agent_version=get.text("agent_version"),
        rails=tuple(get.text("rails").split()),
        sample_hz=get.float("sample_hz"),
        begin_real_ns=get.int("begin_real_ns") or 0,
        end_real_ns=get.int("end_real_ns") or 0,
        lives=get.int("lives") or 0,
    )


class _Typed:
    """The known attributes of one object, by type."""

    def __init__(self, item: h5py.Group, known: tuple[schema.Attribute, ...], name: str) -> None:
        given = {a.name: v for a in known if (v := _attribute(item, a.name)) is not None}
        self._values = hdf5.typed(given, known, name)

    def text(self, name: str) -> str:
        return str(self._values.get(name, ""))

    def int(self, name: str) -> "int | None":
        value = self._values.get(name)
        return None if value is None else int(value)

    def float(self, name: str) -> "float | None":
        value = self._values.get(name)
        return None if value is None else float(value)


def _attribute(item: h5py.Group, name: str) -> hdf5.Value | None:
    """A scalar text or number, None when there is no such attribute or it is something else."""
    if name not in item.attrs:
        return None
    found = item.attrs.get_id(name)
    kind = found.dtype.kind
    if found.shape != () or found.dtype.itemsize > _MAX_TEXT or kind not in "iufSO":
        return None
    value = item.attrs[name]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return _printable(value) if len(value) <= _MAX_TEXT else None
    if isinstance(value, np.integer):
        return int(value)
    return float(value) if isinstance(value, np.floating) else None


def _hosts(path: Path, value: str) -> tuple[str, ...]:
    try:
        return tuple(hostlist.expand(value)) if value else ()
    except DataError as error:
        raise TraceError(f"trace {path}: {error}")


def _child(group: h5py.Group, name: str, kind: type, where: str) -> h5py.Group:
    """A member that lies in this very file and is of the right kind."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise TraceError(f"{where}: {name} is a link to somewhere else")
    found = group[name]
    if not isinstance(found, kind):
        raise TraceError(f"{where}: {name} is not a {kind.__name__.lower()}")
    return found


def _check_dataset(found: h5py.Dataset, where: str) -> None:
    """Raises :class:`TraceError` unless it can be read within sane time and memory."""
    if found.is_virtual or found.external:
        raise TraceError(f"{where}: its data lies outside the file")
    kind = found.dtype
    plain = kind.names and all(kind[n].kind in "iuS" and not kind[n].shape for n in kind.names)
    if found.ndim != 1 or not plain or kind.itemsize > 65_536:
        raise TraceError(f"{where}: not a table")
    layout = found.id.get_create_plist()
    filters = [layout.get_filter(nth)[0] for nth in range(layout.get_nfilters())]
    ours = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
    if found.chunks is None or not ours.issuperset(filters) or len(filters) > len(ours):
        raise TraceError(f"{where}: stored in a way that fabricctl does not")
    if found.chunks[0] * kind.itemsize > _MAX_CHUNK_BYTES:
        raise TraceError(f"{where}: chunks of {found.chunks[0] * kind.itemsize} bytes")
    size, backed = found.shape[0] * kind.itemsize, found.id.get_storage_size() * _MAX_RATIO
    if size > MAX_TABLE_BYTES or size > backed + _MAX_CHUNK_BYTES:
        raise TraceError(f"{where}: {size} bytes declared, {found.id.get_storage_size()} stored")
