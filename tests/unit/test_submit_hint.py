"""What the plugin tells who submits: written by `fabricctl place --publish`, read in C."""

import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from fabricctl.cli import place, status
from fabricctl.errors import SystemRefusedError
from fabricctl.slurm import topology
from tests.support.crunner import Runner

FITS = "hint: 8 nodes fit under one switch: --switches=1@10:00 waits up to ten minutes for that"
DOWN = "n4: rail r1 is down for 3 min"


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Compiled once (1.5 s)."""
    return Runner(tmp_path_factory.mktemp("c"))


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two leaf switches of 12 and 6 nodes, and a rail that is down."""
    leaves = [("s1", range(12)), ("s2", range(12, 18))]
    tree = [topology.Switch(name, 0, tuple(f"n{i}" for i in nodes), ()) for name, nodes in leaves]
    found = [{"kind": "rail_down", "text": DOWN}, {"kind": "node_down", "text": "n9 is down"}]
    monkeypatch.setattr(topology, "switches", lambda: tree)
    monkeypatch.setattr(status, "look", lambda: {"findings": found})
    path = tmp_path / "submit-hint"
    done = CliRunner().invoke(place.command, ["--publish", str(path)], catch_exceptions=False)
    assert (done.exit_code, done.output) == (0, "")
    return path


def said(runner: Runner, path: Path, nodes: int, switches: str = "no") -> list[str]:
    return runner("hint", str(path), str(nodes), switches).splitlines()


def test_who_submits_is_told_of_switch_and_rails(runner: Runner, published: Path) -> None:
    assert published.stat().st_mode & 0o777 == 0o644
    assert said(runner, published, 8) == [FITS, f"hint: {DOWN}"]


@pytest.mark.parametrize(("nodes", "switches"), [(0, "no"), (1, "no"), (13, "no"), (8, "yes")])
def test_a_switch_is_not_spoken_of_where_it_does_not_help(
    runner: Runner, published: Path, nodes: int, switches: str
) -> None:
    assert said(runner, published, nodes, switches) == [f"hint: {DOWN}"]


def test_what_is_old_says_nothing(runner: Runner, published: Path) -> None:
    then = time.time() - 1000
    os.utime(published, (then, then))
    assert said(runner, published, 8) == []
    assert said(runner, published.with_name("none"), 8) == []
    assert runner("hint", "", "8", "no") == ""


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("under_one_switch=many\n", []),
        ("under_one_switch=8\nunder_one_switch=8\n", []),
        ("rails=\x1b[2J\n", []),
        ("x" * 100_000, []),
        ("under_one_switch=-1\nrails=\n", []),
        ("later=1\nrails=r0\n", ["hint: r0"]),
        (f"rails={'y' * 5000}\n", [f"hint: {'y' * 359}"]),
    ],
)
def test_damage_says_nothing(runner: Runner, tmp_path: Path, text: str, lines: list[str]) -> None:
    path = tmp_path / "hint"
    path.write_text(text)
    assert said(runner, path, 8) == lines


def test_what_is_no_file_is_not_waited_for(runner: Runner, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hint")
    assert said(runner, tmp_path / "hint", 8) == []
    assert said(runner, tmp_path, 8) == []


def test_where_it_cannot_be_written_it_says_so(published: Path) -> None:
    argv = ["--publish", str(published / "below")]
    with pytest.raises(SystemRefusedError, match="Not a directory"):
        CliRunner().invoke(place.command, argv, catch_exceptions=False)
