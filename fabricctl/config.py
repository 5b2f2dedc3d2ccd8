"""The site's configuration: one TOML file, defaults in the code.

Order: default, then file (``/etc/fabricctl.toml`` or ``FABRICCTL_CONFIG``), there a partition's
own value before the general one, then environment (``FABRICCTL_<SECTION>_<KEY>``), then option.
An unknown key or a wrong value is a :class:`~fabricctl.errors.ConfigError` that names file, key
and the nearest known name. ``site-config/fabricctl.toml`` is generated from this module
(``fabricctl config sample``); docs/configuration.md explains.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from fabricctl import sharing
from fabricctl.errors import ConfigError, DataError
from fabricctl.sections import (
    AccessConfig,
    AuditConfig,
    FleetConfig,
    HeadConfig,
    HealthConfig,
    UsageConfig,
)
from fabricctl.sections import key as _key

DEFAULT_FILE = Path("/etc/fabricctl.toml")

# Slurm splits lists of partitions at commas and its own records at blanks and "=".
_PARTITION = re.compile(r"[^\s,=\[\]]{1,64}")
LOSS_CAUSES = ("node_fail", "boot_fail", "preempted", "link_down")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")  # useradd(8)


@dataclass(frozen=True)
class NodeConfig:
    """The node service and its directories on every node."""

    run_dir: Path = _key(Path("/run/fabricctl"), "Volatile state of the node service; root's.")
    spool_dir: Path = _key(
        Path("/var/spool/fabricctl"), "Journals of running jobs and traces not yet collected."
    )
    log_file: Path = _key(Path("/var/log/fabricctl.log"), "Log of the node service and agents.")
    orphan_check_s: float = _key(
        10.0,
        "Seconds between looks whether an allocation that shows no step still exists.",
        1,
        25,
    )


@dataclass(frozen=True)
class AgentConfig:
    """The agent that runs on each node of a protected allocation."""

    user: str = _key("fabric", "System user whose rights the agents run with; never root.")
    max_mode: str = _key(
        "on",
        "The most that agents do, whatever a job asked for: observe only measures, on also acts, "
        "off starts none.",
        choices=("off", "observe", "on"),
        per_partition=True,
    )
    sample_hz: float = _key(
        1.0,
        "Samples of rails, host and job per second, where the job names no rate.",
        0.1,
        100,
        per_partition=True,
    )
    realtime: bool = _key(
        True,
        "Run agents ahead of the job's processes (SCHED_FIFO 1), which fill every core: else "
        "events are seen tens of ms late. One that computes for 1 s on end is killed.",
    )
    port_first: int = _key(20100, "First UDP port of the agents.", 1024, 65000)
    port_count: int = _key(400, "How many ports agents may use from port_first on.", 4, 40000)


@dataclass(frozen=True)
class RailsConfig:
    """Which network interfaces carry the jobs' traffic."""

    interfaces: tuple[str, ...] = _key(
        (),
        "Names or globs, in rail order, e.g. ['ib*', 'hsn*']; empty: every interface that is up, "
        "but for loopback and the one that carries the node's own name.",
        per_partition=True,
    )


@dataclass(frozen=True)
class ClockConfig:
    """The job clock: all nodes of a protected job on one time base (docs/clock.md)."""

    enabled: bool = _key(True, "Keep a clock for jobs of two nodes or more.")
    steering: tuple[str, ...] = _key(
        (),
        "What jobs may have follow it with --fabric-clock: ptp (the clocks of the rails' NICs), "
        "system (CLOCK_REALTIME). Never where somebody else steers that clock.",
        per_partition=True,
    )
    nic_stamps: str = _key(
        "found",
        "Stamps of the rails' NICs instead of the kernel's. found: where somebody has switched "
        "them on (hwstamp_ctl -i IF -t 1 -r 1). enable: switched on for all packets when a job "
        "begins, where nothing is set, and left on. off: never.",
        choices=("found", "enable", "off"),
    )
    port_first: int = _key(20900, "First UDP port of its messages.", 1024, 65000)
    port_count: int = _key(400, "How many ports it may use from port_first on.", 4, 40000)


@dataclass(frozen=True)
class PathsConfig:
    """Link failover of what a job's ranks send over TCP (docs/paths.md)."""

    enabled: bool = _key(
        True, "Move the traffic of jobs of mode `on` between rails, where a node has two or more."
    )
    addresses: str = _key(
        "own",
        "What is moved. own: what the job's user sends between the rails' own addresses, with "
        "nothing new to be seen on the node. fabric: what is sent between addresses on devices of "
        "our own, which the ranks are steered to. both: either.",
        choices=("own", "fabric", "both"),
    )
    pool4: str = _key(
        "100.64.0.0/10",
        "IPv4 network, used nowhere else on site, from which nodes get their fabric addresses.",
    )
    pool6: str = _key("fd66:6162:7269::/48", "The same for IPv6, a /48; empty: none.")
    device_prefix: str = _key("fab", "Name of the devices that hold them: fab0, fab1...")
    interval_us: int = _key(4000, "Time between probes to a peer with traffic.", 500, 1000000)
    budget_pps: int = _key(4000, "Probes a second of one job and node, at most.", 100, 1000000)
    rto_min_ms: int = _key(
        4, "Least retransmission time of the moved connections; 0: the kernel's.", 0, 1000
    )
    ready_wait_s: int = _key(
        10, "Seconds after which a job begins without, when a node is not ready.", 1, 600
    )
    hold_s: float = _key(0.7, "Health that a path shows before it is used again.", 0.1, 600)
    hold_max_s: float = _key(60.0, "The same for one that keeps failing.", 0.1, 3600)
    port_first: int = _key(20500, "First UDP port of the probes.", 1024, 65000)
    port_count: int = _key(400, "How many ports probes may use from port_first on.", 4, 40000)


@dataclass(frozen=True)
class ShareConfig:
    """Shares of the rails, and what is done about queues in the network (docs/shares.md)."""

    rules: tuple[str, ...] = _key(
        (),
        "What protected jobs get without asking, e.g. ['qos=debug guarantee=10 class=first', "
        "'account=astro ceiling=50 class=last']; the first that says a thing decides on it.",
    )
    max_percent: int = _key(
        50,
        "Most of each rail that a job may have guaranteed with --fabric-share; 0: nothing.",
        0,
        100,
        per_partition=True,
    )
    rail_mbit: int = _key(
        0,
        "Rate of a rail, each way, in Mbit/s; 0: what its driver says.",
        0,
        10_000_000,
        per_partition=True,
    )
    pace_us: int = _key(
        500, "Queueing in the network at which a job with a share slows down; 0: never.", 0, 1000000
    )
    reroute_us: int = _key(
        2000,
        "Queueing on one rail at which a job's streams go by another that has room; 0: never.",
        0,
        1000000,
    )


@dataclass(frozen=True)
class StateConfig:
    """Where ranks stand (docs/tracker.md) and their checkpoints (docs/checkpoints.md)."""

    enabled: bool = _key(True, "Track ranks and keep checkpoints of protected jobs.")
    track_mib: int = _key(
        64, "Memory for what ranks tell, all jobs of a node together; 49 KiB a rank.", 1, 4096
    )
    memory_share: float = _key(
        0.25,
        "Share of a node's memory that checkpoints of one job may take there, copies for other "
        "nodes included.",
        0.0,
        0.9,
        per_partition=True,
    )
    hold_s: int = _key(
        300,
        "Seconds for which checkpoints in memory outlive their job, for its requeue.",
        0,
        86400,
    )
    silence_s: float = _key(
        0.4,
        "Seconds without a word from a node's agent and kernel after which `fabricctl run` holds "
        "it for dead; longer where the network is away for moments.",
        0.2,
        60,
    )
    disk_dir: str = _key(
        "",
        "Directory on each node's own disk for checkpoints that programs want there too; each job "
        "gets a directory below it. Empty: none.",
    )
    groups_file: Path = _key(
        Path("/etc/fabricctl/groups"),
        "Which switch and power feed each node falls with (docs/checkpoints.md).",
    )
    port_first: int = _key(21300, "First TCP port of the keepers of checkpoints.", 1024, 65000)
    port_count: int = _key(400, "How many ports keepers may use from port_first on.", 4, 40000)


@dataclass(frozen=True)
class TraceConfig:
    """Where traces go when a job ends."""

    dir: Path = _key(
        Path("/var/lib/fabricctl/traces"),
        "Directory on the shared file system; each user's traces lie in a folder of their own "
        "below it. Make it with mode 1777 or create the users' folders yourself.",
    )
    collect_wait_s: float = _key(
        15.0,
        "Seconds to wait for a job's other nodes before its trace is made without them.",
        0,
        600,
    )
    keep_parts: bool = _key(False, "Keep the node traces beside the job trace.")


SECTIONS: Mapping[str, type] = {
    "node": NodeConfig,
    "agent": AgentConfig,
    "rails": RailsConfig,
    "clock": ClockConfig,
    "paths": PathsConfig,
    "share": ShareConfig,
    "state": StateConfig,
    "trace": TraceConfig,
    "fleet": FleetConfig,
    "usage": UsageConfig,
    "health": HealthConfig,
    "audit": AuditConfig,
    "head": HeadConfig,
    "access": AccessConfig,
}


@dataclass(frozen=True)
class Config:
    """All sections; ``source`` is the file read, or None when defaults alone are in force."""

    node: NodeConfig = field(default_factory=NodeConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    rails: RailsConfig = field(default_factory=RailsConfig)
    clock: ClockConfig = field(default_factory=ClockConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    share: ShareConfig = field(default_factory=ShareConfig)
    state: StateConfig = field(default_factory=StateConfig)
    trace: TraceConfig = field(default_factory=TraceConfig)
    fleet: FleetConfig = field(default_factory=FleetConfig)
    usage: UsageConfig = field(default_factory=UsageConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    access: AccessConfig = field(default_factory=AccessConfig)
    source: Path | None = None
    # Partition -> "section.key" -> checked value, as the file has them.
    partitions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # "section.key" -> the file or variable that set it; what is not there has its default.
    origins: Mapping[str, str] = field(default_factory=dict)

    def for_partition(self, name: str) -> "Config":
        """What holds for jobs of a partition: its own values, but for what the environment set."""
        config = self
        for key, value in self.partitions.get(name, {}).items():
            if not self.origins.get(key, "").startswith("environment "):
                config = _changed(config, key, value, f"{self.source} [partition.{name}]")
        return config

    def value(self, key: str) -> Any:
        """The value of ``section.key``."""
        section, _, name = key.partition(".")
        return getattr(getattr(self, section), name)


def every_key() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every ``section.key`` in the order of the file, with its metadata (``doc``, ``low``, ...)."""
    for name, section in SECTIONS.items():
        for item in fields(section):
            yield f"{name}.{item.name}", item.metadata


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """The configuration in force.

    ``path`` None means ``FABRICCTL_CONFIG`` or the default file, which may be absent; a file
    that was named must exist. Raises :class:`ConfigError`.
    """
    environ = os.environ if environ is None else environ
    named = path or (Path(environ["FABRICCTL_CONFIG"]) if environ.get("FABRICCTL_CONFIG") else None)
    file = named or DEFAULT_FILE
    config = Config()
    try:
        with file.open("rb") as stream:
            table = tomllib.load(stream)
        config = _with_table(replace(config, source=file), table, str(file))
    except FileNotFoundError:
        if named:
            raise ConfigError(f"{file}: no such configuration file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: not valid TOML: the file is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    config = _with_environment(config, environ)
    _check_whole(config)
    return config


def _with_table(config: Config, table: Mapping[str, Any], source: str) -> Config:
    for name, values in table.items():
        if name not in (*SECTIONS, "partition"):
            raise ConfigError(
                f"{source}: unknown section [{name}]{nearest(name, (*SECTIONS, 'partition'))}"
            )
        if not isinstance(values, dict):
            raise ConfigError(f"{source}: [{name}] must be a section, not a value")
        if name == "partition":
            found = {part: _partition(part, given, source) for part, given in values.items()}
            config = replace(config, partitions=found)
        else:
            for key, value in _section(name, values, source).items():
                config = _changed(config, key, value, source)
    return config


def check_partition(name: str, where: str = "partition") -> None:
    """Raises :class:`ConfigError` for what cannot be the name of one."""
    if not _PARTITION.fullmatch(name):
        raise ConfigError(f"{where}: {name!r} is not a name of a partition")


def _partition(name: str, given: Any, source: str) -> dict[str, Any]:
    """The values of one ``[partition.<name>]``."""
    here = f"{source}: [partition.{name}]"
    allowed = [key for key, metadata in every_key() if metadata["per_partition"]]
    check_partition(name, here)
    if not isinstance(given, dict):
        raise ConfigError(f"{source}: partition.{name} must be a section [partition.{name}]")
    values: dict[str, Any] = {}
    for section, table in given.items():
        if not isinstance(table, dict) or section not in SECTIONS:
            hint = next(
                (f"; did you mean '{k}'?" for k in allowed if k.endswith(f".{section}")), ""
            )
            raise ConfigError(
                f"{here}: unknown key {section!r}{hint or '; known are: ' + ', '.join(allowed)}"
            )
        values |= _section(section, table, here)
    for key in values:
        if key not in allowed:
            raise ConfigError(
                f"{here}: {key} is the same for every partition; "
                f"those that can differ: {', '.join(allowed)}"
            )
    return values


def _section(name: str, values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """``section.key`` -> checked value."""
    hints = get_type_hints(SECTIONS[name])
    known = {item.name: item for item in fields(SECTIONS[name])}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{source}: unknown key {name}.{key}{nearest(key, known)}")
        where = f"{source}: {name}.{key}"
        checked[f"{name}.{key}"] = _within(
            _typed(value, hints[key], where), known[key].metadata, where
        )
    return checked


def _changed(config: Config, key: str, value: Any, origin: str) -> Config:
    section, _, name = key.partition(".")
    changed = replace(getattr(config, section), **{name: value})
    return replace(config, **{section: changed}, origins={**config.origins, key: origin})


def _with_environment(config: Config, environ: Mapping[str, str]) -> Config:
    known = {f"FABRICCTL_{key}".upper().replace(".", "_"): key for key, _ in every_key()}
    for variable in sorted(environ):
        if not variable.startswith(tuple(f"FABRICCTL_{name}_".upper() for name in SECTIONS)):
            continue
        if variable not in known:
            raise ConfigError(f"environment: unknown {variable}{nearest(variable, known)}")
        section, _, name = known[variable].partition(".")
        value = _parsed(environ[variable], get_type_hints(SECTIONS[section])[name])
        origin = f"environment {variable}"
        for key, checked in _section(section, {name: value}, origin).items():
            config = _changed(config, key, checked, origin)
    return config


def _parsed(text: str, kind: Any) -> Any:
    """An environment variable's text as the TOML value that it would be in the file."""
    if kind is bool:
        return {"true": True, "false": False}.get(text, text)
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return text
    if kind == tuple[str, ...]:
        return text.split(",") if text else []
    return text


def _typed(value: Any, kind: Any, where: str) -> Any:
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, str):
        return value
    if kind is Path and isinstance(value, str):
        if not value.startswith("/"):
            raise ConfigError(f"{where}: {value!r} is not an absolute path")
        return Path(value)
    texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind == tuple[str, ...] and texts:
        return tuple(value)
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    wanted = words.get(kind, "a path" if kind is Path else "a list of texts")
    raise ConfigError(f"{where}: {value!r} is not {wanted}")


def _within(value: Any, metadata: Mapping[str, Any], where: str) -> Any:
    low, high, choices = metadata["low"], metadata["high"], metadata["choices"]
    if low is not None and not low <= value <= high:
        raise ConfigError(f"{where}: {value} is outside {low} to {high}")
    if choices and value not in choices:
        raise ConfigError(f"{where}: {value!r} is not one of {', '.join(choices)}")
    return value


def _check_whole(config: Config) -> None:
    """What concerns more than a key's own type and bounds."""
    agent = config.agent
    if agent.user == "root" or not _USER.fullmatch(agent.user):
        _refuse(config, "agent.user", f"{agent.user!r} is not a user without privileges")
    if agent.port_first + agent.port_count > 65_536:  # UDP ports end at 65535
        last = agent.port_first + agent.port_count - 1
        why = f"the last port would be {last}, above 65535"
        _refuse(config, "agent.port_count", why, because_of="agent.port_first")
    if config.node.run_dir == config.node.spool_dir:
        why = "must differ from node.run_dir, which a boot empties"
        _refuse(config, "node.spool_dir", why, because_of="node.run_dir")
    for rule in config.share.rules:
        try:
            sharing.parse_rule(rule)
        except DataError as error:
            _refuse(config, "share.rules", str(error))
    for each in (config, *map(config.for_partition, config.partitions)):
        for clock in each.clock.steering:
            if clock not in ("ptp", "system"):
                _refuse(each, "clock.steering", f"{clock!r} is not one of ptp, system")
    for cause in config.usage.credit:
        if cause not in LOSS_CAUSES:
            known = nearest(cause, LOSS_CAUSES)
            _refuse(config, "usage.credit", f"{cause!r} is not a cause of loss{known}")
    for key in ("health.max_drained", "health.max_at_once"):
        if not re.fullmatch(r"[1-9][0-9]{0,5}|([1-9][0-9]?|100)%", config.value(key)):
            _refuse(config, key, f"{config.value(key)!r} is not a number of nodes or a share (5%)")
    if config.fleet.inventory and not re.match(r"postgres(ql)?://", config.fleet.inventory):
        _refuse(config, "fleet.inventory", "is not a URL that begins with postgresql://")
    for name in config.health.ignore:
        if not re.fullmatch(r"[a-z]+\.([a-z ]+|\*)", name):
            _refuse(config, "health.ignore", f"{name!r} is not a check, area.name or area.*")
    for each in (config, *map(config.for_partition, config.partitions)):
        for name in each.rails.interfaces:
            if not name or "/" in name or name != name.strip():
                _refuse(each, "rails.interfaces", f"{name!r} is not an interface's name or glob")


def _refuse(config: Config, key: str, why: str, because_of: str = "") -> None:
    origin = config.origins.get(key) or config.origins.get(because_of)
    raise ConfigError(f"{origin}: {key}: {why}")


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` or the list of what is known."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are: {', '.join(known)}"
