"""The job script's node loses its power: the job comes back by itself, from memory."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec
from fabricctl.store import schema
from fabricctl.store.trace import open_trace
from tests.support.labname import lab_name
from tests.support.storm import launches

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
OWN = "\n[partition.all]\nstate.script_lost_s = 5\n"
STENCIL = (
    f"export OMPI_MCA_mpi_yield_when_idle=1\nfabricctl run --spares 1 {ROOT}/.venv/bin/python "
    f"{ROOT}/examples/stencil.py --steps 400 --cells 4096 --every 5 --say 1 --pause %g\n"
    "echo exit status $?"
)


# How long Slurm lets a requeued job wait (two minutes), and until it gives a node up (30 s here).
SOONER = {"AuthInfo": "cred_expire=20", "SlurmdTimeout": "20"}


@pytest.fixture(scope="module")
def site() -> Iterator[Lab]:
    """Services read their configuration when they start."""
    subprocess.run(["make", "-s", "-C", str(ROOT / "fabricctl" / "state")], check=True)
    lab = Lab(LabSpec(name=lab_name("script"), conf=SOONER))
    lab.down()
    with lab:
        file = lab.paths.etc / "fabricctl.toml"
        file.write_text(file.read_text() + OWN)
        for node in lab.spec.compute_nodes:
            lab.exec(node, ["pkill", "-TERM", "-f", "fabricctl[.]node[.]service"], check=False)
        time.sleep(2)
        yield lab


def wait(what: str, good: Callable[[], object], timeout_s: float = 180) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not good():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.3)


class Job:
    """Of alice, with its script on n1."""

    def __init__(self, lab: Lab, body: str, *options: str) -> None:
        argv = ["sbatch", "--parsable", "--fabric-resilience", "--no-kill", "-p", "all", "--mem=64"]
        argv += ["--open-mode=append", "-o", "lost-%j.out", *options]
        text = f"#!/bin/bash\n{body}\n"
        self.lab = lab
        self.number = int(lab.exec("ctl", argv, user="alice", input=text).stdout)

    @property
    def output(self) -> str:
        path = self.lab.paths.shared / "home" / "alice" / f"lost-{self.number}.out"
        return path.read_text() if path.exists() else ""

    def state(self) -> str:
        """With where its script is: ``RUNNING n1``."""
        argv = ["squeue", "-h", "-t", "all", "-j", str(self.number), "-o", "%T %B"]
        return self.lab.exec("ctl", argv, check=False).stdout.strip()

    def ring(self) -> str:
        wait("the end", lambda: "exit status" in self.output)
        assert "exit status 0" in self.output, self.output
        return re.findall(r"ring ([0-9a-f]{16})", self.output)[-1]


def test_a_script_whose_management_network_is_out_is_left_alone(site: Lab) -> None:
    run = Job(site, STENCIL % 0.08, "-N3", "-n3", "--requeue")
    wait("step 10", lambda: re.search(r"^at step \d\d$", run.output, re.MULTILINE))
    time.sleep(10)  # all nodes have heard the script's
    site.fault("cut", "n1", "m0")
    time.sleep(15)  # three times what is waited for; Slurm itself gives the node up after it
    site.heal("cut", "n1", "m0")
    run.ring()
    assert run.output.count("from step") == 1, run.output
    for node in ("n2", "n3"):
        log = site.exec(node, ["cat", "/var/log/fabricctl.log"]).stdout
        assert "the script's node, is silent" not in log


def test_a_script_whose_node_stands_still_is_given_up_when_slurm_gives_the_node_up(
    site: Lab,
) -> None:
    job = Job(site, "srun sleep 900", "-N2", "-n2", "--requeue")
    wait("it runs", lambda: job.state() == "RUNNING n1")
    time.sleep(10)
    site.fault("freeze", "n1")
    wait("it is requeued", lambda: not job.state().startswith("RUNNING"))
    site.heal("freeze", "n1")
    site.exec("ctl", ["scancel", str(job.number)])
    argv = ["sinfo", "-h", "-n", "n1", "-p", "all", "-o", "%T"]
    wait("n1 is back", lambda: site.exec("ctl", argv).stdout.strip() == "idle")


def test_a_job_whose_script_died_with_its_node_is_requeued_or_ended(site: Lab) -> None:
    whole = Job(site, STENCIL % 0.0, "-N4", "-n4").ring()
    run = Job(site, STENCIL % 0.05, "-N4", "-n4", "--requeue")
    once = Job(site, "srun sleep 900", "-N2", "-n2", "--no-requeue")
    # A job that is only held open: its step was started elsewhere, and is nobody's to end.
    held = Job(site, "sleep 900", "-N2", "-n2", "--requeue")
    for job in (run, once, held):
        wait("it runs", lambda job=job: job.state() == "RUNNING n1")
    step = ["srun", f"--jobid={held.number}", "--overlap", "--no-kill", "-N1", "-n1", "-wn2"]
    with subprocess.Popen(
        site.exec_argv("ctl", [*step, "sleep", "900"], user="alice"), stderr=subprocess.DEVNULL
    ) as elsewhere:
        wait("step 100", lambda: re.search(r"^at step \d\d\d$", run.output, re.MULTILINE))
        time.sleep(10)  # all nodes have heard the script's
        site.fault("power-off", "n1")
        wait("it is ended", lambda: once.state().startswith("CANCELLED"))
        wait("it runs elsewhere", lambda: run.state().startswith("RUNNING n2"))
        assert run.ring() == whole
        assert held.state() == "RUNNING n1" and elsewhere.poll() is None
        elsewhere.kill()
    assert "not protected" not in run.output, run.output
    begins = [int(step) for step in re.findall(r"from step (\d+)", run.output)]
    assert begins[0] == 0 and begins[1] >= 95, run.output
    traces = sorted((site.paths.shared / "traces" / "alice").glob(f"job-{run.number}.*h5"))
    told = []
    for path in traces:
        with open_trace(path) as trace:
            told += launches(trace, schema.LaunchEvent.SCRIPT_LOST)
    assert told == ["n1"]
