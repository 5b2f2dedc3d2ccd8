"""slurmdbd over a database of the lab's own."""

import shutil
import time

import pytest

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec
from tests.support.labname import lab_name

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(
        shutil.which("mariadbd") is None or shutil.which("slurmdbd") is None,
        reason="apt-get install mariadb-server-core mariadb-client-core slurmdbd",
    ),
]


def accounted(lab: Lab) -> str:
    return lab.run(["sacct", "-X", "-n", "-P", "-o", "jobid,user,account,state"]).stdout


def test_jobs_are_accounted_to_their_users_also_after_the_database_died() -> None:
    with Lab(LabSpec(name=lab_name("acct"), nodes=1, rails=1, bare=True, accounting=True)) as lab:
        lab.run(["srun", "true"])
        deadline = time.monotonic() + 30
        while "1|alice|lab|COMPLETED" not in accounted(lab):
            assert time.monotonic() < deadline
            time.sleep(0.5)
        lab.fault("kill", "ctl", "mariadbd")
        lab.heal("kill", "ctl", "mariadbd")
        lab.fault("power-off", "ctl")
        lab.up()
        assert "1|alice|lab|COMPLETED" in accounted(lab)
