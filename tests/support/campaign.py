"""Jobs of several users and mischief from one pair of dice, and what nodes look like afterwards."""

import contextlib
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fabricctl.errors import LabError
from fabricctl.lab.cluster import Lab

ROOT = Path(__file__).parents[2]
USERS = ("alice", "bob", "carol")
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@dataclass
class Submitted:
    """One Slurm job and how it must end."""

    job: int
    user: str
    kind: str
    states: tuple[str, ...] = ("COMPLETED",)
    protected: bool = True
    requeued: bool = False


@dataclass
class Campaign:
    """The mischief and how it is undone; subclasses have jobs, and choose."""

    lab: Lab
    rng: random.Random
    jobs: list[Submitted] = field(default_factory=list)
    later: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    done: list[str] = field(default_factory=list)  # what mischief was made

    # Jobs

    def sbatch(self, user: str, body: str, *options: str, flag: bool = True) -> int:
        mode = self.rng.choice(("", "=on", "=observe"))
        flags = [f"--fabric-resilience{mode}"] if flag else []
        argv = ["sbatch", "--parsable", "-o", "/dev/null", *flags, *options]
        return int(self.lab.run(argv, user=user, input=f"#!/bin/bash\n{body}\n").stdout)

    def add(self, job: int, user: str, kind: str, *states: str, **other: bool) -> None:
        self.jobs.append(Submitted(job, user, kind, states or ("COMPLETED",), **other))

    # Mischief

    def kill_agent(self, node: str) -> None:
        argv = ["pkill", "-9", "-x", "fabric-agent"]
        self.lab.exec(node, [*argv, self.rng.choice(("-n", "-o"))], check=False)

    def kill_service(self, node: str) -> None:
        self.lab.exec(node, ["pkill", "-9", "-o", "-f", "fabricctl.node.service"], check=False)

    def kill_sealer(self, node: str) -> None:
        self.lab.exec(node, ["pkill", "-9", "-f", "fabricctl.node.sealer"], check=False)

    def fill_spool(self, node: str) -> None:
        self.fault(self.rng.uniform(1, 5), "disk-full", node, "spool")

    def fill_shared(self, _node: str) -> None:
        self.fault(self.rng.uniform(1, 4), "shared-full")

    def cut(self, node: str) -> None:
        self.fault(self.rng.uniform(0.2, 3), "cut", node, self.rng.choice(("r0", "r1")))

    def freeze_service(self, node: str) -> None:
        self.fault(self.rng.uniform(1, 4), "stop", node, "fabricctl.node.service")

    def break_config(self, node: str) -> None:
        path = self.lab.host_path(node, "/etc/fabricctl.toml")
        good = path.read_text()
        if "broken" in good:
            return
        path.write_text("[nodes]\nbroken = yes\n")
        self.kill_service(node)
        self.after(self.rng.uniform(1, 4), lambda: path.write_text(good))

    def fault(self, for_s: float, kind: str, *target: str, **options: Any) -> None:
        with contextlib.suppress(LabError):  # the same is in force already
            self.lab.fault(kind, *target, **options)
            self.after(for_s, lambda: self.lab.heal(kind, *target))

    # Time

    def after(self, seconds: float, do: Callable[[], object]) -> None:
        self.later.append((time.monotonic() + seconds, do))

    def turn(self) -> None:
        """Does what has come due."""
        now_s = time.monotonic()
        due = [do for at_s, do in self.later if at_s <= now_s]
        self.later = [(at_s, do) for at_s, do in self.later if at_s > now_s]
        for do in due:
            with contextlib.suppress(LabError, subprocess.TimeoutExpired):
                do()

    def states(self) -> dict[int, str]:
        argv = ["squeue", "-h", "-r", "-t", "all", "-o", "%A|%T"]
        lines = self.lab.run(argv, user="alice").stdout.splitlines()
        return {int(job): state for job, _, state in (line.partition("|") for line in lines)}

    def state(self, job: int) -> str:
        return self.states().get(job, "")


def drop_those_that_never_began(campaign: Campaign) -> None:
    """Cancelled while they waited for nodes: there is nothing to record."""
    argv = ["squeue", "-h", "-r", "-t", "CANCELLED", "-o", "%A|%N"]
    lines = campaign.lab.run(argv, user="alice").stdout.splitlines()
    never = {int(line.split("|")[0]) for line in lines if line.endswith("|")}
    campaign.jobs = [item for item in campaign.jobs if item.job not in never]


def said_of(lab: Lab, node: str, job: int) -> list[str]:
    """What the node's log has about a job."""
    pattern = rf"(job={job}[: ]|[ /]{job}\.)"
    argv = ["grep", "-E", pattern, "/var/log/fabricctl.log"]
    return [f"  {node}: {line}" for line in lab.exec(node, argv, check=False).stdout.splitlines()]


def trace_path(lab: Lab, user: str, job: int) -> Path:
    return lab.host_path("ctl", f"/shared/traces/{user}/job-{job}.h5")


def quiet(lab: Lab, node: str) -> dict[str, set[str]]:
    """What a job of ours could leave on a node."""

    def lines(*argv: str) -> set[str]:
        return set(lab.exec(node, list(argv), check=False).stdout.splitlines())

    places = ("/run/fabricctl", "/var/spool/fabricctl", "/dev/shm", "/tmp")
    processes = lines("ps", "-eo", "comm,args")
    ours = ("fabric-agent", "fabric-keeper", "sealer", "pathd", "slurmstepd")
    first_use = {"/run/fabricctl/paths", "/run/fabricctl/paths/lock"}  # the service's own, to stay
    return {
        # A checkout below /tmp is not what a job left there.
        "files": lines(
            "find", *places, "-path", str(ROOT), "-prune", "-o", "-not", "-name", ".*", "-print"
        )
        - first_use,
        "processes": {line for line in processes if any(word in line for word in ours)},
        # Link-local ones are the kernel's, and come seconds after a link.
        "routes": {
            line
            for line in lines("ip", "route", "show", "table", "all")
            if "fe80:" not in line and "ff00:" not in line
        },
        "rules": lines("ip", "rule"),
        "nexthops": lines("ip", "nexthop"),
        "mounts": lines("cat", "/proc/self/mounts"),
    }


def settled(lab: Lab, node: str) -> dict[str, set[str]]:
    """:func:`quiet`, once what earlier tests' jobs left to the sealer is in their traces."""
    deadline_s = time.monotonic() + 120
    while True:
        found = quiet(lab, node)
        spools = {file for file in found["files"] if file.startswith("/var/spool/fabricctl/")}
        if not spools and not any("sealer" in line for line in found["processes"]):
            return found
        assert time.monotonic() < deadline_s, (node, spools)
        time.sleep(1)


def what_was_said(lab: Lab, left: dict[str, set[str]]) -> str:
    """By all nodes' services, agents and sealers: of the jobs that left something, and errors."""
    jobs = {Path(file).name.split(".")[0] for file in left.get("files", ())}
    pattern = "|".join(rf"\b{job}\.|job={job}\b" for job in jobs if job.isdigit()) or "."
    said = []
    for node in lab.spec.compute_nodes:
        argv = ["grep", "-E", f"{pattern}|ERROR", "/var/log/fabricctl.log"]
        lines = lab.exec(node, argv, check=False).stdout.splitlines()
        said += [f"{node}: {line[:300]}" for line in lines[-40:]]
    return "\n".join(said)


def wait_same(lab: Lab, node: str, before: dict[str, set[str]]) -> None:
    # A spool that was refused six times while disks were full is tried again after 120 s.
    deadline_s = time.monotonic() + 240
    while (after := quiet(lab, node)) != before:
        left = {key: after[key] ^ before[key] for key in after if after[key] != before[key]}
        if time.monotonic() >= deadline_s:
            raise AssertionError(f"{what_was_said(lab, left)}\n{node}: {left}")
        time.sleep(1)
