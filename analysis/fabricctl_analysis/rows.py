"""What the summaries work on: one node's rows, put on the time line.

Between the store (which knows files) and the summaries (which know numbers): rows in the order of
time, texts cleaned, times converted. Hostile texts end here.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from fabricctl.store import rollups
from fabricctl_analysis.align import MAX_TIME_NS, NodeClock, Ns, Rows, node_clock, possible

# A clock that went on by so much of the time (1 in 10) more or less than passed was set.
SET_SHARE = 10
NOT_KNOWN_NS = (1 << 63) - 1  # longer than any gap that is told
MAX_SET_BACK = 100  # of a forged trace, any number
LEAST_HZ = 1e-5  # a sample a day; less is forged


@dataclass(frozen=True)
class NodeRows:
    """One node: ``real_ns[table]`` are the times of ``tables[table]`` on its CLOCK_REALTIME.

    ``clocks`` has one entry per boot of the node; empty when no row carries both clocks, so that
    nothing can be placed: the tables are then empty.
    """

    name: str
    rails: tuple[str, ...]  # interface names in rail order
    sample_hz: float | None  # asked for
    begin_ns: int | None  # when the allocation began and ended on this node, as far as known
    end_ns: int | None
    tables: dict[str, Rows]
    real_ns: dict[str, Ns]
    clocks: tuple[NodeClock, ...]
    stored_rows: int  # also those that could not be placed
    addresses: tuple[str, ...] = ()  # of the rails


@dataclass(frozen=True)
class Boot:
    """The rows of one node between two starts of its kernel, as they were stored."""

    tables: Mapping[str, Rows]


def place(
    name: str,
    rails: Sequence[str],
    boots: Sequence[Boot],
    *,
    sample_hz: float | None = None,
    begin_ns: int | None = None,
    end_ns: int | None = None,
    addresses: Sequence[str] = (),
) -> NodeRows:
    """Rows as they were stored, to rows on the time line."""
    clocks = [node_clock(boot.tables) for boot in boots]
    tables: dict[str, Rows] = {}
    real: dict[str, Ns] = {}
    for table in boots[0].tables if boots else ():
        parts = [
            _on_line(boot.tables[table], clock)
            for boot, clock in zip(boots, clocks, strict=True)
            if clock is not None
        ]
        if len(parts) == 1:
            ((rows, times),) = parts
        else:
            rows = np.concatenate([boots[0].tables[table][:0], *(part[0] for part in parts)])
            times = np.concatenate([np.empty(0, np.int64), *(part[1] for part in parts)])
        if (np.diff(times) < 0).any():  # most are in order, and large
            order = np.argsort(times, kind="stable")
            rows, times = rows[order], times[order]
        tables[table], real[table] = rows, times
    return NodeRows(
        name=clean(name),
        rails=tuple(map(clean, rails)),
        sample_hz=sample_hz if sample_hz is not None and LEAST_HZ <= sample_hz < inf else None,
        begin_ns=begin_ns,
        end_ns=end_ns,
        tables=tables,
        real_ns=real,
        clocks=tuple(clock for clock in clocks if clock is not None),
        stored_rows=sum(len(rows) for boot in boots for rows in boot.tables.values()),
        addresses=tuple(map(clean, addresses)),
    )


def _on_line(rows: Rows, clock: NodeClock) -> tuple[Rows, Ns]:
    """Rows whose times can be, and those times."""
    good = possible(rows["time_mono_ns"])
    rows = rows if good.all() else rows[good]
    times = clock.real(rows["time_mono_ns"].astype(np.int64))
    good = possible(times)
    return (rows, times) if good.all() else (rows[good], times[good])


def thinned(rows: Rows) -> bool:
    """Whether they are a rollup's."""
    return "longest_ns" in (rows.dtype.names or ())


def apart_ns(rows: Rows, times: Ns) -> Ns | None:
    """The longest time between two samples since the row before, where the rows' ``times`` do not
    tell it: of thinned rows, and :data:`NOT_KNOWN_NS` where the clock was set in between."""
    passed, told = np.diff(rows["time_mono_ns"]), np.diff(times)
    was_set = np.flatnonzero(np.abs(passed - told) > told // SET_SHARE) + 1
    if not thinned(rows) and not len(was_set):
        return None
    longest = np.diff(times, prepend=times[:1])
    if thinned(rows):
        longest = np.minimum(rows["longest_ns"], MAX_TIME_NS).astype(np.int64)
    longest[was_set] = NOT_KNOWN_NS
    return longest


def once(rows: NodeRows) -> NodeRows:
    """Where the clock was set back, without samples of a time that had been before: between those
    of both times the counters would go up and down."""
    if len(rows.clocks) != 1 or all(step.size_ns > 0 for step in rows.clocks[0].steps):
        return rows
    tables, real_ns = dict(rows.tables), dict(rows.real_ns)
    for name in rollups.BY_TABLE:
        keep = _first_time(tables[name]["time_mono_ns"], real_ns[name])
        tables[name], real_ns[name] = tables[name][keep], real_ns[name][keep]
    return replace(rows, tables=tables, real_ns=real_ns)


def _first_time(mono_ns: Ns, real_ns: Ns) -> NDArray[np.bool_]:
    keep = np.ones(len(real_ns), dtype=bool)
    order = np.argsort(mono_ns, kind="stable")
    back = np.flatnonzero(np.diff(real_ns[order]) < 0)[:MAX_SET_BACK]
    been: list[tuple[int, int]] = []
    for mine in np.split(order, back + 1) if len(back) else ():
        times = real_ns[mine]
        for begin_ns, end_ns in been:
            keep[mine] &= (times < begin_ns) | (times > end_ns)
        been.append((int(times[0]), int(times[-1])))
    return keep


def clean(text: str | bytes) -> str:
    """Text from a trace without anything that steers a terminal or turns its direction round."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return "".join(char if _shows(char) else "\N{REPLACEMENT CHARACTER}" for char in text)


def _shows(char: str) -> bool:
    # Cc control, Cf format (bidirectional overrides), Cs surrogate, Zl and Zp line separators.
    return unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def of_rail(rows: NodeRows, table: str, rail: int) -> tuple[Ns, Rows]:
    """Times and rows of one rail."""
    mine: NDArray[np.bool_] = rows.tables[table]["rail"] == rail
    return rows.real_ns[table][mine], rows.tables[table][mine]
