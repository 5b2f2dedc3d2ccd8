"""Fault plans: a campaign in a TOML file, the same every time for the same seed.

::

    [[fault]]
    kind = "cut"
    target = ["n2", "r0"]
    at_s = 1.0                 # after the begin of the plan
    for_s = 3.0                # then it is healed

    [[fault]]
    kind = "loss"
    target = ["n*", "r*"]      # one of those, chosen anew each time
    options = { percent = 1.5 }
    at_s = [5, 60]             # somewhere between
    for_s = [0.5, 2]
    times = 20
"""

import contextlib
import fnmatch
import random
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabricctl.errors import ConfigError, FabricError, UsageError
from fabricctl.lab.faults import Faults
from fabricctl.lab.kinds import FILESYSTEMS, KINDS, Fault, make_fault
from fabricctl.lab.spec import LabSpec

_KEYS = frozenset({"kind", "target", "options", "at_s", "for_s", "times"})
_LONGEST_S = 7 * 86400.0


@dataclass(frozen=True)
class Step:
    """One fault of a plan, every choice made."""

    at_s: float
    for_s: float
    fault: Fault

    @property
    def sentence(self) -> str:
        """``at 1.000 s for 3.000 s: cut n2 r0``."""
        return f"at {self.at_s:.3f} s for {self.for_s:.3f} s: {self.fault.sentence}"


def seconds(text: object) -> float | None:
    """``3``, ``3s``, ``200ms``, ``1min`` as seconds; None stays None. Raises
    :class:`UsageError`."""
    if text is None:
        return None
    word = str(text).strip()
    for unit, factor in (("ms", 1e-3), ("min", 60.0), ("s", 1.0), ("", 1.0)):
        if word.endswith(unit):
            with contextlib.suppress(ValueError):
                value = float(word.removesuffix(unit)) * factor
                if 0 < value <= _LONGEST_S:
                    return value
            break
    raise UsageError(f"time {word!r}: say it as 3s, 200ms or 1min")


def load(file: Path) -> list[Mapping[str, Any]]:
    """The ``[[fault]]`` tables. Raises :class:`ConfigError`."""
    try:
        with file.open("rb") as stream:
            content = tomllib.load(stream)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None
    tables = content.get("fault")
    if set(content) != {"fault"} or not isinstance(tables, list) or not tables:
        raise ConfigError(f"{file}: a plan holds [[fault]] tables and nothing else")
    for number, table in enumerate(tables, 1):
        unknown = set(table) - _KEYS
        if unknown:
            raise ConfigError(
                f"{file}: fault {number}: unknown key {min(unknown)!r}; known are: "
                f"{', '.join(sorted(_KEYS))}"
            )
    return tables


def expand(tables: Sequence[Mapping[str, Any]], spec: LabSpec, seed: int) -> list[Step]:
    """Every fault of a plan in the order of time, all choices made from ``seed``.

    Raises :class:`UsageError` for what the lab cannot do, before anything is done.
    """
    chance = random.Random(seed)  # noqa: S311
    steps: list[Step] = []
    for number, table in enumerate(tables, 1):
        try:
            times = table.get("times", 1)
            if not isinstance(times, int) or not 1 <= times <= 100_000:
                raise UsageError(f"times {times!r} is not a number from 1 to 100000")
            steps += [_step(table, spec, chance) for _ in range(times)]
        except FabricError as error:
            raise UsageError(f"plan, fault {number}: {error}") from None
    return sorted(steps, key=lambda step: step.at_s)


def _step(table: Mapping[str, Any], spec: LabSpec, chance: random.Random) -> Step:
    kind, words = table.get("kind"), table.get("target", [])
    if not isinstance(kind, str) or kind not in KINDS:
        raise UsageError(f"no fault {kind!r}; known are: {', '.join(KINDS)}")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UsageError("target is a list of words")
    options = table.get("options", {})
    if not isinstance(options, dict):
        raise UsageError("options is a table")
    at_s = _number("at_s", table.get("at_s", 0), chance)
    for_s = _number("for_s", table.get("for_s"), chance)
    roles = KINDS[kind].targets
    chosen = [_choose(role, word, spec, chance) for role, word in zip(roles, words, strict=False)]
    target = (*chosen, *words[len(roles) :])
    return Step(at_s, for_s, make_fault(spec, kind, target, options))


def _number(name: str, given: object, chance: random.Random) -> float:
    """A number, or one between two."""
    pair: list[Any] = given if isinstance(given, list) else [given, given]
    fits = len(pair) == 2 and all(
        isinstance(end, int | float) and not isinstance(end, bool) and 0 <= end <= _LONGEST_S
        for end in pair
    )
    if not fits or pair[0] > pair[1]:
        raise UsageError(f"{name} {given!r} is not a number of seconds or [from, to]")
    low_s, high_s = float(pair[0]), float(pair[1])
    return low_s if low_s == high_s else chance.uniform(low_s, high_s)


def _choose(role: str, word: str, spec: LabSpec, chance: random.Random) -> str:
    """A word with * stands for one of those that fit; the controller must be named."""
    known = {
        "node": spec.compute_nodes,
        "interface": spec.interfaces,
        "filesystem": FILESYSTEMS,
    }.get(role)
    if known is None or "*" not in word:
        return word
    fitting = fnmatch.filter(known, word)
    if not fitting:
        raise UsageError(f"no {role} fits {word!r}; there are: {', '.join(known)}")
    return chance.choice(fitting)


def carry_out(faults: Faults, steps: Sequence[Step], *, say: Callable[[str], None]) -> None:
    """Does a plan's faults and heals at their times and returns after the last.

    However it ends, what it put in is healed. A fault that cannot be put in (the node is dead
    already, the same is in force) is said and left out.
    """
    begin_s = time.monotonic()
    pending: dict[str, float] = {}  # fault in force -> when to heal it
    waiting = list(steps)
    try:
        while waiting or pending:
            next_begin_s = waiting[0].at_s if waiting else _LONGEST_S
            fault_id = min(pending, key=lambda each: pending[each], default="")
            next_heal_s = pending[fault_id] if fault_id else _LONGEST_S
            _sleep_until(begin_s + min(next_begin_s, next_heal_s))
            if next_heal_s <= next_begin_s:
                del pending[fault_id]
                _heal(faults, fault_id, say)
                continue
            step = waiting.pop(0)
            try:
                faults.begin(step.fault, cause="plan")
                pending[step.fault.id] = step.at_s + step.for_s
                say(step.sentence)
            except FabricError as error:
                say(f"left out: {step.sentence}: {error}")
    finally:
        for fault_id in pending:
            _heal(faults, fault_id, say)


def _heal(faults: Faults, fault_id: str, say: Callable[[str], None]) -> None:
    try:
        faults.heal(fault_id, cause="plan")
    except FabricError as error:
        say(f"not healed: {fault_id}: {error}")


def _sleep_until(mono_s: float) -> None:
    wait_s = mono_s - time.monotonic()
    if wait_s > 0:
        time.sleep(wait_s)
