"""Kinds of jobs beyond the plain batch job: each has its trace, and leaves nothing behind.

Arrays, requeues and heterogeneous jobs: test_end_to_end.py; steps: test_plugin_steps.py; all of
them mixed, under random harm: test_agent_campaign.py.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec
from fabricctl.store import schema
from fabricctl.store.trace import Trace, open_trace
from tests.support.labname import lab_name

pytestmark = pytest.mark.lab

LEFT = "ls -A /run/fabricctl/jobs /run/fabricctl/steps /run/fabricctl/requests; pgrep -a fabric-"


def wait(what: str, met: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.1)


def submit(lab: Lab, body: str, *options: str, user: str = "alice") -> int:
    argv = ["sbatch", "--parsable", "-o", "/dev/null", "--fabric-resilience", *options]
    return int(lab.run(argv, user=user, input=f"#!/bin/bash\n{body}\n").stdout)


def state(lab: Lab, job: int) -> str:
    text = lab.exec("ctl", ["scontrol", "-o", "show", "job", str(job)]).stdout
    return next(word[9:] for word in text.split() if word.startswith("JobState="))


def trace_path(lab: Lab, name: object, user: str = "alice") -> Path:
    return lab.host_path("ctl", f"/shared/traces/{user}/job-{name}.h5")


def trace(lab: Lab, name: object, user: str = "alice") -> Trace:
    path = trace_path(lab, name, user)
    wait(f"{path.name} is there", path.exists)
    return open_trace(path)


def wait_clean(lab: Lab, *nodes: str) -> None:
    """Until the nodes have nothing of any job."""

    def left(node: str) -> list[str]:
        lines = lab.exec(node, ["sh", "-c", LEFT], check=False).stdout.splitlines()
        return [line for line in lines if line and not line.endswith(":")]

    for node in nodes:
        wait(f"{node} has nothing of a job", lambda at=node: not left(at))


@pytest.fixture(scope="module", autouse=True)
def contained() -> Iterator[tuple[Lab, int]]:
    """A lab whose jobs have a /tmp of their own, with a job of a minute that goes on:
    Slurm ends it up to half a minute late, meanwhile the other tests run."""
    conf = {"JobContainerType": "job_container/tmpfs", "PrologFlags": "Alloc,Contain"}
    with Lab(LabSpec(name=lab_name("con"), nodes=2, rails=2, conf=conf)) as lab:
        yield lab, submit(lab, "sleep 1000", "-p", "all", "-w", "n2", "-t", "1")


def test_an_interactive_allocation(lab: Lab) -> None:
    command = "srun true && sleep 1 && srun sh -c 'echo $SLURM_JOB_ID $FABRIC_MODE'"
    argv = ["salloc", "-N2", "--fabric-resilience", "sh", "-c", command]
    words = lab.run(argv, user="bob").stdout.split()
    assert words[1::2] == ["on", "on"]
    with trace(lab, words[0], "bob") as found:
        assert found.job.missing_nodes == ()
        steps = {row["step"].decode() for row in found.table("n1", schema.STEP)}
    assert {"0", "1"} <= steps, steps
    wait_clean(lab, "n1", "n2")


def test_a_cancelled_job(lab: Lab) -> None:
    job = submit(lab, "srun sleep 1000", "-N2")
    wait("it runs", lambda: state(lab, job) == "RUNNING")
    time.sleep(1)
    lab.run(["scancel", str(job)])
    wait("it is cancelled", lambda: state(lab, job) == "CANCELLED")
    with trace(lab, job) as found:
        assert found.job.missing_nodes == ()
    wait_clean(lab, "n1", "n2")


def test_three_users_on_one_node_at_once(lab: Lab) -> None:
    users = ("alice", "bob", "carol")
    options = ("-N1", "-n1", "-w", "n3")
    jobs = {user: submit(lab, "sleep 4", *options, user=user) for user in users}
    wait("all run", lambda: {state(lab, job) for job in jobs.values()} == {"RUNNING"})
    for user, job in jobs.items():
        wait("it ends", lambda job=job: state(lab, job) == "COMPLETED")
        with trace(lab, job, user) as found:
            assert (found.job.user, found.job.nodes) == (user, ("n3",))
        status = trace_path(lab, job, user).stat()
        assert status.st_mode & 0o777 == 0o600
        assert status.st_uid == int(lab.exec("ctl", ["id", "-u", user]).stdout)
    wait_clean(lab, "n3")


def test_fifty_jobs_at_once(lab: Lab) -> None:
    array = submit(lab, "true", "-n1", "--array=1-50")
    paths = [trace_path(lab, f"{array}_{task}") for task in range(1, 51)]

    def all_there() -> bool:
        return all(path.exists() for path in paths)

    wait("every task has its trace", all_there, 120)
    for path in paths:
        with open_trace(path) as found:
            assert found.job.missing_nodes == ()
    wait_clean(lab, "n1", "n2", "n3", "n4")


@pytest.mark.parametrize(("option", "end"), [("--no-kill", "COMPLETED"), ("-N2", "NODE_FAIL")])
def test_a_node_loses_its_power(lab: Lab, option: str, end: str) -> None:
    body = "srun -N2 true; for i in $(seq 100); do [ -e go ] && break; sleep 0.2; done"
    go = lab.host_path("ctl", "/shared/home/alice/go")
    go.unlink(missing_ok=True)
    job = submit(lab, body, "-N2", "-w", "n[1-2]", "--no-requeue", option)
    wait("it runs", lambda: state(lab, job) == "RUNNING")
    time.sleep(2)
    lab.fault("power-off", "n2")
    # What SlurmdTimeout would find out later.
    lab.exec("ctl", ["scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=no power"])
    time.sleep(1)
    go.touch()
    wait(f"it is {end}", lambda: state(lab, job) == end)
    with trace(lab, job) as found:
        assert found.job.nodes == ("n1", "n2")
        assert found.job.missing_nodes == ("n2",)
    wait_clean(lab, "n1")
    lab.heal_all()
    lab.up()
    wait_clean(lab, "n2")


def test_a_job_in_a_container_of_its_own_tmp(contained: tuple[Lab, int]) -> None:
    lab, _ = contained
    argv = ["sbatch", "-W", "--parsable", "--fabric-resilience", "-N1", "-w", "n1", "-p", "all"]
    script = "echo $FABRIC_MODE $(ls -A /tmp /dev/shm | wc -l); test -d $FABRIC_JOB_DIR"
    job = int(lab.run([*argv, "-o", "out", "--wrap", script]).stdout)
    assert (lab.paths.shared / "home/alice/out").read_text().split()[0] == "on"
    with trace(lab, job) as found:
        assert found.job.missing_nodes == ()
    wait_clean(lab, "n1")


def test_a_job_that_runs_out_of_time(contained: tuple[Lab, int]) -> None:
    lab, job = contained
    wait("Slurm ends it", lambda: state(lab, job) == "TIMEOUT", 150)
    with trace(lab, job) as found:
        assert found.job.missing_nodes == ()
    wait_clean(lab, "n2")
