"""Nodes that lose their rails under a real MPI job, and whether the verdict names link and node.

A lab of four nodes and a protected job of four ranks, whose messages go over the rails. Again and
again both cables of a random node are pulled until `fabricctl job where` gives a verdict, then put
back. How long ranks had waited when the agents told it is in the job's trace.
What --json holds is kept: a run of --limit seconds adds to it.

    python -m bench.stalls_link [--cuts 8] [--json FILE] [--limit 180]      (root)
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec
from fabricctl.store import schema
from fabricctl.store.trace import open_trace

ROOT = Path(__file__).parents[1]
NODES = ("n1", "n2", "n3", "n4")
GOAL, HARD_S = 0.99, 1.0
TOLD_S, BACK_S = 15.0, 60.0
PROGRAM = """
import ctypes, time
from mpi4py import MPI
world = MPI.COMM_WORLD
step = ctypes.CDLL(None).fabric_track_step
mine, total = bytearray(65536), bytearray(65536)
for n in range(1, 10_000_000):
    world.Allreduce(mine, total)
    step(ctypes.c_uint64(n))
    time.sleep(0.01)
"""
SCRIPT = f"""#!/bin/bash
export LD_PRELOAD={ROOT}/build/state/libfabrictrack.so OMPI_MCA_mpi_yield_when_idle=1
export OMPI_MCA_btl_tcp_if_include=r0,r1 OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,tcp
srun --mpi=pmix {ROOT}/.venv/bin/python -c '{PROGRAM}'
"""


def where(lab: Lab, job: int) -> dict:
    argv = ["fabricctl", "job", "where", str(job), "--json"]
    done = lab.exec("n1", argv, user="alice", check=False)
    return json.loads(done.stdout) if done.returncode == 0 and done.stdout else {"ranks": []}


def wait_moving(lab: Lab, job: int) -> None:
    """Until all ranks make steps."""
    end_s = time.monotonic() + BACK_S
    while True:
        before = {rank["rank"]: rank["iteration"] or 0 for rank in where(lab, job)["ranks"]}
        now = {rank["rank"]: rank["iteration"] or 0 for rank in where(lab, job)["ranks"]}
        if len(now) == len(NODES) and all(now[r] > before.get(r, now[r]) for r in now):
            return
        if time.monotonic() > end_s:
            raise SystemExit(f"the ranks do not go on: {where(lab, job)}")


def cut(lab: Lab, job: int, node: str) -> dict[str, object]:
    """One node's cables; what was said of it."""
    for rail in ("r0", "r1"):
        lab.fault("cut", node, rail)
    end_s = time.monotonic() + TOLD_S
    found: dict = {}
    while time.monotonic() < end_s:
        found = where(lab, job).get("verdict", {})
        if found.get("hard"):
            break
    lab.heal_all()
    right = bool(found.get("hard")) and (found["kind"], found["node"]) == ("link", node)
    return {"right": right, "text": found.get("text", "")}


def waited(lab: Lab, job: int) -> list[float]:
    """How long ranks had waited when agents told of a dead link."""
    lab.exec("ctl", ["scancel", str(job)])
    path = lab.paths.shared / "traces" / "alice" / f"job-{job}.h5"
    end_s = time.monotonic() + BACK_S
    while not path.exists():
        if time.monotonic() > end_s:
            raise SystemExit("no trace")
        time.sleep(0.2)
    with open_trace(path) as trace:
        rows = [row for key in trace.nodes for row in trace.table(key, schema.STALL)]
    return [(int(r[0]) - int(r[5])) / 1e9 for r in rows if r[2] == schema.StallKind.LINK]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuts", type=int, default=8, help="in all, with --json")
    parser.add_argument("--json", type=Path, help="what was found so far")
    parser.add_argument("--limit", type=float, default=1e9, help="nothing is cut after it, seconds")
    parser.add_argument("--name", default=os.environ.get("FABRICCTL_LAB", "bench-stalls-link"))
    options = parser.parse_args()
    end_s = time.monotonic() + options.limit
    found: dict[str, list] = {"cuts": [], "waited": []}
    if options.json is not None and options.json.exists():
        found = json.loads(options.json.read_text())
    rng = random.Random(len(found["cuts"]))
    lab = Lab(LabSpec(name=options.name, nodes=4))
    lab.up()
    try:
        argv = ["sbatch", "--parsable", "--fabric-resilience", "-p", "all", "-N4", "-n4"]
        job = int(lab.exec("ctl", argv, user="alice", input=SCRIPT).stdout)
        while len(found["cuts"]) < options.cuts and time.monotonic() < end_s:
            wait_moving(lab, job)
            found["cuts"].append(cut(lab, job, rng.choice(NODES)))
            print(found["cuts"][-1], flush=True)
        found["waited"] += waited(lab, job)
    finally:
        lab.down()
    if options.json is not None:
        options.json.write_text(json.dumps(found))
    share = sum(one["right"] for one in found["cuts"]) / len(found["cuts"])
    soon = sum(one <= HARD_S for one in found["waited"]) / max(1, len(found["waited"]))
    print(f"{len(found['cuts'])} nodes without rails: {100 * share:.1f} % right (goal "
          f"{100 * GOAL:g} %), told after {statistics.median(found['waited']):.2f} s of waiting "
          f"(median)")  # fmt: skip
    print(f"within {HARD_S:g} s: {100 * soon:.0f} %; load {os.getloadavg()[0]:.1f}")
    return 0 if share >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
