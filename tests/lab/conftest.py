"""One lab for all tests that need one; every test finds it whole and without faults."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec
from tests.support.nodebox import NodeBox


@pytest.fixture(scope="session")
def _lab() -> Iterator[Lab]:
    # Two runs side by side on one machine each set FABRICCTL_LAB; workers of one run have each
    # a lab of their own.
    name = os.environ.get("FABRICCTL_LAB", "pytest")
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    lab = Lab(LabSpec(name=f"{name}-{worker}" if worker else name))
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
    _lab.exec("ctl", ["sh", "-c", "squeue -h -o %A | xargs -r scancel"], check=False)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[NodeBox]:
    """One compute node without Slurm."""
    with NodeBox(tmp_path) as made:
        yield made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Six nodes and their ranks on two cores: what fails is tried once more, and the closing line
    counts how often that was. Every rerun is a fault to be found, in the test or in the product; a
    soak has none (FABRIC_RERUNS=0). They come first: what takes long must not be left to the end,
    when the other worker has nothing to do."""
    reruns = int(os.environ.get("FABRIC_RERUNS", "2"))
    items.sort(key=lambda item: item.get_closest_marker("lab") is None)
    for item in items:
        if item.get_closest_marker("lab"):
            item.add_marker(pytest.mark.flaky(reruns=reruns, reruns_delay=3))
