"""Random faults, healed and overlapping, under checked MPI loops: every result right, no abort.

    bench/soak.py [--minutes 2] [--mpi openmpi4,mpich] [--seed N] [--json FILE] [--show]

One protected job of four nodes per MPI library runs Allreduce and Sendrecv, whose results every
rank checks, while links are cut, fall silent (one way or both), lose packets, slow down and flap.
One rail of each pair of nodes is always left whole: with both gone a job can only wait. Ends with
1 when a result was wrong or a job ended by itself. With --json what was measured is added to what
the file has, so that an hour fits into short runs of different seeds; --show only prints it.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from failover import percentile
from failover_runs import NODES, ROOT, SYSTEMS, Bench, longest, net_ns

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec

KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("cut", {}),
    ("blackhole", {}),
    ("blackhole", {"direction": "tx"}),
    ("blackhole", {"direction": "rx"}),
    ("loss", {"percent": 5.0}),
    ("loss-large", {"above": 1000}),
    ("rate", {"rate": "10mbit"}),
    ("flap", {"period_s": 0.2}),
)
FAULT_S = (0.3, 6.0)
PAUSE_S = (0.2, 3.0)
AFTER_S = 5.0  # the last fault is healed so long before the loop ends
MAX_AT_ONCE = 2
STALL_MS = (20, 50, 100, 250, 1000)
STALL_WITHIN_NS = 1_000_000_000  # of a fault's beginning


@dataclass
class Fault:
    kind: str
    node: str
    rail: str
    until_s: float


@dataclass
class Soak:
    """Of one library: one run, or several one after the other."""

    faults: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    iterations: int = 0
    aborted: int = 0  # runs that ended by themselves or had a wrong result
    usual_ms: list[float] = field(default_factory=list)  # median iteration, by run
    stalls_ms: list[float] = field(default_factory=list)  # the longest one after each fault
    net_ms: list[float] = field(default_factory=list)  # less what all ranks waited for a core
    over: dict[str, int] = field(default_factory=dict)  # iterations longer than so many ms
    longest_ms: float = 0.0
    loads: list[float] = field(default_factory=list)

    def add(self, result: dict[str, Any], faults: list[dict[str, Any]], seconds: float) -> None:
        self.seconds += seconds
        self.faults += faults
        self.loads.append(os.getloadavg()[0])
        if not result:
            self.aborted += 1
            return
        self.iterations += result["blocks"]
        self.usual_ms.append(result["median_ns"] / 1e6)
        for begin_ns in (fault["begin_mono_ns"] for fault in faults):
            stall = longest(result, begin_ns, begin_ns + STALL_WITHIN_NS)
            self.stalls_ms.append(stall["gap_ns"] / 1e6)
            self.net_ms.append(net_ns(result, stall) / 1e6)
        gaps = [gap["gap_ns"] / 1e6 for gap in result["longest"]]
        for limit in STALL_MS:
            self.over[str(limit)] = self.over.get(str(limit), 0) + sum(gap > limit for gap in gaps)
        self.longest_ms = max([self.longest_ms, *gaps])


def harass(lab: Lab, rng: random.Random, end_s: float) -> list[dict[str, Any]]:
    """Faults until ``end_s``; all healed then. All that overlap are on one rail."""
    under_way: list[Fault] = []
    told: list[dict[str, Any]] = []
    next_s, rail = time.monotonic(), "r0"
    while (now_s := time.monotonic()) < end_s or under_way:
        for one in [one for one in under_way if now_s >= min(one.until_s, end_s)]:
            lab.heal(one.kind, one.node, one.rail)
            under_way.remove(one)
        if now_s >= next_s and now_s < end_s and len(under_way) < MAX_AT_ONCE:
            rail = rail if under_way else rng.choice(("r0", "r1"))
            node = rng.choice([name for name in NODES if name not in {f.node for f in under_way}])
            kind, options = rng.choice(KINDS)
            begin_ns = lab.fault(kind, node, rail, **options).mono_ns
            under_way.append(Fault(kind, node, rail, now_s + rng.uniform(*FAULT_S)))
            told.append({"kind": kind, "node": node, "rail": rail, **options,
                         "begin_mono_ns": begin_ns})  # fmt: skip
            next_s = now_s + rng.uniform(*PAUSE_S)
        time.sleep(0.02)
    return told


def run(bench: Bench, name: str, minutes: float, rng: random.Random, soak: Soak) -> None:
    # Ranks on all four nodes, and every long iteration kept.
    system = replace(SYSTEMS[f"ours-{name}"], nodes=len(NODES))
    seconds = 60 * minutes
    with bench.job(system, seconds) as job, bench.mpi(job, seconds) as result:
        faults = harass(bench.lab, rng, time.monotonic() + seconds - AFTER_S)
    soak.add(result, faults, seconds)


def show(name: str, soak: Soak) -> None:
    print(f"{name}: {soak.seconds / 60:.1f} minutes in {len(soak.loads)} runs, ", end="")
    print(f"{len(soak.faults)} faults, {soak.iterations} iterations, ", end="")
    print(f"{soak.aborted} RUNS ENDED BY THEMSELVES OR WERE WRONG" if soak.aborted
          else "every result right, no abort")  # fmt: skip
    shares = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (1.0, "max"))
    for what, stalls in (("the longest after each fault", soak.stalls_ms),
                         ("less waits for a core", soak.net_ms)):  # fmt: skip
        words = ", ".join(f"{word} {percentile(stalls, share):.0f}" for share, word in shares)
        print(f"  {what}: {words} ms")
    over = ", ".join(f"{count} above {limit} ms" for limit, count in soak.over.items())
    print(f"  usually {percentile(soak.usual_ms, 0.5):.1f} ms an iteration; {over}; ", end="")
    print(f"max {soak.longest_ms:.0f} ms; load {percentile(soak.loads, 0.5):.0f}")


def load(file: Path | None) -> dict[str, Soak]:
    """What earlier runs measured."""
    if not file or not file.exists():
        return {}
    return {name: Soak(**value) for name, value in json.loads(file.read_text()).items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--mpi", default="openmpi4")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--name", default=os.environ.get("FABRICCTL_LAB", "bench-soak"))
    parser.add_argument("--show", action="store_true", help="print what the file has, run nothing")
    args = parser.parse_args()
    soaks = load(args.json)
    if not args.show:
        subprocess.run(["make", "-s", "-C", str(ROOT / "fabricctl" / "paths")], check=True)
        lab = Lab(LabSpec(name=args.name))
        lab.up()
        try:
            bench = Bench(lab)
            bench.like_real_ports()
            for name in args.mpi.split(","):
                soak = soaks.setdefault(name, Soak())
                run(bench, name, args.minutes, random.Random(args.seed), soak)
                if args.json:
                    plain = {name: vars(soak) for name, soak in soaks.items()}
                    args.json.write_text(json.dumps(plain, indent=1))
        finally:
            lab.down()
    for name, soak in soaks.items():
        show(name, soak)
    return 1 if any(soak.aborted for soak in soaks.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
