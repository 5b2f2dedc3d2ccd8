"""Carries an audit out: each node looks at itself, then all of them at each other."""

import json
import math
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from fabricctl import hostlist
from fabricctl.errors import DataError
from fabricctl.fleet import lines
from fabricctl.fleet.audit import fabric
from fabricctl.fleet.audit.full import allreduce, tournament
from fabricctl.fleet.audit.model import STATUSES, Check
from fabricctl.fleet.audit.pairwise import Link
from fabricctl.fleet.audit.probes import Pair
from fabricctl.fleet.inventory.collect import reachable
from fabricctl.sections import AuditConfig
from fabricctl.slurm.model import Node

TIMEOUT_S = 60.0


def audit(
    nodes: Sequence[Node],
    port: int,
    via: str | None = None,
    full: AuditConfig | None = None,
    seen: list[Link] | None = None,
) -> list[Check]:
    """All checks of all nodes. ``via``: a command before ours (``ssh {node}``), else Slurm jobs.

    ``full``: pairs of nodes measure each other too, and all that are fit reduce by MPI. ``seen``
    gets what pairs measured.
    """
    fit, why = (list(nodes), dict[str, str]()) if via else reachable(nodes)
    names = [node.name for node in fit]
    answers = _ask(fit, ["audit-self"], "", via)
    checks: list[Check] = []
    table: dict[str, dict[str, str]] = {}
    for name in names:
        try:
            mine, rails = own_answer(name, answers[name])
        except (KeyError, DataError) as error:
            why[name] = "did not answer" if isinstance(error, KeyError) else str(error)
            continue
        checks += mine
        table[name] = rails
    if len(table) > 1:
        cookie = secrets.token_hex(16)
        given = json.dumps({"port": port, "cookie": cookie, "table": table})
        alive = [node for node in fit if node.name in table]
        pairs: list[Pair] = []
        for name, line in _ask(alive, ["audit-links"], given, via).items():
            pairs += pair_answer(name, line)
        checks += fabric.checks(pairs, table, table)
        # Who was to probe and said nothing, in time, is not fine by that.
        heard = {pair.node for pair in pairs}
        checks += [Check(name, "fabric", "probes", "not measured", "its probes did not come back",
                         "come back") for name in table if name not in heard]  # fmt: skip
        if full is not None:

            def ask(said: str) -> Mapping[str, Mapping[str, object]]:
                return _ask(alive, ["audit-pairs"], said, via)

            more, links = tournament(table, pairs, port, ask, full)
            checks += more
            if seen is not None:
                seen += links
            checks += _reduced(alive, checks, full) if not via and full.mpi else []
    for node in nodes:
        if node.name in why:
            # A node that nobody could ask is not audited; one that was asked and is silent failed.
            asked = node.name in names
            checks.append(Check(node.name, "slurm", "answers", "fail" if asked else "not measured",
                                why[node.name], "answers"))  # fmt: skip
    return sorted(checks, key=lambda each: (each.node, each.area, each.name, each.rail))


def _reduced(alive: Sequence[Node], checks: Sequence[Check], full: AuditConfig) -> list[Check]:
    """By MPI, over those that are fit so far, in the partition that holds most of them."""
    bad = {check.node for check in checks if check.status == "fail"}
    fit = [node for node in alive if node.name not in bad]
    largest = max(partitions_of(fit).items(), key=lambda item: len(item[1]), default=None)
    if largest is None or len(largest[1]) < 2:
        return []
    partition, names = largest
    return allreduce([node for node in fit if node.name in names], partition, full)


def own_answer(node: str, line: Mapping[str, object]) -> tuple[list[Check], dict[str, str]]:
    """What a node said of itself; raises :class:`DataError` for what no node of ours says."""
    try:
        rails = line["rails"]
        assert_texts(rails)
        checks = [Check(**{**given, "node": node}) for given in line["checks"]]  # type: ignore[attr-defined]
        for check in checks:
            number = check.number
            if number is not None and (isinstance(number, bool) or not math.isfinite(number)):
                raise ValueError(f"{number!r:.40} is not a number")
            assert_texts({key: value for key, value in asdict(check).items() if key != "number"})
            if check.status not in STATUSES:
                raise ValueError(check.status)
        return checks, dict(rails)  # type: ignore[call-overload]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"its answer cannot be read: {error!r}"[:150]) from None


def assert_texts(given: object) -> None:
    """Raises ValueError for anything but a mapping of short printable texts."""
    if not isinstance(given, dict):
        raise ValueError("not a mapping")
    for key, value in given.items():
        fine = isinstance(value, str) and isinstance(key, str) and len(value) <= 300
        if not fine or not value.isprintable():
            raise ValueError(f"{str(key)[:40]} is not a short text")


def pair_answer(node: str, line: Mapping[str, object]) -> list[Pair]:
    """What a node saw of others; what cannot be read is left out, and so is not fine."""
    try:
        found = [Pair(**given) for given in line["pairs"]]  # type: ignore[attr-defined]
    except (KeyError, TypeError):
        return []
    numbers = ("small_sent", "small_answered", "large_sent", "large_answered")
    return [
        pair for pair in found
        if pair.node == node and all(isinstance(getattr(pair, key), int) for key in numbers)
    ]  # fmt: skip


def _ask(
    nodes: Sequence[Node], words: Sequence[str], given: str, via: str | None
) -> dict[str, Mapping[str, object]]:
    """Runs ``fabricctl node WORDS`` on all nodes at once; each one's line, by node."""
    names = [node.name for node in nodes]
    program = shutil.which("fabricctl") or "fabricctl"
    if via:
        calls = [
            [*(word.replace("{node}", name) for word in shlex.split(via)), "fabricctl", "node",
             *words]
            for name in names
        ]  # fmt: skip
    else:
        calls = [
            ["srun", "--quiet", f"--partition={partition}", f"--nodelist={hostlist.fold(mine)}",
             f"--nodes={len(mine)}", "--ntasks-per-node=1", "--cpus-per-task=1", "--immediate=30",
             "--kill-on-bad-exit=0", "--no-kill", "--time=3", "--job-name=fabric-audit",
             "--export=NONE", "--mem=0", "--wait=30", program, "node", *words]
            for partition, mine in partitions_of(nodes).items()
        ]  # fmt: skip
    found: dict[str, Mapping[str, object]] = {}
    with ThreadPoolExecutor(max(1, min(128, len(calls)))) as pool:
        for output in pool.map(lambda argv: _run(argv, given), calls):
            found |= {node: each for node, each in lines.join(output).items() if node in names}
    return found


def partitions_of(nodes: Sequence[Node]) -> dict[str, list[str]]:
    """A partition for each node, few in all; a node without one is left out."""
    left = {node.name: set(node.partitions) for node in nodes if node.partitions}
    found: dict[str, list[str]] = {}
    while left:
        every = sorted({name for names in left.values() for name in names})
        best = max(every, key=lambda each: sum(each in names for names in left.values()))
        found[best] = [name for name, names in left.items() if best in names]
        left = {name: names for name, names in left.items() if best not in names}
    return found


def _run(argv: Sequence[str], given: str) -> str:
    try:
        done = subprocess.run(argv, input=given, capture_output=True, text=True, errors="replace",
                              timeout=TIMEOUT_S, check=False)  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return error.stdout.decode(errors="replace") if error.stdout else ""
    except OSError as error:
        raise DataError(f"{argv[0]}: cannot be run: {error.strerror}") from None
    return done.stdout
