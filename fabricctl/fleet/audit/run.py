"""Carries an audit out: each node looks at itself, then all of them at each other."""

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from fabricctl.errors import DataError
from fabricctl.fleet.audit import fabric
from fabricctl.fleet.audit.full import allreduce, tournament
from fabricctl.fleet.audit.model import STATUSES, Check
from fabricctl.fleet.audit.pairwise import Link
from fabricctl.fleet.audit.probes import Pair
from fabricctl.fleet.audit.reach import Job, Way, open_way
from fabricctl.fleet.inventory.collect import reachable
from fabricctl.sections import AuditConfig
from fabricctl.slurm.model import Node


def audit(
    nodes: Sequence[Node],
    port: int,
    config: AuditConfig,
    *,
    via: str | None = None,
    full: bool = False,
    seen: list[Link] | None = None,
) -> list[Check]:
    """All checks of all nodes. ``via``: a command before ours (``ssh {node}``), else Slurm jobs.

    ``full``: pairs of nodes measure each other too, and all that are fit reduce by MPI. ``seen``
    gets what pairs measured.
    """
    fit, why = (list(nodes), dict[str, str]()) if via else reachable(nodes)
    with open_way(fit, via, config.begin_s) as way:
        why |= way.why
        asked = [node.name for node in fit if node.name not in why]
        checks, table = _themselves(way, asked, why)
        if len(table) > 1:
            more, pairs = _each_other(way, table, port)
            checks += more
        if len(table) > 1 and full:
            slow, links = tournament(
                table, fit_rails(table, checks), pairs, port,
                lambda given: way.ask(list(table), ["audit-pairs"], given), config=config,
            )  # fmt: skip
            checks += slow
            if seen is not None:
                seen += links
            checks += _reduced(way.jobs, table, checks, config) if config.mpi else []
    # A node that could be asked and is silent failed; of others nothing is known.
    failed = {*asked, *way.dead}
    checks += [
        Check(name, "slurm", "answers", "fail" if name in failed else "not measured", said,
              "answers")
        for name, said in why.items()
    ]  # fmt: skip
    return sorted(checks, key=lambda each: (each.node, each.area, each.name, each.rail))


def _themselves(
    way: Way, names: Sequence[str], why: dict[str, str]
) -> tuple[list[Check], dict[str, dict[str, str]]]:
    """What each finds out about itself, and the rails of those that answer; ``why`` of others."""
    answers = way.ask(names, ["audit-self"], "")
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
    return checks, table


def _each_other(
    way: Way, table: Mapping[str, Mapping[str, str]], port: int
) -> tuple[list[Check], list[Pair]]:
    """What probes between them found."""
    given = json.dumps({"port": port, "cookie": secrets.token_hex(16), "table": table})
    pairs: list[Pair] = []
    for name, line in way.ask(list(table), ["audit-links"], given).items():
        pairs += pair_answer(name, line)
    checks = fabric.checks(pairs, table, table)
    # Who was to probe and said nothing, in time, is not fine by that.
    heard = {pair.node for pair in pairs}
    checks += [Check(name, "fabric", "probes", "not measured", "its probes did not come back",
                     "come back") for name in table if name not in heard]  # fmt: skip
    return checks, pairs


def fit_rails(
    table: Mapping[str, Mapping[str, str]], checks: Sequence[Check]
) -> dict[str, dict[str, str]]:
    """Without the rails that failed already: streams over them would hold up all others."""
    bad = {(check.node, check.rail) for check in checks if check.rail and check.status == "fail"}
    return {
        node: {rail: address for rail, address in rails.items() if (node, rail) not in bad}
        for node, rails in table.items()
    }


def _reduced(
    jobs: Sequence[Job], table: Mapping[str, object], checks: Sequence[Check], config: AuditConfig
) -> list[Check]:
    """By MPI, over those that are fit so far, in the job that holds most of them."""
    fit = set(table) - {check.node for check in checks if check.status == "fail"}
    job = max(jobs, key=lambda each: len(fit.intersection(each.nodes)), default=None)
    names = [name for name in job.nodes if name in fit] if job else []
    return allreduce(job.step(names), names, config) if job and len(names) > 1 else []


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
