"""The job clock in real jobs: what tasks read on their nodes, and what the report says of it."""

import time
from itertools import pairwise

import pytest

from fabricctl import clock
from fabricctl.cli.clock import read_reading
from fabricctl.clock._page import Reading
from fabricctl.lab.cluster import Lab
from tests.lab.test_end_to_end import report, submit, wait_for

pytestmark = pytest.mark.lab
NODES = ("n1", "n2", "n3")


def reading(lab: Lab, node: str, job: int) -> Reading | None:
    """As somebody on that node would ask for it; None while there is no job time."""
    argv = ["fabricctl", "clock", "now", "--json", "--job", str(job)]
    done = lab.exec(node, argv, check=False)
    if done.returncode == 69:
        return None
    assert done.returncode == 0, done.stderr
    return read_reading(node, done.stdout)[1]


def test_every_node_of_a_job_reads_one_time_and_the_report_tells_how_well(lab: Lab) -> None:
    lab.fault("clock", "n2", offset_ns=7_000_000, drift_ppb=30_000.0)
    srun = "srun sh -c 'until fabricctl clock now; do sleep 0.3; done'"
    wait = "until [ -e go-$SLURM_JOB_ID ]; do sleep 0.2; done"
    body = f"set -e\n{srun}\n{wait}\necho all-read"
    job = submit(lab, body, "--fabric-resilience", "-N3", "--ntasks-per-node=1")
    wait_for(lab, job, "RUNNING", "COMPLETED")
    deadline = time.monotonic() + 60
    while not all(reading(lab, node, job) for node in NODES):
        assert time.monotonic() < deadline, "no job time on some node after 60 s"
        time.sleep(0.2)
    seen = [reading(lab, node, job) for _ in range(3) for node in NODES]
    for first, second in pairwise(seen):
        assert first is not None
        assert second is not None
        assert clock.compare(second, first) >= 0  # asked later: never certainly earlier
    lab.exec("ctl", ["touch", f"go-{job}"], user="alice")
    assert wait_for(lab, job, "COMPLETED", "FAILED") == "COMPLETED"
    output = lab.exec("ctl", ["bash", "-c", f"cat job-*-{job}.out"], user="alice").stdout
    assert "all-read" in output
    assert output.count(", certainly within -") >= 3
    section = report(lab, job)["job_clock"]
    assert [node["node"] for node in section["nodes"]] == list(NODES)
    assert all(node["likely_ns"]["median"] > 0 for node in section["nodes"])
