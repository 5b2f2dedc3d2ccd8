"""The job clock in real jobs: what tasks read on their nodes, and what the report says of it."""

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from fabricctl import clock
from fabricctl.cli.clock import read_reading
from fabricctl.clock._page import Reading
from fabricctl.lab.cluster import Lab
from fabricctl.lab.vclock import SystemClock, VirtualClock
from tests.lab.test_end_to_end import report, submit, wait_for

pytestmark = pytest.mark.lab
NODES = ("n1", "n2", "n3")
FOUND_FREQ = 655_360  # of struct timex: 10 ppm


def reading(lab: Lab, node: str, job: int) -> Reading | None:
    """As somebody on that node would ask for it; None while there is no job time."""
    argv = ["fabricctl", "clock", "now", "--json", "--job", str(job)]
    done = lab.exec(node, argv, check=False)
    if done.returncode == 69:
        return None
    assert done.returncode == 0, done.stderr
    return read_reading(node, done.stdout)[1]


def lab_file(lab: Lab, node: str, name: str) -> Path:
    return lab.paths.node(node).clock.with_name(name)


def show_system_clocks(lab: Lab) -> None:
    """System clocks that differ by some us before the job, set to 10 ppm by whoever was there."""
    for place, node in enumerate(NODES):
        raw_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        errs = node_clock(lab, node)
        ahead_ns = round(errs.error_ns(time.monotonic_ns())) if errs else 0
        text = f"v=1\nnode_ns={raw_ns + ahead_ns}\nsystem_ns={time.time_ns() + 4_000 * place}\n"
        lab_file(lab, node, "system").write_text(f"{text}freq={FOUND_FREQ}\nstatus=64\n")


def node_clock(lab: Lab, node: str) -> VirtualClock | None:
    file = lab_file(lab, node, "clock")
    return VirtualClock.parse(file.read_text()) if file.exists() else None


def system_clock(lab: Lab, node: str) -> SystemClock:
    return SystemClock.parse(lab_file(lab, node, "system").read_text())


def apart_ns(lab: Lab) -> int:
    """Between the system clocks of the nodes, now."""
    known = [(system_clock(lab, node), node_clock(lab, node)) for node in NODES]
    raw_ns, mono_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), time.monotonic_ns()
    shown = [clock.time_ns(errs, raw_ns, mono_ns) for clock, errs in known]
    return max(shown) - min(shown)


def wait_until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, f"not {what} after 60 s"
        time.sleep(0.1)


def test_every_node_of_a_job_reads_one_time_and_the_report_tells_how_well(lab: Lab) -> None:
    lab.fault("clock", "n2", offset_ns=7_000_000, drift_ppb=30_000.0)
    srun = "srun sh -c 'until fabricctl clock now; do sleep 0.3; done'"
    wait = "until [ -e go-$SLURM_JOB_ID ]; do sleep 0.2; done"
    body = f"set -e\n{srun}\n{wait}\necho all-read"
    show_system_clocks(lab)
    options = ("--fabric-resilience", "--fabric-clock=system", "-N3", "--ntasks-per-node=1")
    job = submit(lab, body, *options)
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
    # One of them runs 30 us a second faster than the others by itself.
    wait_until(lambda: apart_ns(lab) < 5_000, "within 5 us of each other")
    said = lab.exec("n2", ["fabricctl", "clock", "status", "--job", str(job)]).stdout
    assert "--fabric-clock=system: s" in said  # slewing or steady
    # The one that steers dies: the next goes on.
    lab.exec("n2", ["pkill", "-9", "-x", "fabric-steer"])
    lab.exec("ctl", ["touch", f"go-{job}"], user="alice")
    assert wait_for(lab, job, "COMPLETED", "FAILED") == "COMPLETED"
    output = lab.exec("ctl", ["bash", "-c", f"cat job-*-{job}.out"], user="alice").stdout
    assert "all-read" in output
    assert output.count(", certain") >= 3
    section = report(lab, job)["job_clock"]
    assert [node["node"] for node in section["nodes"]] == list(NODES)
    assert all(node["likely_ns"]["median"] > 0 for node in section["nodes"])
    for node in NODES:
        wait_until(lambda n=node: system_clock(lab, n).freq == FOUND_FREQ, "put back")  # type: ignore[misc]
        lab_file(lab, node, "system").unlink()
