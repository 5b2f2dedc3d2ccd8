"""One protected job through every part, and the same job without the flag."""

import json
import re
import time
from datetime import datetime
from pathlib import Path

import pytest

from fabricctl.lab.cluster import Lab

ROOT = Path(__file__).parents[2]
NODES = ("n1", "n2", "n3", "n4")
MPI_JOB = f"srun --mpi=pmix {ROOT}/.venv/bin/python {ROOT}/examples/allreduce.py --seconds 8"

pytestmark = pytest.mark.lab


def submit(lab: Lab, body: str, *options: str) -> int:
    script = f"#!/bin/bash\nexport OMPI_MCA_mpi_yield_when_idle=1\n{body}\n"
    argv = ["sbatch", "--parsable", "-o", "job-%A-%a-%j.out", *options]
    done = lab.exec("ctl", argv, user="alice", input=script)
    return int(done.stdout.strip())


def job_state(lab: Lab, job: int) -> str:
    text = lab.exec("ctl", ["scontrol", "-o", "show", "job", str(job)]).stdout
    return next(word[9:] for word in text.split() if word.startswith("JobState="))


def wait_for(lab: Lab, job: int, *states: str, timeout_s: float = 60) -> str:
    deadline = time.monotonic() + timeout_s
    state = ""
    while time.monotonic() < deadline:
        state = job_state(lab, job)
        if state in states:
            return state
        time.sleep(0.1)
    raise AssertionError(f"job {job} is {state}, not {states}, after {timeout_s} s")


def wait_for_file(lab: Lab, path: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while lab.exec("ctl", ["test", "-e", path], check=False).returncode:
        assert time.monotonic() < deadline, f"{path} did not appear in {timeout_s} s"
        time.sleep(0.1)


def report(lab: Lab, job: int) -> dict:
    wait_for_file(lab, f"/shared/traces/alice/job-{job}.h5")
    return json.loads(
        lab.exec("ctl", ["fabricctl", "report", str(job), "--json"], user="alice").stdout
    )


def real_ns(stamp: str) -> int:
    """An ISO time with nine decimals, as nanoseconds since the epoch."""
    seconds, fraction = stamp.removesuffix("Z").split(".")
    return int(datetime.fromisoformat(seconds + "+00:00").timestamp()) * 10**9 + int(fraction)


def node_state(lab: Lab, node: str) -> dict[str, set[str]]:
    """What a job could leave on a node: files of ours, processes, addresses, mounts, groups."""
    run, spool = "/run/fabricctl", "/var/spool/fabricctl"

    def lines(*argv: str) -> set[str]:
        return set(lab.exec(node, list(argv), check=False).stdout.splitlines())

    return {
        # This tree may itself lie below /tmp, where nodes see it.
        "files": lines(
            *("find", run, spool, "/dev/shm", "/tmp", "-path", str(ROOT), "-prune"),
            *("-o", "-not", "-name", "lock", "-print"),
        ),
        "agents": {line for line in lines("ps", "-eo", "user:20,args") if "fabric" in line},
        "addresses": lines("ip", "-o", "address"),
        "routes": lines("ip", "route", "show", "table", "all"),
        "mounts": lines("cat", "/proc/self/mounts"),
    }


def quiet_state(lab: Lab) -> dict[str, dict[str, set[str]]]:
    """The nodes' state when nothing of earlier jobs is under way; the sealer goes after 30 s."""
    deadline = time.monotonic() + 60
    while True:
        state = {node: node_state(lab, node) for node in NODES}
        busy = [
            line
            for node in NODES
            for line in (*state[node]["agents"], *state[node]["files"])
            if re.search(
                r"sealer|fabric-(agent|keeper|pathd)|/(jobs|steps|requests|track|spool/fabricctl)/.",
                line,
            )
        ]
        if not busy:
            return state
        assert time.monotonic() < deadline, busy
        time.sleep(0.5)


def test_a_protected_job_is_traced_and_a_cut_is_seen_when_it_happened(lab: Lab) -> None:
    job = submit(lab, MPI_JOB, "--fabric-resilience", "-N4", "--ntasks-per-node=1")
    wait_for(lab, job, "RUNNING")
    time.sleep(3)
    lab.fault("cut", "n2", "r0")
    time.sleep(2)
    lab.heal("cut", "n2", "r0")
    assert wait_for(lab, job, "COMPLETED", "FAILED") == "COMPLETED"

    found = report(lab, job)
    assert found["job"]["mode"] == "on"
    assert [node["node"] for node in found["nodes"]] == list(NODES)
    assert found["coverage"]["value"] > 0.95
    seen = {
        event["event"]: real_ns(event["at"])
        for event in found["link_events"]
        if (event["node"], event["rail"]) == ("n2", 0)
    }
    truth = [entry for entry in lab.log() if entry["kind"] == "cut" and entry["target"][0] == "n2"]
    for entry, name in zip(truth[-2:], ("carrier_down", "carrier_up"), strict=True):
        assert abs(seen[name] - entry["real_ns"]) < 10_000_000
    output = lab.exec("ctl", ["bash", "-c", f"cat job-*-{job}.out"], user="alice").stdout
    assert "every sum right" in output


def test_the_trace_belongs_to_the_user_alone(lab: Lab) -> None:
    job = submit(lab, "sleep 1", "--fabric-resilience", "-N2")
    wait_for(lab, job, "COMPLETED")
    path = f"/shared/traces/alice/job-{job}.h5"
    wait_for_file(lab, path)
    assert lab.exec("ctl", ["stat", "-c", "%U %a", path]).stdout.strip() == "alice 600"
    refused = lab.exec("ctl", ["fabricctl", "report", path], user="bob", check=False)
    assert refused.returncode not in (0, 1)
    assert refused.stdout == ""
    assert len(refused.stderr.splitlines()) == 1


def test_a_job_without_the_flag_leaves_no_difference(lab: Lab) -> None:
    before = quiet_state(lab)
    job = submit(lab, "env | sort; sleep 3", "-N4")
    wait_for(lab, job, "RUNNING")
    time.sleep(1)
    during = {node: node_state(lab, node) for node in NODES}
    wait_for(lab, job, "COMPLETED")
    after = {node: node_state(lab, node) for node in NODES}
    for node in NODES:
        assert during[node]["agents"] == before[node]["agents"]
        assert during[node]["files"] == before[node]["files"]
        assert after[node] == before[node]
    output = lab.exec("ctl", ["bash", "-c", f"cat job-*-{job}.out"], user="alice").stdout
    assert "SLURM_JOB_ID" in output
    assert "fabric" not in output.lower().replace(str(ROOT).lower(), "").replace("fabricctl", "")


def test_a_protected_job_leaves_nothing_on_its_nodes(lab: Lab) -> None:
    before = quiet_state(lab)
    job = submit(lab, "srun true; sleep 1", "--fabric-resilience", "-N4")
    wait_for(lab, job, "COMPLETED")
    wait_for_file(lab, f"/shared/traces/alice/job-{job}.h5")
    deadline = time.monotonic() + 45  # the sealer stays warm for 30 s
    while (after := {n: node_state(lab, n) for n in NODES}) != before:
        assert time.monotonic() < deadline, {
            (node, key): after[node][key] ^ before[node][key]
            for node in NODES
            for key in after[node]
            if after[node][key] != before[node][key]
        }
        time.sleep(1)


def test_every_task_of_an_array_has_a_trace_and_a_name(lab: Lab) -> None:
    job = submit(lab, "sleep 1", "--fabric-resilience", "--array=1-3", "-N1")
    for task in (1, 2, 3):
        wait_for_file(lab, f"/shared/traces/alice/job-{job}_{task}.h5")
        text = lab.exec(
            "ctl", ["fabricctl", "report", f"{job}_{task}", "--json"], user="alice"
        ).stdout
        assert json.loads(text)["job"]["array"] == f"{job}_{task}"


def test_a_requeued_job_has_a_trace_per_attempt(lab: Lab) -> None:
    job = submit(lab, "sleep 5", "--fabric-resilience", "-N2", "--requeue")
    wait_for(lab, job, "RUNNING")
    time.sleep(1)
    lab.exec("ctl", ["scontrol", "requeue", str(job)])
    wait_for_file(lab, f"/shared/traces/alice/job-{job}.h5")
    # Slurm makes a requeued batch job wait two minutes; an operator can have it start at once.
    wait_for(lab, job, "PENDING")
    deadline = time.monotonic() + 60
    while job_state(lab, job) == "PENDING":
        assert time.monotonic() < deadline
        lab.exec("ctl", ["scontrol", "update", f"JobId={job}", "StartTime=now"], check=False)
        time.sleep(0.5)
    wait_for(lab, job, "COMPLETED")
    wait_for_file(lab, f"/shared/traces/alice/job-{job}.r1.h5")
    first, second = (
        json.loads(
            lab.exec(
                "ctl", ["fabricctl", "report", str(job), "--attempt", n, "--json"], user="alice"
            ).stdout
        )
        for n in ("0", "1")
    )
    assert first["job"]["end"] < second["job"]["begin"]


def test_both_halves_of_a_heterogeneous_job_are_traced(lab: Lab) -> None:
    script = "#!/bin/bash\nsrun --het-group=0,1 sleep 1\n"
    argv = ["sbatch", "--parsable", "--fabric-resilience", "-N1", ":", "-N1"]
    leader = int(lab.exec("ctl", argv, user="alice", input=script).stdout.split(";")[0])
    wait_for(lab, leader, "COMPLETED")
    for offset in (0, 1):
        assert report(lab, leader + offset)["job"]["het"] == f"{leader}+{offset}"
