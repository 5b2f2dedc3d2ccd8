"""Rolling maintenance of eight nodes, two out at once, with jobs on them, against the ideal.

The ideal is (nodes / budget) times the command, with nothing between. ``--kills``: the controller
is killed (SIGKILL) so often on the way and started again. Nodes that are out are counted from
Slurm every 100 ms; no job may be lost.
"""

import argparse
import os
import subprocess
import sys
import threading
import time

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec

NODES, BUDGET = 8, 2
EVERY_S = 0.1
KILL_S = 2.5  # from a start to the kill
START = ["fabricctl", "maintenance", "start", "bench", "--poll", "0.5"]


def watch(lab: Lab, stop: threading.Event, seen: list[int]) -> None:
    """How many nodes take no jobs, every 100 ms."""
    ask = ["sinfo", "-h", "-N", "-p", "all", "-t", "drain,down,no_respond", "-o", "%N"]
    next_s = time.monotonic()
    while not stop.is_set():
        done = lab.exec("ctl", ask, check=False)
        if not done.returncode:
            seen.append(len(set(done.stdout.split())))
        next_s = max(next_s + EVERY_S, time.monotonic())
        stop.wait(next_s - time.monotonic())


def carry_out(lab: Lab, kills: int) -> tuple[int, int]:
    """Exit status of the last controller, and how many were killed."""
    killed = 0
    while True:
        made = subprocess.Popen(lab.exec_argv("ctl", START), stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            return made.wait(KILL_S if killed < kills else 240), killed
        except subprocess.TimeoutExpired:
            lab.exec("ctl", ["pkill", "-9", "-f", "maintenance start bench"], check=False)
            made.wait(20)
            killed += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--name", default=os.environ.get("FABRICCTL_LAB", "bench-maintenance"), help="of the lab"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="that the command takes")
    parser.add_argument("--kills", type=int, default=0, help="of the controller")
    given = parser.parse_args()
    with Lab(LabSpec(name=given.name, nodes=NODES)) as lab:
        for _ in range(4):
            lab.run(["sbatch", "-p", "all", "-n1", "--wrap", f"sleep {given.seconds:g}"])
        plan = ["fabricctl", "maintenance", "plan", "bench", "--nodes", f"n[1-{NODES}]",
                "--budget", str(BUDGET), "--", "sleep", f"{given.seconds:g}"]  # fmt: skip
        lab.exec("ctl", plan)
        stop, seen = threading.Event(), list[int]()
        sampler = threading.Thread(target=watch, args=(lab, stop, seen))
        sampler.start()
        begin_s = time.monotonic()
        try:
            status, killed = carry_out(lab, given.kills)
            ours_s = time.monotonic() - begin_s
        finally:
            stop.set()
            sampler.join()
        ended = lab.exec("ctl", ["scontrol", "-o", "show", "job"]).stdout
        kept = ended.count("JobState=COMPLETED")
    ideal_s = NODES / BUDGET * given.seconds
    print(f"{NODES} nodes, {BUDGET} out at once, {given.seconds:g} s each: {ours_s:.2f} s; "
          f"ideal {ideal_s:.2f} s; ratio {ours_s / ideal_s:.3f} (goal 1.15); {killed} kills; "
          f"at most {max(seen)} out in {len(seen)} looks; {kept} of 4 jobs ran to their end; "
          f"status {status}; load {os.getloadavg()[0]:.1f}")  # fmt: skip
    return int(bool(status) or max(seen) > BUDGET or kept < 4)


if __name__ == "__main__":
    sys.exit(main())
