"""The full audit: pairs of nodes measure each other, then all of them reduce together by MPI."""

import json
import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from fabricctl.errors import DataError
from fabricctl.fleet.audit import limits
from fabricctl.fleet.audit.model import Check, Status
from fabricctl.fleet.audit.pairwise import Link
from fabricctl.fleet.audit.probes import Pair
from fabricctl.sections import AuditConfig
from fabricctl.units import format_duration

PAIRS_LIMIT_S = 40.0  # of a node's rounds; eight nodes with two rails take five
# Eight ranks on two cores take five seconds, fifteen at load 20, where MPI's start hung once.
MPI_TIMEOUTS_S = (20.0, 40.0)  # of the first try and of the second

# Has all nodes do their part, with this on stdin; record by node.
Ask = Callable[[str], Mapping[str, Mapping[str, object]]]


def tournament(
    table: Mapping[str, Mapping[str, str]],
    fit: Mapping[str, Mapping[str, str]],
    pairs: Sequence[Pair],
    port: int,
    ask: Ask,
    *,
    config: AuditConfig,
) -> tuple[list[Check], list[Link]]:
    """Latency, bandwidth and clocks of all pairs, and what each pair measured.

    ``table``: the nodes' rails; ``fit``: those of them that did not fail before and are measured.
    ``pairs``: what probes found; those that are dead are left out.
    """
    dead = sorted({(p.node, p.peer, p.rail) for p in pairs if not p.small_answered})
    given = json.dumps({"port": port, "cookie": secrets.token_hex(16), "table": fit,
                        "dead": dead, "limit_s": PAIRS_LIMIT_S})  # fmt: skip
    links: list[Link] = []
    for name, record in ask(given).items():
        links += link_answer(name, record, fit)
    floors = limits.Floors(
        config.bandwidth_floor_mbit * 1e6 / 8, config.rtt_ceiling_us * 1e3,
        config.clock_ceiling_us * 1e3, config.share,
    )  # fmt: skip
    return limits.checks(links, table, table, floors), links


def link_answer(
    node: str, record: Mapping[str, object], table: Mapping[str, Mapping[str, str]]
) -> list[Link]:
    """What a node measured; what cannot be read is left out, and so is not fine."""
    found = []
    every = record.get("links")
    for given in every if isinstance(every, list) else ():
        try:
            link = Link(**given)
        except TypeError:
            continue
        numbers = (link.rtt_ns, link.least_rtt_ns, link.offset_ns, link.out_bytes_per_s,
                   link.in_bytes_per_s)  # fmt: skip
        sane = all(each is None or (isinstance(each, int | float) and abs(each) < 1e18)
                   for each in numbers)  # fmt: skip
        known = link.node == node and link.peer in table and link.rail in table[node]
        words = isinstance(link.why, str) and len(link.why) < 100 and link.why.isprintable()
        if sane and known and words:
            found.append(link)
    return found


def allreduce(where: Sequence[str], names: Sequence[str], config: AuditConfig) -> list[Check]:
    """One all-reduce over all of them; a wrong sum is told of the nodes that had it.

    ``where``: options of srun that say so.
    """
    argv = [*shlex.split(config.mpi), "--quiet", *where, sys.executable, "-m",
            "fabricctl.mpi.allreduce"]  # fmt: skip
    found: list[Check] = []
    for limit_s in MPI_TIMEOUTS_S:
        try:
            ended = _run(argv, limit_s)
        except OSError as error:
            return _same(names, "not measured", f"{argv[0]}: {error.strerror}")
        if ended is None:
            found = _same(names, "fail", f"did not end within {limit_s:g} s, tried twice")
            continue
        output, words = ended
        try:
            return judged(names, output)
        except DataError:
            said = [line for line in words.splitlines() if line.strip()]
            why = (said[-1] if said else "it printed nothing")[:150]
            why = "".join(c for c in why if c.isprintable())
            found = _same(names, "not measured", why)
    return found


def _run(argv: Sequence[str], limit_s: float) -> tuple[str, str] | None:
    """What it printed and said; None: it did not end, and was ended."""
    # More ranks than cores are told to yield; a machine with enough of them loses nothing.
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace", env={**os.environ, "OMPI_MCA_mpi_yield_when_idle": "1"},
    ) as made:  # fmt: skip
        try:
            return made.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            made.terminate()  # srun ends its step by that
        try:
            made.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            made.kill()
    return None


def judged(names: Sequence[str], output: str) -> list[Check]:
    """From what rank 0 printed; raises :class:`DataError` when it did not."""
    lines = [line for line in output.splitlines() if line.startswith("fabric-allreduce ")]
    try:
        given = json.loads(lines[-1].partition(" ")[2])
        ranks, wrong = int(given["ranks"]), set(given["wrong"])
        largest = max(given["sizes"], key=lambda each: int(each["bytes"]))
        small = min(given["sizes"], key=lambda each: int(each["bytes"]))
        least_s, small_s = float(largest["least_s"]), float(small["least_s"])
        size = int(largest["bytes"])
    except (ValueError, KeyError, TypeError, IndexError):
        raise DataError("the all-reduce printed no result") from None
    # What each rank sends at least, over the time it took (bus bandwidth, as nccl-tests has it).
    moved = 2 * (ranks - 1) / max(1, ranks) * size / max(least_s, 1e-9)
    said = (f"{ranks} ranks, {size >> 10} KiB at {moved * 8 / 1e6:.0f} Mbit/s, 8 bytes in "
            f"{format_duration(small_s)}")  # fmt: skip
    found = []
    for name in names:
        bad = name in wrong or ranks != len(names)
        text = "a wrong sum" if name in wrong else said
        found.append(Check(name, "mpi", "allreduce", "fail" if bad else "ok", text, "right sums",
                           "", moved, "B/s"))  # fmt: skip
    return found


def _same(names: Sequence[str], status: Status, why: str) -> list[Check]:
    return [Check(name, "mpi", "allreduce", status, why, "right sums") for name in names]


def answer(
    table: Mapping[str, Mapping[str, str]], node: str, given: Mapping[str, object]
) -> object:
    """A node's own part, from what it was given on stdin."""
    from fabricctl.fleet.audit import pairwise

    cookie = bytes.fromhex(str(given["cookie"]))
    dead = {(str(a), str(b), str(c)) for a, b, c in given["dead"]}  # type: ignore[attr-defined]
    limit_s = min(600.0, float(str(given["limit_s"])))
    where = pairwise.Where(node, table, int(str(given["port"])), cookie)
    return [asdict(link) for link in pairwise.measure(where, dead, limit_s)]
