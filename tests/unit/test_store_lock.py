"""The lock: one holder at a time, freed by its holder's death, on flock and on leases."""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabricctl.errors import SystemRefusedError
from fabricctl.store import lock


@pytest.fixture(params=["flock", "lease"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "lease":

        def refuse(fd: int, operation: int) -> None:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr("fcntl.flock", refuse)
    return str(request.param)


@contextlib.contextmanager
def holder(path: Path) -> Iterator[int]:
    """A process that holds the lock until it is killed."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with lock.exclusive(path, 5):
                os.write(write_fd, b"x")
                time.sleep(60)
        finally:
            os._exit(1)
    os.read(read_fd, 1)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        os.close(read_fd)
        os.close(write_fd)


def test_a_second_one_waits_and_then_says_for_what(kind: str, tmp_path: Path) -> None:
    with (
        holder(tmp_path / "l"),
        pytest.raises(SystemRefusedError, match="held by another process for too long"),
        lock.exclusive(tmp_path / "l", 0.5),
    ):
        pytest.fail("two holders")


def test_the_death_of_the_holder_frees_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LEASE_S", 0.5)
    with holder(tmp_path / "l") as pid:
        os.kill(pid, signal.SIGKILL)
        with lock.exclusive(tmp_path / "l", 60):
            pass


def test_a_lease_is_kept_young_while_it_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_REFRESH_S", 0.01)
    with lock._lease(tmp_path / "l", 0.0):
        os.utime(tmp_path / "l", (1, 1))
        end_s = time.monotonic() + 60
        while (tmp_path / "l").stat().st_mtime < 2:
            assert time.monotonic() < end_s
            time.sleep(0.01)


def test_nothing_is_left_after_use(kind: str, tmp_path: Path) -> None:
    for _ in range(3):
        with lock.exclusive(tmp_path / "l", 1):
            assert list(tmp_path.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == (["l"] if kind == "lease" else [])


def test_an_error_in_the_body_passes_and_frees_it(kind: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="inner"), lock.exclusive(tmp_path / "l", 1):
        raise OSError(errno.ENOLCK, "inner")
    with lock.exclusive(tmp_path / "l", 1):
        pass


def test_never_two_holders(kind: str, tmp_path: Path) -> None:
    """Six processes increment a file, read and write apart."""
    (tmp_path / "count").write_text("0")
    pids = []
    for _ in range(6):
        pid = os.fork()
        if pid == 0:
            try:
                for _ in range(10):
                    with lock.exclusive(tmp_path / "l", 120):
                        count = int((tmp_path / "count").read_text())
                        time.sleep(0.001)
                        (tmp_path / "count").write_text(str(count + 1))
            finally:
                os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    assert (tmp_path / "count").read_text() == "60"


def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), lock.exclusive(tmp_path / "no" / "l", 1):
        pytest.fail("locked")
