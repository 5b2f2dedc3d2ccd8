"""``fabricctl config``: what is in force and where each value came from."""

import json
import textwrap
from pathlib import Path
from typing import Any

import click

from fabricctl import config as configuration
from fabricctl.config import Config

JSON_VERSION = 1

_HEAD = """\
# fabricctl.toml: the site's configuration, to be installed as /etc/fabricctl.toml on every node.
#
# Every key is here with its default, commented out. Order: default, this file, environment
# (FABRICCTL_<SECTION>_<KEY>), option. After a change: fabricctl config check FILE.
# Running agents keep what they began with; new jobs get the new values after the node service
# has been restarted, which disturbs no job. Made by: fabricctl config sample
"""
_PARTITION = """\
# Jobs of one partition can differ in the keys that are marked [partition] above. A partition's
# own value goes before the general one, the environment before both.
#[partition.gpu]
#agent.sample_hz = 10.0
#rails.interfaces = ["ib*"]
"""


@click.group()
def command() -> None:
    """Show and check the site's configuration."""


@command.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts; see docs/configuration.md.")
@click.option("--partition", metavar="NAME", help="What holds for jobs of this partition.")
def show(as_json: bool, partition: str | None) -> None:
    """Every key, its value, and where the value came from."""
    config = configuration.load()
    if partition is not None:
        config = config.for_partition(partition)
    if as_json:
        click.echo(json.dumps(_as_json(config, partition), indent=2))
    else:
        click.echo(_as_text(config, show_partitions=partition is None))


@command.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
def check(file: Path | None) -> None:
    """Says whether FILE is valid; without FILE, whether what is in force here is."""
    if file is None:
        config = configuration.load()
        click.echo(f"{config.source or 'no file, defaults'}: valid")
    else:
        configuration.load(file, environ={})
        click.echo(f"{file}: valid")


@command.command(name="sample")
def sample_command() -> None:
    """Print a configuration file with every key, explained and commented out."""
    click.echo(sample(), nl=False)


def sample() -> str:
    """The text of ``site-config/fabricctl.toml``."""
    defaults = Config()
    parts = [_HEAD]
    section = ""
    for key, metadata in configuration.every_key():
        name, _, short = key.partition(".")
        if name != section:
            section = name
            doc = (configuration.SECTIONS[name].__doc__ or "").strip()
            parts.append(f"\n# {doc}\n[{name}]\n")
        parts.append(f"{_comment(metadata)}#{short} = {toml(defaults.value(key))}\n")
    return "".join([*parts, "\n", _PARTITION])


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    return json.dumps(str(value), ensure_ascii=False)  # a TOML basic string has JSON's escapes


def _comment(metadata: Any) -> str:
    text = metadata["doc"]
    if metadata["choices"]:
        text += f" One of: {', '.join(metadata['choices'])}."
    elif metadata["low"] is not None:
        text += f" {metadata['low']} to {metadata['high']}."
    if metadata["per_partition"]:
        text += " [partition]"
    return "".join(f"# {line}\n" for line in textwrap.wrap(text, 96))


def _as_text(config: Config, show_partitions: bool) -> str:
    rows = [
        (key, toml(config.value(key)), config.origins.get(key, "default"))
        for key, _ in configuration.every_key()
    ]
    if show_partitions:
        rows += [
            (f"partition.{name}.{key}", toml(value), f"{config.source} [partition.{name}]")
            for name, values in config.partitions.items()
            for key, value in values.items()
        ]
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{key:{wide[0]}}  {value:{wide[1]}}  {where}" for key, value, where in rows)


def _as_json(config: Config, partition: str | None) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    return {
        "version": JSON_VERSION,
        "file": None if config.source is None else str(config.source),
        "partition": partition,
        "keys": {
            key: {
                "value": plain(config.value(key)),
                "default": plain(Config().value(key)),
                "origin": config.origins.get(key, "default"),
            }
            for key, _ in configuration.every_key()
        },
        "partitions": {
            name: {key: plain(value) for key, value in values.items()}
            for name, values in config.partitions.items()
        },
    }
