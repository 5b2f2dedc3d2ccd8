"""Keepers as the node service starts and ends them."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fabricctl.agent.log import NodeLog
from fabricctl.config import Config
from fabricctl.errors import DataError
from fabricctl.node import keepers, rootfiles
from fabricctl.node.keepers import Keepers
from fabricctl.records import Envelope, JobStart
from fabricctl.sections import StateConfig
from fabricctl.state.ckpt.assignment import Assignment
from fabricctl.state.ckpt.keeper import Keeper
from fabricctl.state.ckpt.parts import Part, Wanted


def job(key: bytes) -> JobStart:
    return JobStart(7, os.getuid(), "alice", ("n1",), "n1", "c", Envelope("on", key * 32))


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keepers]:
    monkeypatch.setattr(keepers, "_become_keeper", lambda *_: signal.pause())
    made = Keepers(Config(), NodeLog(tmp_path / "log"))
    yield made
    for held in made._held.values():
        os.kill(held.pid, signal.SIGKILL)
        os.waitpid(held.pid, 0)


def wait(good: Callable[[], object]) -> None:
    end_s = time.monotonic() + 60
    while not good():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_what_an_earlier_job_of_the_same_number_left_is_given_up(node: Keepers) -> None:
    """slurmctld has lost its state: numbers begin again at 1, and the old job's keeper holds."""
    node.start(job(b"a"), 0.0)
    node.turn(1.0)
    first = node._held[7].pid
    node.stop(7)
    assert node.is_anothers(job(b"b")) and not node.is_anothers(job(b"a"))
    node.start(job(b"b"), 2.0)
    wait(lambda: node.turn(3.0) or not node._dropped)
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert node.held(7) and node._held[7].pid != first
    assert not node._held[7].ending


def test_checkpoints_on_the_disk_go_whatever_age_they_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be removed keeps none of the others either."""
    config = Config(state=StateConfig(disk_dir=str(tmp_path / "disk"), hold_s=0))
    held = keepers.disk_place(config, job(b"a"))
    assert held is not None
    for path in (stuck := tmp_path / "disk" / "1", young := tmp_path / "disk" / "2", held):
        path.mkdir(parents=True)
    os.utime(young, (2**32, 2**32))
    made = Keepers(config, NodeLog(tmp_path / "log"))
    made.start(job(b"a"), 0.0)
    remove = rootfiles.remove_tree

    def removed(path: Path) -> None:
        if path == stuck:
            raise OSError(5, "Input/output error")
        remove(path)

    monkeypatch.setattr(rootfiles, "remove_tree", removed)
    made._clean_disk()
    assert not young.exists() and stuck.exists() and held.exists()
    assert "Input/output error" in (tmp_path / "log").read_text()


def test_a_requeued_jobs_keeper_goes_on(node: Keepers) -> None:
    node.start(job(b"a"), 0.0)
    node.turn(1.0)
    first = node._held[7].pid
    node._held[7].ending = True  # not by the signal, which is for a real one
    node.start(job(b"a"), 2.0)
    node.turn(3.0)
    assert node._held[7].pid == first and not node._held[7].ending


def lone_keeper(where: Path) -> Keeper:
    nodes = ("n1", "n2", "n3")
    return Keeper(Assignment(
        os.getpid(), os.getuid(), bytes(32), "n1", nodes, where, 1 << 20, 24_000, 6000,
        lambda _: ["127.0.0.1"],
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("error", "stale", "tried", "avoided"),
    [
        (OSError(110, "timed out"), False, ["n2", "n3"], ["n2", "n3"]),
        (DataError("checksum of what came is wrong"), False, ["n2", "n3"], []),
        (DataError("the connection ended"), True, ["n2"], []),
    ],
)
def test_only_nodes_that_are_not_reached_are_avoided(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    stale: bool,
    tried: list[str],
    avoided: list[str],
) -> None:
    """A copy that is broken off goes on to the next nodes while its memory is used again: these
    find it damaged, and once all were avoided the dead one was the first again, at every save."""
    keeper, seen = lone_keeper(tmp_path / "keeper"), list[str]()
    part = keeper._parts.room(("main", 0, 1), 1, 10, set())
    part.wanted = Wanted(copies=1)

    def fails(node: str, _part: Part) -> None:
        seen.append(node)
        if stale:
            keeper._parts.room(("main", 0, 2), 1, 10, set())
        raise error

    monkeypatch.setattr(keeper, "_copy_to", fails)
    keeper._copy(part)
    keeper.end()
    assert seen == tried
    assert [node for node in ("n2", "n3") if keeper._others.avoided(node)] == avoided


def test_a_keepers_end_leaves_the_next_ones_socket_alone(tmp_path: Path) -> None:
    first, second = (lone_keeper(tmp_path / "keeper") for _ in range(2))
    first.end()
    assert (tmp_path / "keeper").is_socket()
    second.end()
    assert not (tmp_path / "keeper").exists()
