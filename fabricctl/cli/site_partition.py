"""One partition's ``agent.max_mode`` in fabricctl.toml, every other byte of it left as it is."""

import re
import tomllib

from fabricctl.errors import ConfigError

_KEY = "agent.max_mode"
_MARK = "# set by fabricctl site"


def with_mode(text: str, partition: str, mode: str | None, source: str) -> str:
    """``text`` with the partition's mode; None takes away what :func:`with_mode` put there.

    Raises :class:`ConfigError` when the file says it in a way that is not understood here.
    """
    bare = re.fullmatch(r"[A-Za-z0-9_-]+", partition)
    name = partition if bare else f'"{partition}"'
    header = f"[partition.{name}]"
    lines = text.splitlines(keepends=True)
    at = next((i for i, line in enumerate(lines) if _is_header(line, partition)), None)
    if at is None and mode is not None:
        gap = [] if not lines or lines[-1].endswith("\n") else ["\n"]
        lines += [*gap, f"{header} {_MARK}\n", f'{_KEY} = "{mode}" {_MARK}\n']
    elif at is not None:
        _in_section(lines, at, mode)
    made = "".join(lines)
    said = tomllib.loads(made).get("partition", {}).get(partition, {}).get("agent", {})
    if mode is not None and said.get("max_mode") != mode:
        raise ConfigError(f"{source}: set {_KEY} of {header} by hand: it is written unusually")
    return made


def _in_section(lines: list[str], at: int, mode: str | None) -> None:
    end = next((i for i in range(at + 1, len(lines)) if lines[i].lstrip().startswith("[")),
               len(lines))  # fmt: skip
    key = re.compile(r"\s*agent\s*\.\s*max_mode\s*=")
    found = next((i for i in range(at + 1, end) if key.match(lines[i])), None)
    new = [] if mode is None else [f'{_KEY} = "{mode}" {_MARK}\n']
    if found is None:
        lines[at + 1 : at + 1] = new
    elif mode is not None or _MARK in lines[found]:
        lines[found : found + 1] = new
        if mode is None and _MARK in lines[at] and end == at + 2:
            del lines[at]


def _is_header(line: str, partition: str) -> bool:
    try:
        table = tomllib.loads(line).get("partition")
    except tomllib.TOMLDecodeError:
        return False
    return line.lstrip().startswith("[") and isinstance(table, dict) and table == {partition: {}}
