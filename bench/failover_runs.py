"""The lab, the jobs and the traffic of bench/failover.py and bench/soak.py.

Streams of several systems run side by side through the same faults: ours belongs to alice, whose
job is protected, the others to bob, whom nothing is moved for. An MPI library has a job of its own.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.needs import lack
from fabricctl.lab.cluster import Lab

ROOT = Path(__file__).resolve().parents[1]
NODES = ("n1", "n2", "n3", "n4")
STREAM = ["/usr/bin/python3", str(ROOT / "bench" / "failover_stream.py")]
PORT = 5001
KEEP = 20_000  # exchanges that are told, the longest ones
# As slow as a program that computes between its messages: three streams leave the machine room.
PAUSE_S = 0.002
# A rail that failed before is trusted again as soon as one that fails for the first time: each
# fault finds traffic where it strikes.
CONFIG = """
[paths]
hold_s = 0.8
hold_max_s = 0.8
"""


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
class Turn:
    """One fault, CLOCK_MONOTONIC, and what fabric-pathd told: node and event."""

    begin_ns: int
    healed_ns: int
    events: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def moved_ms(self) -> list[float]:
        """Of the streams' two ends, those that left a rail."""
        found: dict[str, float] = {}
        for node, event in self.events:
            ends = {node, event.get("peer")} == {"n1", "n2"}
            moved_ns = int(event.get("moved_mono_ns", 0))
            left = event["event"] == "path" and event["level"] != "good"
            if ends and left and self.begin_ns < moved_ns < self.healed_ns:
                found.setdefault(node, (moved_ns - self.begin_ns) / 1e6)
        return list(found.values())


def job_script(system: System, seconds: float) -> str:
    lines = ["#!/bin/bash", *(f"export {item}" for item in system.env)]
    if not system.python:
        return "\n".join([*lines, "sleep 3600", ""])
    script = f"{ROOT}/bench/failover_mpi.py --seconds {seconds} --keep {KEEP}"
    where = ",".join(NODES[: system.nodes])
    ranks = f"-N{system.nodes} -n{system.nodes} -w {where}"
    lines.append(f"srun -K1 {ranks} --mpi={system.mpi} {system.python} {script}")
    return "\n".join([*lines, ""])


class Bench:
    """One lab and the runs in it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def prepare(self) -> None:
        self.like_real_ports()
        self.mptcp_endpoints()
        toml = self.lab.paths.etc / "fabricctl.toml"
        toml.write_text(toml.read_text() + CONFIG)
        for node in NODES:
            self.lab.fault("kill", node, "fabricctl-node")
            self.lab.heal("kill", node, "fabricctl-node")

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
            lack(f"{system.python} is missing: run tools/bench-mpi")
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
        said = self.lab.exec("ctl", ["cat", f"bench-{job}.out"], user="alice", check=False).stdout
        raise SystemExit(f"bench: job {job} did not begin: {state.stdout.strip()} {said[-300:]}")

    def _ready(self, job: int) -> bool:
        argv = ["grep", "-q", "state=ready", f"/run/fabricctl/paths/{job}/state"]
        return all(self.lab.exec(node, argv, check=False).returncode == 0 for node in NODES)

    def events(self, job: int) -> list[tuple[str, dict[str, str]]]:
        found = []
        for node in NODES:
            path = f"/run/fabricctl/paths/{job}/events"
            for line in self.lab.exec(node, ["cat", path], check=False).stdout.splitlines():
                found.append((node, dict(part.split("=", 1) for part in line.split(";"))))
        return found

    @contextlib.contextmanager
    def streams(self, names: Sequence[str], seconds: float) -> Iterator[dict[str, Any]]:
        """One of each system from n1 to n2's rail r0; fills in what each had by its name."""
        results: dict[str, Any] = {name: {} for name in names}
        show = self.lab.exec("n2", ["ip", "-j", "-4", "address", "show", "r0"]).stdout
        to = json.loads(show)[0]["addr_info"][0]["local"]
        with contextlib.ExitStack() as stack:
            ends = {
                name: self._stream(stack, SYSTEMS[name], to, PORT + number, seconds)
                for number, name in enumerate(names)
            }
            yield results
            for name, (server, client) in ends.items():
                said = [end.communicate(timeout=seconds + 90)[0] for end in (client, server)]
                with contextlib.suppress(json.JSONDecodeError):
                    results[name].update(json.loads(said[0]), waits=json.loads(said[1])["waits"])

    def _stream(
        self, stack: contextlib.ExitStack, system: System, to: str, port: int, seconds: float
    ) -> list[subprocess.Popen[str]]:
        """Both ends, the server first."""
        user = "alice" if system.ours else "bob"
        words = [to, str(port), "--seconds", str(seconds)] + ["--mptcp"] * system.mptcp
        more = ["--keep", str(KEEP), "--pause", str(PAUSE_S)]
        begun = []
        for node, what in (("n2", ["serve", *words]), ("n1", ["ask", *words, *more])):
            argv = self.lab.exec_argv(node, [*STREAM, *what], user=user)
            begun.append(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
            stack.enter_context(begun[-1])
            stack.callback(begun[-1].terminate)
            if node == "n2":
                assert begun[0].stdout is not None
                begun[0].stdout.readline()
        return begun

    @contextlib.contextmanager
    def mpi(self, job: int, seconds: float) -> Iterator[dict[str, Any]]:
        """Runs until the body is done and the ranks have ended by themselves; fills the result."""
        result: dict[str, Any] = {}
        time.sleep(2.0)  # imports and MPI_Init
        yield result
        result.update(self._mpi_output(job, seconds))

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

    def turn(self, fault: tuple[str, tuple[str, ...], dict[str, Any]], fault_s: float) -> Turn:
        kind, target, options = fault
        begin_ns = self.lab.fault(kind, *target, **options).mono_ns
        time.sleep(fault_s)
        return Turn(begin_ns, self.lab.heal(kind, *target).mono_ns)

    def healthy(self, seconds: float) -> list[str]:
        """False moves with every core and rail busy."""
        system = SYSTEMS["ours-openmpi4"]
        with self.job(system, seconds) as job:
            spin = ["timeout", str(seconds), "sh", "-c", "while :; do :; done"]
            hogs = [subprocess.Popen(self.lab.exec_argv(node, spin)) for node in ("n1", "n2")]
            time.sleep(seconds)
            for hog in hogs:
                hog.wait()
            found = [item for item in self.events(job) if item[1]["event"] == "path"]
        return [f"{node}: {event}" for node, event in found]


def ended_ns(gap: dict[str, int]) -> int:
    return gap["begin_mono_ns"] + gap["gap_ns"]


def longest(
    result: dict[str, Any], begin_ns: int, end_ns: int, whole: bool = False
) -> dict[str, int]:
    """Of the exchanges that were under way in between (``whole``: that began and ended there). The
    longest ones are kept only."""
    found = [
        gap
        for gap in result["longest"]
        if gap["begin_mono_ns"] < end_ns
        and ended_ns(gap) > begin_ns
        and not (whole and (gap["begin_mono_ns"] < begin_ns or ended_ns(gap) > end_ns))
    ]
    return max(found, key=lambda gap: gap["gap_ns"], default=result["longest"][-1])


def net_ns(result: dict[str, Any], gap: dict[str, int]) -> int:
    """Less the time that either end was ready to run and had no core."""
    theirs = sum(
        ns for at, ns in result["waits"] if gap["begin_mono_ns"] < at <= ended_ns(gap) + ns
    )
    return max(0, gap["gap_ns"] - gap["waited_ns"] - int(theirs))
