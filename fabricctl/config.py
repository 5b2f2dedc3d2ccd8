"""The site's configuration: one TOML file, defaults in the code.

Order: default, then file (``/etc/fabricctl.toml`` or ``FABRICCTL_CONFIG``), then environment
(``FABRICCTL_<SECTION>_<KEY>``), then option. An unknown key or a wrong value is a
:class:`~fabricctl.errors.ConfigError` that names file, key and the nearest known name.
The commented sample ``site-config/fabricctl.toml`` is tested against this module.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from fabricctl.errors import ConfigError

DEFAULT_FILE = Path("/etc/fabricctl.toml")


def _key(default: Any, doc: str, low: float | None = None, high: float | None = None) -> Any:
    return field(default=default, metadata={"doc": doc, "low": low, "high": high})


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
    sample_hz: float = _key(1.0, "Samples of rails, host and job per second.", 0.1, 100)
    port_first: int = _key(20100, "First UDP port of the agents.", 1024, 65000)
    port_count: int = _key(400, "How many ports agents may use from port_first on.", 4, 40000)


@dataclass(frozen=True)
class RailsConfig:
    """Which network interfaces carry the jobs' traffic."""

    interfaces: tuple[str, ...] = _key(
        (),
        "Names or globs, in rail order, e.g. ['ib*', 'hsn*']; empty: every interface that is up, "
        "but for loopback and the one that carries the node's own name.",
    )


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


@dataclass(frozen=True)
class Config:
    """All sections; ``source`` is the file read, or None when defaults alone are in force."""

    node: NodeConfig = field(default_factory=NodeConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    rails: RailsConfig = field(default_factory=RailsConfig)
    trace: TraceConfig = field(default_factory=TraceConfig)
    source: Path | None = None


SECTIONS: Mapping[str, type] = {
    "node": NodeConfig,
    "agent": AgentConfig,
    "rails": RailsConfig,
    "trace": TraceConfig,
}


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
            config = _with_table(config, tomllib.load(stream), str(file))
            config = replace(config, source=file)
    except FileNotFoundError:
        if named:
            raise ConfigError(f"{file}: no such configuration file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    return _with_environment(config, environ)


def _with_table(config: Config, table: Mapping[str, Any], source: str) -> Config:
    for name, values in table.items():
        if name not in SECTIONS:
            raise ConfigError(f"{source}: unknown section [{name}]{nearest(name, SECTIONS)}")
        if not isinstance(values, dict):
            raise ConfigError(f"{source}: [{name}] must be a section, not a value")
        config = _with_section(config, name, values, source)
    return config


def _with_section(config: Config, name: str, values: Mapping[str, Any], source: str) -> Config:
    section = SECTIONS[name]
    hints = get_type_hints(section)
    known = {item.name: item for item in fields(section)}
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{source}: unknown key {name}.{key}{nearest(key, known)}")
        where = f"{source}: {name}.{key}"
        changes[key] = _bounded(_typed(value, hints[key], where), known[key].metadata, where)
    return replace(config, **{name: replace(getattr(config, name), **changes)})


def _with_environment(config: Config, environ: Mapping[str, str]) -> Config:
    for name, section in SECTIONS.items():
        for item in fields(section):
            variable = f"FABRICCTL_{name}_{item.name}".upper()
            if variable in environ:
                value = _parsed(environ[variable], get_type_hints(section)[item.name])
                config = _with_section(config, name, {item.name: value}, f"environment {variable}")
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
    return text.split(",") if kind == tuple[str, ...] else text


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


def _bounded(value: Any, metadata: Mapping[str, Any], where: str) -> Any:
    low, high = metadata["low"], metadata["high"]
    if low is not None and not low <= value <= high:
        raise ConfigError(f"{where}: {value} is outside {low} to {high}")
    return value


def nearest(name: str, known: Mapping[str, Any]) -> str:
    """``"; did you mean 'x'?"`` or the list of what is known."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are: {', '.join(known)}"
