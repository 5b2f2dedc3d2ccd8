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
    AgentConfig,
    AuditConfig,
    ClockConfig,
    FleetConfig,
    HeadConfig,
    HealthConfig,
    NodeConfig,
    PathsConfig,
    RailsConfig,
    ShareConfig,
    StateConfig,
    TraceConfig,
    UsageConfig,
)

DEFAULT_FILE = Path("/etc/fabricctl.toml")

# Slurm splits lists of partitions at commas and its own records at blanks and "=".
_PARTITION = re.compile(r"[^\s,=\[\]]{1,64}")
LOSS_CAUSES = ("node_fail", "boot_fail", "preempted", "link_down")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")  # useradd(8)


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
