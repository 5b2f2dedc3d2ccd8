"""One node's trace: its journals made into an HDF5 file of their own, to be merged later."""

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

import fabricctl
from fabricctl import hostlist
from fabricctl.errors import DataError, SystemRefusedError, TraceError
from fabricctl.store import dtypes, hdf5, rollups, schema
from fabricctl.store.journal_reader import Journal
from fabricctl.store.thin import thinned


def write_part(
    journals: Sequence[Journal], attributes: Mapping[str, hdf5.Value], out: Path
) -> None:
    """The trace of one node from the journals of its agent's lives, in the order they began.

    ``attributes`` holds JOB_ATTRIBUTES and NODE_ATTRIBUTES of the schema and goes before what
    the journals' headers say; ``end_real_ns`` may be absent and is then the last row's time.
    The file appears whole or not at all, mode 0600; missing directories above it are made 0700.
    Raises :class:`TraceError` for attributes that are missing or wrong,
    :class:`SystemRefusedError` when it cannot be written.
    """
    name = f"part {out.name}"
    job, node = _attributes(journals, attributes, name)
    for last in (False, False, True):
        _make_dirs(out.parent)
        try:
            _write(out, job, node, journals)
            return
        except SystemRefusedError as error:
            # A merge removes the directory when it has emptied it: make it again.
            if last or not isinstance(error.__cause__, FileNotFoundError):
                raise


def _attributes(
    journals: Sequence[Journal], given: Mapping[str, hdf5.Value], name: str
) -> tuple[dict[str, hdf5.Value], dict[str, hdf5.Value]]:
    """Of the job and of the node."""
    known = {**_said(journals), **given}
    end_known = "end_real_ns" in known
    known.setdefault("end_real_ns", known.get("begin_real_ns", ""))
    job = hdf5.typed(known, schema.JOB_ATTRIBUTES, name)
    node = hdf5.typed(known, schema.NODE_ATTRIBUTES, name)
    if not end_known:
        node["end_real_ns"] = _end_real_ns(journals, int(node["begin_real_ns"]))
    if not hdf5.NODE_NAME.fullmatch(str(node["node"])):
        raise TraceError(f"{name}: {str(node['node'])[:40]!r} is not a node name")
    try:
        job["nodes"] = hostlist.fold(hostlist.expand(str(job["nodes"])))
    except DataError as error:
        raise TraceError(f"{name}: {error}")
    return job, node


def _write(
    out: Path,
    job: Mapping[str, hdf5.Value],
    node: Mapping[str, hdf5.Value],
    journals: Sequence[Journal],
) -> None:
    with hdf5.new_file(out) as new:
        of_file: dict[str, hdf5.Value] = {
            "format": hdf5.FORMAT,
            "schema_version": schema.SCHEMA_VERSION,
            "written_by": f"fabricctl {fabricctl.__version__}",
            "begin_real_ns": node["begin_real_ns"],
            "end_real_ns": node["end_real_ns"],
        }
        hdf5.set_attributes(new.file, {**of_file, **job})
        for nth, lives in enumerate(_boots(journals) or [[]]):
            _write_node(new.file, node, nth, lives)
            new.check()


def _said(journals: Sequence[Journal]) -> dict[str, hdf5.Value]:
    """The headers' attributes, the first life's first; what makes no sense is left out."""
    found: dict[str, hdf5.Value] = {}
    for attribute in (*schema.JOB_ATTRIBUTES, *schema.NODE_ATTRIBUTES):
        for journal in journals:
            with contextlib.suppress(TraceError):
                optional = dataclasses.replace(attribute, required=False)
                found = {**hdf5.typed(journal.attributes, (optional,), "journal"), **found}
    return found


def _end_real_ns(journals: Sequence[Journal], begin_real_ns: int) -> int:
    """When the last row was written, for an allocation whose end nobody saw."""
    ends = [end for journal in journals if (end := hdf5.last_real_ns(journal.tables)) is not None]
    return max([begin_real_ns, *(end for end in ends if end < 1 << 63)])


def _boots(journals: Sequence[Journal]) -> list[list[Journal]]:
    """Lives in one boot of the node share CLOCK_MONOTONIC; another boot starts it again."""
    grouped = itertools.groupby(journals, key=lambda j: j.attributes.get("boot_id"))
    return [list(lives) for _, lives in grouped]


def _write_node(
    file: h5py.File, node: Mapping[str, hdf5.Value], nth: int, lives: Sequence[Journal]
) -> None:
    own = dict(node)
    begin = lives[0].attributes.get("begin_real_ns", "") if lives else ""
    begin_real_ns = int(begin) if begin.isdecimal() and len(begin) < 20 else nth
    # All boots in one allocation share its begin.
    group_name = hdf5.free_name(file, str(node["node"]), begin_real_ns)
    if lives and (boot := lives[0].attributes.get("boot_id")):
        own["boot_id"] = boot
    group = hdf5.create_node(file, group_name)
    hdf5.set_attributes(group, {**own, "lives": len(lives)})
    for table in schema.TABLES:
        rows = _lives(lives) if table is schema.LIFE else _rows(lives, table.name)
        hdf5.write_table(file, group, table, rows)
        if table.name in rollups.BY_TABLE:
            _write_rollups(file, group, rollups.BY_TABLE[table.name], rows)


def _write_rollups(
    file: h5py.File, group: h5py.Group, rollup: rollups.Rollup, rows: dtypes.Rows
) -> None:
    for width, table in rollup.tables.items():
        kept = thinned(rows, rollup, width)
        if kept is not None:
            hdf5.write_table(file, group, table, kept)


def _rows(lives: Sequence[Journal], table: str) -> dtypes.Rows:
    """Of all lives, in time order."""
    found = [journal.tables[table] for journal in lives]
    if not found:
        return dtypes.empty(schema.BY_NAME[table])
    rows = found[0] if len(found) == 1 else np.concatenate(found)
    times = rows["time_mono_ns"]
    if np.all(times[1:] >= times[:-1]):
        return rows
    return rows[np.argsort(times, kind="stable")]


def _lives(lives: Sequence[Journal]) -> dtypes.Rows:
    result = dtypes.empty(schema.LIFE, len(lives))
    for row, journal in zip(result, lives, strict=True):
        times = [rows["time_mono_ns"] for rows in journal.tables.values() if len(rows)]
        row["time_mono_ns"] = min((int(t.min()) for t in times), default=0)
        row["end_mono_ns"] = max((int(t.max()) for t in times), default=0)
        row["rows"] = sum(len(rows) for rows in journal.tables.values())
        row["damage"] = (journal.damage or "").encode()[:232]
    return result


def _make_dirs(path: Path) -> None:
    try:
        for parent in reversed([path, *path.parents]):
            if not parent.exists():
                parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise SystemRefusedError(f"{error.filename}: cannot be made: {error.strerror}")
