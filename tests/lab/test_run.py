"""`fabricctl run` with checkpoints: ranks and nodes die, and the result is the unbroken run's."""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fabricctl.lab.cluster import Lab

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv/bin/python"
STEPS = 600

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    subprocess.run(["make", "-s", "-C", str(ROOT / "fabricctl" / "state")], check=True)


@pytest.fixture(autouse=True)
def _cancelled(lab: Lab) -> Iterator[None]:
    yield
    lab.exec("ctl", ["scancel", "-u", "alice"])


def wait_for(what: str, good: Callable[[], object], timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while not good():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.2)


class Run:
    """A job of five nodes or fewer, one of them a spare, a rank on each of the others."""

    def __init__(self, lab: Lab, command: str, nodes: int = 5) -> None:
        head = "#!/bin/bash\nexport OMPI_MCA_mpi_yield_when_idle=1\n"
        script = f"{head}{command}\necho exit status $?\n"
        argv = ["sbatch", "--parsable", "--fabric-resilience", "--no-kill", "-p", "all"]
        argv += [f"-N{nodes}", f"-n{nodes}", f"-wn[1-{nodes}]", "-o", "run-%j.out"]
        done = lab.exec("ctl", argv, user="alice", input=script)
        self.lab, self.job, self.ranks = lab, int(done.stdout), nodes - 1

    @property
    def output(self) -> str:
        path = self.lab.paths.shared / "home" / "alice" / f"run-{self.job}.out"
        return path.read_text() if path.exists() else ""

    def where(self) -> list[dict]:
        argv = ["fabricctl", "job", "where", str(self.job), "--json"]
        done = self.lab.exec("n1", argv, user="alice", check=False)
        return json.loads(done.stdout)["ranks"] if done.returncode == 0 else []

    def wait_step(self, step: int) -> list[dict]:
        """Until all ranks are past it."""
        ranks: list[dict] = []

        def there() -> bool:
            nonlocal ranks
            ranks = self.where()
            return len(ranks) == self.ranks and all(
                (rank["iteration"] or 0) >= step for rank in ranks
            )

        wait_for(f"step {step}", there)
        return ranks

    def result(self) -> str:
        """The hash of the whole ring."""
        wait_for("the end", lambda: "exit status" in self.output)
        assert "exit status 0" in self.output, self.output
        return re.findall(r"ring ([0-9a-f]{16})", self.output)[-1]


def stencil(pause_s: float) -> str:
    return (
        f"fabricctl run --spares 1 --hang-timeout 2 {PYTHON} {ROOT}/examples/stencil.py "
        f"--steps {STEPS} --cells 4096 --every 5 --pause {pause_s}"
    )


def test_a_killed_rank_a_hang_and_a_lost_node_change_nothing_in_the_result(lab: Lab) -> None:
    whole = Run(lab, stencil(0.0)).result()
    run = Run(lab, stencil(0.04))
    victim = next(rank for rank in run.wait_step(100) if rank["rank"] == 1)
    lab.exec(victim["node"], ["kill", "-9", str(victim["pid"])])
    wait_for("the second start", lambda: run.output.count("from step") == 2)
    victim = next(rank for rank in run.wait_step(150) if rank["rank"] == 3)
    lab.exec(victim["node"], ["kill", "-STOP", str(victim["pid"])])
    wait_for("the third start", lambda: run.output.count("from step") == 3)
    victim = next(rank for rank in run.wait_step(250) if rank["rank"] == 2)
    assert victim["node"] == "n3"
    lab.fault("power-off", "n3")
    assert run.result() == whole
    begins = [int(step) for step in re.findall(r"from step (\d+)", run.output)]
    assert begins[0] == 0 and begins[1] >= 90, run.output
    assert begins[2] >= 140 and begins[3] >= 240, run.output
    assert "the ranks hang: rank 3 on n4 is stopped by a signal" in run.output
    assert "node n3 is dead" in run.output


LIVE = """
import os, time
from pathlib import Path
import torch.distributed as dist
from fabricctl import state
go = Path("go." + os.environ["SLURM_JOB_ID"])
def train(checkpoint):
    total = {"sum": 0}
    checkpoint.protect(total=total)
    rank, begin = dist.get_rank(), checkpoint.restore()
    print("rank", rank, "from step", begin, "in process", os.getpid(), flush=True)
    for n in range(begin, 30):
        if n == 10 and not go.exists():
            print("rank", rank, "is at the gate", flush=True)
        while n == 10 and not go.exists():
            time.sleep(0.02)
        told = [None] * dist.get_world_size()
        dist.all_gather_object(told, (rank + 1) * n * n)
        total["sum"] += sum(told)
        checkpoint.step(n + 1)
    return rank, total["sum"]
rank, total = state.live(train, every_steps=1)
print("rank", rank, "ends with", total, flush=True)
"""


def test_a_lost_node_is_replaced_while_the_others_run_on(lab: Lab) -> None:
    """torch is played, the rest is real. Rank 0's process is the same to the end, the result an
    unbroken run's, and no keeper holds anything when the job is over."""
    (lab.paths.shared / "home" / "alice" / "live.py").write_text(LIVE)
    path = f"PYTHONPATH={ROOT}/tests/support/faketorch:{ROOT}"
    run = Run(lab, f"{path} fabricctl run --spares 1 --live {PYTHON} live.py", nodes=3)
    wait_for("the gate", lambda: run.output.count("is at the gate") == 2)
    lab.fault("power-off", "n2")
    (lab.paths.shared / "home" / "alice" / f"go.{run.job}").touch()
    wait_for("the end", lambda: "exit status" in run.output)
    assert "exit status 0" in run.output, run.output
    whole = 3 * sum(n * n for n in range(30))
    ends = re.findall(r"rank (\d) ends with (\d+)", run.output)
    assert sorted(ends) == [("0", str(whole)), ("1", str(whole))], run.output
    begins = re.findall(r"rank (\d) from step (\d+) in process (\d+)", run.output)
    assert len({process for rank, _, process in begins if rank == "0"}) == 1, run.output
    assert [int(step) for _, step, _ in begins[2:]] in ([9, 9], [10, 10]), run.output
    assert "node n2 is dead" in run.output
    assert run.output.count("the others ran on, now on n[1,3]") == 1, run.output
    keeper = ["pgrep", "-f", f"fabric-keeper: job {run.job}$"]
    for node in ("n1", "n3"):
        gone = lambda node=node: lab.exec(node, keeper, check=False).returncode == 1  # noqa: E731
        wait_for(f"the end of {node}'s keeper", gone)


def test_a_program_that_fails_at_once_is_not_started_for_ever(lab: Lab) -> None:
    script = "#!/bin/bash\nfabricctl run --spares 1 false\necho exit status $?\n"
    argv = ["sbatch", "--parsable", "--fabric-resilience", "-p", "all", "-N5", "-n5"]
    done = lab.exec("ctl", [*argv, "-o", "run-%j.out"], user="alice", input=script)
    path = lab.paths.shared / "home" / "alice" / f"run-{int(done.stdout)}.out"
    wait_for("the end", lambda: path.exists() and "exit status" in path.read_text())
    said = path.read_text()
    assert "exit status 1" in said
    assert "it failed 3 times within 60 s of its start" in said


@pytest.mark.parametrize("node", ["n1", "n2"])
def test_a_node_without_protection_runs_with_the_others(lab: Lab, node: str) -> None:
    """Open MPI there offered all its addresses, the others connected to rails alone, and everybody
    waited for ever; and its rank had no word on what the others saved. n1 has the job script, which
    hands on what it was given."""
    lab.fault("stop", node, "fabricctl.node.service")
    command = stencil(0.0).replace("--hang-timeout 2", "--hang-timeout 0").replace("600", "100")
    run = Run(lab, command.replace("--spares 1", "--spares 0"), nodes=2)
    run.result()
    assert f"{node} is not protected" in run.output, run.output
    alone = "no step is kept in memory: no keeper for rank 1"
    assert (alone if node == "n2" else "the program runs under srun alone") in run.output
    assert run.output.count("from step") == 1


def test_a_step_from_outside_runs_on_a_node_without_protection(lab: Lab) -> None:
    """Nothing that its tasks inherit leads them to where the others are."""
    lab.fault("stop", "n2", "fabricctl.node.service")
    program = [f"{PYTHON}", f"{ROOT}/examples/allreduce.py", "--seconds", "1", "--kib", "64"]
    argv = ["srun", "--mpi=pmix", "--fabric-resilience", "-N2", "-n2", "-t1", *program]
    done = lab.run(argv, user="alice", timeout_s=90)
    assert "every sum right" in done.stdout
    assert "n2 is not protected" in done.stderr
