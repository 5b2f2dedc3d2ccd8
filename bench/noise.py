"""What the agents do to an application: fixed work and Allreduce, with them running and held.

In a lab: one rank a node repeats a fixed piece of work (0.1 to 1 ms of arithmetic) and, in turn,
an Allreduce of 8 bytes over all nodes, in jobs that are observed at 1, 10 and 100 Hz. Within each
job all agents are held (SIGSTOP) for HELD_S seconds and let go for RUN_S, in turn, and neighbouring
periods are compared: what differs between jobs, or drifts on the machine, is on both sides. What
agents do in the first SETTLE_S after they were held is not counted: the job clock probes three
times as often there, as at a job's begin. The interval is a bootstrap over pairs of periods.
``--housekeeping CPUS`` keeps the node service and what it starts on these CPUs, as CPUAffinity= in
its unit does where Slurm sets cores aside; the ranks then have the others, one each: with one such
core a single rank works, beside the agents of all nodes, and there is no Allreduce.

    python -m bench.noise [--seconds 240] [--nodes 2] [--rates 1 10 100] [--housekeeping 0]
                          [--json FILE]    (adds to what is in FILE)

One kernel has all nodes of a lab: with fewer cores than ranks and agents the figures are an upper
bound, and the load beside them says how far to trust them.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec

ROOT = Path(__file__).resolve().parents[1]
HELD_S, RUN_S = 8.0, 32.0
SETTLE_S = {"held": 0.3, "run": 22.0}  # after a change, before slots count
GOALS = {1.0: 0.0, 100.0: 0.01}
BOOTSTRAPS = 4000
_TOGGLE = """
for i in $(seq 300); do pids=$(pgrep fabric-agent) && [ -n "$pids" ] && break; sleep 0.1; done
sleep 2
for i in $(seq {turns}); do
  kill -STOP $pids; echo "held $(date +%s.%N)"; sleep {held}
  kill -CONT $pids; echo "run $(date +%s.%N)"; sleep {run}
done
echo "end $(date +%s.%N)"
"""


@dataclass(frozen=True)
class Slot:
    """A tenth of a second of rank 0; times in us, their end in s of CLOCK_REALTIME."""

    end_s: float
    work_us: float
    allreduce_us: float


@dataclass(frozen=True)
class Effect:
    """By how much agents slow something down, with the 95 % interval; shares of the time."""

    rate_hz: float
    what: str
    held_us: float
    slower: float
    low: float
    high: float
    pairs: int
    load: float
    housekeeping: str


def build(lab: Lab) -> str:
    """The program in the lab's shared directory."""
    target = lab.host_path("ctl", "/shared/noise")
    source = ROOT / "bench" / "noise.c"
    subprocess.run(["mpicc", "-O1", "-o", str(target), str(source)], check=True)
    return "/shared/noise"


def set_rate(lab: Lab, rate_hz: float) -> None:
    """The site's rate of samples; services read it when they start."""
    file = lab.paths.etc / "fabricctl.toml"
    own = ("agent.sample_hz", "[partition.main]")
    kept = [line for line in file.read_text().splitlines() if not line.startswith(own)]
    lines = [*kept, "[partition.main]", f"agent.sample_hz = {rate_hz:g}"]
    file.write_text("\n".join(lines) + "\n")
    for node in lab.spec.compute_nodes:
        lab.exec(node, ["pkill", "-TERM", "-f", "fabricctl[.]node[.]service"], check=False)
    free = "flock -n -s /run/fabricctl/node.lock true || exit 0"
    held = f"sleep 0.7; for i in $(seq 200); do {free}; sleep 0.1; done; exit 1"
    for node in lab.spec.compute_nodes:
        lab.exec(node, ["sh", "-c", held], timeout_s=60)


def housekeep(lab: Lab, cpus: str) -> None:
    """As CPUAffinity= of the unit: the service, and what it starts from now on."""
    for node in lab.spec.compute_nodes:
        command = f"pgrep -f fabricctl[.]node[.]service | xargs -n1 taskset -pc {cpus}"
        lab.exec(node, ["sh", "-c", command])


def ranks(options: argparse.Namespace) -> tuple[int, str]:
    """How many, and on which CPUs."""
    others = sorted(set(range(os.cpu_count() or 1)) - set(_cpus(options.housekeeping)))
    count = min(options.nodes, len(others)) if options.housekeeping else options.nodes
    return count, ",".join(map(str, others))


def job(lab: Lab, program: str, options: argparse.Namespace) -> list[Slot]:
    """One observed job's slots, and beside it the agents held and let go; see `_TOGGLE`."""
    seconds, nodes = options.seconds, options.nodes
    count, cpus = ranks(options)
    step = f"srun --mpi=pmix -N{count} -n{count} taskset -c {cpus} {program} {seconds + 8}"
    inner = f"export OMPI_MCA_mpi_yield_when_idle=1; {step}"
    argv = ["sbatch", "-W", "-o", "/shared/home/alice/noise.out", f"-N{nodes}",
            "--ntasks-per-node=1", "--fabric-resilience=observe", "--wrap", inner]  # fmt: skip
    lab.exec("ctl", argv, user="alice", timeout_s=seconds + 90)
    lines = lab.host_path("ctl", "/shared/home/alice/noise.out").read_text().splitlines()
    words = [line.split() for line in lines]
    return [Slot(float(w[0]), float(w[2]), float(w[3])) for w in words if len(w) == 4]


def _cpus(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(",") if text else []:
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def measured(lab: Lab, program: str, options: argparse.Namespace) -> tuple[list[Slot], list[str]]:
    """Slots of one job, and the changes as one of its nodes wrote them down."""
    turns = int(options.seconds / (HELD_S + RUN_S))
    script = _TOGGLE.format(turns=turns, held=HELD_S, run=RUN_S)
    togglers = [
        subprocess.Popen(
            lab.nodes.exec_argv(node, ["bash", "-c", script]), stdout=subprocess.PIPE, text=True
        )
        for node in lab.spec.compute_nodes[: options.nodes]
    ]
    slots = job(lab, program, options)
    said = [toggler.communicate(timeout=60)[0].splitlines() for toggler in togglers]
    return slots, said[0]


def pairs(slots: Sequence[Slot], changes: Sequence[str], what: str) -> list[tuple[float, float]]:
    """Means of a period with agents held and of the next with them running."""
    marks = [(line.split()[0], float(line.split()[1])) for line in changes]
    means: list[tuple[str, float]] = []
    for (state, begin_s), (_, end_s) in itertools.pairwise(marks):
        inside = [getattr(slot, what) for slot in slots
                  if begin_s + SETTLE_S[state] < slot.end_s - 0.1
                  and slot.end_s < end_s]  # fmt: skip
        if len(inside) >= 5:
            means.append((state, statistics.fmean(inside)))
    return [(one, two) for (a, one), (b, two) in itertools.pairwise(means)
            if (a, b) == ("held", "run")]  # fmt: skip


def effect(found: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """The slow-down and its 95 % interval, by bootstrap over pairs."""
    chance = random.Random(7)

    def of(some: Sequence[tuple[float, float]]) -> float:
        return sum(run for _, run in some) / sum(held for held, _ in some) - 1

    drawn = sorted(of(chance.choices(found, k=len(found))) for _ in range(BOOTSTRAPS))
    return of(found), drawn[int(0.025 * BOOTSTRAPS)], drawn[int(0.975 * BOOTSTRAPS)]


def word(one: Effect) -> str:
    """Whether the goal is met, missed, or the interval is too wide to say."""
    goal = GOALS.get(one.rate_hz)
    if goal is None:
        return ""
    if one.high <= max(goal, 0.01) and one.low <= goal:
        return "goal met"
    return "goal missed" if one.low > goal else "interval too wide to say"


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--rates", type=float, nargs="+", default=[1, 10, 100])
    parser.add_argument("--housekeeping", metavar="CPUS", default="")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--name", default=os.environ.get("FABRICCTL_LAB", "bench-noise"))
    options = parser.parse_args()
    before = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    every: list[Effect] = []
    with Lab(LabSpec(name=options.name, nodes=options.nodes + 1)) as lab:
        program = build(lab)
        for rate_hz in options.rates:
            set_rate(lab, rate_hz)
            if options.housekeeping:
                housekeep(lab, options.housekeeping)
            slots, changes = measured(lab, program, options)
            for what in ("work_us", "allreduce_us")[: ranks(options)[0]]:
                found = pairs(slots, changes, what)
                if len(found) < 3:
                    raise SystemExit(f"noise: {len(found)} pairs of periods at {rate_hz:g} Hz")
                held = statistics.fmean(one for one, _ in found)
                every.append(Effect(rate_hz, what, held, *effect(found), len(found),
                                    os.getloadavg()[0], options.housekeeping))  # fmt: skip
    print(f"{options.nodes} nodes, {os.cpu_count()} cores, housekeeping "
          f"{options.housekeeping or 'none'}")  # fmt: skip
    for one in every:
        print(f"{one.what:12} {one.held_us:8.1f} us held; at {one.rate_hz:>3g} Hz "
              f"{one.slower:+.2%} ({one.low:+.2%} to {one.high:+.2%}), {one.pairs} pairs, "
              f"load {one.load:.1f}  {word(one)}")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps([*before, *map(asdict, every)], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
