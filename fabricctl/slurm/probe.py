"""Whether pyslurm works with the Slurm that is here, tried in a process of its own.

A pyslurm built for another Slurm reads other structures than Slurm sends: it may crash, hang, or
answer nonsense. So the child asks for everything once and prints the nodes; the parent holds them
against what the commands say.
"""

import importlib.util
import json
import os
import subprocess
import sys

from fabricctl.errors import FabricError
from fabricctl.slurm.commands import CommandSlurm
from fabricctl.slurm.model import Slurm

TIMEOUT_S = 20.0  # an import and five questions take 0.3 s; Slurm's MessageTimeout is 10 s


def pyslurm_problem(commands: CommandSlurm) -> str | None:
    """None when pyslurm can be used, else why not, in one clause."""
    if importlib.util.find_spec("pyslurm") is None:
        return "pyslurm is not installed"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fabricctl.slurm.probe"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=TIMEOUT_S,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"pyslurm gave no answer within {TIMEOUT_S:g} s"
    if done.returncode < 0:
        return f"pyslurm was killed by signal {-done.returncode} when it asked Slurm"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"pyslurm failed: {last}"
    return _disagreement(done.stdout, commands)


def _disagreement(output: str, commands: CommandSlurm) -> str | None:
    try:
        seen = json.loads(output)
    except json.JSONDecodeError:
        return "pyslurm's answer cannot be read"
    known = [list(each) for each in _facts(commands)]
    return None if seen == known else "pyslurm sees other nodes than scontrol does"


def _facts(slurm: Slurm) -> list[tuple[str, int, int]]:
    return [(node.name, node.cpus, node.memory_mib) for node in slurm.nodes()]


def main() -> None:
    """The child: asks pyslurm for everything that the backend uses."""
    from fabricctl.slurm.pyslurm_backend import PyslurmSlurm

    slurm = PyslurmSlurm(CommandSlurm(), "probe")
    slurm.jobs()
    slurm.partitions()
    slurm.reservations()
    sys.stdout.write(json.dumps(_facts(slurm)))


if __name__ == "__main__":
    try:
        main()
    except (ImportError, FabricError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
