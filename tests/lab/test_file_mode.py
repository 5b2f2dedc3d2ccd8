"""The C and the Fortran example under a real MPI, with keepers of two nodes, no Slurm."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.keepers import KeeperSet

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "state"
RANKS, STEPS, WAIT_S = 3, 300, 120

pytestmark = pytest.mark.lab


def build(compiler: str, source: str, to: Path) -> Path:
    subprocess.run(["make", "-s", "-C", str(ROOT / "fabricctl" / "state")], check=True)
    argv = [compiler, "-O2", f"-I{ROOT}/fabricctl/state/ckpt", "-o", str(to)]
    argv += [str(ROOT / "examples" / source), f"-L{BUILD}", f"-Wl,-rpath,{BUILD}", "-lfabricckpt"]
    subprocess.run(argv, check=True)
    return to


class Run:
    """All ranks of the program; each has a directory of its own below ``where``."""

    def __init__(self, program: Path, where: Path, keeper: Path, every: int, pause_ms: int) -> None:
        self.output = where / f"output.{time.monotonic_ns()}"
        environment = {
            **os.environ,
            "FABRIC_KEEPER": str(keeper),
            "FABRICCTL": str(Path(sys.executable).with_name("fabricctl")),
            "TMPDIR": str(where),
            "OMPI_MCA_mpi_yield_when_idle": "1",
        }
        environment.pop("SLURM_PROCID", None)
        argv = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(RANKS)]
        argv += [str(program), str(STEPS), str(every), str(pause_ms)]
        with self.output.open("w") as stream:
            self.process = subprocess.Popen(
                argv, env=environment, stdout=stream, stderr=stream, start_new_session=True
            )

    def wait_for(self, text: str, count: int) -> None:
        end_s = time.monotonic() + WAIT_S
        while self.output.read_text().count(text) < count:
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < end_s, self.output.read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        """All ranks at once: they are children of mpirun, each in a session of its own."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for pid in [*map(int, children.read_text().split()), self.process.pid]:
            os.kill(pid, signal.SIGKILL)
        self.process.wait(WAIT_S)

    def result(self) -> tuple[int, str]:
        """Where it began, and the hash of the whole ring."""
        assert self.process.wait(WAIT_S) == 0, self.output.read_text()
        said = self.output.read_text()
        (begin,), (ring,) = (
            re.findall(r"from step (\d+)", said),
            re.findall(r"ring ([0-9a-fA-F]{16})", said),
        )
        return int(begin), ring


@pytest.mark.parametrize(
    ("compiler", "source"), [("mpicc", "stencil.c"), ("mpifort", "stencil.f90")]
)
def test_a_killed_program_goes_on_from_its_files(
    compiler: str, source: str, tmp_path: Path
) -> None:
    program = build(compiler, source, tmp_path / "stencil")
    with KeeperSet(tmp_path, nodes=2) as keepers:
        keeper = keepers.where / "n0"
        whole = Run(program, tmp_path, keeper, 1000, 0).result()
        assert whole[0] == 0
        broken = Run(program, tmp_path, keeper, 100, 20)
        broken.wait_for("step 100: 1 files", RANKS)
        broken.kill()
        assert "ring" not in broken.output.read_text()
        begin, ring = Run(program, tmp_path, keeper, 100, 0).result()
        assert begin >= 100 and ring == whole[1]
        again = Run(program, tmp_path, keeper, 1000, 0).result()
        assert again == whole, "a program that ended well left nothing"
