"""Switches and the nodes below them, as Slurm's topology/tree has them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fabricctl.errors import SlurmError
from fabricctl.slurm.run import Runner, failure, run
from fabricctl.slurm.text import names


@dataclass(frozen=True)
class Switch:
    """One switch; level 0 is a leaf."""

    name: str
    level: int
    nodes: tuple[str, ...]  # also those below switches below it
    switches: tuple[str, ...]


def switches(execute: Runner = run) -> tuple[Switch, ...]:
    """By level and name; none when Slurm has no such topology. Raises :class:`SlurmError`."""
    argv: Sequence[str] = ["scontrol", "show", "topology"]
    answer = execute(argv)
    if answer.status:
        raise failure(argv, answer)
    return parse(answer.stdout)


def parse(output: str) -> tuple[Switch, ...]:
    """From ``scontrol show topology``."""
    found = []
    for line in output.splitlines():
        given = dict(re.findall(r"(\w+)=(\S*)", line))
        if "SwitchName" not in given:
            continue
        try:
            level = int(given.get("Level", "0"))
        except ValueError:
            raise SlurmError(f"scontrol show topology: {line[:80]!r} has no level") from None
        found.append(
            Switch(given["SwitchName"], level, names(given.get("Nodes", "")),
                   names(given.get("Switches", "")))
        )  # fmt: skip
    return tuple(sorted(found, key=lambda each: (each.level, each.name)))
