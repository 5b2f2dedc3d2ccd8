"""Values that the configuration gives to one partition hold for its jobs, and for no others."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

from fabricctl.lab.cluster import Lab

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
OWN = """
[partition.all]
agent.sample_hz = 20
agent.max_mode = "observe"
rails.interfaces = ["r1"]
"""


def restart_services(lab: Lab) -> None:
    """The node's init starts them again; a service reads its configuration when it starts."""
    for node in lab.spec.compute_nodes:
        # Inside the node's own PID namespace there is one node service, and no other.
        lab.exec(node, ["pkill", "-TERM", "-f", "fabricctl[.]node[.]service"])
    end_s = time.monotonic() + 20
    held = "! flock -n -s /run/fabricctl/node.lock true"
    for node in lab.spec.compute_nodes:
        time.sleep(0.1)
        while lab.exec(node, ["sh", "-c", held], check=False).returncode:
            assert time.monotonic() < end_s, f"no node service on {node}"
            time.sleep(0.1)


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    subprocess.run(["make", "-s", "-C", str(ROOT / "fabricctl" / "paths")], check=True)


@pytest.fixture
def site(lab: Lab) -> Iterator[Lab]:
    file = lab.paths.etc / "fabricctl.toml"
    before = file.read_text()
    file.write_text(before + OWN)
    try:
        time.sleep(0.2)
        restart_services(lab)
        time.sleep(1.0)  # a service that was on its way out is replaced by now
        yield lab
    finally:
        file.write_text(before)
        restart_services(lab)


def run_job(lab: Lab, partition: str) -> tuple[h5py.File, str, int]:
    """The trace of a job of two nodes, the mode that its step had, and how many daemons of link
    failover its node had."""
    look = "srun -n1 sh -c 'sleep 2; echo $FABRIC_MODE'; ps -eo args | grep -c '[f]abric-pathd'"
    argv = ["sbatch", "--parsable", "-W", "-w", "n[1-2]", "-N2", "-p", partition]
    out = ["-o", "/shared/home/alice/%j.out", "--fabric-resilience", "--wrap", look]
    # grep ends with 1 when it counts none, and sbatch -W with the job.
    done = lab.exec("ctl", [*argv, *out], user="alice", check=False)
    job = int(done.stdout)
    path = lab.host_path("ctl", f"/shared/traces/alice/job-{job}.h5")
    end_s = time.monotonic() + 40
    while not path.exists():
        assert time.monotonic() < end_s, f"no trace of job {job}"
        time.sleep(0.1)
    mode, daemons = lab.host_path("ctl", f"/shared/home/alice/{job}.out").read_text().split()[-2:]
    return h5py.File(path), mode, int(daemons)


def test_a_partitions_values_hold_for_its_jobs_only(site: Lab) -> None:
    trace, mode, daemons = run_job(site, "all")
    with trace:
        attributes = trace["nodes/n1"].attrs
        assert (attributes["sample_hz"], attributes["rails"]) == (20.0, b"r1")
        texts = [note["text"].decode() for note in trace["nodes/n1/note"]]
    assert any("partition all is only observed here" in text for text in texts), texts
    assert (mode, daemons) == ("observe", 0)  # max_mode: measured, nothing moved, and said so
    trace, mode, daemons = run_job(site, "main")
    with trace:
        attributes = trace["nodes/n1"].attrs
        assert (attributes["sample_hz"], attributes["rails"]) == (1.0, b"r0 r1")
    assert mode == "on" and daemons > 0
