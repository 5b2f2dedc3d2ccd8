"""Rows for every table that a synthetic trace leaves empty, from a seed: every reader has work."""

from collections.abc import Mapping

import numpy as np

from fabricctl.store import dtypes, schema

_WORDS = (b"n1", b"n2", b"MPI_Allreduce", b"MPI_Test", b"checkpoint", b"train", b"eval",
          b"own_port", b"10.78.0.12", b"cpu_ms", b"agent", b"edac", b"0")  # fmt: skip
ROWS = 24


def filled(tables: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """``tables`` with rows in those that had none; times as in ``host``."""
    random = np.random.default_rng(seed)
    first, last = (int(tables["host"]["time_mono_ns"][at]) for at in (0, -1))
    clock = tables["clock"]
    real_ns = int(clock["time_real_ns"][0]) - int(clock["time_mono_ns"][0])
    found = dict(tables)
    for table in schema.TABLES:
        if len(tables[table.name]):
            continue
        rows = dtypes.empty(table, ROWS)
        for column in table.columns:
            rows[column.name] = _values(column, random)
        rows["time_mono_ns"] = np.linspace(first, last, ROWS).astype(np.int64)
        if "time_real_ns" in rows.dtype.names:
            rows["time_real_ns"] = rows["time_mono_ns"] + real_ns
        found[table.name] = rows
    return found


def _values(column: schema.Column, random: np.random.Generator) -> np.ndarray:
    if column.values is not None:
        return random.choice([int(value) for value in column.values], ROWS)
    if column.code.endswith("s"):
        return random.choice(np.array(_WORDS), ROWS)
    if column.name in ("rank", "gpu", "port", "rail", "launch", "peer"):
        return random.integers(0, 2, ROWS)
    return np.cumsum(random.integers(0, 100, ROWS))
