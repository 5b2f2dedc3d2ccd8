"""Mixed jobs of three users while everything of ours is killed, filled, broken and cut at random.

FABRIC_JOBS and FABRIC_SEED choose the size (40) and the dice (1).
"""

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fabricctl.errors import LabError
from fabricctl.lab.cluster import Lab
from fabricctl.store.trace import open_trace

pytestmark = pytest.mark.lab

JOBS = int(os.environ.get("FABRIC_JOBS", "40"))
SEED = int(os.environ.get("FABRIC_SEED", "1"))
NODES = ("n1", "n2", "n3", "n4")
USERS = ("alice", "bob", "carol")


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
    """Jobs and mischief from one pair of dice."""

    lab: Lab
    rng: random.Random
    jobs: list[Submitted] = field(default_factory=list)
    direct: list[tuple[subprocess.Popen[str], str]] = field(default_factory=list)
    later: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    done: list[str] = field(default_factory=list)  # what mischief was made

    # Jobs

    def submit(self) -> None:
        kinds = (
            self.plain, self.steps, self.parallel, self.failing, self.cancelled, self.array,
            self.het, self.srun, self.bare, self.unprotected, self.requeue, self.instant,
        )  # fmt: skip
        self.rng.choice(kinds)(self.rng.choice(USERS))

    def sbatch(self, user: str, body: str, *options: str, flag: bool = True) -> int:
        mode = self.rng.choice(("", "=on", "=observe"))
        flags = [f"--fabric-resilience{mode}"] if flag else []
        argv = ["sbatch", "--parsable", "-o", "/dev/null", *flags, *options]
        return int(self.lab.run(argv, user=user, input=f"#!/bin/bash\n{body}\n").stdout)

    def size(self) -> str:
        return f"-N{self.rng.randint(1, 4)}"

    def add(self, job: int, user: str, kind: str, *states: str, **other: bool) -> None:
        self.jobs.append(Submitted(job, user, kind, states or ("COMPLETED",), **other))

    def plain(self, user: str) -> None:
        seconds = self.rng.uniform(1, 6)
        self.add(self.sbatch(user, f"srun sleep {seconds:.1f}", self.size()), user, "plain")

    def steps(self, user: str) -> None:
        body = "srun true || exit 1; srun sleep 1 || exit 1; srun true"
        self.add(self.sbatch(user, body, self.size()), user, "steps")

    def parallel(self, user: str) -> None:
        body = "srun --overlap -n1 sleep 2 & srun --overlap -n1 sleep 1 & wait"
        self.add(self.sbatch(user, body, self.size()), user, "parallel")

    def failing(self, user: str) -> None:
        self.add(self.sbatch(user, "sleep 1; exit 3", self.size()), user, "failing", "FAILED")

    def cancelled(self, user: str) -> None:
        job = self.sbatch(user, "srun sleep 100", self.size())
        self.add(job, user, "cancelled", "CANCELLED")
        self.after(self.rng.uniform(3, 8), lambda: self.lab.run(["scancel", str(job)], user=user))

    def array(self, user: str) -> None:
        first = self.sbatch(user, "sleep 2", "-N1", "--array=1-3")
        argv = ["squeue", "-h", "-r", "-t", "all", "-j", str(first), "-o", "%A"]
        for job in {int(word) for word in self.lab.run(argv, user=user).stdout.split()} | {first}:
            self.add(job, user, "array")

    def het(self, user: str) -> None:
        body = "#SBATCH -N1\n#SBATCH hetjob\n#SBATCH -N1\nsrun --het-group=0,1 sleep 2"
        self.add(self.sbatch(user, body), user, "het")

    def bare(self, user: str) -> None:
        self.add(self.sbatch(user, "sleep 2", self.size(), "--export=NONE"), user, "export-none")

    def unprotected(self, user: str) -> None:
        job = self.sbatch(user, "srun sleep 2", self.size(), flag=False)
        self.add(job, user, "unprotected", protected=False)

    def instant(self, user: str) -> None:
        self.add(self.sbatch(user, "true", self.size()), user, "instant")

    def requeue(self, user: str) -> None:
        job = self.sbatch(user, "sleep 6", self.size(), "--requeue")
        self.add(job, user, "requeue", requeued=True)

        def again() -> None:
            done = self.lab.exec("ctl", ["scontrol", "requeue", str(job)], check=False)
            if done.returncode == 0:
                self.after(2, now)

        def now() -> None:
            # Slurm makes a requeued batch job wait two minutes.
            argv = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
            if self.lab.exec("ctl", argv, check=False).returncode and self.state(job) == "PENDING":
                self.after(2, now)

        self.after(self.rng.uniform(4, 7), again)

    def srun(self, user: str) -> None:
        argv = ["srun", "--fabric-resilience", self.size(), "sleep", "1"]
        started = subprocess.Popen(
            self.lab.exec_argv("ctl", argv, user=user), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.direct.append((started, user))

    # Mischief

    def harm(self) -> None:
        node = self.rng.choice(NODES)
        what = self.rng.choice(
            (self.kill_agent, self.kill_agent, self.kill_service, self.kill_sealer,
             self.fill_spool, self.fill_shared, self.break_config, self.cut, self.freeze_service)
        )  # fmt: skip
        self.done.append(f"{time.time():.1f} {what.__name__} {node}")
        what(node)

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

    def fault(self, for_s: float, kind: str, *target: str) -> None:
        with contextlib.suppress(LabError):  # the same is in force already
            self.lab.fault(kind, *target)
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
            with contextlib.suppress(LabError):
                do()

    def states(self) -> dict[int, str]:
        argv = ["squeue", "-h", "-r", "-t", "all", "-o", "%A|%T"]
        lines = self.lab.run(argv, user="alice").stdout.splitlines()
        return {int(job): state for job, _, state in (line.partition("|") for line in lines)}

    def state(self, job: int) -> str:
        return self.states().get(job, "")


@pytest.fixture
def campaign(lab: Lab) -> Iterator[Campaign]:
    made = Campaign(lab, random.Random(SEED))
    yield made
    for process, _ in made.direct:
        process.kill()
        process.wait(10)
    for user in USERS:
        lab.exec("ctl", ["scancel", "-u", user], check=False)


def test_nothing_that_happens_to_us_happens_to_the_jobs(campaign: Campaign) -> None:
    lab = campaign.lab
    before = {node: settled(lab, node) for node in NODES}
    for _ in range(JOBS):
        campaign.submit()
        if campaign.rng.random() < 0.5:
            campaign.harm()
        pause_until_s = time.monotonic() + campaign.rng.uniform(0, 1.0)
        while time.monotonic() < pause_until_s or len(active(campaign)) > 25:
            campaign.turn()
            time.sleep(0.1)
    deadline_s = time.monotonic() + 300
    while campaign.later or active(campaign):
        campaign.turn()
        time.sleep(0.3)
        assert time.monotonic() < deadline_s, (active(campaign), campaign.done[-10:])
    lab.heal_all()

    for process, user in campaign.direct:
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, (user, output)
    drop_those_that_never_began(campaign)
    states = campaign.states()
    wrong = [
        (item, states[item.job]) for item in campaign.jobs if states[item.job] not in item.states
    ]
    assert not wrong, campaign.done
    nodes = lab.exec("ctl", ["sinfo", "-N", "-h", "-o", "%N %t %E"]).stdout.splitlines()
    assert all(line.split(maxsplit=2)[2] == "none" for line in nodes), nodes
    for node in NODES:
        wait_same(lab, node, before[node])
    check_records(campaign)


def drop_those_that_never_began(campaign: Campaign) -> None:
    """Cancelled while they waited for nodes: there is nothing to record."""
    argv = ["squeue", "-h", "-r", "-t", "CANCELLED", "-o", "%A|%N"]
    lines = campaign.lab.run(argv, user="alice").stdout.splitlines()
    never = {int(line.split("|")[0]) for line in lines if line.endswith("|")}
    campaign.jobs = [item for item in campaign.jobs if item.job not in never]


def active(campaign: Campaign) -> list[int]:
    known = {item.job for item in campaign.jobs}
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    busy = [job for job, state in campaign.states().items() if state not in over]
    return [job for job in busy if job in known] + [
        0 for process, _ in campaign.direct if process.poll() is None
    ]


def check_records(campaign: Campaign) -> None:
    """Every protected job has its trace, with its nodes in it; no other job has one."""
    problems = []
    for item in campaign.jobs:
        path = trace_path(campaign.lab, item)
        if not item.protected:
            if path.exists():
                problems.append(f"{item}: has a trace")
            continue
        if not path.exists():
            problems.append(f"{item}: no trace")
            continue
        owner = path.stat()
        with open_trace(path) as trace:
            if trace.job.missing_nodes:
                problems.append(f"{item}: without {trace.job.missing_nodes}")
                for node in trace.job.missing_nodes:
                    problems += said_of(campaign.lab, node, item.job)
            if (trace.job.job, trace.job.user) != (item.job, item.user):
                problems.append(f"{item}: is of {trace.job.job}, {trace.job.user}")
            if trace.job.uid != owner.st_uid or owner.st_mode & 0o777 != 0o600:
                problems.append(f"{item}: owned by {owner.st_uid}, mode {owner.st_mode:o}")
    assert not problems, "\n".join([*problems, *campaign.done])


def said_of(lab: Lab, node: str, job: int) -> list[str]:
    """What the node's log has about a job."""
    pattern = rf"(job={job}[: ]|[ /]{job}\.)"
    argv = ["grep", "-E", pattern, "/var/log/fabricctl.log"]
    return [f"  {node}: {line}" for line in lab.exec(node, argv, check=False).stdout.splitlines()]


def trace_path(lab: Lab, item: Submitted) -> Path:
    return lab.host_path("ctl", f"/shared/traces/{item.user}/job-{item.job}.h5")


def quiet(lab: Lab, node: str) -> dict[str, set[str]]:
    """What a job of ours could leave on a node."""

    def lines(*argv: str) -> set[str]:
        return set(lab.exec(node, list(argv), check=False).stdout.splitlines())

    places = ("/run/fabricctl", "/var/spool/fabricctl", "/dev/shm", "/tmp")
    processes = lines("ps", "-eo", "args")
    ours = ("fabric-agent", "sealer", "pathd", "slurmstepd")
    first_use = {"/run/fabricctl/paths", "/run/fabricctl/paths/lock"}  # the service's own, to stay
    return {
        "files": lines("find", *places, "-not", "-name", ".*") - first_use,
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
    for node in NODES:
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
