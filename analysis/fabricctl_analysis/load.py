"""Reads a trace: as data frames for one's own analysis, and as rows for the report."""

import contextlib
from collections.abc import Collection, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd

from fabricctl import layout
from fabricctl.errors import TraceError
from fabricctl.store import rollups, schema, thin
from fabricctl.store.checked import DAMAGE
from fabricctl.store.trace import Damage, JobInfo, Trace, open_trace
from fabricctl_analysis.align import Rows, instants
from fabricctl_analysis.model import JobFacts
from fabricctl_analysis.rows import Boot, NodeRows, clean, place

# Tables with rows at the pace of samples; of the others each row becomes an object.
SAMPLED = ("clock", *rollups.BY_TABLE)
# An agent notes at most 60 times a minute (agent/record.py): a day of that, of one node.
MAX_EVENTS = 100_000


def load(path: Path | str, width: str | None = None) -> dict[str, pd.DataFrame]:
    """The whole trace as one frame per table of the schema (docs/data-format.md).

    ``width``: of the sampled tables the rollup, "1s" or "1min", under the table's own name.

    Columns: ``node``, the table's own, ``time_s`` (seconds since the job began) and ``time_real``
    (UTC), both on the node's own CLOCK_REALTIME. What was not measured is NA, texts are str.
    Raises :class:`~fabricctl.errors.TraceError`.
    """
    with open_trace(Path(path)) as trace:
        nodes = list(node_rows(trace, width))
        first_ns = [
            int(times[0]) for rows in nodes for times in rows.real_ns.values() if len(times)
        ]
        begin_ns = (instants(trace.job.begin_real_ns) or [min(first_ns, default=0)])[0]
        known = [
            rollups.BY_TABLE[table.name].tables[width]
            if width is not None and table.name in rollups.BY_TABLE
            else table
            for table in schema.TABLES
        ]
        return {
            raw.name: _frame(raw.name, table, nodes, begin_ns)
            for raw, table in zip(schema.TABLES, known, strict=True)
        }


def job_facts(trace: Trace) -> JobFacts:
    """The trace's own words about the job."""
    job: JobInfo = trace.job
    return JobFacts(
        job=job.job,
        array=_pair(job.array_job, "_", job.array_task),
        het=_pair(job.het_job, "+", job.het_offset),
        requeue=(layout.parse_trace_file(trace.path.resolve()) or (0, 0))[1],
        user=clean(job.user) or None,
        cluster=clean(job.cluster) or None,
        mode=clean(job.mode) or None,
        spares=job.spares,
        nodes=job.nodes,
        source=clean(str(trace.path)),
        schema_version=trace.schema_version,
    )


# More samples than this are read thinned: the report draws 800 points of each series, and two
# million rows take 2 s and 250 MB.
MANY_ROWS = 2_000_000
# Of all sampled tables, those of GPUs, ranks and probes too: 10 s of CPU (bench/report.py).
MANY_OF_ALL = 10_000_000
_COUNTED = 4  # nodes whose rows are counted; the others are taken to have as many


def width_for(trace: Trace) -> str | None:
    """The rollup to read a trace by: the finest that is not too much; None for every sample."""
    seconds = max(0.0, (trace.job.end_real_ns - trace.job.begin_real_ns) / 1e9)
    nodes = trace.nodes.values()
    streams = sum(2 + len(info.rails) for info in nodes)
    hz = max((info.sample_hz or 1.0 for info in nodes), default=1.0)
    sampled, every = seconds * streams * max(hz, 1.0), _all_rows(trace)
    if sampled <= MANY_ROWS and every <= MANY_OF_ALL:
        return None
    # What is not read at the job's own pace comes once a second already.
    at_1s = seconds * streams + max(0.0, every - sampled)
    return "1s" if hz > 1 and seconds * streams <= MANY_ROWS and at_1s <= MANY_OF_ALL else "1min"


def _all_rows(trace: Trace) -> float:
    """Of sampled tables, by those of the first nodes; what is damaged is told by who reads it."""
    keys = list(trace.nodes)[:_COUNTED]
    rows = 0
    for key in keys:
        for name in SAMPLED:
            with contextlib.suppress(TraceError, *DAMAGE):
                found = trace.dataset(key, schema.BY_NAME[name])
                rows += 0 if found is None else len(found)
    return rows * len(trace.nodes) / max(1, len(keys))


def node_rows(
    trace: Trace, width: str | None = None, only: Collection[str] | None = None
) -> Iterator[NodeRows]:
    """Each node's rows on the time line, one node at a time; boots of one node together.

    ``width``: thinned to that rollup, under the names of the tables themselves; ``only`` these
    nodes.
    """
    for name, groups in groupby(trace.nodes, key=lambda key: trace.nodes[key].node):
        if only is not None and name not in only:
            continue
        keys = list(groups)
        infos = [trace.nodes[key] for key in keys]
        boots = [
            Boot({table.name: _read(trace, key, table, width) for table in schema.TABLES})
            for key in keys
        ]
        yield place(
            name,
            max((info.rails for info in infos), key=len),
            boots,
            sample_hz=infos[-1].sample_hz,
            addresses=[text for info in infos for text in info.addresses],
            begin_ns=min(instants(*(info.begin_real_ns for info in infos)), default=None),
            end_ns=max(instants(*(info.end_real_ns for info in infos)), default=None),
        )


def _read(trace: Trace, key: str, table: schema.Table, width: str | None) -> Rows:
    rollup = rollups.BY_TABLE.get(table.name)
    if width is None or rollup is None:
        return _rows(trace, key, table)
    if trace.has(key, rollup.tables[width]):
        return trace.rows(key, rollup.tables[width])
    return thin.thin(_rows(trace, key, table), rollup, width)


def _rows(trace: Trace, key: str, table: schema.Table) -> Rows:
    """A table's rows; of words and events no more than an agent can have written."""
    rows = trace.rows(key, table)
    if table.name not in SAMPLED and len(rows) > MAX_EVENTS:
        why = f"it has {len(rows)} rows, of which the first {MAX_EVENTS} are used"
        trace.damage.append(Damage(trace.nodes[key].node, f"table {table.name}", why))
        return rows[:MAX_EVENTS]
    return rows


def _pair(first: int | None, sign: str, second: int | None) -> str | None:
    return None if first is None or second is None else f"{first}{sign}{second}"


def _frame(name: str, table: schema.Table, nodes: list[NodeRows], begin_ns: int) -> pd.DataFrame:
    frames = [_node_frame(name, table, rows, begin_ns) for rows in nodes if rows.clocks]
    if not frames:
        names = ["node", *(column.name for column in table.columns), "time_s", "time_real"]
        return pd.DataFrame(columns=names)
    return pd.concat(frames, ignore_index=True)


def _node_frame(name: str, table: schema.Table, rows: NodeRows, begin_ns: int) -> pd.DataFrame:
    stored, real_ns = rows.tables[name], rows.real_ns[name]
    columns: dict[str, object] = {"node": np.full(len(stored), rows.name, dtype=object)}
    for column in table.columns:
        values = stored[column.name]
        if column.code.endswith("s"):
            columns[column.name] = [clean(value) for value in values]
        elif column.code in schema.NOT_MEASURED:
            columns[column.name] = _masked(values, schema.NOT_MEASURED[column.code])
        else:
            columns[column.name] = values
    columns["time_s"] = (real_ns - begin_ns) / 1e9
    columns["time_real"] = pd.to_datetime(real_ns, unit="ns", utc=True)
    return pd.DataFrame(columns)


def _masked(values: np.ndarray, not_measured: int) -> object:
    """Whole numbers stay whole (64 bits do not fit a float); pandas' own NA for the holes."""
    return pd.arrays.IntegerArray(np.ascontiguousarray(values), values == not_measured)
