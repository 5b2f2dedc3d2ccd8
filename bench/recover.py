"""From the death of a node to the first step on a spare, beside a clean launch.

Jobs of four ranks with as many spares as nodes are to die, a checkpoint every step, and every tenth
in a directory of the shared file system as well. Power is taken from a node with a rank at a random
step, again and again. By the road `place` all ranks start again, by `live` the others run on. Told
are the time until the first step after it, which steps were done twice, what was read of the files
on the shared file system meanwhile, and whether the result is the unbroken run's.

With --gap a node dies every so many seconds instead, in one job with a checkpoint a second, and the
report's ETTR is told; with --json of all such jobs together.
What --json holds is kept: a run of --limit seconds adds to it.

    python -m bench.recover [--road live] [--kills 8] [--json FILE] [--limit 200]     (root)
    python -m bench.recover --road live --kills 10 --gap 60
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

from bench.needs import need
from bench.reads import Reads
from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec

ROOT = Path(__file__).parents[1]
RANKS = 4
STEPS_A_KILL = 80
BY_TIME = "--steps 1000000 --pause 0.1 --every 10"
WAIT_S = 90.0
LAUNCH_S = 240.0  # at most: many processes import torch on two cores
# Beyond a clean launch, or from the death on.
GOALS_S = {"place": 2.0, "live": 1.0}
GOAL_ETTR = 0.95
PYTHON = f"{ROOT}/.venv/bin/python {ROOT}/examples"
PROGRAMS = {
    "place": f"{PYTHON}/stencil.py --cells 4096",
    "live": f"--live {PYTHON}/train_torch.py --width 32",
}
NEEDS = {"place": ("mpi4py",), "live": ("torch",)}
HEAD = "#!/bin/bash\nexport OMPI_MCA_mpi_yield_when_idle=1 OMP_NUM_THREADS=1\n"


class Round:
    """One job."""

    def __init__(self, lab: Lab, road: str, spares: int, size: str) -> None:
        script = (
            f"{HEAD}date +began\\ at\\ %s.%N\nfabricctl run --spares {spares} {PROGRAMS[road]} "
            f"{size} --say 1 --shared saved.$SLURM_JOB_ID\nprintf '\\nexit status %s\\n' $?\n"
        )
        argv = ["sbatch", "--parsable", "--fabric-resilience", "--no-kill", "-p", "all"]
        argv += [f"-N{RANKS + spares}", f"-n{RANKS + spares}", "-o", "recover-%j.out"]
        done = lab.exec("ctl", argv, user="alice", input=script)
        self.lab, self.job = lab, int(done.stdout)
        self.path = lab.paths.shared / "home" / "alice" / f"recover-{self.job}.out"

    def output(self) -> str:
        return self.path.read_text() if self.path.exists() else ""

    def nodes(self) -> list[str]:
        """Those with ranks, but for the job script's; waited for until all ranks are told of."""
        argv = ["fabricctl", "job", "where", str(self.job), "--json"]
        end = time.monotonic() + WAIT_S
        while True:
            done = self.lab.exec("n1", argv, user="alice", check=False)
            ranks = json.loads(done.stdout)["ranks"] if done.returncode == 0 else []
            if len(ranks) == RANKS:
                return [rank["node"] for rank in ranks if rank["node"] != "n1"]
            if time.monotonic() > end:
                raise SystemExit(f"{len(ranks)} of {RANKS} ranks are told of:\n{done.stderr}")
            time.sleep(0.2)

    def wait(self, good: str, count: int = 1, timeout_s: float = WAIT_S) -> str:
        end = time.monotonic() + timeout_s
        while len(re.findall(good, text := self.output(), re.MULTILINE)) < count:
            if time.monotonic() > end:
                raise SystemExit(f"{good!r} did not come:\n{text[-4000:]}")
            time.sleep(0.02)
        return text

    def wait_step(self, step: int) -> int:
        """Until that one or a later one was told; which."""
        end = time.monotonic() + WAIT_S
        while not (told := steps_told(self.output())) or told[-1] < step:
            if time.monotonic() > end:
                raise SystemExit(f"step {step} did not come:\n{self.output()[-4000:]}")
            time.sleep(0.02)
        return told[-1]

    def kill(self, nth: int, node: str) -> dict[str, float]:
        """The job's nth death."""
        with Reads(self.path.parent, ".part") as reads:
            died_s = time.time()
            self.lab.fault("power-off", node)
            text = self.wait("^first step done", nth + 1)
        return {
            "took_s": stamps(text)[nth] - died_s,
            "repeated": repeated(text)[nth - 1],
            "read_bytes": reads.bytes,
        }

    def finish(self) -> str:
        """The hash of what came out."""
        text = self.wait("^exit status")
        if "exit status 0" not in text:
            raise SystemExit(text[-4000:])
        return re.findall(r"(?:ring|weights) ([0-9a-f]+)", text)[-1]


def stamps(text: str) -> list[float]:
    return [float(at) for at in re.findall(r"first step done at ([\d.]+)", text)]


def steps_told(text: str) -> list[int]:
    return [int(step) for step in re.findall(r"^at step (\d+)$", text, re.MULTILINE)]


def repeated(text: str) -> list[int]:
    """For each start after the first how many steps that had been told came before it again."""
    begins = list(re.finditer(r"^from step (\d+)$", text, re.MULTILINE))
    return [
        max(0, max(steps_told(text[: begin.start()]), default=0) - int(begin[1]))
        for begin in begins[1:]
    ]


def one_job(
    lab: Lab, options: argparse.Namespace, kills: int, rng: random.Random
) -> dict[str, object]:
    """One that loses so many nodes at random steps; 0: the unbroken run."""
    lab.up()
    steps = options.spares * STEPS_A_KILL + 40
    run = Round(lab, options.road, options.spares, f"--steps {steps} --pause 0.02 --every 1")
    text = run.wait("^first step done", timeout_s=LAUNCH_S)
    began = re.search(r"began at ([\d.]+)", text)
    assert began is not None
    launch_s = stamps(text)[0] - float(began.group(1))
    found = []
    for nth in range(1, kills + 1):
        at = run.wait_step(0)  # "first step done" is said before the first step is told
        node = rng.choice(run.nodes())
        run.wait_step(at + rng.randrange(20, STEPS_A_KILL - 20))
        found.append(run.kill(nth, node))
    return {"launch_s": launch_s, "kills": found, "hash": run.finish(), "load": os.getloadavg()[0]}


def told(jobs: list[dict], road: str) -> bool:
    """Says what was found; whether the goals are met."""
    kills = [kill for job in jobs for kill in job["kills"]]
    if not kills:
        print("nothing was killed yet")
        return False
    launch = statistics.median(job["launch_s"] for job in jobs)
    took = [kill["took_s"] for kill in kills]
    median, goal = statistics.median(took), GOALS_S[road]
    beyond = median - launch if road == "place" else median
    most, read = max(kill["repeated"] for kill in kills), sum(kill["read_bytes"] for kill in kills)
    hashes = {job["hash"] for job in jobs}
    loads = sorted(job["load"] for job in jobs)
    print(f"{len(kills)} nodes killed in {len(jobs)} jobs; road: {road}; "
          f"load {loads[0]:.1f} to {loads[-1]:.1f}")  # fmt: skip
    print(f"clean launch to its first step:  {launch:6.2f} s median")
    print(f"death to the first step after:   {median:6.2f} s median, {max(took):.2f} s at worst")
    print(f"the road's goal:                 {beyond:6.2f} s of {goal:g}")
    print(f"steps repeated:                  {most:6d} at most (goal 1)")
    print(f"read of the shared file system:  {read:6d} bytes (goal 0)")
    print(f"results:                         {len(hashes):6d} different (goal 1)")
    return beyond <= goal and most <= 1 and read == 0 and len(hashes) == 1


def by_time(lab: Lab, options: argparse.Namespace) -> dict[str, object]:
    """A death every --gap seconds in one job, and how much of its time counted."""
    run = Round(lab, options.road, options.spares, BY_TIME)
    run.wait("^first step done", timeout_s=LAUNCH_S)
    begin_s = time.monotonic()
    took = []
    for nth in range(1, options.kills + 1):
        due_s = begin_s + (nth - 0.7) * options.gap
        nodes = run.nodes()
        time.sleep(max(0.0, due_s - time.monotonic()))
        took.append(run.kill(nth, nodes[nth % len(nodes)])["took_s"])
        print(f"kill {nth}: first step after {took[-1]:.2f} s", flush=True)
    time.sleep(max(0.0, begin_s + options.kills * options.gap - time.monotonic()))
    lab.exec("n1", ["fabricctl", "job", "halt", str(run.job), "--after-checkpoint"], user="alice")
    run.wait("^exit status")
    trace = f"/shared/traces/alice/job-{run.job}.h5"
    end_s = time.monotonic() + 60
    while lab.exec("ctl", ["test", "-e", trace], check=False).returncode:
        if time.monotonic() > end_s:
            raise SystemExit("no trace")
        time.sleep(0.2)
    argv = ["fabricctl", "report", str(run.job), "--json"]  # people are told the first findings
    said = lab.exec("ctl", argv, user="alice").stdout
    found = re.search(r"ETTR ([\d.]+)[^\"]*", said)
    if found is None:
        raise SystemExit(said)
    print(f"the report: {found[0]}")
    seconds = time.monotonic() - begin_s
    return {"ettr": float(found[1]), "s": seconds, "took": took, "load": os.getloadavg()[0]}


def told_by_time(jobs: list[dict], options: argparse.Namespace) -> bool:
    took = [one for job in jobs for one in job["took"]]
    ettr = sum(job["ettr"] * job["s"] for job in jobs) / sum(job["s"] for job in jobs)
    loads = sorted(job["load"] for job in jobs)
    print(f"{len(took)} nodes killed, one each {options.gap:g} s; road: {options.road}; "
          f"load {loads[0]:.1f} to {loads[-1]:.1f}")  # fmt: skip
    print(f"death to the first step after: {statistics.median(took):.2f} s median, "
          f"{max(took):.2f} s at worst")  # fmt: skip
    print(f"ETTR by the report: {ettr:.3f} (goal {GOAL_ETTR:g}), {len(jobs)} jobs")
    return ettr >= GOAL_ETTR


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=8, help="at most; in all, with --json")
    parser.add_argument("--spares", type=int, default=4, help="of a job: so many nodes die in it")
    parser.add_argument("--road", choices=list(GOALS_S), default="place")
    parser.add_argument("--gap", type=float, default=0.0, help="seconds between deaths")
    parser.add_argument("--json", type=Path, help="what was found so far")
    parser.add_argument(
        "--limit", type=float, default=1e9, help="no job is begun after it, seconds"
    )
    parser.add_argument("--name", default=os.environ.get("FABRICCTL_LAB", "bench-recover"))
    options = parser.parse_args()
    need(*NEEDS[options.road], extra="dev" if options.road == "place" else "torch")
    end_s = time.monotonic() + options.limit
    if options.gap:
        options.spares = options.kills
    jobs: list[dict] = []
    if options.json is not None and options.json.exists():
        jobs = json.loads(options.json.read_text())
    rng = random.Random(len(jobs))
    lab = Lab(LabSpec(name=options.name, nodes=RANKS + options.spares))
    lab.up()
    try:
        if options.gap:
            jobs.append(by_time(lab, options))
            if options.json is not None:
                options.json.write_text(json.dumps(jobs))
            return 0 if told_by_time(jobs, options) else 1
        while time.monotonic() < end_s:
            left = options.kills - sum(len(job["kills"]) for job in jobs)
            if left <= 0:
                break
            jobs.append(one_job(lab, options, min(left, options.spares) if jobs else 0, rng))
            if options.json is not None:
                options.json.write_text(json.dumps(jobs))
            print(f"{sum(len(job['kills']) for job in jobs)} so far", flush=True)
    finally:
        lab.down()
    return 0 if told(jobs, options.road) else 1


if __name__ == "__main__":
    sys.exit(main())
