"""Tables 20 to 29: the job clock and one-way delays (docs/clock.md)."""

from enum import IntEnum

from fabricctl.store.schema.base import RAIL_INDEX, Column, Table, time_column


class ClockStatus(IntEnum):
    """Of a node's job clock."""

    UNSYNCHRONISED = 0
    SYNCHRONISED = 1
    HOLDOVER = 2


class StampSource(IntEnum):
    """Of a probe's stamps, from the worst to the best (enum stamp_source of clock/csrc/probe.h)."""

    NONE = 0
    USER = 1
    SCHED = 2
    SOFTWARE = 3
    HARDWARE = 4


_STAMPS = (
    "4: the NIC's clock, 3: the kernel, at the driver, 2: before the queueing discipline, 1: read "
    "beside the system call."
)
_DELAYS = (("min", "the least"), ("p50", "median"), ("p99", "99th percentile"), ("max", "the most"))

JOB_CLOCK = Table(
    "job_clock",
    20,
    "The node's clock on the job's time base, one row a second while there is job time: an "
    "instant on both, as it was known after the fact (docs/clock.md).",
    (
        time_column("The instant on the node."),
        Column("job_ns", "q", "ns", "The same instant in job time.", "job clock"),
        Column("status", "B", "1", "Of the clock.", values=ClockStatus),
        Column("likely_ns", "I", "ns", "Error of the pairing in all but 1 of 1,000 rows."),
        Column("early_ns", "I", "ns", "Job time was certainly not earlier by more than this."),
        Column("late_ns", "I", "ns", "Job time was certainly not later by more than this."),
        Column("probe_hz", "I", "Hz", "Pairs of probes a second and peer."),
        Column(
            "stamps",
            "B",
            "1",
            f"Where this node's stamps came from, on the rail that had the worst. {_STAMPS}",
            values=StampSource,
        ),
    ),
)

DELAY = Table(
    "delay",
    21,
    "One-way delays on the job clock, one row a second, path, direction and size of probes, of "
    "the edges of the probe graph that this node owns; each edge has one owner.",
    (
        time_column("End of the second."),
        RAIL_INDEX,
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
        Column("sent_stamps", "B", "1", "Worst source of their sending.", values=StampSource),
        Column("received_stamps", "B", "1", "Worst source of their arrival.", values=StampSource),
    ),
)
