"""What a lab's Slurm can do: users, kinds of jobs, containers, plans under load."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec
from tests.support.labname import lab_name

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("user", ["alice", "bob", "carol"])
def test_each_job_user_runs_jobs_with_files_of_its_own(lab: Lab, user: str) -> None:
    lab.run(["sbatch", "-W", "-N2", "-o", "out", "--wrap", "srun id -un"], user=user)
    assert (lab.paths.shared / "home" / user / "out").read_text().split() == [user, user]


def test_an_allocation_holds_steps_on_all_nodes(lab: Lab) -> None:
    done = lab.run(["salloc", "-Q", "-N4", "sh", "-c", "srun hostname; srun -N1 -r2 hostname"])
    assert sorted(done.stdout.split()) == ["n1", "n2", "n3", "n3", "n4"]


def test_an_mpi_program_finds_its_ranks(lab: Lab, tmp_path: Path) -> None:
    source = tmp_path / "ranks.c"
    source.write_text(
        "#include <mpi.h>\n#include <stdio.h>\n"
        "int main(int argc, char **argv) { int n, sum, one = 1; MPI_Init(&argc, &argv);"
        "MPI_Comm_size(MPI_COMM_WORLD, &n); MPI_Allreduce(&one, &sum, 1, MPI_INT, MPI_SUM,"
        'MPI_COMM_WORLD); printf("%d of %d\\n", sum, n); return MPI_Finalize(); }\n'
    )
    program = lab.paths.shared / "home" / "alice" / "ranks"
    subprocess.run(["mpicc", "-o", str(program), str(source)], check=True)
    done = lab.run(["srun", "--mpi=pmix", "-N4", "./ranks"])
    assert done.stdout == "4 of 4\n" * 4


def test_job_containers_give_every_job_its_own_tmp() -> None:
    conf = {"JobContainerType": "job_container/tmpfs", "PrologFlags": "Alloc,Contain"}
    spec = LabSpec(name=lab_name("box"), nodes=2, rails=1, bare=True, conf=conf)
    with Lab(spec) as lab:
        for _ in range(4):
            script = "touch /tmp/of-the-job /dev/shm/of-the-job; srun -N2 ls /tmp /dev/shm"
            lab.run(["sbatch", "-W", "-p", "all", "-N2", "-o", "out", "--wrap", script])
            text = (lab.paths.shared / "home/alice/out").read_text()
            assert text.count("of-the-job") == 2, text
            assert "of-the-job" not in lab.exec("n1", ["ls", "/tmp", "/dev/shm"]).stdout


PLAN = """
[[fault]]
kind = "cut"
target = ["n1", "r0"]
at_s = 0.2
for_s = 0.5
[[fault]]
kind = "loss"
target = ["n*", "r1"]
options = { percent = 10 }
at_s = [0.1, 0.9]
for_s = 0.3
times = 3
[[fault]]
kind = "kill"
target = ["n2", "no-such-service"]
at_s = 0.3
for_s = 1
[[fault]]
kind = "freeze"
target = ["n3"]
at_s = 60
for_s = 60
"""


def test_a_plan_keeps_its_times_says_what_it_leaves_out_and_heals_when_stopped(
    lab: Lab, tmp_path: Path
) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(PLAN)
    words = ["fault", "--name", lab.name, "--plan", str(file), "--seed", "3"]
    argv = [sys.executable, "-m", "fabricctl.cli.main", "lab", *words]
    promised = subprocess.run([*argv, "--dry-run"], capture_output=True, text=True, check=True)
    assert len(promised.stdout.splitlines()) == 6
    assert not lab.in_force()
    begin_ns = time.monotonic_ns()
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(2.5)
        process.terminate()
        said = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert "left out: at 0.300 s for 1.000 s: kill n2 no-such-service: node n2: no service" in said
    assert not lab.in_force()
    entries = [e for e in lab.log() if e["mono_ns"] > begin_ns]
    assert {e["cause"] for e in entries} == {"plan"}
    cut = [e["mono_ns"] for e in entries if e["kind"] == "cut"]
    assert abs(cut[1] - cut[0] - 0.5e9) < 0.1e9
    healed = [e for e in entries if e["kind"] == "loss" and e["event"] == "heal"]
    # A choice that falls on a link that is lossy already is left out, and said.
    left_out = [line for line in said.splitlines() if line.startswith("left out: ")]
    assert len(healed) == 3 - len([line for line in left_out if ": loss " in line])
    assert healed
