"""A trace in other tools' forms: Parquet (one file a table) and OpenMetrics text."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from fabricctl.errors import SystemRefusedError
from fabricctl.store import schema
from fabricctl.store.trace import open_trace
from fabricctl_analysis.load import load, width_for

# Tables whose rows are samples, and the columns that tell one series of a node from another.
_SERIES = {
    "rail": ("rail",),
    "host": (),
    "job": (),
    "tcp": (),
    "tcp_flow": ("rail", "peer"),
    "rdma_port": ("port",),
    "gpu": ("gpu",),
}
# Gauges among their unsigned 64-bit columns; the rest of these are counters.
_GAUGES = (
    "memory_total_bytes", "memory_available_bytes", "memory_bytes", "memory_used_bytes",
    "throttle_reasons", "delivery_bytes_per_s",
)  # fmt: skip


def parquet(path: Path, every: bool) -> dict[str, str]:
    """Each table's file, in base64, by name; ``every``: all samples, not the rollup.

    Raises :class:`SystemRefusedError` without a library for Parquet.
    """
    found = {}
    for name, frame in load(path, None if every else _width(path)).items():
        if len(frame):
            buffer = io.BytesIO()
            try:
                frame.to_parquet(buffer, index=False)
            except ImportError:
                raise SystemRefusedError(
                    "export: Parquet needs pyarrow: pip install 'fabricctl[parquet]'"
                ) from None
            found[name] = base64.b64encode(buffer.getvalue()).decode()
    return found


def openmetrics(path: Path, every: bool) -> dict[str, str]:
    """One text, as Prometheus takes it back (``promtool tsdb create-blocks-from openmetrics``)."""
    frames = load(path, None if every else _width(path))
    with open_trace(path) as trace:
        job = trace.job.job
    lines = [line for name in _SERIES for line in _family(name, frames[name], job)]
    return {"openmetrics": "\n".join([*lines, "# EOF"]) + "\n"}


def _width(path: Path) -> str | None:
    with open_trace(path) as trace:
        return width_for(trace)


def _family(name: str, frame: pd.DataFrame, job: int) -> Iterator[str]:
    table = schema.BY_NAME[name]
    keys = _SERIES[name]
    if not len(frame):
        return
    times = frame["time_real"].astype("int64") / 1e9
    for column in table.columns:
        if column.clock or column.name in keys or column.code.endswith("s"):
            continue
        counter = column.code == "Q" and column.name not in _GAUGES
        metric = f"fabricctl_{name}_{column.name}"
        yield f"# TYPE {metric} {'counter' if counter else 'gauge'}"
        yield f"# HELP {metric} {_escaped(column.doc)}"
        series = frame[["node", *keys, column.name]].assign(at=times)
        for which, rows in series.groupby(["node", *keys], sort=False, dropna=False):
            labels = ",".join(
                f'{label}="{"" if value is pd.NA else _escaped(str(value))}"'
                for label, value in zip(("node", *keys), which, strict=True)
            )
            told = f'{metric}{"_total" if counter else ""}{{job_id="{job}",{labels}}}'
            known = rows[rows[column.name].notna()]
            for value, at in zip(known[column.name], known["at"], strict=True):
                yield f"{told} {int(value)} {at:.3f}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
