"""The one schema of traces: tables, columns, units and clocks.

The journal (written live by the agent) and the HDF5 trace (made from it) are both laid out from
this module, and ``docs/data-format.md`` is tested against it. It imports nothing but the standard
library, so that the agent stays small.

A table's rows are packed little-endian structures; a column's ``code`` is a :mod:`struct`
format character (or ``"<n>s"`` for NUL-padded UTF-8), from which the numpy dtype follows.
Counters are the kernel's own, since boot; consumers take differences. A value that could not be
read is the type's largest value for unsigned integers (``NOT_MEASURED``), never zero.
"""

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

SCHEMA_VERSION = 1

MONO = "CLOCK_MONOTONIC"
REAL = "CLOCK_REALTIME"

NOT_MEASURED = {"B": 0xFF, "H": 0xFFFF, "I": 0xFFFF_FFFF, "Q": 0xFFFF_FFFF_FFFF_FFFF}


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


class ClockStatus(IntEnum):
    """Of a node's job clock."""

    UNSYNCHRONISED = 0
    SYNCHRONISED = 1
    HOLDOVER = 2


class StepEvent(IntEnum):
    """Life of a step as the plugin or the process table saw it."""

    BEGIN = 0
    END = 1


class PathEvent(IntEnum):
    """What fabric-pathd, the mover of a job's TCP traffic, reported (docs/paths.md)."""

    PATH = 0  # a rail to a peer became good, poor or dead; traffic moved if `moved_mono_ns` > 0
    RECOVERED = 1  # the streams that a move found waiting run again
    STALLED = 2  # a peer is silent on every rail: a stalled host, no verdict on any link
    BACK = 3  # it is heard again
    CAUSE = 4  # what broke: own_port, peers_port, one_of_two_ports, switch, path
    REQUEST = 5  # an administrator moved something
    LINK = 6  # carrier of a rail changed
    BEGIN = 7
    END = 8
    READY = 9  # all nodes are ready: ranks use the fabric addresses
    OFF = 10  # ranks do not use them, `text` says why
    TROUBLE = 11
    MET = 12  # a node's fabric-pathd is known
    MET_AGAIN = 13  # it was started anew


class PathLevel(IntEnum):
    """How good a rail to a peer is."""

    GOOD = 0
    POOR = 1  # carries packets: lossy, slow, drained, or not yet proven again
    DEAD = 2


class PathReason(IntEnum):
    """Why it is not good."""

    NONE = 0
    SILENT = 1  # probes stopped while another rail delivered the peer's
    CARRIER = 2  # the node's own port has no carrier
    TOLD = 3  # the peer finds it bad
    LOSS = 4
    SIZE = 5  # only large packets are lost
    SLOW = 6  # queueing far above the other rails'
    DRAINED = 7  # taken out by an administrator


class RankState(IntEnum):
    """Life of a rank of the job's program, as its tracker and its process say."""

    STARTING = 0
    RUNNING = 1
    FINALIZED = 2
    ABORTED = 3
    GONE = 4  # the process ended without MPI_Finalize
    STOPPED = 5  # the process was stopped by a signal


class CheckpointEvent(IntEnum):
    """What a program's ranks did together (docs/checkpoints.md)."""

    SAVED = 0
    RESTORED = 1  # from memory
    RESTORED_SHARED = 2  # from the shared file system
    BEGUN = 3  # there was nothing to go on from


class LaunchEvent(IntEnum):
    """What `fabricctl run` did (docs/checkpoints.md)."""

    START = 0  # of the program on `node`
    END = 1  # it ended well
    RANKS_DEAD = 2  # the program ended otherwise, its nodes live
    NODE_DEAD = 3
    GIVE_UP = 4  # it is not started again, `text` says why


class StallKind(IntEnum):
    """Whom a stall is laid to (docs/tracker.md)."""

    NONE = 0  # it is over
    APPLICATION = 1
    RANK = 2
    HOST = 3
    LINK = 4


@dataclass(frozen=True)
class Column:
    """One column: ``unit`` SI or "B", "1" for counts and enumerations; ``clock`` for times."""

    name: str
    code: str
    unit: str
    doc: str
    clock: str = ""
    values: type[IntEnum] | None = None


@dataclass(frozen=True)
class Table:
    """One table of a node: ``number`` is its id in the journal and never reused."""

    name: str
    number: int
    doc: str
    columns: tuple[Column, ...]
    packer: struct.Struct = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        packer = struct.Struct("<" + "".join(column.code for column in self.columns))
        object.__setattr__(self, "packer", packer)


def _time(doc: str) -> Column:
    return Column("time_mono_ns", "q", "ns", doc, MONO)


_RAIL = Column("rail", "B", "1", "Index of the rail in the node's `rails` attribute, from 0.")
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
_DELAYS = (("min", "the least"), ("p50", "median"), ("p99", "99th percentile"), ("max", "the most"))
_PSI = ("cpu_some", "memory_some", "memory_full", "io_some", "io_full")

RAIL = Table(
    "rail",
    1,
    "State and counters of each rail's interface (IFLA_STATS64), one row a rail a sample.",
    (
        _time("When the counters were read."),
        _RAIL,
        Column("carrier", "B", "1", "1: the interface has carrier, 0: it has none."),
        Column("carrier_changes", "I", "1", "Changes of carrier since the interface was made."),
        *(Column(name, "Q", unit, doc) for name, unit, doc in _COUNTERS),
    ),
)
HOST = Table(
    "host",
    2,
    "The whole node, one row a sample.",
    (
        _time("When the sample was taken."),
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
        _time("When the sample was taken."),
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
        _time("When the message was received."),
        Column("time_real_ns", "q", "ns", "The same instant.", REAL),
        _RAIL,
        Column("event", "B", "1", "What happened.", values=LinkEvent),
        Column("carrier_changes", "I", "1", "The interface's counter after the event."),
    ),
)
NOTE = Table(
    "note",
    5,
    "What the node had to say: sources that failed, agents missing, restarts, gaps.",
    (
        _time("When it was written."),
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
        _time("CLOCK_MONOTONIC."),
        Column("time_real_ns", "q", "ns", "The same instant.", REAL),
        Column("time_raw_ns", "q", "ns", "The same instant.", "CLOCK_MONOTONIC_RAW"),
        Column("time_boot_ns", "q", "ns", "The same instant.", "CLOCK_BOOTTIME"),
        Column("width_ns", "I", "ns", "How long the readings took: the error of each pairing."),
    ),
)
STEP = Table(
    "step",
    7,
    "Job steps on this node as the plugin saw them.",
    (
        _time("When the agent saw it."),
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
        _time("Of the first row of this life."),
        Column("end_mono_ns", "q", "ns", "Of the last row of this life.", MONO),
        Column("rows", "Q", "1", "Rows of all tables."),
        Column("damage", "232s", "1", "What was wrong with the journal; empty: nothing."),
    ),
)
JOB_CLOCK = Table(
    "job_clock",
    20,
    "The node's clock on the job's time base, one row a second while there is job time: an "
    "instant on both, as it was known after the fact (docs/clock.md).",
    (
        _time("The instant on the node."),
        Column("job_ns", "q", "ns", "The same instant in job time.", "job clock"),
        Column("status", "B", "1", "Of the clock.", values=ClockStatus),
        Column("likely_ns", "I", "ns", "Error of the pairing in all but 1 of 1,000 rows."),
        Column("early_ns", "I", "ns", "Job time was certainly not earlier by more than this."),
        Column("late_ns", "I", "ns", "Job time was certainly not later by more than this."),
        Column("probe_hz", "I", "Hz", "Pairs of probes a second and peer."),
    ),
)
DELAY = Table(
    "delay",
    21,
    "One-way delays on the job clock, one row a second, path, direction and size of probes, of "
    "the edges of the probe graph that this node owns; each edge has one owner.",
    (
        _time("End of the second."),
        _RAIL,
        Column("peer", "I", "1", "The other node: its place in the job's `nodes`, from 0."),
        Column("inbound", "B", "1", "1: from the peer to this node, 0: to the peer."),
        Column("size_class", "B", "1", "0: 192 bytes, 1: half the rail's MTU, 2: the MTU."),
        Column("count", "I", "1", "Probes measured in this second."),
        *(Column(f"{n}_ns", "q", "ns", f"Delay: {doc}.") for n, doc in _DELAYS),
        Column("floor_ns", "I", "ns", "Least delay known of the path; the rest is queueing."),
        Column("bound_ns", "I", "ns", "Likely error of the two clocks together."),
        Column("sent", "I", "1", "Probes of this size sent so far."),
        Column("arrived", "I", "1", "Of them arrived; those under way count as not yet."),
        Column("duplicates", "I", "1", "Copies received so far, of all sizes."),
        Column("reordered", "I", "1", "Received late so far, behind later ones, of all sizes."),
    ),
)
PATH_EVENT = Table(
    "path_event",
    30,
    "What the mover of the job's TCP traffic saw and did. A time of 0: there was none.",
    (
        _time("When it was reported."),
        Column("time_real_ns", "q", "ns", "The same instant.", REAL),
        Column("event", "B", "1", "What happened.", values=PathEvent),
        Column("peer", "48s", "1", "The other node; empty: all of them."),
        _RAIL,
        Column("level", "B", "1", "How good the rail to the peer is now.", values=PathLevel),
        Column("reason", "B", "1", "Why.", values=PathReason),
        Column(
            "begin_mono_ns", "q", "ns", "When it truly began, at the latest; 0: not said.", MONO
        ),
        Column("moved_mono_ns", "q", "ns", "When the routes were changed; 0: no move.", MONO),
        Column("recovered_mono_ns", "q", "ns", "When all streams ran again; 0: not seen.", MONO),
        Column("streams", "I", "1", "Streams that had unacknowledged data at the move."),
        Column("waiting_bytes", "Q", "B", "Their unacknowledged data at the move."),
        Column("text", "120s", "1", "What else there is to say."),
    ),
)
GPU = Table(
    "gpu",
    60,
    "Each GPU by NVML, one row a GPU a second; no profiling counter is taken from users.",
    (
        _time("When the readings began."),
        Column("gpu", "B", "1", "NVML's index of the GPU on the node."),
        Column("utilisation_percent", "B", "%", "Share of time in which a kernel ran."),
        Column("temperature_c", "B", "degC", "Of the GPU."),
        Column("memory_used_bytes", "Q", "B", "Memory in use."),
        Column("memory_total_bytes", "Q", "B", "Memory there is."),
        Column("sm_clock_mhz", "I", "MHz", "Clock of the multiprocessors."),
        Column("memory_clock_mhz", "I", "MHz", "Clock of the memory."),
        Column("power_mw", "I", "mW", "Power drawn."),
        Column("energy_mj", "Q", "mJ", "Energy since the driver was loaded."),
        Column("throttle_reasons", "Q", "1", "NVML's bits of why the clock is held down."),
        Column("ecc_corrected", "Q", "1", "Memory errors corrected since the driver was loaded."),
        Column("ecc_uncorrected", "Q", "1", "Memory errors not corrected since then."),
        Column("remapped_rows", "I", "1", "Rows of memory that were replaced, ever."),
        Column("pcie_replays", "I", "1", "PCIe packets sent again."),
        Column("nvlink_errors", "Q", "1", "Replays, recoveries and CRC errors of all NVLinks."),
    ),
)
RDMA_PORT = Table(
    "rdma_port",
    61,
    "Ports of InfiniBand and RoCE devices (/sys/class/infiniband), one row a port a second.",
    (
        _time("When the counters were read."),
        Column("port", "B", "1", "Index among the node's ports, by device and number, from 0."),
        Column("active", "B", "1", "1: the port is ACTIVE, 0: it is not."),
        Column("rx_bytes", "Q", "B", "Bytes received."),
        Column("tx_bytes", "Q", "B", "Bytes sent."),
        Column("tx_wait", "Q", "1", "Ticks in which data waited for credits of the other side."),
        Column("symbol_errors", "Q", "1", "Symbol errors."),
        Column("link_downed", "Q", "1", "Times the link went down."),
        Column("link_recoveries", "Q", "1", "Times it recovered by itself."),
        Column("rx_errors", "Q", "1", "Packets received with errors."),
        Column("tx_discards", "Q", "1", "Packets that were not sent."),
        Column("out_of_sequence", "Q", "1", "RoCE: packets out of sequence."),
        Column("retransmit_timeouts", "Q", "1", "RoCE: acknowledgements that never came."),
        Column("ecn_marked", "Q", "1", "RoCE: packets that carried a congestion mark."),
    ),
)
TCP = Table(
    "tcp",
    62,
    "TCP of the whole node (/proc/net/snmp and netstat), one row a second.",
    (
        _time("When the counters were read."),
        Column("out_segments", "Q", "1", "Segments sent, those sent again left out."),
        Column("in_segments", "Q", "1", "Segments received."),
        Column("retransmitted", "Q", "1", "Segments sent again."),
        Column("timeouts", "Q", "1", "Retransmission timers that ran out."),
        Column("lost_retransmits", "Q", "1", "Segments sent again that were lost again."),
    ),
)

_RANK = Column("rank", "I", "1", "Rank in MPI_COMM_WORLD.")
_LAUNCH = Column("launch", "I", "1", "Which start of the program in this job, from 0.")
RANK = Table(
    "rank",
    40,
    "A rank of an MPI program whose calls are tracked: one row when it is seen and one each time "
    "its state changes (docs/tracker.md).",
    (
        _time("When the agent saw it."),
        _RANK,
        _LAUNCH,
        Column("ranks", "I", "1", "Size of MPI_COMM_WORLD."),
        Column("pid", "I", "1", "Its process."),
        Column("step", "24s", "1", "Job step as Slurm writes it."),
        Column("library", "40s", "1", "Which MPI: `Open MPI`, `MPICH ABI`."),
        Column("state", "B", "1", "Of the rank.", values=RankState),
    ),
)
MPI_TIME = Table(
    "mpi_time",
    41,
    "Time in MPI: sums since the rank's MPI_Init, one row a sample, rank and operation that was "
    "called since the sample before; take differences. Samples come every second, on nodes with "
    "more than 8 ranks every (ranks / 8) seconds, 16 at most, and once at the job's end.",
    (
        _time("When the sums were read."),
        _RANK,
        _LAUNCH,
        Column("op", "32s", "1", "The operation, as `MPI_Allreduce`."),
        Column("calls", "Q", "1", "Calls that returned."),
        Column("time_ns", "Q", "ns", "Time between entry and return of these calls."),
        Column(
            "bytes",
            "Q",
            "B",
            "Count times size of the type that this rank passed; calls with "
            "a count for each peer (MPI_Alltoallv...) add nothing.",
        ),
        Column("most_ns", "Q", "ns", "The longest call."),
    ),
)
RANK_POSITION = Table(
    "rank_position",
    42,
    "Where each rank stands, one row a sample as for `mpi_time`.",
    (
        _time("When it was read."),
        _RANK,
        _LAUNCH,
        Column("calls", "Q", "1", "Entries and returns so far: odd while the rank is in a call."),
        Column("op", "32s", "1", "The call that it is in, or was in last."),
        Column("since_mono_ns", "q", "ns", "When it entered, or returned from, that call.", MONO),
        Column(
            "comm",
            "Q",
            "1",
            "Communicator: 1 MPI_COMM_WORLD, 2 MPI_COMM_SELF, 0 not known, "
            "else the same number on all its ranks.",
        ),
        Column("coll", "I", "1", "Number of the collective on it, from 1; 0: no collective."),
        Column(
            "peer",
            "I",
            "1",
            "Destination, source or root in the communicator; 4294967295 or "
            "a number that is no rank: none, or any.",
        ),
        Column("step", "Q", "1", "Iterations that the program told; 0: it tells none."),
    ),
)
STALL = Table(
    "stall",
    43,
    "Verdicts on ranks that wait without end in sight, from the agent that coordinates: a row "
    "when one is found or changes, and one of kind `none` when the ranks go on.",
    (
        _time("When the verdict was made."),
        Column("time_real_ns", "q", "ns", "The same instant.", REAL),
        Column("kind", "B", "1", "Whom it is laid to.", values=StallKind),
        Column("rank", "I", "1", "The rank at fault, 4294967295: none or several."),
        Column("node", "48s", "1", "Its node, or the host or link at fault; empty: none."),
        Column("since_mono_ns", "q", "ns", "When the ranks began to wait.", MONO),
        Column("waiting", "I", "1", "How many ranks wait."),
        Column("text", "200s", "1", "The verdict in words."),
    ),
)

CHECKPOINT = Table(
    "checkpoint",
    44,
    "Checkpoints as the program told them, by rank 0 (docs/checkpoints.md).",
    (
        _time("When it was told."),
        Column("time_real_ns", "q", "ns", "The same instant.", REAL),
        Column("event", "B", "1", "What happened.", values=CheckpointEvent),
        _LAUNCH,
        Column("step", "Q", "1", "Iteration that was saved or restored."),
        Column("ranks", "I", "1", "Ranks that took part."),
        Column("bytes", "Q", "B", "State of rank 0."),
        Column("stall_ns", "Q", "ns", "How long the slowest rank was kept from its work."),
    ),
)
LAUNCH = Table(
    "launch",
    45,
    "Starts and ends of the program under `fabricctl run`, and what it died of.",
    (
        _time("When it was told."),
        Column("time_real_ns", "q", "ns", "The same instant.", REAL),
        Column("event", "B", "1", "What happened.", values=LaunchEvent),
        _LAUNCH,
        Column("node", "48s", "1", "The nodes: that it starts on, or that died; a host list."),
        Column("text", "120s", "1", "What else there is to say."),
    ),
)

TABLES: tuple[Table, ...] = (
    RAIL,
    HOST,
    JOB,
    LINK_EVENT,
    NOTE,
    CLOCK,
    STEP,
    LIFE,
    JOB_CLOCK,
    DELAY,
    PATH_EVENT,
    GPU,
    RDMA_PORT,
    TCP,
    RANK,
    MPI_TIME,
    RANK_POSITION,
    STALL,
    CHECKPOINT,
    LAUNCH,
)
BY_NUMBER = {table.number: table for table in TABLES}
BY_NAME = {table.name: table for table in TABLES}


@dataclass(frozen=True)
class Attribute:
    """One named value of a job or a node; in a journal's header all are text."""

    name: str
    kind: Literal["text", "int", "float"]
    unit: str
    doc: str
    clock: str = ""
    required: bool = False


def _begin_end(of: str, required: bool) -> tuple[Attribute, Attribute]:
    return (
        Attribute("begin_real_ns", "int", "ns", f"When {of} began.", REAL, required),
        Attribute("end_real_ns", "int", "ns", f"When {of} ended.", REAL, required),
    )


# From the start request and the agent; on the file's root.
JOB_ATTRIBUTES = (
    Attribute("job", "int", "1", "Slurm's job id.", required=True),
    Attribute("user", "text", "1", "The job's user."),
    Attribute("uid", "int", "1", "That user's number."),
    Attribute("cluster", "text", "1", "Slurm's ClusterName."),
    Attribute("mode", "text", "1", "`observe` or `on`."),
    Attribute("spares", "int", "1", "Nodes held back."),
    Attribute("nodes", "text", "1", "Host list of the allocation.", required=True),
    Attribute("array_job", "int", "1", "Id of the job array, for a task of one."),
    Attribute("array_task", "int", "1", "Index in the job array."),
    Attribute("het_job", "int", "1", "Id of the heterogeneous job, for a component of one."),
    Attribute("het_offset", "int", "1", "The component's index."),
)
# On a node's group.
NODE_ATTRIBUTES = (
    Attribute("node", "text", "1", "Slurm's NodeName.", required=True),
    Attribute("hostname", "text", "1", "The kernel's own host name."),
    Attribute("boot_id", "text", "1", "The kernel's boot id: CLOCK_MONOTONIC counts from it."),
    Attribute("agent_version", "text", "1", "Version of the agent that wrote the journal."),
    Attribute("rails", "text", "1", "Interfaces in rail order, with a space between them."),
    Attribute("sample_hz", "float", "Hz", "Samples asked for per second."),
    *_begin_end("the allocation on this node", required=True),
    Attribute("lives", "int", "1", "How often the agent was started: journals, rows of `life`."),
)
# On the file's root as well, set by who writes it.
TRACE_ATTRIBUTES = (
    Attribute("format", "text", "1", "`fabricctl-trace`.", required=True),
    Attribute("schema_version", "int", "1", "Version of this format.", required=True),
    Attribute("missing_nodes", "text", "1", "Nodes of `nodes` without a trace (yet), a host list."),
    Attribute("written_by", "text", "1", "Program and version that wrote the file."),
    Attribute("collected_real_ns", "int", "ns", "When the file was last written.", REAL),
    *_begin_end("the job", required=True),
)
