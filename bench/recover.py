"""From the death of a node to the first step on the spare, beside one clean launch.

A lab of five nodes; each round is a job (four ranks, one spare, a checkpoint every step) in
which a node loses power at a random step. By the road `place` all start again, by `live` the others
run on. No program has a directory on the shared file system, so nothing can be read from there.

    python -m bench.recover [--kills 5] [--road place] [--name bench]     (root)
"""

import argparse
import json
import os
import random
import re
import statistics
import sys
import time
from pathlib import Path

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec

ROOT = Path(__file__).parents[1]
STEPS = 500
# Beyond a clean launch, or from the death on.
GOALS_S = {"place": 2.0, "live": 1.0}
PYTHON = f"{ROOT}/.venv/bin/python {ROOT}/examples"
PROGRAMS = {
    "place": f"--spares 1 {PYTHON}/stencil.py --cells 4096 --every 1",
    "live": f"--spares 1 --live {PYTHON}/train_torch.py --width 32",
}


class Round:
    """One job."""

    def __init__(self, lab: Lab, road: str) -> None:
        script = (
            "#!/bin/bash\nexport OMPI_MCA_mpi_yield_when_idle=1\ndate +began\\ at\\ %s.%N\n"
            f"fabricctl run {PROGRAMS[road]} --steps {STEPS} --pause 0.02\necho exit status $?\n"
        )
        argv = ["sbatch", "--parsable", "--fabric-resilience", "--no-kill", "-p", "all", "-N5"]
        done = lab.exec("ctl", [*argv, "-n5", "-o", "recover-%j.out"], user="alice", input=script)
        self.lab, self.job = lab, int(done.stdout)
        self.path = lab.paths.shared / "home" / "alice" / f"recover-{self.job}.out"

    def output(self) -> str:
        return self.path.read_text() if self.path.exists() else ""

    def step(self) -> int:
        argv = ["fabricctl", "job", "where", str(self.job), "--json"]
        done = self.lab.exec("n1", argv, user="alice", check=False)
        ranks = json.loads(done.stdout)["ranks"] if done.returncode == 0 else []
        return min((rank["iteration"] or 0 for rank in ranks), default=0)

    def wait(self, good: str, count: int = 1, timeout_s: float = 90) -> str:
        end = time.monotonic() + timeout_s
        while len(re.findall(good, text := self.output())) < count:
            if time.monotonic() > end:
                raise SystemExit(f"{good!r} did not come:\n{text}")
            time.sleep(0.05)
        return text


def stamps(text: str) -> list[float]:
    return [float(at) for at in re.findall(r"first step done at ([\d.]+)", text)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--road", choices=list(GOALS_S), default="place")
    parser.add_argument("--name", default="bench")
    options = parser.parse_args()
    rng = random.Random(7)
    lab = Lab(LabSpec(name=options.name))
    lab.up()
    clean, recovered, repeated, rings = [], [], [], set()
    try:
        for _ in range(options.kills):
            lab.heal_all()
            lab.up()
            one = Round(lab, options.road)
            text = one.wait("first step done")
            began = re.search(r"began at ([\d.]+)", text)
            assert began is not None
            clean.append(stamps(text)[0] - float(began.group(1)))
            wanted = rng.randrange(30, 200)
            while (step := one.step()) < wanted:
                time.sleep(0.1)
            died = time.time()
            lab.fault("power-off", rng.choice(["n2", "n3", "n4"]))
            text = one.wait("first step done", 2)
            recovered.append(stamps(text)[1] - died)
            # What was done after we looked is not known here: an upper bound of what is repeated.
            begins = re.findall(r"from step (\d+)", text)
            repeated.append(max(0, step - int(begins[1])))
            text = one.wait("exit status")
            rings.add(re.findall(r"(?:ring|weights) ([0-9a-f]+)", text)[-1])
            lab.exec("ctl", ["scancel", str(one.job)], check=False)
    finally:
        lab.down()
    launch, median = statistics.median(clean), statistics.median(recovered)
    worst = max(recovered)
    beyond = median - launch if options.road == "place" else median
    goal = GOALS_S[options.road]
    print(f"{options.kills} nodes killed, each in a job of its own; road: {options.road}; "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    print(f"clean launch to its first step:  {launch:6.2f} s median")
    print(f"death to the first step after:   {median:6.2f} s median, {worst:.2f} s at worst")
    print(f"beyond a clean launch:           {median - launch:6.2f} s")
    print(f"the road's goal:                 {beyond:6.2f} s of {goal:g}")
    print(f"steps repeated of those seen:    {max(repeated)} at most (goal 1)")
    print(f"results: {len(rings)} different (goal 1)")
    return 0 if beyond <= goal and len(rings) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
