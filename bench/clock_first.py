"""How soon after a job begins its programs read job time, in a real Slurm on this machine.

Needs root. Jobs of some sizes in turn; a task on every node asks its page every 10 ms until it is
told a synchronised time. From the allocation (the controller's log), which is before the prolog.

    python -m bench.clock_first [--nodes 2 8] [--jobs 5] [--name NAME] [--json FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from bench.prolog import LINES, LOG
from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec

GOAL_S = 3.0
CPAGE = Path(__file__).parents[1] / "fabricctl" / "clock" / "cpage"
PROGRAM = Path(__file__).with_suffix(".c")


def build(program: Path) -> None:
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", f"-I{CPAGE}"]
    files = [str(PROGRAM), str(CPAGE / "fabric_clock.c")]
    subprocess.run(["cc", *flags, *files, "-o", str(program), "-lm"], check=True)


def one_job(lab: Lab, nodes: int, program: str) -> tuple[int, int]:
    """The job, and when the last of its nodes was told (CLOCK_REALTIME, ns)."""
    argv = ["srun", "--fabric-resilience", f"-N{nodes}", "--ntasks-per-node=1", program]
    try:
        done = lab.run(argv, user="alice", check=False, timeout_s=30)
    except subprocess.TimeoutExpired:
        state = lab.exec(
            "ctl", ["sh", "-c", "squeue; sinfo -N -l; scontrol show job"], check=False
        ).stdout
        raise RuntimeError(f"a job of {nodes} nodes did not end in 30 s:\n{state}") from None
    rows = [line.split() for line in done.stdout.splitlines()]
    if len(rows) != nodes:
        raise RuntimeError(f"a job of {nodes} nodes: {done.stdout!r} {done.stderr!r}")
    return int(rows[0][0]), max(int(row[1]) for row in rows)


def allocated_s(lab: Lab) -> dict[int, float]:
    text = lab.exec("ctl", ["cat", "/var/log/slurm/slurmctld.log"]).stdout
    return {
        int(job): datetime.fromisoformat(stamp).replace(tzinfo=UTC).timestamp()
        for stamp, job in LINES["allocated"].findall(text)
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--jobs", type=int, default=5)
    parser.add_argument("--name", default=os.environ.get("FABRICCTL_LAB", "bench-clock-first"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    # One more: the last is the spare, in a partition of its own.
    lab = Lab(LabSpec(name=given.name, nodes=max(given.nodes) + 1, rails=2, conf=LOG))
    found: dict[int, list[float]] = {nodes: [] for nodes in given.nodes}
    told = []
    try:
        lab.down()
        lab.up()
        build(lab.paths.shared / "clock-first")
        for _ in range(given.jobs):
            for nodes in given.nodes:
                told.append((nodes, *one_job(lab, nodes, "/shared/clock-first")))
                time.sleep(0.5)
        begun = allocated_s(lab)
    finally:
        lab.down()
    for nodes, job, last_ns in told:
        found[nodes].append(last_ns / 1e9 - begun[job])
    for nodes, values in found.items():
        shown = ", ".join(f"{value:.2f}" for value in sorted(values))
        print(f"{nodes} nodes: told by all after {shown} s; load {os.getloadavg()[0]:.1f}")
    worst = max(max(values) for values in found.values())
    print(f"worst {worst:.2f} s, goal {GOAL_S:g} s: {'met' if worst <= GOAL_S else 'missed'}")
    if given.json:
        given.json.write_text(json.dumps(found))
    return 0 if worst <= GOAL_S else 1


if __name__ == "__main__":
    sys.exit(main())
