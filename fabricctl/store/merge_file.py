"""Writes one job trace: a copy of the one that is there, and the parts added to it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py

import fabricctl
from fabricctl import hostlist
from fabricctl.errors import TraceError
from fabricctl.store import hdf5, rollups, schema
from fabricctl.store.attempts import Attempt, Part, identity_of
from fabricctl.store.checked import DamagedTraceError, attributes, damage_of
from fabricctl.store.trace import Trace, open_trace


class ChangedError(Exception):
    """Somebody else merged meanwhile; nothing was done."""


class SourceError(Exception):
    """A part is damaged; nothing was done."""

    def __init__(self, path: Path, error: TraceError) -> None:
        super().__init__(str(error))
        self.path = path


def write(
    attempt: Attempt, parts: Sequence[Part], now_real_ns: int, step: Callable[[str], None]
) -> None:
    """Replaces the attempt's trace by one that has the parts too.

    Raises :class:`ChangedError` when the trace is no longer the one that was looked at, and
    :class:`SourceError`.
    """

    def check() -> None:
        step("merged")
        if identity_of(attempt.path) != attempt.identity:
            raise ChangedError

    base = attempt.path if attempt.identity else None
    with hdf5.new_file(attempt.path, check, base) as new:
        nodes, said = set(attempt.nodes), attempt.nodes
        for part in parts:
            try:
                with open_trace(part.path) as trace, damage_of(part.path):
                    if trace.job.nodes is not said:  # the same tuple for the same text
                        said = trace.job.nodes
                        nodes.update(said)
                    _copy(trace, new)
            except TraceError as error:
                if not part.path.exists():
                    raise ChangedError
                if isinstance(error, DamagedTraceError):
                    raise SourceError(part.path, error)
                raise
            new.check()
        present = {name.partition("@")[0] for name in new.file[hdf5.NODES]}
        of_file: dict[str, hdf5.Value] = {
            "format": hdf5.FORMAT,
            "schema_version": schema.SCHEMA_VERSION,
            "written_by": f"fabricctl {fabricctl.__version__}",
            "begin_real_ns": attempt.begin_real_ns,
            "end_real_ns": attempt.end_real_ns,
            "collected_real_ns": now_real_ns,
            "nodes": hostlist.fold(nodes | present),
            "missing_nodes": hostlist.fold(nodes - present),
        }
        hdf5.set_attributes(new.file, of_file)
    step("renamed")


def _copy(trace: Trace, new: hdf5.NewFile) -> None:
    _copy_attributes(trace.file, new.file, schema.JOB_ATTRIBUTES)
    for name in trace.nodes:
        _copy_node(trace, name, new.file)


def _copy_attributes(
    source: h5py.Group, target: h5py.Group, known: Sequence[schema.Attribute]
) -> None:
    given = attributes(source, {attribute.name for attribute in known} - set(target.attrs))
    hdf5.set_attributes(target, given)


def _copy_node(trace: Trace, name: str, file: h5py.File) -> None:
    info = trace.nodes[name]
    group = hdf5.create_node(file, hdf5.free_name(file, name, info.begin_real_ns))
    _copy_attributes(trace.file[hdf5.NODES][name], group, schema.NODE_ATTRIBUTES)
    there = set(trace.file[hdf5.NODES][name])
    for table in (*schema.TABLES, *rollups.TABLES):
        source = trace.dataset(name, table) if table.name in there else None
        if source is None or not len(source):
            continue
        target = hdf5.create_table(file, group, table, len(source))
        if _same_layout(source, target):
            for offset, mask, data in _chunks(source):
                target.id.write_direct_chunk(offset, data, mask)
        else:
            target[...] = trace.table(name, table)


def _same_layout(source: h5py.Dataset, target: h5py.Dataset) -> bool:
    """Whether the compressed chunks of one can stand in the other as they are."""
    ours, theirs = target.id.get_create_plist(), source.id.get_create_plist()
    filters = [
        [plist.get_filter(nth)[0] for nth in range(plist.get_nfilters())]
        for plist in (ours, theirs)
    ]
    return (
        hdf5.kind_of(source) == hdf5.kind_of(target)
        and theirs.get_chunk() == ours.get_chunk()
        and filters[0] == filters[1]
    )


def _chunks(source: h5py.Dataset) -> Iterator[tuple[tuple[int, ...], int, bytes]]:
    for nth in range(source.id.get_num_chunks()):
        offset = source.id.get_chunk_info(nth).chunk_offset
        mask, data = source.id.read_direct_chunk(offset)
        yield offset, mask, data
