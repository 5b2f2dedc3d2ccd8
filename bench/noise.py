"""What the agents do to an application: fixed work and Allreduce, with and without protection.

In a lab: one rank a node repeats a fixed piece of work (0.5 ms of arithmetic) and, in turn, an
Allreduce of 8 bytes over all nodes, in jobs without the flag and with it at 1, 10 and 100 Hz, in
random order. What is compared is the mean time of a quantum; the interval is a bootstrap over jobs,
because quanta of one job are not independent. ``--housekeeping CPUS`` keeps the node service and
what it starts on these CPUs, as CPUAffinity= in its unit does where Slurm sets cores aside.

    python -m bench.noise [--rounds 6] [--seconds 5] [--nodes 2] [--housekeeping 0]

One kernel has all nodes of a lab: with fewer cores than ranks and agents the figures are an upper
bound, and the load beside them says how far to trust them.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec

ROOT = Path(__file__).resolve().parents[1]
MODES = ("off", "1", "10", "100")
GOALS = {"1": 0.0, "100": 0.01}
BOOTSTRAPS = 2000


def build(lab: Lab) -> str:
    """The program in the lab's shared directory."""
    target = lab.host_path("ctl", "/shared/noise")
    source = ROOT / "bench" / "noise.c"
    subprocess.run(["mpicc", "-O1", "-o", str(target), str(source)], check=True)
    return "/shared/noise"


def job(lab: Lab, program: str, mode: str, seconds: float, nodes: int) -> dict[str, float]:
    """One job's means."""
    rate = [] if mode == "off" else ["--fabric-resilience=observe"]
    inner = f"export OMPI_MCA_mpi_yield_when_idle=1; srun --mpi=pmix {program} {seconds}"
    argv = ["sbatch", "-W", "-o", "/shared/home/alice/noise.out", f"-N{nodes}",
            "--ntasks-per-node=1", *rate, "--wrap", inner]  # fmt: skip
    lab.exec("ctl", argv, user="alice", timeout_s=120)
    lines = lab.host_path("ctl", "/shared/home/alice/noise.out").read_text().splitlines()
    return dict(json.loads(next(line for line in lines if line.startswith("{"))))


def set_rate(lab: Lab, mode: str) -> None:
    """The site's rate of samples, by its configuration; services read it when they start."""
    file = lab.paths.etc / "fabricctl.toml"
    lines = [line for line in file.read_text().splitlines() if "sample_hz" not in line]
    hz = "1" if mode == "off" else mode
    file.write_text("\n".join([*lines, "[partition.main]", f"agent.sample_hz = {hz}", ""])
                    .replace("[partition.main]\n[partition.main]", "[partition.main]"))  # fmt: skip
    restart(lab)


def restart(lab: Lab) -> None:
    """The nodes' services; their inits start them again."""
    for node in lab.spec.compute_nodes:
        lab.exec(node, ["pkill", "-TERM", "-f", "fabricctl[.]node[.]service"], check=False)
    free = "flock -n -s /run/fabricctl/node.lock true || exit 0"
    held = f"for i in $(seq 200); do {free}; sleep 0.1; done; exit 1"
    for node in lab.spec.compute_nodes:
        lab.exec(node, ["sh", "-c", f"sleep 0.7; {held}"], timeout_s=60)


def housekeep(lab: Lab, cpus: str) -> None:
    """As CPUAffinity= of the unit: the service, and what it starts from now on."""
    for node in lab.spec.compute_nodes:
        command = f"pgrep -f fabricctl[.]node[.]service | xargs -n1 taskset -pc {cpus}"
        lab.exec(node, ["sh", "-c", command])


def interval(with_it: list[float], without: list[float]) -> tuple[float, float, float]:
    """The slow-down and its 95 % interval, by bootstrap over jobs."""
    chance = random.Random(7)
    ratios = sorted(
        statistics.fmean(chance.choices(with_it, k=len(with_it)))
        / statistics.fmean(chance.choices(without, k=len(without))) - 1
        for _ in range(BOOTSTRAPS)
    )  # fmt: skip
    middle = statistics.fmean(with_it) / statistics.fmean(without) - 1
    return middle, ratios[int(0.025 * BOOTSTRAPS)], ratios[int(0.975 * BOOTSTRAPS)]


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--housekeeping", metavar="CPUS", default="")
    parser.add_argument("--name", default=os.environ.get("FABRICCTL_LAB", "bench-noise"))
    options = parser.parse_args()
    means: dict[str, dict[str, list[float]]] = {mode: {} for mode in MODES}
    loads = []
    with Lab(LabSpec(name=options.name, nodes=options.nodes + 1)) as lab:
        program = build(lab)
        for nth in range(options.rounds):
            for mode in random.Random(nth).sample(MODES, len(MODES)):
                set_rate(lab, mode)
                if options.housekeeping:
                    housekeep(lab, options.housekeeping)
                found = job(lab, program, mode, options.seconds, options.nodes)
                loads.append(os.getloadavg()[0])
                for name in ("work_us", "allreduce_us"):
                    means[mode].setdefault(name, []).append(found[name])
    print(f"{options.rounds} jobs of {options.seconds:g} s each, {options.nodes} nodes, load "
          f"{min(loads):.1f} to {max(loads):.1f}, {os.cpu_count()} cores")  # fmt: skip
    for name in ("work_us", "allreduce_us"):
        print(f"{name}: without {statistics.fmean(means['off'][name]):.1f}")
        for mode in MODES[1:]:
            middle, low, high = interval(means[mode][name], means["off"][name])
            goal = GOALS.get(mode)
            word = "" if goal is None else "  goal met" if low <= goal else "  goal missed"
            print(f"  {mode:>3} Hz: slow-down {middle:+.2%} ({low:+.2%} to {high:+.2%}){word}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
