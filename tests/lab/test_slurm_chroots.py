"""The Slurm adapter on the Slurm of other Debian suites, live, in chroots made for it.

The first run makes the chroots (40 to 150 s each) and keeps them; see tests/support/chroot.py.
There is no skip: a chroot that cannot be made is a failure, with its reason.
"""

import sys

import pytest

from tests.support import chroot

CONTRACT = "/project/tests/support/slurm_contract.py"

pytestmark = [pytest.mark.lab]


@pytest.mark.parametrize("suite", chroot.SUITES.values(), ids=lambda s: f"{s.name}-{s.slurm}")
def test_the_contract_holds_on_a_live_slurm(suite: chroot.Suite) -> None:
    backends = "commands,pyslurm" if suite.pyslurm else "commands"
    done = chroot.run(
        suite,
        [
            "/project/tests/support/slurm-cluster",
            *("env", f"CONTRACT_BACKENDS={backends}", "CONTRACT_ACCOUNTING=1"),
            *("PYTHONDONTWRITEBYTECODE=1", "PYTHONPATH=/project", "python3", "-m", "pytest"),
            *("-c", "/dev/null", "--rootdir=/tmp", "-p", "no:cacheprovider", "-q", "-ra"),
            *("-W", "error", CONTRACT),
        ],
        timeout_s=400,
    )
    print(done.stdout[-20_000:])
    print(done.stderr[-3000:], file=sys.stderr)
    assert done.returncode == 0
    assert " passed" in done.stdout
    # What is left out must be left out for a reason that this cluster does not have.
    assert "this cluster has no slurmdbd" not in done.stdout
