"""Stall of running traffic when a link fails: ours, kernel MPTCP, MPI libraries as they come, TCP.

    bench/failover.py [--faults cut,blackhole] [--systems ours,mptcp] [--repeat 3]
                      [--healthy SECONDS] [--json FILE] [--show]

Each run is a fresh job in the lab: traffic for some seconds, the fault, its heal. The stall is the
longest exchange (or MPI iteration) that was under way between fault and heal; all payload is
checked, so a byte lost, doubled or changed ends the run as `broken`. `--healthy` runs traffic with
every core and rail busy and counts moves, which must be none. With --json what was measured is
added to what the file has, so that many runs fit into short ones; --show only prints it. Numbers of
the lab compare systems with each other on one noisy machine; they predict no real network.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec

ROOT = Path(__file__).resolve().parents[1]
NODES = ("n1", "n2", "n3", "n4")
STREAM = ["/usr/bin/python3", str(ROOT / "bench" / "failover_stream.py")]
PORT = 5001

# name: (kind, target, options, seconds until it is healed)
FAULTS: dict[str, tuple[str, tuple[str, ...], dict[str, Any], float]] = {
    "cut": ("cut", ("n2", "r0"), {}, 3.0),
    "blackhole": ("blackhole", ("n2", "r0"), {}, 3.0),
    "blackhole-tx": ("blackhole", ("n2", "r0"), {"direction": "tx"}, 3.0),
    "blackhole-rx": ("blackhole", ("n2", "r0"), {"direction": "rx"}, 3.0),
    "switch-dead": ("switch-dead", ("r0",), {}, 3.0),
    "loss-5": ("loss", ("n2", "r0"), {"percent": 5.0}, 3.0),
    "loss-large": ("loss-large", ("n2", "r0"), {"above": 1000}, 3.0),
    "rate-1": ("rate", ("n2", "r0"), {"rate": "10mbit"}, 3.0),
    "flap-1": ("flap", ("n2", "r0"), {"period_s": 1.0}, 4.0),
    "flap-5": ("flap", ("n2", "r0"), {"period_s": 0.2}, 4.0),
    "flap-20": ("flap", ("n2", "r0"), {"period_s": 0.05}, 4.0),
}


@dataclass(frozen=True)
class System:
    """What carries the traffic. ``python`` empty: a TCP stream; else an MPI job."""

    ours: bool
    python: str = ""
    mpi: str = ""
    env: tuple[str, ...] = ()
    mptcp: bool = False
    nodes: int = 2  # with ranks


_VENV4, _VENV5 = f"{ROOT}/.venv/bin/python", f"{ROOT}/.cache/mpi/openmpi/bin/python"
_MPICH = f"{ROOT}/.cache/mpi/mpich/bin/python"
_RAILS = "OMPI_MCA_btl_tcp_if_include=r0,r1"
SYSTEMS: dict[str, System] = {
    "ours": System(ours=True),
    "mptcp": System(ours=False, mptcp=True),
    "tcp": System(ours=False),
    "ours-openmpi4": System(True, _VENV4, "pmix", ("OMPI_MCA_mpi_yield_when_idle=1",)),
    "openmpi4": System(False, _VENV4, "pmix", ("OMPI_MCA_mpi_yield_when_idle=1", _RAILS)),
    "ours-openmpi5": System(True, _VENV5, "pmix", ("OMPI_MCA_mpi_yield_when_idle=1",)),
    "openmpi5": System(False, _VENV5, "pmix", ("OMPI_MCA_mpi_yield_when_idle=1", _RAILS)),
    "ours-mpich": System(True, _MPICH, "pmi2"),
    "mpich": System(False, _MPICH, "pmi2", ("UCX_NET_DEVICES=r0,r1",)),
}


@dataclass
class Outcome:
    """All runs of one system under one fault."""

    stalls_ms: list[float] = field(default_factory=list)
    quiet_ms: list[float] = field(default_factory=list)  # the longest gap before the fault
    moved_ms: list[float] = field(default_factory=list)
    broken: int = 0
    healthy_s: float = 0.0  # of runs without a fault
    false_moves: int = 0  # in these


def job_script(system: System, seconds: float) -> str:
    lines = ["#!/bin/bash", *(f"export {item}" for item in system.env)]
    if not system.python:
        return "\n".join([*lines, "sleep 600", ""])
    script = f"{ROOT}/bench/failover_mpi.py --seconds {seconds}"
    where = ",".join(NODES[: system.nodes])
    ranks = f"-N{system.nodes} -n{system.nodes} -w {where}"
    lines.append(f"srun {ranks} --mpi={system.mpi} {system.python} {script}")
    return "\n".join([*lines, ""])


class Bench:
    """One lab and the runs in it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def like_real_ports(self) -> None:
        """veth has no queue of its own, and then a port without carrier refuses packets instead
        of swallowing them as every real one does: give it the kernel's usual queue."""
        for node in (*NODES, "n5"):
            for rail in ("r0", "r1"):
                self.lab.exec(node, ["tc", "qdisc", "replace", "dev", rail, "root", "pfifo_fast"])

    def mptcp_endpoints(self) -> None:
        for node in ("n1", "n2"):
            show = self.lab.exec(node, ["ip", "-j", "-4", "address", "show", "r1"]).stdout
            address = json.loads(show)[0]["addr_info"][0]["local"]
            self.lab.exec(node, ["ip", "mptcp", "endpoint", "flush"])
            for words in (
                "limits set subflow 4 add_addr_accepted 4",
                f"endpoint add {address} dev r1 subflow signal",
            ):
                self.lab.exec(node, ["ip", "mptcp", *words.split()])

    @contextlib.contextmanager
    def job(self, system: System, seconds: float) -> Iterator[int]:
        if system.python and not Path(system.python).exists():
            raise SystemExit(f"bench: {system.python} is missing: run tools/bench-mpi")
        flag = ["--fabric-resilience"] if system.ours else []
        argv = ["sbatch", "--parsable", *flag, "-N4", "--ntasks-per-node=1", "-o", "bench-%j.out"]
        done = self.lab.exec("ctl", argv, user="alice", input=job_script(system, seconds))
        number = int(done.stdout)
        try:
            self._wait(number, system)
            yield number
        finally:
            self.lab.exec("ctl", ["scancel", str(number)], check=False)
            for _ in range(200):
                queue = self.lab.exec("ctl", ["squeue", "-h", "-o", "%i"]).stdout.split()
                if str(number) not in queue:
                    break
                time.sleep(0.1)

    def _wait(self, job: int, system: System) -> None:
        for _ in range(300):
            state = self.lab.exec("ctl", ["squeue", "-h", "-j", str(job), "-o", "%T"], check=False)
            there = not system.ours or self._ready(job)
            if state.stdout.strip() == "RUNNING" and there:
                return
            time.sleep(0.05)
        raise SystemExit(f"bench: job {job} did not begin")

    def _ready(self, job: int) -> bool:
        argv = ["grep", "-q", "state=ready", f"/run/fabricctl/paths/{job}/state"]
        return all(self.lab.exec(node, argv, check=False).returncode == 0 for node in NODES)

    def events(self, job: int, kind: str) -> list[tuple[str, dict[str, str]]]:
        found = []
        for node in NODES:
            path = f"/run/fabricctl/paths/{job}/events"
            for line in self.lab.exec(node, ["cat", path], check=False).stdout.splitlines():
                event = dict(part.split("=", 1) for part in line.split(";"))
                if event["event"] == kind:
                    found.append((node, event))
        return found

    @contextlib.contextmanager
    def traffic(self, system: System, job: int, seconds: float) -> Iterator[dict[str, Any]]:
        """Runs until the body is done and the traffic has ended by itself; fills the result."""
        result: dict[str, Any] = {}
        if system.python:
            time.sleep(2.0)  # imports and MPI_Init
            yield result
            result.update(self._mpi_output(job, seconds))
            return
        show = self.lab.exec("n2", ["ip", "-j", "-4", "address", "show", "r0"]).stdout
        to = json.loads(show)[0]["addr_info"][0]["local"]
        more = ["--mptcp"] if system.mptcp else []
        serve = [*STREAM, "serve", to, str(PORT), "--seconds", str(seconds), *more]
        ask = [*STREAM, "ask", to, str(PORT), "--seconds", str(seconds), "--keep", "2000", *more]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            self.lab.exec_argv("n2", serve, user="alice"), stdout=pipe, text=True
        ) as server:
            assert server.stdout is not None
            server.stdout.readline()
            argv = self.lab.exec_argv("n1", ask, user="alice")
            with subprocess.Popen(argv, stdout=pipe, text=True) as client:
                time.sleep(1.0)
                yield result
                said, _ = client.communicate(timeout=seconds + 90)
                with contextlib.suppress(json.JSONDecodeError):
                    result.update(json.loads(said))

    def _mpi_output(self, job: int, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds + 60
        while time.monotonic() < end:
            text = self.lab.exec("ctl", ["cat", f"bench-{job}.out"], user="alice").stdout
            for line in text.splitlines(keepends=True):
                if line.startswith("{") and line.endswith("\n"):
                    return dict(json.loads(line))
            states = self.lab.exec("ctl", ["squeue", "-h", "-j", str(job), "-o", "%T"], check=False)
            if "RUNNING" not in states.stdout and "COMPLETING" not in states.stdout:
                break
            time.sleep(0.2)
        sys.stderr.write(f"bench: job {job}: {text[-300:]}\n")
        return {}

    def run(self, name: str, fault: str, outcome: Outcome) -> None:
        system, (kind, target, options, fault_s) = SYSTEMS[name], FAULTS[fault]
        seconds = fault_s + 4.0
        with self.job(system, seconds) as job, self.traffic(system, job, seconds) as result:
            begin_ns = self.lab.fault(kind, *target, **options).mono_ns
            time.sleep(fault_s)
            end_ns = self.lab.heal(kind, *target).mono_ns
            found = self.events(job, "path") if system.ours else []
        moved = [
            int(event["moved_mono_ns"]) - begin_ns
            for _, event in found
            if int(event["moved_mono_ns"]) > begin_ns and event["level"] != "good"
        ]
        if not result:
            outcome.broken += 1
            return
        outcome.stalls_ms.append(longest(result, begin_ns, end_ns))
        before = [gap for gap in result["longest"] if ended_ns(gap) < begin_ns]
        outcome.quiet_ms.append(max((gap["gap_ns"] / 1e6 for gap in before), default=0.0))
        if moved:
            outcome.moved_ms.append(min(moved) / 1e6)

    def healthy(self, seconds: float) -> list[str]:
        """False moves with every core and rail busy."""
        system = SYSTEMS["ours-openmpi4"]
        with self.job(system, seconds) as job:
            spin = ["timeout", str(seconds), "sh", "-c", "while :; do :; done"]
            hogs = [subprocess.Popen(self.lab.exec_argv(node, spin)) for node in ("n1", "n2")]
            time.sleep(seconds)
            for hog in hogs:
                hog.wait()
            found = self.events(job, "path")
        return [f"{node}: {event}" for node, event in found]


def ended_ns(gap: dict[str, int]) -> int:
    return gap["begin_mono_ns"] + gap["gap_ns"]


def longest(result: dict[str, Any], begin_ns: int, end_ns: int) -> float:
    """Of the exchanges that were under way in between, in ms. The longest ones are kept only."""
    found = [
        gap["gap_ns"] / 1e6
        for gap in result["longest"]
        if gap["begin_mono_ns"] < end_ns and ended_ns(gap) > begin_ns
    ]
    return max(found, default=result["longest"][-1]["gap_ns"] / 1e6)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))] if ordered else 0.0


NUMBERS = ("p50", "p99", "max", "quiet", "moved")


def table(results: dict[tuple[str, str], Outcome]) -> Iterator[str]:
    head = (f"{'fault':14}", f"{'system':14}", "  n", *(f"{word:>8}" for word in NUMBERS))
    yield " ".join([*head, "broken"])
    for (fault, name), outcome in results.items():
        stalls = outcome.stalls_ms
        moved = f"{percentile(outcome.moved_ms, 0.5):8.1f}" if outcome.moved_ms else "       -"
        base = results.get((fault, "mptcp"))
        ratio = ""
        if base and base.stalls_ms and stalls and name != "mptcp":
            share = percentile(base.stalls_ms, 0.5) / max(percentile(stalls, 0.5), 0.001)
            ratio = f"  MPTCP stalls {share:.1f} times as long"
        yield (
            f"{fault:14} {name:14} {len(stalls):3} {percentile(stalls, 0.5):8.1f} "
            f"{percentile(stalls, 0.99):8.1f} {max(stalls, default=0):8.1f} "
            f"{percentile(outcome.quiet_ms, 0.5):8.1f} {moved} "
            f"{outcome.broken:6}{ratio}"
        )


def load(file: Path | None) -> dict[tuple[str, str], Outcome]:
    """What earlier runs measured."""
    if not file or not file.exists():
        return {}
    found = json.loads(file.read_text())
    return {tuple(key.split("/")): Outcome(**value) for key, value in found.items()}


def save(file: Path | None, results: dict[tuple[str, str], Outcome]) -> None:
    if file:
        plain = {f"{fault}/{name}": vars(item) for (fault, name), item in results.items()}
        file.write_text(json.dumps(plain, indent=1))


def show(results: dict[tuple[str, str], Outcome]) -> None:
    healthy = results.pop(("none", "healthy"), None)
    if healthy:
        print(f"healthy for {healthy.healthy_s:g} s under full load: {healthy.false_moves} moves")
    if results:
        print(
            "stall in ms; quiet: median of the longest gap before the fault;\n"
            "moved: median from the fault to the first end that had moved"
        )
        print("\n".join(table(results)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", default="cut,blackhole")
    parser.add_argument("--systems", default="ours,mptcp,tcp,ours-openmpi4,openmpi4")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--healthy", type=float, default=0, metavar="SECONDS")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--name", default=os.environ.get("FABRICCTL_LAB", "bench-failover"))
    parser.add_argument("--show", action="store_true", help="print what the file has, run nothing")
    args = parser.parse_args()
    if args.show:
        show(load(args.json))
        return 0
    subprocess.run(["make", "-s", "-C", str(ROOT / "fabricctl" / "paths")], check=True)
    lab = Lab(LabSpec(name=args.name))
    lab.up()
    bench = Bench(lab)
    results = load(args.json)
    try:
        bench.like_real_ports()
        bench.mptcp_endpoints()
        if args.healthy:
            moves = bench.healthy(args.healthy)
            outcome = results.setdefault(("none", "healthy"), Outcome())
            outcome.healthy_s += args.healthy
            outcome.false_moves += len(moves)
            print("\n".join(moves))
        for fault in filter(None, args.faults.split(",")):
            for turn in range(args.repeat):
                for name in filter(None, args.systems.split(",")):
                    outcome = results.setdefault((fault, name), Outcome())
                    bench.run(name, fault, outcome)
                    save(args.json, results)
                    last = outcome.stalls_ms[-1:] or ["broken"]
                    sys.stderr.write(f"{fault} {name} {turn + 1}/{args.repeat}: {last[0]}\n")
    finally:
        lab.down()
        save(args.json, results)
    show(results)
    return 1 if any(item.broken for (_, name), item in results.items() if "ours" in name) else 0


if __name__ == "__main__":
    sys.exit(main())
