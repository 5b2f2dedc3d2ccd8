"""Reads traces: job traces and the node parts they are made of.

A trace may come from anywhere (mailed, half copied, edited, forged), so nothing in it is
believed before it was looked at: no link or storage outside the file is followed, nothing is
walked deeper than the format is deep, and no size is allocated that the file does not back.
"""

import contextlib
import functools
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np

from fabricctl import hostlist
from fabricctl.errors import DataError, TraceError
from fabricctl.store import checked, chunks, dtypes, hdf5, schema
from fabricctl.store.checked import (
    DamagedTraceError,
    NewerTraceError,
    attributes,
    check_dataset,
    child,
    damage_of,
    printable,
)


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
    addresses: tuple[str, ...]  # of the rails, all together
    sample_hz: float | None
    begin_real_ns: int
    end_real_ns: int
    lives: int


@dataclass(frozen=True)
class Damage:
    """Something that a file should hold and that could not be read."""

    node: str  # "" for the whole file
    what: str
    why: str


class Trace:
    """An open trace; a context manager. ``nodes`` is in the order of the job's host list.

    With ``partial``, nodes that are damaged are left out and told in :attr:`damage`.
    """

    def __init__(self, path: Path, file: h5py.File, partial: bool = False) -> None:
        self.path = path
        self.file = file
        self.damage: list[Damage] = []
        with damage_of(path):
            self.schema_version = _version(path, file)
            self.job = _job(path, file)
            lost = self.damage if partial else None
            self.nodes: Mapping[str, NodeInfo] = _nodes(path, file, self.job, lost)

    def __enter__(self) -> "Trace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(*checked.DAMAGE):
            self.file.close()

    def table(self, node: str, table: schema.Table) -> dtypes.Rows:
        """All rows of one node's table, in time order; no rows when it has none.

        ``node`` is a key of :attr:`nodes`. Raises :class:`TraceError` when it is damaged.
        """
        with damage_of(self.path):
            found = self.dataset(node, table)
            if found is None:
                return dtypes.empty(table)
            return dtypes.conform(chunks.read(found), table)

    def has(self, node: str, table: schema.Table) -> bool:
        """Whether the node has rows of the table, as far as can be seen."""
        with contextlib.suppress(*checked.DAMAGE):
            group = self.file[hdf5.NODES][self.nodes[node].name]
            return group.get(table.name, getlink=True) is not None
        return False

    def rows(self, node: str, table: schema.Table) -> dtypes.Rows:
        """:meth:`table`, but no rows of one that is damaged, which :attr:`damage` then tells."""
        try:
            return self.table(node, table)
        except TraceError as error:
            why = _why(self.path, error)
            self.damage.append(Damage(self.nodes[node].node, f"table {table.name}", why))
            return dtypes.empty(table)

    def dataset(self, node: str, table: schema.Table) -> h5py.Dataset | None:
        """The table's dataset, after it was found to be one of ours."""
        name = f"{hdf5.NODES}/{node}/{table.name}"
        group = self.file[hdf5.NODES][self.nodes[node].name]
        if group.get(table.name, getlink=True) is None:
            return None
        found = child(group, table.name, h5py.Dataset, f"{self.path}: {name}")
        check_dataset(found, f"trace {self.path}: {name}")
        return found


def open_trace(path: Path, *, partial: bool = False) -> Trace:
    """Opens and checks a trace.

    With ``partial``, what can be read of a damaged one, the rest in :attr:`Trace.damage`. Raises
    :class:`TraceError` for whatever is not one of ours: :class:`NewerTraceError`,
    :class:`DamagedTraceError`, and itself when the system does not let it be read.
    """
    file = _open(path)
    try:
        return Trace(path, file, partial)
    except BaseException:
        with contextlib.suppress(*checked.DAMAGE):
            file.close()
        raise


def read_job(path: Path) -> JobInfo:
    """What a trace says of its job; no node is looked at, however many there are.

    Raises as :func:`open_trace`.
    """
    file = _open(path)
    try:
        with damage_of(path):
            _version(path, file)
            return _job(path, file)
    finally:
        with contextlib.suppress(*checked.DAMAGE):
            file.close()


def _open(path: Path) -> h5py.File:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise TraceError(f"trace {path}: cannot be opened: {error.strerror}")
    if not stat.S_ISREG(mode):
        raise DamagedTraceError(f"trace {path}: not a regular file")
    with damage_of(path):
        try:
            return h5py.File(path, "r")
        except OSError:
            if lengths := checked.cut_off(path):
                raise DamagedTraceError(
                    f"trace {path}: cut off, {lengths[0]} of {lengths[1]} bytes are there: "
                    "copy it again"
                )
            raise


def text(value: bytes | np.bytes_) -> str:
    """A text column's value, fit to be shown: control characters replaced."""
    return printable(bytes(value).decode("utf-8", "replace"))


def _version(path: Path, file: h5py.File) -> int:
    said = attributes(file, ("format", "schema_version"))
    if said.get("format") != hdf5.FORMAT:
        raise DamagedTraceError(f"trace {path}: HDF5, but not a fabricctl trace")
    version = said.get("schema_version")
    if not isinstance(version, int) or version < 1:
        raise DamagedTraceError(
            f"trace {path}: schema version {str(version)[:20]!r} is not a number"
        )
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


def _nodes(
    path: Path, file: h5py.File, job: JobInfo, lost: list[Damage] | None
) -> dict[str, NodeInfo]:
    """``lost`` takes the nodes that are damaged; None: they are an error."""
    if file.get(hdf5.NODES, getlink=True) is None:
        return {}
    group = child(file, hdf5.NODES, h5py.Group, f"trace {path}")
    if len(group) > 2 * hostlist.MAX_HOSTS:
        raise DamagedTraceError(f"trace {path}: {len(group)} nodes")
    infos = {}
    for name in map(str, group):
        try:
            with damage_of(path):
                infos[name] = _node(path, group, name)
        except TraceError as error:
            if lost is None:
                raise
            why = _why(path, error)
            shown = name if hdf5.GROUP_NAME.fullmatch(name) else "?"
            lost.append(Damage(shown.partition("@")[0], "everything", why))
    if len(infos) < 2:  # a part: its job may have ten thousand nodes
        return infos
    order = {node: nth for nth, node in enumerate(job.nodes)}
    last = len(order)
    return dict(sorted(infos.items(), key=lambda i: (order.get(i[1].node, last), i[0])))


def _node(path: Path, nodes: h5py.Group, name: str) -> NodeInfo:
    if not hdf5.GROUP_NAME.fullmatch(name):
        raise DamagedTraceError(f"trace {path}: {printable(name[:40])!r} is not a node's name")
    group = child(nodes, name, h5py.Group, f"trace {path}")
    get = _Typed(group, schema.NODE_ATTRIBUTES, f"trace {path}: node {name}")
    return NodeInfo(
        name=name,
        node=get.text("node"),
        hostname=get.text("hostname"),
        boot_id=get.text("boot_id"),
        agent_version=get.text("agent_version"),
        rails=tuple(get.text("rails").split()),
        addresses=tuple(word.partition("/")[2] for word in get.text("addresses").split()[:1024]),
        sample_hz=get.float("sample_hz"),
        begin_real_ns=get.int("begin_real_ns") or 0,
        end_real_ns=get.int("end_real_ns") or 0,
        lives=get.int("lives") or 0,
    )


def _why(path: Path, error: Exception) -> str:
    words = str(error).removeprefix(f"trace {path}: ")
    return words.replace("no HDF5 file, or damaged", "damaged")


class _Typed:
    """The known attributes of one object, by type."""

    def __init__(self, item: h5py.Group, known: tuple[schema.Attribute, ...], name: str) -> None:
        given = attributes(item, {attribute.name for attribute in known})
        try:
            self._values = hdf5.typed(given, known, name)
        except TraceError as error:
            raise DamagedTraceError(str(error))

    def text(self, name: str) -> str:
        return str(self._values.get(name, ""))

    def int(self, name: str) -> "int | None":
        value = self._values.get(name)
        return None if value is None else int(value)

    def float(self, name: str) -> "float | None":
        value = self._values.get(name)
        return None if value is None else float(value)


def _hosts(path: Path, value: str) -> tuple[str, ...]:
    try:
        return _expand(value) if value else ()
    except DataError as error:
        raise DamagedTraceError(f"trace {path}: {error}")


@functools.lru_cache(maxsize=4)  # all parts of a job hold the same long list
def _expand(value: str) -> tuple[str, ...]:
    return tuple(hostlist.expand(value))
