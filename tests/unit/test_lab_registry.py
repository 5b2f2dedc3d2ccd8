"""The faults in force of a lab, as files that others write and remove meanwhile."""

from pathlib import Path

import pytest

from fabricctl.errors import LabError
from fabricctl.lab import spec
from fabricctl.lab.kinds import Fault
from fabricctl.lab.registry import InForce, Registry


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setattr(spec, "BASE", tmp_path)
    paths = spec.LabPaths("x")
    paths.faults.mkdir(parents=True)
    return Registry(paths)


def test_one_that_is_healed_while_they_are_listed_is_over(
    registry: Registry, tmp_path: Path
) -> None:
    registry.put(InForce(Fault("cut", ("n2", "r0"), {}), acting=True))
    (tmp_path / "x/faults/freeze.n4.json").symlink_to("gone")
    assert [item.fault.id for item in registry.all()] == ["cut.n2.r0"]
    assert registry.get("freeze.n4") is None


def test_a_record_that_is_none_is_told(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "x/faults/freeze.n4.json").write_text("{")
    with pytest.raises(LabError, match="not a fault's record"):
        registry.all()
