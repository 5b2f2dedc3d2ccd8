"""Tables 50 to 69: further sources of the agent (docs/telemetry.md)."""

from fabricctl.store.schema.base import Column, Table, time_column

GPU = Table(
    "gpu",
    60,
    "Each GPU by NVML, one row a GPU a second; no profiling counter is taken from users.",
    (
        time_column("When the readings began."),
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
        Column("pcie_tx_bytes", "Q", "B", "Sent over PCIe, since the driver was loaded."),
        Column("pcie_rx_bytes", "Q", "B", "Received over PCIe since then."),
        Column("nvlink_tx_bytes", "Q", "B", "Data sent over all NVLinks since then."),
        Column("nvlink_rx_bytes", "Q", "B", "Data received over all NVLinks since then."),
        Column("remap_state", "B", "1", "1: a row waits to be replaced, 2: one could not be; sum."),
        Column("processes", "I", "1", "Processes that compute on it, of whomever."),
        Column("job_processes", "I", "1", "Of these, the job's."),
        Column("job_memory_bytes", "Q", "B", "Its memory that the job's processes use."),
    ),
)

RDMA_PORT = Table(
    "rdma_port",
    61,
    "Ports of InfiniBand and RoCE devices (/sys/class/infiniband), one row a port a second.",
    (
        time_column("When the counters were read."),
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
        time_column("When the counters were read."),
        Column("out_segments", "Q", "1", "Segments sent, those sent again left out."),
        Column("in_segments", "Q", "1", "Segments received."),
        Column("retransmitted", "Q", "1", "Segments sent again."),
        Column("timeouts", "Q", "1", "Retransmission timers that ran out."),
        Column("lost_retransmits", "Q", "1", "Segments sent again that were lost again."),
    ),
)
