"""One lab for all tests that need one; every test finds it whole and without faults."""

from collections.abc import Iterator

import pytest

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec


@pytest.fixture(scope="session")
def _lab() -> Iterator[Lab]:
    lab = Lab(LabSpec(name="pytest"))
    lab.down()  # a run that was killed may have left one of older code
    lab.up()
    yield lab
    lab.down()


@pytest.fixture
def lab(_lab: Lab) -> Iterator[Lab]:
    """A lab of five nodes and two rails, up; what a test broke is healed after it."""
    yield _lab
    _lab.heal_all()
    _lab.up()  # 50 ms when nothing died
