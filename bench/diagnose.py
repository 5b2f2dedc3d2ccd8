"""Real jobs, real faults: what `fabricctl report` says of MPI jobs in the lab that were harmed.

Each run brings a lab up, starts an Allreduce loop of four ranks in observe mode (nothing repairs
what is broken), puts faults in one after the other, and holds the report to the lab's own fault
log: precision and recall of causes, the right node and rail, and the loss against the iterations
that the program itself timed. (bench/attribution.py has the large numbers, on simulated jobs.)

    python -m bench.diagnose [--runs 1] [--faults 6] [--seed 1]
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec
from fabricctl_analysis.build import report_of
from fabricctl_analysis.model import Accounts, Verdict

ROOT = Path(__file__).resolve().parents[1]
GOAL = {"precision": 0.982, "recall": 0.993, "place": 0.957}
LENGTH_S, PAUSE_S, BEFORE_S = 6.0, 12.0, 14.0
# Kind, options, and the causes that name it.
KINDS: tuple[tuple[str, dict[str, object], tuple[str, ...]], ...] = (
    ("cut", {}, ("link_down",)),
    ("freeze", {}, ("host_stopped",)),
    ("stop", {}, ("host_stopped",)),
    ("loss", {"percent": 20.0}, ("queueing",)),
    ("blackhole", {}, ("queueing", "path")),
)
JOB = """\
#!/bin/bash
export OMPI_MCA_mpi_yield_when_idle=1
srun --mpi=pmix {python} {root}/bench/failover_mpi.py --seconds {seconds}
"""


@dataclass(frozen=True)
class Harm:
    kind: str
    causes: tuple[str, ...]
    node: str
    rail: int | None
    begin_ns: int
    end_ns: int


def targets(kind: str, node: str) -> tuple[str, ...]:
    if kind == "freeze":
        return (node,)
    return (node, "failover_mpi.py") if kind == "stop" else (node, "r0")


def run_one(lab: Lab, chance: random.Random, faults: int) -> tuple[Path, list[Harm], str]:
    """The trace, what was done, and what the program printed."""
    seconds = BEFORE_S + faults * (LENGTH_S + PAUSE_S)
    script = JOB.format(python=sys.executable, root=ROOT, seconds=seconds)
    (lab.paths.shared / "job.sh").write_text(script)
    argv = ["sbatch", "--parsable", "--fabric-resilience=observe", "-N4", "--ntasks-per-node=1",
            "-o/shared/home/alice/job.out", "/shared/job.sh"]  # fmt: skip
    job = int(lab.run(argv).stdout)
    time.sleep(BEFORE_S)
    harms = []
    for nth in range(faults):
        kind, options, causes = KINDS[nth % len(KINDS)]
        node = f"n{chance.randint(1, 4)}"
        target = targets(kind, node)
        lab.fault(kind, *target, **options)  # type: ignore[arg-type]
        time.sleep(LENGTH_S)
        lab.heal(kind, *target)
        harms.append((kind, causes, node, 0 if "r0" in target else None))
        time.sleep(PAUSE_S)
    trace = lab.paths.shared / "traces" / "alice" / f"job-{job}.h5"
    deadline_s = time.monotonic() + 90
    while not trace.exists() and time.monotonic() < deadline_s:
        time.sleep(0.5)
    time.sleep(1)
    ends = [one["real_ns"] for one in lab.log() if one["event"] in ("fault", "heal")]
    spans = list(zip(ends[::2], ends[1::2], strict=True))
    found = [Harm(*harm, *span) for harm, span in zip(harms, spans, strict=True)]
    return trace, found, (lab.paths.shared / "home/alice/job.out").read_text()


def true_loss_s(printed: str, harm: Harm, offset_ns: int) -> float:
    """Node-seconds by the program's own clock: what iterations took above their usual time."""
    told = json.loads(printed.strip().splitlines()[-1])
    usual = told["median_ns"]
    lost = sum(
        one["gap_ns"] - usual
        for one in told["longest"]
        if harm.begin_ns - 10**9 <= one["begin_mono_ns"] + offset_ns <= harm.end_ns + 10**9
    )
    return 4 * lost / 1e9


def judge(accounts: Accounts, harms: list[Harm], printed: str, counts: Counter[str]) -> None:
    left: list[Verdict] = list(accounts.verdicts)
    offset_ns = time.time_ns() - time.monotonic_ns()
    for harm in harms:
        slack = 3 * 10**9
        near = [one for one in left if one.begin_ns < harm.end_ns + slack
                and one.end_ns > harm.begin_ns - slack]  # fmt: skip
        same = [one for one in near if one.cause in harm.causes]
        truth = true_loss_s(printed, harm, offset_ns)
        said = ", ".join(f"{one.cause} {','.join(one.nodes)} {one.loss_ns / 1e9:.1f}"
                         for one in near)  # fmt: skip
        print(f"  {harm.kind:10} {harm.node} true loss {truth:5.1f} node-s: {said or 'nothing'}")
        left = [one for one in left if one not in near]
        if truth < 2.0:
            counts["no loss"] += 1  # the job went on: nothing to find
            continue
        counts["right" if same else "missed"] += 1
        counts["wrong"] += sum(
            one.cause not in harm.causes and one.cause != "unknown" for one in near if not same
        )
        counts["placed"] += any(harm.node in one.nodes for one in same)
    counts["wrong"] += sum(one.cause not in ("unknown", "start_end") for one in left)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--faults", type=int, default=len(KINDS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", default="diagnose")
    parser.add_argument("--keep", type=Path, help="Copy the traces there.")
    given = parser.parse_args()
    counts: Counter[str] = Counter()
    for run in range(given.runs):
        chance = random.Random(given.seed + run)
        lab = Lab(LabSpec(name=given.name, nodes=5))
        try:
            lab.up()
            trace, harms, printed = run_one(lab, chance, given.faults)
            if given.keep:
                given.keep.mkdir(exist_ok=True)
                (given.keep / f"run{run}.h5").write_bytes(trace.read_bytes())
                (given.keep / f"run{run}.out").write_text(printed)
            accounts = report_of(trace).accounts
        finally:
            lab.down()
        assert accounts is not None
        print(f"run {run}: {len(harms)} faults")
        judge(accounts, harms, printed, counts)
    right, wrong, missed = counts["right"], counts["wrong"], counts["missed"]
    figures = {
        "precision": right / max(1, right + wrong),
        "recall": right / max(1, right + missed),
        "place": counts["placed"] / max(1, right),
    }
    for name, value in figures.items():
        print(f"{name:10} {value:6.1%}  goal {GOAL[name]:.1%}")
    print(f"{right} found, {missed} missed, {wrong} wrong, {counts['no loss']} cost nothing")
    return 0 if all(value >= GOAL[name] for name, value in figures.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
