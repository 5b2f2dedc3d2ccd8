"""Tables 80 to 89: sources that are read seldom, the job's connections, the program's phases."""

from fabricctl.store.schema.base import RAIL_INDEX, Column, Table, time_column

READING = Table(
    "reading",
    80,
    "What further sources measured (docs/telemetry.md has their figures): a row for each figure "
    "when it is first read and when it has changed.",
    (
        time_column("When it was read."),
        Column("source", "12s", "1", "`ethtool`, `numa`, `edac`, `thermal`, `netfs`, `membw`, ..."),
        Column("what", "32s", "1", "Of what: an interface, a memory controller, a mount."),
        Column("figure", "48s", "1", "Which figure; its unit is in its name, counts have none."),
        Column("value", "Q", "1", "Its value, in the unit that its name has."),
    ),
)
TCP_FLOW = Table(
    "tcp_flow",
    81,
    "The TCP connections of the job's user, summed by remote address: a row every 2 s for each "
    "that has some (sock_diag); on nodes with thousands of connections more seldom.",
    (
        time_column("When the kernel was asked."),
        RAIL_INDEX,
        Column("peer", "46s", "1", "Remote address."),
        Column("connections", "I", "1", "Established connections."),
        Column("unacked", "I", "1", "Segments under way that were not acknowledged yet."),
        Column("retransmitted", "Q", "1", "Segments sent again, since the agent began."),
        Column("rtt_us", "I", "us", "Smoothed round trip, of the slowest connection."),
        Column("rto_ms", "I", "ms", "Retransmission timer, the longest."),
        Column("delivery_bytes_per_s", "Q", "B/s", "Last rates of delivery, summed."),
    ),
)
PHASE = Table(
    "phase",
    82,
    "Phases that the program marked (docs/tracker.md): sums since the rank's begin, a row a sample "
    "for each phase that a rank was in since the sample before.",
    (
        time_column("When the sums were read."),
        Column("rank", "I", "1", "Rank in MPI_COMM_WORLD."),
        Column(
            "launch",
            "I",
            "1",
            "Which start of the program in this job, from 0; of srun alone, the step.",
        ),
        Column("name", "32s", "1", "The phase."),
        Column("entered", "Q", "1", "How often the rank entered it."),
        Column("time_ns", "Q", "ns", "Time in it, to this instant."),
    ),
)
