"""Tables 1 to 19: what every node of every job records."""

from enum import IntEnum

from fabricctl.store.schema.base import MONO, RAIL_INDEX, REAL, Column, Table, time_column


class LinkEvent(IntEnum):
    """What happened to a rail's interface."""

    CARRIER_DOWN = 0
    CARRIER_UP = 1
    ADMIN_DOWN = 2
    ADMIN_UP = 3
    REMOVED = 4
    ADDED = 5


class Severity(IntEnum):
    """Weight of a note."""

    INFO = 0
    WARNING = 1
    ERROR = 2


class StepEvent(IntEnum):
    """Life of a step as the plugin or the process table saw it."""

    BEGIN = 0
    END = 1


_COUNTERS = (
    ("rx_bytes", "B", "Bytes received."),
    ("tx_bytes", "B", "Bytes sent."),
    ("rx_packets", "1", "Packets received."),
    ("tx_packets", "1", "Packets sent."),
    ("rx_errors", "1", "Receive errors."),
    ("tx_errors", "1", "Transmit errors."),
    ("rx_dropped", "1", "Packets dropped on receive."),
    ("tx_dropped", "1", "Packets dropped on transmit."),
)

_CPU = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_PSI = ("cpu_some", "memory_some", "memory_full", "io_some", "io_full")

RAIL = Table(
    "rail",
    1,
    "State and counters of each rail's interface (IFLA_STATS64), one row a rail a sample.",
    (
        time_column("When the counters were read."),
        RAIL_INDEX,
        Column("carrier", "B", "1", "1: the interface has carrier, 0: it has none."),
        Column("carrier_changes", "I", "1", "Changes of carrier since the interface was made."),
        *(Column(name, "Q", unit, doc) for name, unit, doc in _COUNTERS),
    ),
)

HOST = Table(
    "host",
    2,
    "The whole node, one row a sample; memory and pressure as they were read last, at most ten "
    "times a second.",
    (
        time_column("When the sample was taken."),
        *(Column(f"cpu_{n}_ns", "Q", "ns", f"CPU time, all cores: {n}.") for n in _CPU),
        Column("memory_total_bytes", "Q", "B", "MemTotal of /proc/meminfo."),
        Column("memory_available_bytes", "Q", "B", "MemAvailable of /proc/meminfo."),
        *(
            Column(f"psi_{n}_us", "Q", "us", f"Stall time, {n.replace('_', ' ')} (PSI).")
            for n in _PSI
        ),
    ),
)

JOB = Table(
    "job",
    3,
    "The job's processes on this node, one row a sample.",
    (
        time_column("When the sample was taken."),
        Column("cpu_ns", "Q", "ns", "CPU time of the job so far, user and system."),
        Column("memory_bytes", "Q", "B", "Memory in use: the cgroup's, or resident sizes summed."),
        Column("processes", "I", "1", "Processes of the job, without Slurm's own."),
    ),
)

LINK_EVENT = Table(
    "link_event",
    4,
    "Changes of a rail's link as the kernel told them (rtnetlink), the moment they were received.",
    (
        time_column("When the message was received."),
        Column("time_real_ns", "q", "ns", "The same instant.", REAL),
        RAIL_INDEX,
        Column("event", "B", "1", "What happened.", values=LinkEvent),
        Column("carrier_changes", "I", "1", "The interface's counter after the event."),
    ),
)

NOTE = Table(
    "note",
    5,
    "What the node had to say: sources that failed, agents missing, restarts, gaps.",
    (
        time_column("When it was written."),
        Column("time_real_ns", "q", "ns", "The same instant.", REAL),
        Column("severity", "B", "1", "Weight.", values=Severity),
        Column("source", "24s", "1", "Who speaks: a sampler's name, `agent`, `node`, `peers`."),
        Column("text", "232s", "1", "One sentence."),
    ),
)

CLOCK = Table(
    "clock",
    6,
    "One instant on the node's clocks, read back to back, to convert between them.",
    (
        time_column("CLOCK_MONOTONIC."),
        Column("time_real_ns", "q", "ns", "The same instant.", REAL),
        Column("time_raw_ns", "q", "ns", "The same instant.", "CLOCK_MONOTONIC_RAW"),
        Column("time_boot_ns", "q", "ns", "The same instant.", "CLOCK_BOOTTIME"),
        Column("width_ns", "I", "ns", "How long the readings took: the error of each pairing."),
    ),
)

STEP = Table(
    "step",
    7,
    "Job steps on this node as the plugin saw them. Of ends without a begin between them the first "
    "counts: an agent that was started later tells the end of all that it does not find.",
    (
        time_column("When the agent saw it."),
        Column("time_real_ns", "q", "ns", "The same instant.", REAL),
        Column("step", "24s", "1", "Step id as Slurm writes it: `0`, `batch`, `extern`."),
        Column("event", "B", "1", "What happened.", values=StepEvent),
    ),
)

LIFE = Table(
    "life",
    8,
    "One row per life of the agent (per journal); written when the journals become a trace. "
    "Between two lives nothing was measured.",
    (
        time_column("Of the first row of this life."),
        Column("end_mono_ns", "q", "ns", "Of the last row of this life.", MONO),
        Column("rows", "Q", "1", "Rows of all tables."),
        Column("damage", "232s", "1", "What was wrong with the journal; empty: nothing."),
    ),
)
