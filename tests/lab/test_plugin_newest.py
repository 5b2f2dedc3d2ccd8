"""The same plugin source on the newest Slurm that Debian has, live, in a chroot.

There is no skip: a chroot that cannot be made is a failure, with its reason.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import chroot

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
SUITE = chroot.SUITES["forky"]
SCRIPT = """
echo 'optional /out/fabric.so max_spares=2' >/etc/slurm/plugstack.conf
show='echo shown $(hostname) mode=$FABRIC_MODE dir=$FABRIC_JOB_DIR'
say() { echo "== $1"; shift; "$@" 2>&1; echo "status $?"; }
say direct srun -N1 --fabric-resilience sh -c "$show"
say word srun --fabric-resilience=maybe true
say spares sbatch -N2 --fabric-resilience --fabric-spares=2 --wrap true
say limit salloc -N4 --fabric-resilience --fabric-spares=3 true
say variable env FABRIC_RESILIENCE=bad sbatch --wrap true
cat >/tmp/job.sh <<JOB
#!/bin/sh
srun --fabric-resilience=off sh -c '$show'
srun --fabric-spares=1 true
srun sh -c '$show'
JOB
say batch sbatch -W -Q -wn1 --fabric-resilience=observe -o /tmp/job.out /tmp/job.sh
cat /tmp/job.out
echo 'optional /out/fabric.so on_missing=refuse alow=on' >/etc/slurm/plugstack.conf
say refuse srun -wn1 --fabric-resilience echo ran
for _ in $(seq 100); do sinfo -h -n n1 -p main -o %t | grep -q comp || break; sleep 0.2; done
sinfo -h -n n1 -p main -o 'state %t'
"""
ALONE = "fabric: step: n1 is not protected: it has no fabricctl, or its node service never ran"


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What each command of the script said."""
    work = tmp_path_factory.mktemp("newest")
    headers = work / "include" / "slurm"
    shutil.copytree(chroot.make(SUITE) / "usr/include/slurm", headers)
    argv = ["make", "-s", "-C", str(ROOT / "spank_plugin"), f"BUILD={work / 'build'}"]
    subprocess.run([*argv, f"SLURM_INCLUDE={headers.parent}"], check=True, timeout=60)
    assert (work / "build" / "slurm-version").read_text().startswith(SUITE.slurm)
    cluster = "/project/tests/support/slurm-cluster"
    done = chroot.run(SUITE, [cluster, "bash", "-c", SCRIPT], timeout_s=120, out=work / "build")
    assert done.returncode == 0, done.stderr
    parts = done.stdout.split("== ")[1:]
    return {name: lines for name, *lines in (part.splitlines() for part in parts)}


def test_a_job_of_srun_is_protected_and_told_that_nobody_is_there(
    said: dict[str, list[str]],
) -> None:
    assert sorted(said["direct"]) == sorted(
        [ALONE, "shown n1 mode=on dir=/run/fabricctl/jobs/1", "status 0"]
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("word", "srun: error: fabric: submit: --fabric-resilience=maybe: "),
        ("spares", "sbatch: error: fabric: submit: --fabric-spares=2: the job asks for 2 nodes"),
        ("limit", "salloc: error: fabric: submit: --fabric-spares=3: this site allows at most 2"),
        ("variable", "sbatch: error: fabric: submit: FABRIC_RESILIENCE=bad: not one of off, "),
    ],
)
def test_a_wrong_option_fails_at_submit(
    said: dict[str, list[str]], name: str, message: str
) -> None:
    first, *_, status = said[name]
    assert first.startswith(message)
    assert status in ("status 1", "status 255")


def test_steps_of_a_batch_job_have_its_mode_or_less(said: dict[str, list[str]]) -> None:
    text = [line for line in said["batch"] if line != ALONE]
    assert text[:2] == ["status 0", "shown n1 mode= dir="]
    assert text[2].startswith("srun: error: fabric: step: --fabric-spares=1: spares are the whole")
    assert text[3].startswith("shown n1 mode=observe dir=/run/fabricctl/jobs/")
    assert said["batch"].count(ALONE) == 2  # the batch step and the last one


def test_refused_tasks_end_with_78_and_the_node_stays(said: dict[str, list[str]]) -> None:
    text = said["refuse"]
    assert "srun: error: fabric: plugstack: unknown key 'alow': did you mean 'allow'?" in text
    assert ALONE in text
    assert "ran" not in text
    assert text[-2:] == ["status 78", "state idle"]
