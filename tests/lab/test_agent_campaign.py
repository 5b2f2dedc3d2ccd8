"""Mixed jobs of three users while everything of ours is killed, filled, broken and cut at random.

FABRIC_JOBS and FABRIC_SEED choose the size (40) and the dice (1).
"""

import os
import random
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from fabricctl.lab.cluster import Lab
from fabricctl.store.trace import open_trace
from tests.support.campaign import (
    OVER,
    USERS,
    Campaign,
    drop_those_that_never_began,
    said_of,
    settled,
    trace_path,
    wait_same,
)

pytestmark = pytest.mark.lab

JOBS = int(os.environ.get("FABRIC_JOBS", "40"))
SEED = int(os.environ.get("FABRIC_SEED", "1"))
NODES = ("n1", "n2", "n3", "n4")


@dataclass
class Ours(Campaign):
    """Nothing of Slurm's or of the machine's fails, so nothing at all may happen to a job."""

    direct: list[tuple[subprocess.Popen[str], str]] = field(default_factory=list)

    # Jobs

    def submit(self) -> None:
        kinds = (
            self.plain, self.steps, self.parallel, self.failing, self.cancelled, self.array,
            self.het, self.srun, self.bare, self.unprotected, self.requeue, self.instant,
        )  # fmt: skip
        self.rng.choice(kinds)(self.rng.choice(USERS))

    def size(self) -> str:
        return f"-N{self.rng.randint(1, 4)}"

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


@pytest.fixture
def campaign(lab: Lab) -> Iterator[Ours]:
    made = Ours(lab, random.Random(SEED))
    yield made
    for process, _ in made.direct:
        process.kill()
        process.wait(10)
    for user in USERS:
        lab.exec("ctl", ["scancel", "-u", user], check=False)


def test_nothing_that_happens_to_us_happens_to_the_jobs(campaign: Ours) -> None:
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


def active(campaign: Ours) -> list[int]:
    known = {item.job for item in campaign.jobs}
    busy = [job for job, state in campaign.states().items() if state not in OVER]
    return [job for job in busy if job in known] + [
        0 for process, _ in campaign.direct if process.poll() is None
    ]


def check_records(campaign: Campaign) -> None:
    """Every protected job has its trace, with its nodes in it; no other job has one."""
    problems = []
    for item in campaign.jobs:
        path = trace_path(campaign.lab, item.user, item.job)
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
