"""Agents under a real Slurm: finding each other, and never outliving their allocation."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fabricctl.lab.cluster import Lab
from fabricctl.store import schema
from fabricctl.store.schema import StepEvent
from fabricctl.store.trace import open_trace

pytestmark = pytest.mark.lab


def submit(lab: Lab, body: str, *options: str) -> int:
    argv = ["sbatch", "--parsable", "--fabric-resilience", "-o", "/dev/null", *options]
    return int(lab.run(argv, input=f"#!/bin/bash\n{body}\n").stdout)


def wait_for(happens: Callable[[], object], what: str, timeout_s: float = 30) -> float:
    begin_s = time.monotonic()
    while not happens():
        assert time.monotonic() - begin_s < timeout_s, f"not in {timeout_s:g} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - begin_s


def status(lab: Lab, node: str, job: int) -> dict[str, str]:
    done = lab.exec(node, ["cat", f"/run/fabricctl/jobs/{job}/status"], check=False)
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def agents(lab: Lab, node: str) -> list[int]:
    done = lab.exec(node, ["pgrep", "-x", "fabric-agent"], check=False)
    return [int(line) for line in done.stdout.split()]


def wait_settled(lab: Lab, job: int, *nodes: str) -> None:
    for node in nodes:
        wait_for(lambda n=node: status(lab, n, job).get("settled") == "1", f"{node} is settled")


def trace_path(lab: Lab, job: int) -> Path:
    return lab.host_path("ctl", f"/shared/traces/alice/job-{job}.h5")


def notes(lab: Lab, job: int, node: str) -> list[str]:
    with open_trace(trace_path(lab, job)) as trace:
        return [row["text"].decode() for row in trace.table(node, schema.NOTE)]


@pytest.fixture
def cancelled(lab: Lab) -> Iterator[None]:
    yield
    lab.exec("ctl", ["scancel", "-u", "alice"], check=False)


@pytest.mark.usefixtures("cancelled")
def test_steps_stand_in_the_trace_with_begin_and_end(lab: Lab) -> None:
    job = submit(lab, "srun sleep 2; srun true; srun sleep 2", "-w", "n[1-2]")
    wait_for(trace_path(lab, job).exists, "the trace is there")
    with open_trace(trace_path(lab, job)) as trace:
        rows = trace.table("n1", schema.STEP)
        seen = [(row["step"].decode(), StepEvent(row["event"])) for row in rows]
        load = trace.table("n1", schema.JOB)
    for step in ("batch", "0", "1", "2"):
        assert seen.count((step, StepEvent.BEGIN)) == seen.count((step, StepEvent.END)) == 1
    assert list(trace.job.nodes) == ["n1", "n2"]
    assert len(load) >= 2
    assert load["cpu_ns"][-1] > 0
    assert load["processes"].max() >= 2


@pytest.mark.usefixtures("cancelled")
def test_a_node_without_an_agent_is_known_to_the_others_and_comes_in_later(lab: Lab) -> None:
    lab.fault("stop", "n3", "fabricctl.node.service")
    job = submit(lab, "sleep 60", "-w", "n[1-4]")
    wait_settled(lab, job, "n1", "n2", "n4")
    for node in ("n1", "n2", "n4"):
        assert status(lab, node, job)["missing"] == "n3"
        assert status(lab, node, job)["protected"] == "3"
    lab.heal("stop", "n3", "fabricctl.node.service")
    for node in ("n1", "n2", "n3", "n4"):
        wait_for(lambda n=node: status(lab, n, job).get("protected") == "4", f"{node} knows")
    lab.exec("ctl", ["scancel", str(job)])
    wait_for(trace_path(lab, job).exists, "the trace is there")
    assert "no agent heard from n3" in notes(lab, job, "n4")
    assert "agent heard from n3" in notes(lab, job, "n4")
    assert any("for the node service" in text for text in notes(lab, job, "n3"))


@pytest.mark.usefixtures("cancelled")
def test_a_cut_management_link_makes_no_wrong_claims(lab: Lab) -> None:
    job = submit(lab, "sleep 90", "-w", "n[1-4]")
    wait_settled(lab, job, "n1", "n2", "n3", "n4")
    lab.fault("cut", "n2", "m0")
    for node in ("n1", "n3", "n4"):
        wait_for(lambda n=node: status(lab, n, job)["missing"] == "n2", f"{node} misses n2", 40)
    wait_for(lambda: status(lab, "n2", job)["protected"] == "1", "n2 hears nobody", 40)
    assert len(agents(lab, "n2")) == 1  # nobody ended it for being unreachable
    lab.heal("cut", "n2", "m0")
    for node in ("n1", "n2", "n3", "n4"):
        wait_for(lambda n=node: status(lab, n, job)["protected"] == "4", f"{node} hears all", 40)
    lab.exec("ctl", ["scancel", str(job)])
    wait_for(trace_path(lab, job).exists, "the trace is there")
    assert any("may be cut off itself" in text for text in notes(lab, job, "n2"))
    told = [text for node in ("n1", "n2", "n3", "n4") for text in notes(lab, job, node)]
    assert not any("dead" in text or "died" in text for text in told)


@pytest.mark.usefixtures("cancelled")
def test_a_step_without_the_plugins_mark_is_told_everywhere(lab: Lab) -> None:
    job = submit(lab, "srun -N2 sleep 60", "-w", "n[1-2]")
    wait_settled(lab, job, "n1", "n2")
    mark = f"/run/fabricctl/steps/{job}/0"
    wait_for(lambda: not lab.exec("n2", ["test", "-e", mark], check=False).returncode, "marked")
    lab.exec("n2", ["rm", mark])
    for node in ("n1", "n2"):
        wait_for(lambda n=node: status(lab, n, job)["unplugged"] == "n2", f"{node} knows")
    lab.exec("ctl", ["scancel", str(job)])
    wait_for(trace_path(lab, job).exists, "the trace is there")
    assert "steps that the plugin did not see: 0" in notes(lab, job, "n2")
    assert "steps ran without the plugin on n2" in notes(lab, job, "n1")


@pytest.mark.usefixtures("cancelled")
def test_no_agent_outlives_a_job_whose_epilog_never_came(lab: Lab) -> None:
    """slurmd is dead when the job is cancelled: nobody runs the epilog on that node."""
    job = submit(lab, "sleep 300", "-p", "all", "-w", "n[4-5]")
    wait_settled(lab, job, "n4", "n5")
    lab.fault("kill", "n5", "slurmd")
    lab.exec("ctl", ["scancel", str(job)])
    # (On a node that no other test uses: Slurm takes a minute until it has done with the job.)
    # The step daemon outlives slurmd; the kill never reaches it, so this test plays the reaper.
    lab.exec("n5", ["pkill", "-9", "-f", rf"slurmstepd: \[{job}\."], check=False)
    took_s = wait_for(lambda: not agents(lab, "n5"), "the orphan ends", 30)
    assert took_s < 30
    lab.heal("kill", "n5", "slurmd")
    wait_for(trace_path(lab, job).exists, "the trace is there")
    wait_for(lambda: "n5" in open_nodes(lab, job), "n5 is in the trace")
    assert any("no epilog came" in text for text in notes(lab, job, "n5"))


def open_nodes(lab: Lab, job: int) -> list[str]:
    with open_trace(trace_path(lab, job)) as trace:
        return list(trace.nodes)


@pytest.mark.usefixtures("cancelled")
def test_an_allocation_without_steps_keeps_its_agents(lab: Lab) -> None:
    argv = ["salloc", "--no-shell", "--fabric-resilience", "-w", "n[1-2]", "-J", "idle"]
    lab.run(argv)
    job = int(lab.run(["squeue", "-h", "-n", "idle", "-o", "%A"]).stdout)
    wait_settled(lab, job, "n1", "n2")
    time.sleep(25)  # past the time that is suspicious, and past an answer of Slurm
    assert len(agents(lab, "n1")) == len(agents(lab, "n2")) == 1
    assert status(lab, "n1", job)["state"] == "running"
    lab.exec("ctl", ["scancel", str(job)])
    wait_for(lambda: not agents(lab, "n1"), "it ends with the job")


@pytest.mark.usefixtures("cancelled")
def test_killing_agents_and_services_disturbs_no_job(lab: Lab) -> None:
    job = submit(lab, "for i in 1 2 3 4 5 6; do srun -N4 sleep 2 || exit 1; done", "-w", "n[1-4]")
    wait_settled(lab, job, "n1", "n2", "n3", "n4")
    for node in ("n1", "n2", "n3"):
        lab.exec(node, ["pkill", "-9", "-x", "fabric-agent"])
        time.sleep(1)
        lab.exec(node, ["pkill", "-9", "-o", "-f", "fabricctl.node.service"])
        time.sleep(1)

    def state() -> str:
        text = lab.exec("ctl", ["scontrol", "-o", "show", "job", str(job)]).stdout
        return next(word[9:] for word in text.split() if word.startswith("JobState="))

    wait_for(lambda: state() not in ("RUNNING", "COMPLETING"), "the job ends", 60)
    assert state() == "COMPLETED"
    wait_for(trace_path(lab, job).exists, "the trace is there")
    wait_for(lambda: len(open_nodes(lab, job)) == 4, "all nodes are in the trace")
    assert any("was killed by signal 9" in text for text in notes(lab, job, "n1"))
    for node in ("n1", "n2", "n3", "n4"):
        wait_for(lambda n=node: not agents(lab, n), f"{node} has no agent left")
    assert "drain" not in lab.exec("ctl", ["sinfo", "-h", "-o", "%T"]).stdout
