"""What our prolog and epilog add to a job's start and end.

Four kinds of job, one after the other, over and over, so that every kind meets the same machine:
no prolog at all, ``/bin/true`` as prolog and epilog, ours for a job without the option, and ours
for a protected one. Each lab is a real Slurm of its own on this machine (root needed).

    python -m bench.prolog [--jobs 100]

prolog: from the allocation to the controller's note that the prolog is complete; epilog: from the
job's end to its note that the epilog is (its log, to 1 ms): what the goal is held against, at most
10 ms more than /bin/true at the 99th percentile, for each. task: from srun's own begin to the
task's first instruction, where srun asks every 100, 200, 300 ms whether the prolog is done.
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec

GOAL_MS = 10.0
LOG = {"SlurmctldDebug": "debug2", "LogTimeFormat": "iso8601_ms", "PrologFlags": "Alloc"}
TRUE = {"Prolog": "/bin/true", "Epilog": "/bin/true"}
# Runs in the lab: a line in, one job, a line out. Inside, so that entering the lab costs nothing.
DRIVER = """
import json, subprocess, sys, time
for line in sys.stdin:
    argv = ["srun", *line.split(), "-N1", "sh", "-c", "echo $SLURM_JOB_ID; date +%s%N"]
    begin = time.time_ns()
    done = subprocess.run(argv, capture_output=True, text=True)
    end = time.time_ns()
    words = done.stdout.split()
    print(json.dumps([done.returncode, begin, end, *map(int, words)]), flush=True)
    if done.returncode: print(done.stderr, file=sys.stderr)
"""
# What the controller writes, in the order in which it does.
LINES = {
    "allocated": re.compile(r"^\[(\S+)\] sched: _slurm_rpc_allocate_resources JobId=(\d+)", re.M),
    "begun": re.compile(r"^\[(\S+)\] debug2: _slurm_rpc_complete_prolog JobId=(\d+)", re.M),
    "ended": re.compile(r"^\[(\S+)\] _job_complete: JobId=(\d+) done", re.M),
    "clean": re.compile(r"^\[(\S+)\] debug2: _slurm_rpc_epilog_complete: JobId=(\d+)", re.M),
}


@dataclass
class Kind:
    """One kind of job, in one of the labs."""

    name: str
    lab: Lab
    options: str = ""
    jobs: list[int] = field(default_factory=list)
    task_ms: list[float] = field(default_factory=list)
    prolog_ms: list[float] = field(default_factory=list)
    epilog_ms: list[float] = field(default_factory=list)


@contextlib.contextmanager
def labs() -> Iterator[dict[str, Lab]]:
    prefix = os.environ.get("FABRICCTL_LAB", "bench-prolog")
    specs = {
        "none": LabSpec(name=f"{prefix}-none", nodes=2, rails=1, bare=True, conf=LOG),
        "true": LabSpec(name=f"{prefix}-true", nodes=2, rails=1, bare=True, conf={**LOG, **TRUE}),
        "ours": LabSpec(name=f"{prefix}-ours", nodes=2, rails=1, conf=LOG),
    }
    made = {name: Lab(spec) for name, spec in specs.items()}
    try:
        for lab in made.values():
            lab.down()
            lab.up()
        yield made
    finally:
        for lab in made.values():
            lab.down()


def run_jobs(kinds: Sequence[Kind], rounds: int, pause_s: float) -> None:
    """All kinds in turn, ``rounds`` times."""
    drivers = {
        kind.name: subprocess.Popen(
            kind.lab.exec_argv("ctl", ["/usr/bin/python3", "-c", DRIVER], user="alice"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for kind in kinds
    }
    for turn in range(rounds + 2):
        for kind in (*kinds[turn % len(kinds) :], *kinds[: turn % len(kinds)]):
            driver = drivers[kind.name]
            assert driver.stdin is not None and driver.stdout is not None
            driver.stdin.write(kind.options + "\n")
            driver.stdin.flush()
            status, begin_ns, _, *rest = json.loads(driver.stdout.readline())
            if status or len(rest) != 2:
                raise RuntimeError(f"a job of kind {kind.name!r} failed with status {status}")
            if turn >= 2:  # the first fill caches, and start the sealer
                kind.jobs.append(rest[0])
                kind.task_ms.append((rest[1] - begin_ns) / 1e6)
            time.sleep(pause_s)
    for driver in drivers.values():
        assert driver.stdin is not None
        driver.stdin.close()
        driver.wait(10)


def read_log(kind: Kind) -> None:
    """How long prologs and epilogs took, from the controller's log."""
    text = kind.lab.exec("ctl", ["cat", "/var/log/slurm/slurmctld.log"]).stdout
    at = {
        what: {
            int(job): datetime.fromisoformat(stamp).replace(tzinfo=UTC).timestamp() * 1e3
            for stamp, job in pattern.findall(text)
        }
        for what, pattern in LINES.items()
    }
    for job in kind.jobs:
        if job in at["allocated"] and job in at["begun"]:
            kind.prolog_ms.append(at["begun"][job] - at["allocated"][job])
        if job in at["ended"] and job in at["clean"]:
            kind.epilog_ms.append(at["clean"][job] - at["ended"][job])


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def show(kinds: Sequence[Kind]) -> bool:
    """Prints the table; whether the goal is met."""
    met = True
    base = next(kind for kind in kinds if kind.name == "/bin/true")
    for what in ("prolog", "epilog", "task"):
        print(
            f"\n{what + ', ms':16} {'n':>5} {'p50':>8} {'p90':>8} {'p99':>8}   "
            "over /bin/true p50, p99"
        )
        for kind in kinds:
            values: list[float] = getattr(kind, f"{what}_ms")
            plain: list[float] = getattr(base, f"{what}_ms")
            p50, p90, p99 = (percentile(values, share) for share in (0.5, 0.9, 0.99))
            more = [percentile(values, s) - percentile(plain, s) for s in (0.5, 0.99)]
            print(
                f"{kind.name:16} {len(values):5} {p50:8.1f} {p90:8.1f} {p99:8.1f}   "
                f"{more[0]:+8.1f} {more[1]:+8.1f}"
            )
            met &= what == "task" or not more[1] > GOAL_MS
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--pause", type=float, default=0.8, help="seconds between jobs")
    parser.add_argument("--json", type=Path, help="also write every figure there")
    given = parser.parse_args()
    with labs() as made:
        kinds = [
            Kind("no prolog", made["none"]),
            Kind("/bin/true", made["true"]),
            Kind("ours, no option", made["ours"]),
            Kind("ours, protected", made["ours"], "--fabric-resilience"),
        ]
        run_jobs(kinds, given.jobs, given.pause)
        time.sleep(2)
        for kind in kinds:
            read_log(kind)
    met = show(kinds)
    if given.json:
        figures = {
            kind.name: {"prolog": kind.prolog_ms, "epilog": kind.epilog_ms, "task": kind.task_ms}
            for kind in kinds
        }
        given.json.write_text(json.dumps(figures))
    print("\ngoal met" if met else f"\ngoal missed: more than {GOAL_MS:g} ms over /bin/true at p99")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
