"""Wall time of a rolling maintenance against the ideal: eight nodes, two out at once, jobs on them.

The ideal is (nodes / budget) times the command, with nothing between.
"""

import argparse
import sys
import time

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec

NODES, BUDGET = 8, 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="bench-maintenance", help="of the lab")
    parser.add_argument("--seconds", type=float, default=4.0, help="that the command takes")
    given = parser.parse_args()
    with Lab(LabSpec(name=given.name, nodes=NODES)) as lab:
        for _ in range(4):
            lab.run(["sbatch", "-p", "all", "-n1", "--wrap", f"sleep {given.seconds:g}"])
        plan = ["fabricctl", "maintenance", "plan", "bench", "--nodes", f"n[1-{NODES}]",
                "--budget", str(BUDGET), "--", "sleep", f"{given.seconds:g}"]  # fmt: skip
        lab.exec("ctl", plan)
        begin_s = time.monotonic()
        start = ["fabricctl", "maintenance", "start", "bench", "--poll", "0.5"]
        done = lab.exec("ctl", start, check=False, timeout_s=300)
        ours_s = time.monotonic() - begin_s
        if done.returncode:
            print(done.stdout, done.stderr, file=sys.stderr)
            return 1
    ideal_s = NODES / BUDGET * given.seconds
    print(f"{NODES} nodes, {BUDGET} out at once, {given.seconds:g} s each: {ours_s:.2f} s; "
          f"ideal {ideal_s:.2f} s; ratio {ours_s / ideal_s:.3f} (goal 1.15)")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
