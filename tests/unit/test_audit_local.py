"""What a host finds out about itself for `fabricctl audit`: this machine, and a broken one."""

import fcntl
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from fabricctl import config as configuration
from fabricctl.config import Config
from fabricctl.fleet.audit import local
from fabricctl.fleet.audit.model import Check


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(local, "WATCH_S", 0.01)
    base = configuration.Config()
    for name in ("run", "spool", "traces"):
        (tmp_path / name).mkdir()
    return replace(
        base,
        node=replace(base.node, run_dir=tmp_path / "run", spool_dir=tmp_path / "spool"),
        trace=replace(base.trace, dir=tmp_path / "traces"),
        rails=replace(base.rails, interfaces=("lo",)),
    )


def by_name(found: list[Check]) -> dict[str, Check]:
    return {f"{check.area}.{check.name}": check for check in found}


def test_every_part_of_a_host_has_its_say(settings: Config) -> None:
    found = local.checks("n1", settings)
    assert {check.area for check in found} >= {"host", "clock", "slurm", "storage"}
    assert all(check.node == "n1" and check.value for check in found)
    named = by_name(found)
    assert named["storage.write"].status == "ok"
    assert "MiB free" in named["host.spool"].value
    assert not list((settings.trace.dir).iterdir())  # what was written for it is gone


def test_a_part_that_cannot_be_looked_at_is_not_measured(settings: Config) -> None:
    gone = replace(settings, trace=replace(settings.trace, dir=settings.trace.dir / "none"))
    (check,) = [c for c in local.checks("n1", gone) if c.area == "storage"]
    assert (check.status, check.name) == ("not measured", "storage")


def test_a_munged_that_hangs_takes_no_other_check_with_it(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a prolog its traceback was a failure, and Slurm drained the node."""

    def hangs(argv: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(argv, 5)

    monkeypatch.setattr(local.subprocess, "run", hangs)
    named = by_name(local.checks("n1", settings))
    assert named["slurm.slurm"].status == "not measured"
    assert named["storage.write"].status == "ok"


def test_links_are_watched_for_changes_and_errors(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"carrier": "1", "carrier_changes": "1", "rx_errors": "0", "tx_errors": "0"}
    bad = {**good, "carrier": "0", "carrier_changes": "3", "rx_errors": "7"}
    told = {"r0": iter((good, good)), "r1": iter((good, bad)), "r2": iter((good, None))}
    monkeypatch.setattr(local, "own_rails", lambda _: list(told))
    monkeypatch.setattr(local, "_counters", lambda rail: next(told[rail]))
    found = [(c.rail, c.name, c.status, c.value) for c in local._links("n1", settings)]
    assert [row[2] for row in found if row[0] == "r0"] == ["ok"] * 4
    assert ("r1", "carrier", "fail", "no carrier") in found
    assert ("r1", "steady", "fail", "2 changes in 0.01 s") in found
    assert ("r1", "errors", "fail", "7 errors in 0.01 s") in found
    assert ("r2", "present", "fail", "no such interface") in found
    monkeypatch.setattr(local, "own_rails", lambda _: [])
    assert [c.value for c in local._links("n1", settings)] == ["no rail is there"]


def test_counters_are_those_of_the_kernel() -> None:
    found = local._counters("lo")
    assert found is not None and set(found) == {
        "carrier", "carrier_changes", "rx_errors", "tx_errors"
    }  # fmt: skip
    assert local._counters("no-such-rail") is None


def test_a_service_is_alive_when_somebody_holds_its_lock(settings: Config) -> None:
    lock = settings.node.run_dir / "node.lock"
    assert by_name(list(local._slurm("n1", settings)))["slurm.service"].status == "fail"
    with lock.open("wb") as stream:
        said = by_name(list(local._slurm("n1", settings)))["slurm.service"]
        assert said.value == "nobody holds its lock: it is dead"
        fcntl.flock(stream, fcntl.LOCK_EX)
        said = by_name(list(local._slurm("n1", settings)))["slurm.service"]
        assert (said.status, said.value) == ("ok", "it lives")


def test_a_shared_directory_that_takes_nothing_fails(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    (check,) = [c for c in local._storage("n1", settings) if c.name == "write"]
    assert (check.status, check.value.split(": ")[1]) == ("fail", "No space left on device")

    def refused(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refused)
    (check,) = [c for c in local._storage("n1", settings) if c.name == "write"]
    assert check.status == "not measured"


def test_rails_have_their_first_address(settings: Config) -> None:
    assert local.rail_addresses(settings) in ({"lo": "127.0.0.1"}, {})
