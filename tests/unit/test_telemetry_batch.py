"""Reads of one sample together: compiled, and plain Python."""

import errno
import os
import select
import socket
import time
from pathlib import Path

import pytest

from fabricctl.telemetry import _batch, netlink
from fabricctl.telemetry.batch import Batch, PlainBatch


@pytest.fixture(params=["compiled", "plain"])
def batch(request: pytest.FixtureRequest) -> Batch:
    return _batch.Batch() if request.param == "compiled" else PlainBatch()


def test_a_batch_keeps_each_reading_with_its_time_or_its_error(
    tmp_path: Path, batch: Batch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    fd, closed = os.open(path, os.O_RDONLY), os.open(path, os.O_RDONLY)
    os.close(closed)
    file, broken, idle = (batch.add() for _ in range(3))
    batch.set(file, fd, 2)
    batch.set(broken, closed, 2)
    begin_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    batch.take()
    path.write_bytes(b"two")
    batch.take()
    (first_ns, first), (second_ns, second) = batch.drain(file)
    assert (first, second) == (b"on", b"tw")
    assert begin_ns <= first_ns <= second_ns <= time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert [got for _, got in batch.drain(broken)] == [errno.EBADF] * 2
    assert batch.drain(idle) == batch.drain(file) == []
    batch.set(file, -1)
    batch.take()
    assert batch.drain(file) == []
    with pytest.raises(IndexError):
        batch.set(3, fd, 2)
    os.close(fd)


def test_a_batch_asks_a_socket_and_waits_for_its_answer(batch: Batch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        theirs.send(b"answer")
        slot = batch.add()
        batch.set(slot, ours.fileno(), 4, b"question")
        batch.take()
        assert [got for _, got in batch.drain(slot)] == [b"answ"]
        assert theirs.recv(99) == b"question"


def test_answers_of_one_socket_go_to_the_slots_that_asked(batch: Batch) -> None:
    with netlink.open_socket() as asked:
        names = ("lo", "nowhere0", "lo")
        slots = [batch.add() for _ in names]
        for slot, name in zip(slots, names, strict=True):
            batch.set(slot, asked.fileno(), 4096, netlink.request(name=name))
        for _ in range(3):
            batch.take()
        for slot, name in zip(slots, names, strict=True):
            answers = [bytes(got) for _, got in batch.drain(slot) if isinstance(got, bytes)]
            kinds = [kind for got in answers for kind, _ in netlink.messages(memoryview(got))]
            expected = netlink.RTM_NEWLINK if name == "lo" else netlink.NLMSG_ERROR
            assert kinds == [expected] * 3


def test_a_batch_samples_at_every_period_until_something_is_ready(
    tmp_path: Path, batch: Batch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    ours, theirs = socket.socketpair()
    with ours, theirs, select.epoll() as poll, path.open("rb") as file:
        poll.register(ours.fileno(), select.EPOLLIN)
        slot = batch.add()
        batch.set(slot, file.fileno(), 3)
        begin_ns = time.monotonic_ns()
        samples = points = 0
        ready: list[int] = []
        while not ready:
            ready, taken, missed = batch.wait(poll.fileno(), 5_000_000, 0.02)
            samples, points = samples + taken, points + taken + missed
            if samples >= 3:
                theirs.send(b"x")
        assert ready == [ours.fileno()]
        assert [got for _, got in batch.drain(slot)] == [b"one"] * samples
        assert points * 5_000_000 <= time.monotonic_ns() - begin_ns + 5_000_000


def test_a_short_wait_is_waited_for(batch: Batch) -> None:
    """What is due within the grace of a sample is not asked for over and over until it is."""
    with select.epoll() as poll:
        batch.wait(poll.fileno(), 10**10, 0.0)
        begin_ns = time.monotonic_ns()
        assert batch.wait(poll.fileno(), 10**10, 0.0015) == ([], 0, 0)
        assert time.monotonic_ns() - begin_ns >= 1_400_000


def test_a_batch_that_nobody_drains_stops_to_grow(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    kept = _batch.Batch()
    with path.open("rb") as file:
        kept.set(kept.add(), file.fileno(), 4096)
        for _ in range(2000):
            kept.take()
    assert 900 < len(kept.drain(0)) < 1024
    with pytest.raises(ValueError):
        kept.set(0, 1, 4097)
