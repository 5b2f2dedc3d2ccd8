"""Keepers as the node service starts and ends them."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fabricctl.agent.log import NodeLog
from fabricctl.config import Config
from fabricctl.node import keepers
from fabricctl.node.keepers import Keepers
from fabricctl.records import Envelope, JobStart
from fabricctl.state.ckpt.assignment import Assignment
from fabricctl.state.ckpt.keeper import Keeper


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


def test_a_requeued_jobs_keeper_goes_on(node: Keepers) -> None:
    node.start(job(b"a"), 0.0)
    node.turn(1.0)
    first = node._held[7].pid
    node._held[7].ending = True  # not by the signal, which is for a real one
    node.start(job(b"a"), 2.0)
    node.turn(3.0)
    assert node._held[7].pid == first and not node._held[7].ending


def test_a_keepers_end_leaves_the_next_ones_socket_alone(tmp_path: Path) -> None:
    def keeper() -> Keeper:
        where = tmp_path / "keeper"
        nodes = ("n1",)
        return Keeper(Assignment(
            os.getpid(), os.getuid(), bytes(32), "n1", nodes, where, 1 << 20, 24_000, 6000,
            lambda _: ["127.0.0.1"],
        ))  # fmt: skip

    first, second = keeper(), keeper()
    first.end()
    assert (tmp_path / "keeper").is_socket()
    second.end()
    assert not (tmp_path / "keeper").exists()
