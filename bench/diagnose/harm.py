"""Brings a lab up, runs MPI or PyTorch jobs of four ranks in observe mode (nothing repairs what is
broken), harms them, and keeps traces and truth.

    python -m bench.diagnose.harm --keep DIR [--seed 1] [--faults 16] [--healthy 0] [--torch]
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from bench.diagnose.kinds import KINDS, PROGRAM, Harm, Kind, target
from fabricctl.errors import LabError
from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec

ROOT = Path(__file__).resolve().parents[2]
LENGTH_S, BEFORE_S, AFTER_S = 4.0, 9.0, 3.0
PAUSE_S = (5.0, 9.0)  # what waits for TCP's timers goes on late
A_JOB = 7  # cases in one job
ORDERS = "/shared/home/alice/orders"
SCRIPT = """\
#!/bin/bash
export OMPI_MCA_mpi_yield_when_idle=1 LD_PRELOAD={root}/build/state/libfabrictrack.so
export GLOO_SOCKET_IFNAME=r0 FIRST_NODE=$SLURMD_NODENAME
srun --mpi={mpi} {python} {root}/bench/{program} {orders} --seconds {seconds} {more}
"""
BEGIN_S = 120  # until all ranks compute: four that import torch on two cores
# What a node does beside the job: a daemon that computes, a copy over a rail, services that end.
HOG = "import time; end = time.monotonic() + {s}\nwhile time.monotonic() < end: sum(range(9999))"
COPY = """\
import socket, time
end = time.monotonic() + {s}
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
    while time.monotonic() < end:
        for _ in range(40): out.sendto(bytes(1400), ("{to}", 9))
        time.sleep(0.005)
"""


class Bench:
    def __init__(self, lab: Lab, chance: random.Random, keep: Path, torch: bool) -> None:
        self.lab, self.chance, self.keep, self.torch = lab, chance, keep, torch
        self.orders = lab.host_path("ctl", ORDERS)

    def submit(self, seconds: float, nodes: int, told: bool) -> int:
        more = [*(["--told"] if told else []), *(["--torch"] if self.torch else [])]
        script = SCRIPT.format(root=ROOT, python=sys.executable, program=PROGRAM, orders=ORDERS,
                               seconds=seconds, more=" ".join(more),
                               mpi="none" if self.torch else "pmix")  # fmt: skip
        argv = ["sbatch", "--parsable", "--fabric-resilience=observe", f"-N{nodes}",
                "--ntasks-per-node=1", "-o/shared/home/alice/job-%j.out"]  # fmt: skip
        return int(self.lab.run(argv, input=script).stdout)

    def wait_running(self, *jobs: int) -> None:
        """Until all ranks of each compute, or it is over."""
        begun = [self.orders / f"begun-{job}" for job in jobs]
        self._until(lambda: all(path.exists() for path in begun), BEGIN_S)

    def _state(self, job: int) -> str:
        done = self.lab.run(["squeue", "-h", "-j", str(job), "-o", "%T"], check=False)
        return done.stdout.strip()

    def _until(self, good: Callable[[], bool], most_s: float) -> None:
        end_s = time.monotonic() + most_s
        while not good() and time.monotonic() < end_s:
            time.sleep(0.3)

    def save(self, job: int, name: str, harms: list[Harm], live: str = "") -> None:
        trace = self.lab.paths.shared / "traces" / "alice" / f"job-{job}.h5"
        self._until(lambda: trace.exists() and not self._missing(trace), 40)
        if not trace.exists():
            print(f"{name}: no trace of job {job}")
            return
        told = (self.lab.paths.shared / f"home/alice/job-{job}.out").read_text()
        truth = {
            "torch": self.torch,
            "harms": [asdict(harm) for harm in harms],
            "program": told,
            "live": [json.loads(line) for line in live.splitlines()],
            "mono_to_real_ns": time.time_ns() - time.monotonic_ns(),
        }
        (self.keep / f"{name}.h5").write_bytes(trace.read_bytes())
        (self.keep / f"{name}.json").write_text(json.dumps(truth))
        print(f"{name}: {', '.join(f'{h.kind} {h.node}' for h in harms) or 'healthy'}", flush=True)

    def _missing(self, trace: Path) -> str:
        from fabricctl.store.trace import open_trace

        with open_trace(trace, partial=True) as opened:
            return ",".join(set(opened.job.nodes) - {i.node for i in opened.nodes.values()})

    # Faults ----------------------------------------------------------------------------------

    def cases(self) -> Iterator[list[tuple[str, str]]]:
        """Every kind in turn, alone and, every third time, with another somewhere else."""
        names = list(KINDS)
        while True:
            self.chance.shuffle(names)
            for nth, name in enumerate(names):
                there = self.chance.sample(["n1", "n2", "n3", "n4"], 2)
                case = [(name, there[0])]
                if nth % 3 == 2 and not KINDS[name].alone:
                    other = self.chance.choice([one for one in names if _unlike(one, name)])
                    case.append((other, there[1]))
                yield case

    def job_of_faults(self, cases: list[list[tuple[str, str]]], name: str, told: bool) -> None:
        seconds = BEFORE_S + len(cases) * (LENGTH_S + sum(PAUSE_S) / 2 + 0.5) + AFTER_S
        job = self.submit(seconds, 4, told)
        self.wait_running(job)
        if not (self.orders / f"begun-{job}").exists():
            raise LabError(f"{name}: the program of job {job} did not begin")
        follower = self._follow(job)
        time.sleep(BEFORE_S)
        harms: list[Harm] = []
        for case in cases:
            begun = []
            for kind, node in case:
                begun.append((kind, node, self._begin(KINDS[kind], node)))
            time.sleep(LENGTH_S)
            for kind, node, begin_ns in begun:
                harms.append(Harm(kind, node, begin_ns, self._end(KINDS[kind], node)))
            time.sleep(self.chance.uniform(*PAUSE_S))
        self._until(lambda: not self._state(job), 40)
        follower.terminate()
        self.save(job, name, harms, follower.communicate()[0])

    def _follow(self, job: int) -> "subprocess.Popen[str]":
        """What a user on a node of the job would see meanwhile."""
        argv = ["fabricctl", "report", str(job), "--follow", "--json"]
        words = self.lab.exec_argv("n1", argv, user="alice")
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    def _begin(self, kind: Kind, node: str) -> int:
        if kind.fault in ("late", "checkpoint"):
            self._order(kind, node).touch()
            return time.time_ns()
        begun = self.lab.fault(kind.fault, *target(kind, node), **kind.options)  # type: ignore[arg-type]
        return begun.real_ns

    def _end(self, kind: Kind, node: str) -> int:
        if kind.fault in ("late", "checkpoint"):
            self._order(kind, node).unlink()
            return time.time_ns()
        return self.lab.heal(kind.fault, *target(kind, node)).real_ns

    def _order(self, kind: Kind, node: str) -> Path:
        return self.orders / (f"late-{node}" if kind.fault == "late" else "checkpoint")

    # Healthy ---------------------------------------------------------------------------------

    def healthy(self, pair: int, seconds: float = 16) -> None:
        """Two jobs of two nodes side by side, with what machines do beside."""
        jobs = [self.submit(seconds, 2, bool((pair + nth) % 2)) for nth in (0, 1)]
        self.wait_running(*jobs)
        for _ in range(6):
            time.sleep(seconds / 8)
            node = f"n{self.chance.randint(1, 4)}"
            noise = self.chance.choice(("hog", "copy", "copy", "quiet"))
            text = HOG if noise == "hog" else COPY
            if noise != "quiet":
                to = f"10.78.0.{self.chance.randint(11, 14)}"
                code = text.format(s=round(self.chance.uniform(0.1, 0.8), 2), to=to)
                self.lab.exec(node, [sys.executable, "-c", code], check=False)
        self._until(lambda: not any(self._state(job) for job in jobs), 40)
        for nth, job in enumerate(jobs):
            self.save(job, f"healthy-{pair}-{nth}", [])


def _unlike(one: str, other: str) -> bool:
    """Both can be in force at once on two nodes, and each can be seen beside the other."""
    a, b = KINDS[one], KINDS[other]
    whole = ("all", "rail")
    if a.alone or b.alone or (a.place in whole and b.place in whole):
        return False
    if {a.place, b.place} == {"link", "rail"}:
        return False  # a link is not missed where its switch is dead
    return not set(a.causes) & set(b.causes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, required=True, help="Traces and truth go there.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=0, help="Cases of one fault, or of two.")
    parser.add_argument("--healthy", type=int, default=0, help="Pairs of healthy jobs.")
    parser.add_argument(
        "--name", default=os.environ.get("FABRICCTL_LAB", "bench-diagnose"), help="Of the lab."
    )
    parser.add_argument("--torch", action="store_true", help="PyTorch's jobs, not MPI's.")
    parser.add_argument("--most-s", type=float, default=200, help="No new job after so long.")
    given = parser.parse_args()
    given.keep.mkdir(parents=True, exist_ok=True)
    lab = Lab(LabSpec(name=given.name, nodes=5))
    try:
        lab.up()
        end_s = time.monotonic() + given.most_s
        bench = Bench(lab, random.Random(given.seed), given.keep, given.torch)
        bench.orders.mkdir(mode=0o777)
        bench.orders.chmod(0o777)  # the job's user writes there
        cases = bench.cases()
        for nth, first in enumerate(range(0, given.faults, A_JOB)):
            some = [next(cases) for _ in range(min(A_JOB, given.faults - first))]
            if nth and time.monotonic() + len(some) * 11.5 + 20 > end_s:
                print("no time for another job")
                break
            bench.job_of_faults(some, f"faults-{given.seed}-{nth}", told=bool(nth % 2))
        for pair in range(given.healthy):
            if pair and time.monotonic() + 26 > end_s:
                break
            bench.healthy(given.seed * 100 + pair)
    except LabError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        lab.down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
