"""Real MPI jobs: where their ranks stand, live and in the trace, and why they wait."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fabricctl.lab.cluster import Lab
from fabricctl.store import schema
from fabricctl.store.trace import open_trace

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "build" / "state" / "libfabrictrack.so"
PROGRAM = """
import ctypes, sys, time
from mpi4py import MPI
world = MPI.COMM_WORLD
step = ctypes.CDLL(None).fabric_track_step
mine, total = bytearray(8), bytearray(8)
for n in range(1, 100_000):
    world.Allreduce(mine, total)
    step(ctypes.c_uint64(n))
    if n == 50 and sys.argv[1] == "mismatch":
        world.Barrier() if world.rank == 2 else world.Bcast(mine, 0)
    time.sleep(0.01)
"""

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    subprocess.run(["make", "-s", "-C", str(ROOT / "fabricctl" / "state")], check=True)


def wait_for(what: str, good: Callable[[], object], timeout_s: float = 40) -> None:
    deadline = time.monotonic() + timeout_s
    while not good():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.2)


def start(lab: Lab, what: str) -> int:
    """A job of four ranks on four nodes."""
    script = (
        f"#!/bin/bash\nexport LD_PRELOAD={LIBRARY} OMPI_MCA_mpi_yield_when_idle=1\n"
        f"srun --mpi=pmix {ROOT}/.venv/bin/python -c '{PROGRAM}' {what}\n"
    )
    argv = ["sbatch", "--parsable", "--fabric-resilience", "-N4", "-n4", "-o", "tracked.out"]
    return int(lab.exec("ctl", argv, user="alice", input=script).stdout)


@pytest.fixture
def where(lab: Lab) -> Iterator[Callable[[int], dict]]:
    """`fabricctl job where --json`, asked on the last of the job's nodes."""

    def ask(job: int) -> dict:
        argv = ["fabricctl", "job", "where", str(job), "--json"]
        done = lab.exec("n4", argv, user="alice", check=False)
        return json.loads(done.stdout) if done.returncode == 0 and done.stdout else {"ranks": []}

    yield ask
    lab.exec("ctl", ["scancel", "-u", "alice"])


def rows(lab: Lab, job: int, table: schema.Table) -> list[tuple]:
    """Of every node's part of the trace."""
    path = f"/shared/traces/alice/job-{job}.h5"
    wait_for(
        "the trace", lambda: lab.exec("ctl", ["test", "-e", path], check=False).returncode == 0
    )
    with open_trace(lab.paths.shared / "traces" / "alice" / f"job-{job}.h5") as trace:
        return [tuple(row) for key in trace.nodes for row in trace.table(key, table)]


def test_a_mismatched_collective_is_told_with_its_rank(
    lab: Lab, where: Callable[[int], dict]
) -> None:
    job = start(lab, "mismatch")
    wait_for("the verdict", lambda: where(job)["ranks"] and where(job)["verdict"]["hard"])
    seen = where(job)
    assert [rank["rank"] for rank in seen["ranks"]] == [0, 1, 2, 3]
    assert {rank["iteration"] for rank in seen["ranks"]} == {50}
    assert (seen["verdict"]["kind"], seen["verdict"]["rank"]) == ("application", 2)
    time.sleep(2.5)  # the agents' own look, and a sample of each table
    lab.exec("ctl", ["scancel", str(job)])
    stalls = rows(lab, job, schema.STALL)
    assert stalls[0][2:5] == (schema.StallKind.APPLICATION, 2, b"n3")
    times = [row for row in rows(lab, job, schema.MPI_TIME) if row[3] == b"MPI_Allreduce"]
    assert {row[1] for row in times} == {0, 1, 2, 3}
    assert {row[4] for row in times} >= {50}
    assert all(row[6] == 8 * row[4] for row in times), "8 bytes a call"


def test_a_stopped_rank_is_told_and_a_healthy_job_is_not(
    lab: Lab, where: Callable[[int], dict]
) -> None:
    job = start(lab, "healthy")
    wait_for("ranks", lambda: len(where(job)["ranks"]) == 4 and where(job)["ranks"][0]["iteration"])
    assert not where(job)["verdict"]["hard"]
    pid = next(rank["pid"] for rank in where(job)["ranks"] if rank["rank"] == 1)
    lab.exec("n2", ["kill", "-STOP", str(pid)])
    wait_for("the verdict", lambda: where(job)["verdict"]["hard"])
    verdict = where(job)["verdict"]
    assert (verdict["kind"], verdict["rank"], verdict["node"]) == ("rank", 1, "n2")
    lab.exec("n2", ["kill", "-CONT", str(pid)])
    wait_for("they go on", lambda: not where(job)["verdict"]["hard"])


def test_another_user_learns_nothing(lab: Lab, where: Callable[[int], dict]) -> None:
    job = start(lab, "healthy")
    wait_for("ranks", lambda: len(where(job)["ranks"]) == 4)
    argv = ["fabricctl", "job", "where", str(job)]
    done = lab.exec("n1", argv, user="bob", check=False)
    assert done.returncode != 0 and "RANKS" not in done.stdout
    assert lab.exec("n1", ["ls", f"/run/fabricctl/track/{job}"], user="bob", check=False).returncode
