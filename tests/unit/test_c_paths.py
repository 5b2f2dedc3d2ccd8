"""What the plugin makes of link failover's files; the variables are told apart from the user's."""

# ruff: noqa: F811 (fixtures)
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from tests.support.crunner import Runner
from tests.unit.test_c_rundir import JOB, run_dir, runner, service  # noqa: F401 - fixtures

LONG_MS = 10**9  # the runner is not waited for so long


def paths(run: Path, state: str = "") -> Path:
    """The node has link failover; with ``state`` the job has one too."""
    (run / "paths").mkdir(mode=0o755, exist_ok=True)
    job = run / "paths" / str(JOB)
    if state:
        job.mkdir(mode=0o755, exist_ok=True)
        (job / ".new").write_text(f"v=1\nstate={state}\njob={JOB}\nrail0=r0 10.0.0.1\n")
        (job / ".new").replace(job / "state")
    return job


def wait(runner: Runner, run: Path, wait_ms: int = 0) -> str:
    return runner("paths-wait", str(run), str(JOB), str(wait_ms)).strip()


def test_nothing_is_waited_for_without_link_failover(
    runner: Runner,
    run_dir: Path,
) -> None:
    with service(run_dir):
        assert wait(runner, run_dir, LONG_MS) == "off"


@pytest.mark.parametrize(("state", "answer"), [("ready", "ready"), ("off", "off"), ("?", "off")])
def test_what_is_decided_is_not_waited_for(
    runner: Runner,
    run_dir: Path,
    state: str,
    answer: str,
) -> None:
    paths(run_dir, state)
    with service(run_dir):
        assert wait(runner, run_dir, LONG_MS) == answer


def test_a_job_that_begins_is_waited_for(runner: Runner, run_dir: Path) -> None:
    paths(run_dir)
    later = threading.Timer(0.3, paths, (run_dir, "ready"))
    with service(run_dir):
        later.start()
        assert wait(runner, run_dir, LONG_MS) == "ready"
    later.join()


def test_the_wait_has_an_end(runner: Runner, run_dir: Path) -> None:
    paths(run_dir, "starting")
    with service(run_dir):
        assert wait(runner, run_dir, 100) == "starting"


def test_an_old_job_without_a_word_is_not_waited_for(
    runner: Runner,
    run_dir: Path,
) -> None:
    paths(run_dir, "starting")
    old = time.time() - 60
    os.utime(run_dir / "jobs" / str(JOB), (old, old))
    with service(run_dir):
        assert wait(runner, run_dir, LONG_MS) == "absent"


def test_a_job_that_nobody_announced_is_nobodys(runner: Runner, run_dir: Path) -> None:
    """Its tasks are led as the node's others would be: the job's other nodes count on it."""
    paths(run_dir)
    shutil.rmtree(run_dir / "jobs" / str(JOB))
    with service(run_dir):
        assert wait(runner, run_dir, LONG_MS) == "absent"


def test_a_directory_that_others_can_write_to_is_not_believed(
    runner: Runner,
    run_dir: Path,
) -> None:
    paths(run_dir, "ready").chmod(0o777)
    assert wait(runner, run_dir) == "absent"


def test_only_whole_and_harmless_variables_are_taken(runner: Runner) -> None:
    text = (
        "OMPI_MCA_btl_tcp_if_include=r0,r1\nNCCL_SOCKET_IFNAME==r0,r1\n"
        "LD_PRELOAD=/tmp/x.so\nPATH=/tmp\nlower=1\n=empty\nA B=2\nX=\n"
        f"{'N' * 64}=long\nV={'v' * 256}\nBELL=a\x07b\nlast"
    )
    split = runner("paths-split", text.encode().hex()).splitlines()
    assert split == [
        "OMPI_MCA_btl_tcp_if_include=r0,r1",
        "NCCL_SOCKET_IFNAME==r0,r1",
        "B=2",
        "X=",
        "BELL=a?b",
    ]
