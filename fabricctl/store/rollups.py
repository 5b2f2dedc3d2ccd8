"""Rollups: thinned copies of the sampled tables, from which long and wide jobs are read.

A rollup ``<table>_<width>`` has its table's columns and, behind them, what the rows that were left
out would have shown. Which rows stay: the last of each second or minute, the first and the last of
all, and both neighbours of whatever must not be lost: a gap in measurement, a change of state, a
counter that went back, a value that was or was no longer measured. Counters and states read from a
rollup are therefore exact; only what happened evenly between two rows is told by its extremes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fabricctl.store import schema
from fabricctl.store.schema import Column, Table

# CPU time that is neither idle nor waiting for I/O.
BUSY = ("user", "nice", "system", "irq", "softirq", "steal")
WIDTHS_S = {"1s": 1, "1min": 60}


@dataclass(frozen=True)
class Rollup:
    """How one table is thinned. ``peaks``: sums of counters whose highest rate is kept; ``lowest``
    and ``highest``: gauges; ``states``: columns whose every change is kept."""

    table: Table
    numbers: tuple[int, int]  # of its two tables
    keys: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    counters: tuple[str, ...] = ()
    peaks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lowest: tuple[str, ...] = ()
    highest: tuple[str, ...] = ()
    tables: dict[str, Table] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        made = {
            width: self._table(width, number)
            for width, number in zip(WIDTHS_S, self.numbers, strict=True)
        }
        object.__setattr__(self, "tables", made)

    def _table(self, width: str, number: int) -> Table:
        return Table(
            f"{self.table.name}_{width}",
            number,
            f"Rollup of `{self.table.name}`.",
            (*self.table.columns, *_EXTRA, *self._extremes()),
        )

    def _extremes(self) -> Iterator[Column]:
        units = {column.name: column.unit for column in self.table.columns}
        signed = {column.name for column in self.table.columns if column.code == "q"}
        for name, parts in self.peaks.items():
            words = " + ".join(f"`{part}`" for part in parts)
            doc = f"Highest rate of {words} between two rows in there."
            yield Column(peak(name), "Q", f"{units[parts[0]]}/s", doc)
        for name in self.lowest:
            yield Column(lowest(name), "Q", units[name], f"Lowest `{name}` in there.")
        for name in self.highest:
            code = "q" if name in signed else "Q"
            yield Column(highest(name), code, units[name], f"Highest `{name}` in there.")


_EXTRA = (
    Column("rows", "I", "1", "Rows since the one before here, this one included."),
    Column("longest_ns", "Q", "ns", "Longest time between two of them: a gap shows here."),
)


def peak(name: str) -> str:
    return f"{name}_peak"


def lowest(name: str) -> str:
    return f"{name}_lowest"


def highest(name: str) -> str:
    return f"{name}_highest"


def _counters(table: Table) -> tuple[str, ...]:
    """The kernel's counters among a table's columns."""
    return tuple(column.name for column in table.columns if column.code == "Q")


ROLLUPS = (
    Rollup(
        schema.RAIL,
        (50, 51),
        keys=("rail",),
        states=("carrier", "carrier_changes"),
        counters=_counters(schema.RAIL),
        peaks={n: (n,) for n in ("rx_bytes", "tx_bytes")},
    ),
    Rollup(
        schema.HOST,
        (52, 53),
        counters=tuple(n for n in _counters(schema.HOST) if not n.startswith("memory")),
        peaks={
            "cpu_busy": tuple(f"cpu_{n}_ns" for n in BUSY),
            **{n: (n,) for n in _counters(schema.HOST) if n.startswith(("psi", "cpu_steal"))},
        },
        lowest=("memory_available_bytes",),
    ),
    Rollup(
        schema.JOB,
        (54, 55),
        states=("processes",),
        counters=("cpu_ns",),
        peaks={"cpu_ns": ("cpu_ns",)},
        highest=("memory_bytes",),
    ),
    Rollup(
        schema.GPU,
        (64, 65),
        keys=("gpu",),
        states=("throttle_reasons", "ecc_uncorrected", "remapped_rows", "remap_state"),
        counters=(
            "energy_mj",
            "ecc_corrected",
            "pcie_replays",
            "nvlink_errors",
            "pcie_tx_bytes",
            "pcie_rx_bytes",
            "nvlink_tx_bytes",
            "nvlink_rx_bytes",
        ),
        lowest=("sm_clock_mhz",),
        highest=("memory_used_bytes", "power_mw", "temperature_c"),
    ),
    Rollup(
        schema.RDMA_PORT,
        (66, 67),
        keys=("port",),
        states=("active", "link_downed", "link_recoveries"),
        counters=_counters(schema.RDMA_PORT),
        peaks={n: (n,) for n in ("rx_bytes", "tx_bytes", "tx_wait")},
    ),
    Rollup(
        schema.TCP,
        (68, 69),
        counters=_counters(schema.TCP),
        peaks={n: (n,) for n in ("retransmitted", "timeouts")},
    ),
    Rollup(
        schema.MPI_TIME,
        (48, 49),
        keys=("rank", "launch", "op"),
        counters=("calls", "time_ns", "bytes"),
        highest=("most_ns",),
    ),
    Rollup(
        schema.TCP_FLOW,
        (83, 84),
        keys=("rail", "peer"),
        counters=("retransmitted",),
        highest=("rtt_us", "rto_ms"),
    ),
    Rollup(
        schema.PHASE, (85, 86), keys=("rank", "launch", "name"), counters=("entered", "time_ns")
    ),
    Rollup(schema.RANK_POSITION, (46, 47), keys=("rank", "launch")),
    Rollup(
        schema.JOB_CLOCK,
        (56, 57),
        states=("status",),
        highest=("likely_ns", "early_ns", "late_ns"),
    ),
    Rollup(
        schema.DELAY,
        (58, 59),
        keys=("rail", "peer", "inbound", "size_class"),
        highest=("p50_ns", "p99_ns", "max_ns", "bound_ns"),
    ),
)
TABLES = tuple(table for rollup in ROLLUPS for table in rollup.tables.values())
BY_TABLE = {rollup.table.name: rollup for rollup in ROLLUPS}
