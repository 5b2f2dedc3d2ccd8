"""Sections of the configuration for those who run the cluster; read by :mod:`fabricctl.config`."""

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
