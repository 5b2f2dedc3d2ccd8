"""Stalls of a real MPI program, and whether the verdict names the right rank and kind.

Four ranks on this machine, each as on a node of its own, with the tracker preloaded. In turn: a
stopped process, a collective that one rank skips, one that it calls another instead of, a rank that
computes on, and a clean phase in which all compute and save for long (any alarm is false there).
Dead links and silent hosts need nodes: tests/lab has those.

    python -m bench.stalls [--stalls 20] [--seed 1]     (200: the full campaign)
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fabricctl import built
from fabricctl.agent.whereabouts import letter_of
from fabricctl.state.track import position, verdict
from fabricctl.state.track.position import Position
from fabricctl.state.track.ranks import Ranks
from fabricctl.state.track.verdict import Verdict
from fabricctl.store.schema import RankState, StallKind

RANKS, GOAL = 4, 0.99
LOOK_S, WAIT_S = 0.05, 40.0
KINDS = ("stopped", "skipped", "mismatched", "slow", "clean")
# Iterations of an Allreduce and a Bcast; a file with a word in it says what a rank does next.
PROGRAM = """
import pathlib, sys, time
from mpi4py import MPI
world, orders = MPI.COMM_WORLD, pathlib.Path(sys.argv[1])
mine, total, done, what = bytearray(8), bytearray(8), "", ""
for n in range(10_000_000):
    if n % 10 == 0:
        order = world.bcast((orders / "order").read_text() if world.rank == 0 else None)
        who, _, given = order.partition(" ")
        what = given if order != done and who in (str(world.rank), "all") else ""
        done = order
    if what.startswith("slow"):
        time.sleep(3)
    if what.startswith("clean"):
        time.sleep(0.6 + 0.3 * world.rank)
    if what.startswith("mismatched"):
        world.Barrier()
    elif not what.startswith("skipped"):
        world.Allreduce(mine, total)
    world.Bcast(mine, 0)
    what = ""
    time.sleep(0.002)
"""


@dataclass(frozen=True)
class Result:
    """``took_s`` None: no right verdict came; ``found``: the last one that there was."""

    kind: str
    took_s: float | None
    found: Verdict


class Program:
    """Four ranks that run until :meth:`end`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._nr = 0
        (directory / "order").write_text("")
        environment = {
            **os.environ,
            "LD_PRELOAD": str(built.find("state", "libfabrictrack.so")),
            "FABRIC_TRACK_DIR": str(directory),
            "OMPI_MCA_mpi_yield_when_idle": "1",
        }
        argv = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(RANKS)]
        argv += ["-x", "LD_PRELOAD", "-x", "FABRIC_TRACK_DIR", sys.executable, "-c", PROGRAM]
        self._process = subprocess.Popen(
            [*argv, str(directory)], env=environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._ranks = Ranks(directory, letter_of)
        self.wait_moving()

    def wait_moving(self) -> None:
        end_s = time.monotonic() + WAIT_S
        while not self.moves():
            if time.monotonic() > end_s:
                raise SystemExit("stalls: the program does not run")

    def moves(self) -> bool:
        """Whether all ranks make calls."""
        before = {at.rank: at.calls for at in self.look()}
        time.sleep(0.3)
        now = {at.rank: at.calls for at in self.look()}
        return len(now) == RANKS and all(now[r] > before.get(r, now[r]) for r in now)

    def look(self) -> list[Position]:
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        here = [position.of(seen, f"n{seen.rank.rank}", now) for seen in self._ranks.look()]
        return [at for at in here if at.state != RankState.STARTING]

    def order(self, who: str, what: str) -> None:
        self._nr += 1
        fresh = self._directory / "order.new"
        fresh.write_text(f"{who} {what} {self._nr}")
        fresh.replace(self._directory / "order")

    def pid(self, rank: int) -> int:
        return next(at.pid for at in self.look() if at.rank == rank)

    def end(self) -> None:
        for at in self.look():
            with suppress(ProcessLookupError):
                os.kill(at.pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        for path in self._directory.glob("*.track"):
            path.unlink()


def right(kind: str, victim: int, found: Verdict) -> bool:
    """Kind and rank as they were injected; a slow rank may still end, so that is no alarm."""
    if kind in ("skipped", "mismatched"):
        return found.hard and (found.kind, found.rank) == (StallKind.APPLICATION, victim)
    hard = kind == "stopped"
    return found.hard == hard and (found.kind, found.rank) == (StallKind.RANK, victim)


def inject(program: Program, kind: str, victim: int) -> Result:
    """One stall, until the right verdict or for too long; a clean phase: until it is over."""
    begin_s = time.monotonic()
    if kind == "stopped":
        os.kill(program.pid(victim), signal.SIGSTOP)
    else:
        program.order("all" if kind == "clean" else str(victim), kind)
    waits_s = None
    found, sure = verdict.NOBODY, verdict.Sure()
    limit_s = 4.0 if kind == "clean" else WAIT_S
    while time.monotonic() - begin_s < limit_s:
        looked_s = time.monotonic()
        positions = program.look()
        found = verdict.judge(positions)
        if not sure.holds(found, looked_s, looked_s):  # as agents do
            found = verdict.NOBODY
        if found.hard and kind in ("clean", "slow"):
            return Result(kind, None, found)
        if waits_s is None and found.waiting:
            waits_s = time.monotonic() - max(at.age_ms for at in positions) / 1000
        if kind != "clean" and right(kind, victim, found):
            return Result(kind, time.monotonic() - (waits_s or begin_s), found)
        time.sleep(LOOK_S)
    return Result(kind, 0.0 if kind == "clean" else None, found)


@contextmanager
def running() -> Iterator[Program]:
    with tempfile.TemporaryDirectory(prefix="fabric-stalls-") as directory:
        program = Program(Path(directory))
        try:
            yield program
        finally:
            program.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stalls", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    results: list[Result] = []
    each = -(-options.stalls // len(KINDS))
    for kind in ("skipped", "mismatched"):  # these break the program
        for _ in range(each):
            with running() as program:
                results.append(inject(program, kind, rng.randrange(RANKS)))
    with running() as program:
        for nth in range(each * 3):
            kind, victim = ("stopped", "slow", "clean")[nth % 3], rng.randrange(RANKS)
            results.append(inject(program, kind, victim))
            if kind == "stopped":
                os.kill(program.pid(victim), signal.SIGCONT)
            program.wait_moving()
    for kind in KINDS:
        mine = [one for one in results if one.kind == kind]
        good = [one.took_s for one in mine if one.took_s is not None]
        seen = f", told after {statistics.median(good):.2f} s of waiting (median)" if good else ""
        print(f"{kind:10} {len(good)} of {len(mine)} right{'' if kind == 'clean' else seen}")
        for one in mine:
            if one.took_s is None:
                print(f"           wrong: {one.found.text}")
    share = sum(one.took_s is not None for one in results) / len(results)
    print(f"{len(results)} in all, {100 * share:.1f} % right (goal {100 * GOAL:g} %); "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    return 0 if share >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
