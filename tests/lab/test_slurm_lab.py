"""The Slurm adapter in the lab: the same contract as in the chroots, on this machine's Slurm."""

from pathlib import Path

import pytest

from fabricctl.lab.cluster import Lab

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.lab


def test_the_contract_holds_in_the_lab(lab: Lab) -> None:
    environment = {"CONTRACT_BACKENDS": "commands", "CONTRACT_USERS": "alice,bob"}
    done = lab.exec(
        "ctl",
        [
            *(str(ROOT / ".venv" / "bin" / "python"), "-m", "pytest", "-c", "/dev/null"),
            *("--rootdir=/tmp", "-p", "no:cacheprovider", "-q", "-W", "error"),
            str(ROOT / "tests" / "support" / "slurm_contract.py"),
        ],
        environment=environment,
        check=False,
        timeout_s=200,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert " passed" in done.stdout
