"""The sections of the configuration: every key with its default, meaning and bounds.

Those of the nodes first, then those for who runs the cluster. :mod:`fabricctl.config` reads them.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def key(
    default: Any,
    doc: str,
    low: float | None = None,
    high: float | None = None,
    *,
    choices: tuple[str, ...] = (),
    per_partition: bool = False,
) -> Any:
    """A key with its default, what it means, its bounds."""
    metadata = {
        "doc": doc,
        "low": low,
        "high": high,
        "choices": choices,
        "per_partition": per_partition,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class NodeConfig:
    """The node service and its directories on every node."""

    run_dir: Path = key(Path("/run/fabricctl"), "Volatile state of the node service; root's.")
    spool_dir: Path = key(
        Path("/var/spool/fabricctl"), "Journals of running jobs and traces not yet collected."
    )
    log_file: Path = key(Path("/var/log/fabricctl.log"), "Log of the node service and agents.")
    orphan_check_s: float = key(
        10.0,
        "Seconds between looks whether an allocation that shows no step still exists.",
        1,
        25,
    )


@dataclass(frozen=True)
class AgentConfig:
    """The agent that runs on each node of a protected allocation."""

    user: str = key("fabric", "System user whose rights the agents run with; never root.")
    max_mode: str = key(
        "on",
        "The most that agents do, whatever a job asked for: observe only measures, on also acts, "
        "off starts none.",
        choices=("off", "observe", "on"),
        per_partition=True,
    )
    sample_hz: float = key(
        1.0,
        "Samples of rails, host and job per second, where the job names no rate.",
        0.1,
        100,
        per_partition=True,
    )
    realtime: bool = key(
        True,
        "Run agents ahead of the job's processes (SCHED_FIFO 1), which fill every core: else "
        "events are seen tens of ms late. One that computes for 1 s on end is killed.",
    )
    port_first: int = key(20100, "First UDP port of the agents.", 1024, 65000)
    port_count: int = key(400, "How many ports agents may use from port_first on.", 4, 40000)


@dataclass(frozen=True)
class RailsConfig:
    """Which network interfaces carry the jobs' traffic."""

    interfaces: tuple[str, ...] = key(
        (),
        "Names or globs, in rail order, e.g. ['ib*', 'hsn*']; empty: every interface that is up, "
        "but for loopback and the one that carries the node's own name.",
        per_partition=True,
    )


@dataclass(frozen=True)
class ClockConfig:
    """The job clock: all nodes of a protected job on one time base (docs/clock.md)."""

    enabled: bool = key(True, "Keep a clock for jobs of two nodes or more.")
    steering: tuple[str, ...] = key(
        (),
        "What jobs may have follow it with --fabric-clock: ptp (the clocks of the rails' NICs), "
        "system (CLOCK_REALTIME). Never where somebody else steers that clock.",
        per_partition=True,
    )
    nic_stamps: str = key(
        "found",
        "Stamps of the rails' NICs instead of the kernel's. found: where somebody has switched "
        "them on (hwstamp_ctl -i IF -t 1 -r 1). enable: switched on for all packets when a job "
        "begins, where nothing is set, and left on. off: never.",
        choices=("found", "enable", "off"),
    )
    port_first: int = key(20900, "First UDP port of its messages.", 1024, 65000)
    port_count: int = key(400, "How many ports it may use from port_first on.", 4, 40000)


@dataclass(frozen=True)
class PathsConfig:
    """Link failover of what a job's ranks send over TCP (docs/paths.md)."""

    enabled: bool = key(
        True, "Move the traffic of jobs of mode `on` between rails, where a node has two or more."
    )
    addresses: str = key(
        "own",
        "What is moved. own: what the job's user sends between the rails' own addresses, with "
        "nothing new to be seen on the node. fabric: what is sent between addresses on devices of "
        "our own, which the ranks are steered to. both: either.",
        choices=("own", "fabric", "both"),
    )
    pool4: str = key(
        "100.64.0.0/10",
        "IPv4 network, used nowhere else on site, from which nodes get their fabric addresses.",
    )
    pool6: str = key("fd66:6162:7269::/48", "The same for IPv6, a /48; empty: none.")
    device_prefix: str = key("fab", "Name of the devices that hold them: fab0, fab1...")
    interval_us: int = key(4000, "Time between probes to a peer with traffic.", 500, 1000000)
    budget_pps: int = key(4000, "Probes a second of one job and node, at most.", 100, 1000000)
    rto_min_ms: int = key(
        4, "Least retransmission time of the moved connections; 0: the kernel's.", 0, 1000
    )
    congestion: str = key(
        "auto",
        "Congestion control of TCP connections that begin on the moved routes. auto: cubic where "
        "the host's is BBR, which stands still for up to 0.4 s after a move; host: the host's.",
        choices=("auto", "host"),
    )
    ready_wait_s: int = key(
        10, "Seconds after which a job begins without, when a node is not ready.", 1, 600
    )
    hold_s: float = key(0.7, "Health that a path shows before it is used again.", 0.1, 600)
    hold_max_s: float = key(60.0, "The same for one that keeps failing.", 0.1, 3600)
    port_first: int = key(20500, "First UDP port of the probes.", 1024, 65000)
    port_count: int = key(400, "How many ports probes may use from port_first on.", 4, 40000)


@dataclass(frozen=True)
class ShareConfig:
    """Shares of the rails, and what is done about queues in the network (docs/shares.md)."""

    rules: tuple[str, ...] = key(
        (),
        "What protected jobs get without asking, e.g. ['qos=debug guarantee=10 class=first', "
        "'account=astro ceiling=50 class=last']; the first that says a thing decides on it.",
    )
    max_percent: int = key(
        50,
        "Most of each rail that a job may have guaranteed with --fabric-share; 0: nothing.",
        0,
        100,
        per_partition=True,
    )
    rail_mbit: int = key(
        0,
        "Rate of a rail, each way, in Mbit/s; 0: what its driver says.",
        0,
        10_000_000,
        per_partition=True,
    )
    pace_us: int = key(
        500, "Queueing in the network at which a job with a share slows down; 0: never.", 0, 1000000
    )
    reroute_us: int = key(
        2000,
        "Queueing on one rail at which a job's streams go by another that has room; 0: never.",
        0,
        1000000,
    )


@dataclass(frozen=True)
class StateConfig:
    """Where ranks stand (docs/tracker.md) and their checkpoints (docs/checkpoints.md)."""

    enabled: bool = key(True, "Track ranks and keep checkpoints of protected jobs.")
    track_mib: int = key(
        64, "Memory for what ranks tell, all jobs of a node together; 49 KiB a rank.", 1, 4096
    )
    memory_share: float = key(
        0.25,
        "Share of a node's memory that checkpoints of one job may take there, copies for other "
        "nodes included.",
        0.0,
        0.9,
        per_partition=True,
    )
    hold_s: int = key(
        300,
        "Seconds for which checkpoints in memory outlive their job, for its requeue.",
        0,
        86400,
    )
    silence_s: float = key(
        0.4,
        "Seconds without a word from a node's agent and kernel after which `fabricctl run` holds "
        "it for dead; longer where the network is away for moments.",
        0.2,
        60,
    )
    script_lost_s: int = key(
        60,
        "Seconds without a word from the job script's node, which Slurm does not reach either, "
        "after which a job of --no-kill is requeued, or ended where it may not be. 0: never.",
        0,
        3600,
        per_partition=True,
    )
    disk_dir: str = key(
        "",
        "Directory on each node's own disk for checkpoints that programs want there too; each job "
        "gets a directory below it. Empty: none.",
    )
    groups_file: Path = key(
        Path("/etc/fabricctl/groups"),
        "Which switch and power feed each node falls with (docs/checkpoints.md).",
    )
    port_first: int = key(21300, "First TCP port of the keepers of checkpoints.", 1024, 65000)
    port_count: int = key(400, "How many ports keepers may use from port_first on.", 4, 40000)


@dataclass(frozen=True)
class TraceConfig:
    """Where traces go when a job ends."""

    dir: Path = key(
        Path("/var/lib/fabricctl/traces"),
        "Directory on the shared file system; each user's traces lie in a folder of their own "
        "below it. Make it with mode 1777 or create the users' folders yourself.",
    )
    collect_wait_s: float = key(
        15.0,
        "Seconds to wait for a job's other nodes before its trace is made without them.",
        0,
        600,
    )
    keep_parts: bool = key(False, "Keep the node traces beside the job trace.")


@dataclass(frozen=True)
class FleetConfig:
    """What the commands for administrators keep, on the host where they run."""

    dir: Path = key(Path("/var/lib/fabricctl/fleet"), "Plans and journals of maintenance.")
    inventory: str = key(
        "",
        "URL of a PostgreSQL data base for the inventory, postgresql://user@host/name; empty: "
        "SQLite in fleet.dir. A password belongs into ~/.pgpass.",
    )


@dataclass(frozen=True)
class UsageConfig:
    """What an hour costs, and what is not charged for (docs/administration.md)."""

    currency: str = key("EUR", "What prices are in.")
    node_hour: float = key(0.0, "Price of a node for an hour.", 0, 1e6, per_partition=True)
    cpu_hour: float = key(0.0, "Price of a CPU for an hour.", 0, 1e6, per_partition=True)
    gpu_hour: float = key(0.0, "Price of a GPU for an hour.", 0, 1e6, per_partition=True)
    credit: tuple[str, ...] = key(
        ("node_fail", "boot_fail"),
        "Causes of loss that are not charged for: node_fail, boot_fail, preempted (the whole "
        "attempt), link_down (while a link of the job was down).",
    )


@dataclass(frozen=True)
class HealthConfig:
    """What findings about nodes lead to (docs/administration.md, `fabricctl health`)."""

    mode: str = key(
        "observe",
        "observe: say and record what would be done, touch nothing. on: do it.",
        choices=("observe", "on"),
    )
    error: str = key(
        "drain",
        "What a failed check leads to. note: recorded. comment: also Slurm's comment, where the "
        "node has none; jobs still start there. drain: no further job starts.",
        choices=("none", "note", "comment", "drain"),
    )
    error_rail: str = key(
        "rail",
        "What a failed check of one rail leads to, while other rails of the node are fine. rail: "
        "jobs that begin later, and those there now, leave that rail alone.",
        choices=("none", "note", "comment", "rail", "drain"),
    )
    warning: str = key(
        "note", "What a warning leads to.", choices=("none", "note", "comment", "drain")
    )
    confirm: int = key(2, "Looks in a row that must find it before it is acted upon.", 1, 100)
    max_drained: str = key(
        "5%", "Nodes that may be drained with a reason of fabricctl at once: a number or a share."
    )
    max_at_once: str = key(
        "10%",
        "More nodes than this to be drained after one look: a common cause; none is drained.",
    )
    keep_share: float = key(0.5, "Share of each partition's nodes that must stay usable.", 0.0, 1.0)
    max_age_s: float = key(3600.0, "Reports older than this are not acted upon.", 10, 1e6)
    ignore: tuple[str, ...] = key((), "Checks never acted upon, e.g. ['storage.*'].")
    return_after: int = key(
        0, "Clean looks in a row after which a node that we drained returns; 0: never.", 0, 1000
    )
    way: str = key("", "How to exclude a rail on a node as root: 'ssh {node}'; empty: a job.")


@dataclass(frozen=True)
class AuditConfig:
    """Limits of `fabricctl audit` beside those that it learns from the nodes themselves."""

    begin_s: float = key(
        10.0, "A node on which a job does not begin in this time, prolog included, fails.", 1, 600
    )
    bandwidth_floor_mbit: float = key(
        0.0, "What each rail must carry each way, Mbit/s; 0: only as its peers do.", 0, 1e6
    )
    rtt_ceiling_us: float = key(
        0.0, "Longest round trip on a rail, microseconds; 0: only as its peers.", 0, 1e6
    )
    clock_ceiling_us: float = key(
        1000.0, "How far a node's clock may be from the others', microseconds.", 0, 1e9
    )
    share: float = key(
        0.7,
        "A node that reaches less than this share of the median of its peers fails, where it is "
        "also far outside of their spread.",
        0.05,
        0.99,
    )
    mpi: str = key(
        "srun --mpi=pmix",
        "How MPI programs are started, for the all-reduce; empty: none is run.",
    )


@dataclass(frozen=True)
class HeadConfig:
    """The head service, fabricd, which gathers what nodes report (docs/administration.md)."""

    address: str = key("", "Host on which fabricd runs; empty: there is none, and nothing reports.")
    port: int = key(21700, "UDP port on which it listens.", 1024, 65535)
    socket: Path = key(Path("/run/fabricd/query"), "Where commands on its host ask it.")
    key_file: Path = key(
        Path("/etc/fabricctl.key"),
        "Site's key that reports are sealed with, 32 bytes or more, readable to root and fabricd "
        "alone; the same on every node. Made by: fabricctl head key.",
    )
    interval_s: float = key(5.0, "Seconds between reports of a node, when there is room.", 0.5, 600)
    max_reports_per_s: int = key(
        2000, "Above it nodes are told to report more seldom.", 10, 1000000
    )
    slurm_s: float = key(10.0, "Seconds between looks at Slurm.", 1, 3600)


@dataclass(frozen=True)
class AccessConfig:
    """Who may see and do what, beside Slurm's own rights (docs/administration.md)."""

    admins: tuple[str, ...] = key((), "Unix groups whose members are administrators.")
    operators: tuple[str, ...] = key((), "Unix groups whose members are operators.")
    jobs_of_others: bool = key(
        False, "Users see all jobs in `top`, not only their own and those they coordinate."
    )
