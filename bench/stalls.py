"""Stalls of a real MPI program, and whether the verdict names the right rank and kind.

Four ranks on this machine, each as on a node of its own, with the tracker preloaded. In turn: a
stopped process, a collective that one rank skips, one that it calls another instead of, a rank that
computes on, and a clean phase in which all compute and save for long (any alarm is false there).
Dead links and silent hosts need nodes: tests/lab has those.

What --json holds is kept: a run of --limit seconds adds to it. Several programs run side by side.

    python -m bench.stalls [--stalls 16] [--clean 4] [--jobs 1]     (200 and 200: the full campaign)
"""

import argparse
import json
import os
import queue
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
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
HARD_S = 1.0  # goal
STALLS = ("stopped", "slow", "skipped", "mismatched")
BREAKING = ("skipped", "mismatched")  # the program does not go on after these
# Rank 0 is the root of the Bcast that follows: it would send and go on, the others with it.
CLEAN_S = 3.0  # the longest phase is half of it
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
    """``took_s`` None: no right verdict came; ``text``: of the last one that there was."""

    kind: str
    took_s: float | None
    text: str


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
        # Ranks spin while they wait; who looks must not wait for them.
        argv = [
            "nice",
            "-n",
            "5",
            "mpirun",
            "--allow-run-as-root",
            "--oversubscribe",
            "-n",
            str(RANKS),
        ]
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
                raise RuntimeError("the program does not run")

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
    limit_s = CLEAN_S if kind == "clean" else WAIT_S
    while time.monotonic() - begin_s < limit_s:
        looked_s = time.monotonic()
        positions = program.look()
        found = verdict.judge(positions)
        if not sure.holds(found, looked_s, looked_s):  # as agents do
            found = verdict.NOBODY
        if found.hard and kind in ("clean", "slow"):
            return Result(kind, None, found.text)
        if waits_s is None and found.waiting:
            waits_s = time.monotonic() - max(at.age_ms for at in positions) / 1000
        if kind != "clean" and right(kind, victim, found):
            return Result(kind, time.monotonic() - (waits_s or begin_s), found.text)
        time.sleep(LOOK_S)
    return Result(kind, 0.0 if kind == "clean" else None, found.text)


@contextmanager
def running() -> Iterator[Program]:
    with tempfile.TemporaryDirectory(prefix="fabric-stalls-") as directory:
        program = Program(Path(directory))
        try:
            yield program
        finally:
            program.end()


def work(left: "queue.SimpleQueue[str]", rng: random.Random, end_s: float) -> Iterator[Result]:
    """One program after the other until nothing is left; each lives until a stall breaks it."""
    kind = ""
    with suppress(queue.Empty):
        while time.monotonic() < end_s:
            kind = kind or left.get_nowait()
            with running() as program:
                while kind and time.monotonic() < end_s:
                    victim = rng.randrange(int(kind == "skipped"), RANKS)
                    yield inject(program, kind, victim)
                    broken, was, kind = kind in BREAKING, kind, ""
                    if broken:
                        break
                    if was == "stopped":
                        os.kill(program.pid(victim), signal.SIGCONT)
                    program.wait_moving()
                    kind = left.get_nowait()


def told(results: list[Result], jobs: int) -> bool:
    """Says what was found; whether the goals are met."""
    for kind in (*STALLS, "clean"):
        mine = [one for one in results if one.kind == kind]
        good = [one.took_s for one in mine if one.took_s is not None]
        words = f"{kind:10} {len(good)} of {len(mine)} right"
        if good and kind != "clean":
            words += (
                f", after {statistics.median(good):.2f} s of waiting, {max(good):.2f} s at most"
            )
        print(words)
        for one in mine:
            if one.took_s is None:
                print(f"           wrong: {one.text}")
    stalls = [one for one in results if one.kind != "clean"]
    share = sum(one.took_s is not None for one in stalls) / max(1, len(stalls))
    hard = [one for one in stalls if one.kind != "slow"]
    soon = sum(one.took_s is not None and one.took_s <= HARD_S for one in hard) / max(1, len(hard))
    alarms = sum(one.took_s is None for one in results if one.kind == "clean")
    print(f"{len(stalls)} stalls, {100 * share:.1f} % right (goal {100 * GOAL:g} %); "
          f"hard ones within {HARD_S:g} s: {100 * soon:.1f} %")  # fmt: skip
    print(f"{len(results) - len(stalls)} clean runs, {alarms} false alarms (goal 0); "
          f"{jobs} programs at once, load {os.getloadavg()[0]:.1f}")  # fmt: skip
    return share >= GOAL and not alarms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stalls", type=int, default=16, help="in all, with --json")
    parser.add_argument("--clean", type=int, default=4, help="runs without any")
    parser.add_argument("--jobs", type=int, default=1, help="programs at once")
    parser.add_argument("--json", type=Path, help="what was found so far")
    parser.add_argument("--limit", type=float, default=1e9, help="no stall is begun after it, s")
    options = parser.parse_args()
    end_s = time.monotonic() + options.limit
    results: list[Result] = []
    if options.json is not None and options.json.exists():
        results = [Result(*one) for one in json.loads(options.json.read_text())]
    wanted = [STALLS[nth % len(STALLS)] for nth in range(options.stalls)]
    wanted += ["clean"] * options.clean
    for one in results:
        if one.kind in wanted:
            wanted.remove(one.kind)
    rng = random.Random(len(results))
    rng.shuffle(wanted)
    left: queue.SimpleQueue[str] = queue.SimpleQueue()
    for kind in wanted:
        left.put(kind)
    lock = threading.Lock()

    def run(seed: float) -> None:
        for result in work(left, random.Random(seed), end_s):
            with lock:
                results.append(result)
                if options.json is not None:
                    options.json.write_text(json.dumps([astuple(one) for one in results]))

    threads = [threading.Thread(target=run, args=(rng.random(),)) for _ in range(options.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0 if told(results, options.jobs) else 1


if __name__ == "__main__":
    sys.exit(main())
