"""Random faults, healed and overlapping, under checked MPI loops: every result right, no abort.

    bench/soak.py [--minutes 2] [--mpi openmpi4,mpich] [--seed N] [--json FILE]

One protected job of four nodes per MPI library runs Allreduce and Sendrecv, whose results every
rank checks, while links are cut, fall silent (one way or both), lose packets, slow down and flap.
One rail of each pair of nodes is always left whole: with both gone a job can only wait. Ends with
1 when a result was wrong or a job ended by itself.
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
from failover_runs import NODES, ROOT, SYSTEMS, Bench, longest

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


@dataclass
class Fault:
    kind: str
    node: str
    rail: str
    until_s: float


@dataclass
class Soak:
    """One library's run."""

    name: str
    faults: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        return bool(self.result)


def harass(lab: Lab, rng: random.Random, end_s: float, soak: Soak) -> None:
    """Faults until ``end_s``; all healed then. All that overlap are on one rail."""
    under_way: list[Fault] = []
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
            soak.faults.append({"kind": kind, "node": node, "rail": rail, **options,
                                "begin_mono_ns": begin_ns})  # fmt: skip
            next_s = now_s + rng.uniform(*PAUSE_S)
        time.sleep(0.02)


def run(bench: Bench, name: str, minutes: float, rng: random.Random) -> Soak:
    soak = Soak(name)
    # Ranks on all four nodes, and every long iteration kept.
    system = replace(SYSTEMS[f"ours-{name}"], nodes=len(NODES))
    seconds = 60 * minutes
    with bench.job(system, seconds) as job, bench.mpi(job, seconds) as result:
        harass(bench.lab, rng, time.monotonic() + seconds - AFTER_S, soak)
    soak.result = result
    return soak


def show(soak: Soak) -> None:
    print(f"{soak.name}: {len(soak.faults)} faults", end="")
    if not soak.good:
        print(": THE JOB ENDED BY ITSELF OR A RESULT WAS WRONG")
        return
    begins = [fault["begin_mono_ns"] for fault in soak.faults]
    stalls = [longest(soak.result, at, at + 1_000_000_000)["gap_ns"] / 1e6 for at in begins]
    gaps = [gap["gap_ns"] / 1e6 for gap in soak.result["longest"]]
    print(f", {soak.result['blocks']} iterations, every result right")
    shares = ((0.5, "p50"), (0.99, "p99"), (1.0, "max"))
    words = ", ".join(f"{word} {percentile(stalls, share):.0f}" for share, word in shares)
    usual = soak.result["median_ns"] / 1e6
    print(f"  usually {usual:.1f} ms an iteration; the longest after each fault: {words} ms")
    over = ", ".join(f"{sum(gap > limit for gap in gaps)} above {limit} ms" for limit in STALL_MS)
    print(f"  iterations: {over}; max {max(gaps, default=0):.0f} ms")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--mpi", default="openmpi4")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--name", default=os.environ.get("FABRICCTL_LAB", "bench-soak"))
    args = parser.parse_args()
    subprocess.run(["make", "-s", "-C", str(ROOT / "fabricctl" / "paths")], check=True)
    lab = Lab(LabSpec(name=args.name))
    lab.up()
    soaks: list[Soak] = []
    try:
        bench = Bench(lab)
        bench.like_real_ports()
        for name in args.mpi.split(","):
            soaks.append(run(bench, name, args.minutes, random.Random(args.seed)))
            show(soaks[-1])
    finally:
        lab.down()
    if args.json:
        args.json.write_text(json.dumps([vars(soak) for soak in soaks], indent=1))
    return 0 if all(soak.good for soak in soaks) else 1


if __name__ == "__main__":
    sys.exit(main())
