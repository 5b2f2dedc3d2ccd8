"""What the plugin reads and writes in the node's run_dir; the agent's files may be hostile."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.crunner import Runner

JOB = 7


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Compiled once (1.5 s)."""
    return Runner(tmp_path_factory.mktemp("c"))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """As the node service makes it, with the job announced and its directory there."""
    run = tmp_path / "run"
    for name in ("", "requests", "jobs", f"jobs/{JOB}", "steps"):
        (run / name).mkdir(mode=0o755)
    (run / "node.lock").touch(0o600)
    return run


@contextmanager
def service(run_dir: Path) -> Iterator[None]:
    """Holds node.lock, as a living node service does."""
    with (run_dir / "node.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def status(run_dir: Path, age_s: float = 0, **changes: str) -> Path:
    """Writes the job's status file."""
    fields = {
        "v": "1",
        "state": "running",
        "nodes": "4",
        "protected": "4",
        "settled": "1",
        "updated_mono_ns": str(time.monotonic_ns() - int(age_s * 1e9)),
        **changes,
    }
    file = run_dir / "jobs" / str(JOB) / "status"
    file.write_text("".join(f"{key}={value}\n" for key, value in fields.items()))
    return file


def look(runner: Runner, run_dir: Path) -> str:
    return runner("look", str(run_dir), str(JOB)).strip()


def not_here(why: str) -> str:
    return f"here=not why={why} missing= unplugged= others=0"


FINE = "here=ok why= missing= unplugged= others=0"
DAMAGED = not_here("its agent's status file is damaged")


# What a step is told --------------------------------------------------------------------------


def test_a_fresh_status_of_all_nodes_is_fine(runner: Runner, run_dir: Path) -> None:
    status(run_dir)
    assert look(runner, run_dir) == FINE


def test_a_notice_is_told_and_the_node_is_protected_all_the_same(
    runner: Runner, run_dir: Path
) -> None:
    status(run_dir, notice="--fabric-clock=system: refused: chronyd (pid 8) \x1b[2J")
    said = "--fabric-clock=system: refused: chronyd (pid 8)"
    with service(run_dir):
        assert look(runner, run_dir).startswith("here=not")  # no control characters in a status
    status(run_dir, notice=said)
    assert look(runner, run_dir) == f"{FINE} notice={said}"
    status(run_dir, notice="x" * 1000)
    assert look(runner, run_dir) == f"{FINE} notice={'x' * 199}"


def test_no_run_dir_means_no_fabricctl(runner: Runner, tmp_path: Path) -> None:
    answer = look(runner, tmp_path / "absent")
    assert answer == not_here("it has no fabricctl, or its node service never ran")


@pytest.mark.parametrize("name", ["", "jobs"])
def test_a_directory_that_others_can_write_to_is_not_believed(
    runner: Runner, run_dir: Path, name: str
) -> None:
    status(run_dir)
    (run_dir / name).chmod(0o777)
    with service(run_dir):
        assert look(runner, run_dir) in (
            not_here("its run_dir is not root's alone"),
            not_here("its prolog did not announce the job"),
        )


def test_a_run_dir_behind_a_link_is_not_followed(runner: Runner, run_dir: Path) -> None:
    status(run_dir)
    link = run_dir.with_name("link")
    link.symlink_to(run_dir)
    assert look(runner, link).startswith("here=not")


def test_no_status_and_no_service_is_not_protected(runner: Runner, run_dir: Path) -> None:
    assert look(runner, run_dir) == not_here("its node service is not running")


def test_no_lock_file_means_no_service(runner: Runner, run_dir: Path) -> None:
    (run_dir / "node.lock").unlink()
    assert look(runner, run_dir) == not_here("its node service is not running")


def test_a_lock_of_another_reader_is_not_a_service(runner: Runner, run_dir: Path) -> None:
    with (run_dir / "node.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert look(runner, run_dir) == not_here("its node service is not running")


def test_a_job_just_announced_is_starting(runner: Runner, run_dir: Path) -> None:
    with service(run_dir):
        assert look(runner, run_dir).startswith("here=starting")
        (run_dir / "jobs" / str(JOB)).rmdir()
        (run_dir / "requests" / f"{JOB}.start").touch()
        assert look(runner, run_dir).startswith("here=starting")


def test_a_job_never_announced_lacks_its_prolog(runner: Runner, run_dir: Path) -> None:
    (run_dir / "jobs" / str(JOB)).rmdir()
    with service(run_dir):
        assert look(runner, run_dir) == not_here("its prolog did not announce the job")


def test_an_agent_that_is_not_there_after_ten_seconds_is_missed(
    runner: Runner, run_dir: Path
) -> None:
    long_ago = time.time() - 12
    os.utime(run_dir / "jobs" / str(JOB), (long_ago, long_ago))
    with service(run_dir):
        assert look(runner, run_dir) == not_here("its agent did not start")


def test_a_status_not_written_for_15_s_is_a_dead_agent(runner: Runner, run_dir: Path) -> None:
    status(run_dir, age_s=14)
    assert look(runner, run_dir) == FINE
    status(run_dir, age_s=16.5)
    assert look(runner, run_dir) == not_here("its agent was last heard 16 s ago")


def test_a_status_from_the_future_is_of_another_boot(runner: Runner, run_dir: Path) -> None:
    status(run_dir, age_s=-60)
    assert look(runner, run_dir) == not_here("its agent's status file is from another boot")


def test_the_agents_own_problem_is_told(runner: Runner, run_dir: Path) -> None:
    status(run_dir, problem="no rail is up: \u00e4")
    assert look(runner, run_dir) == not_here("no rail is up: ??")


def test_a_long_problem_is_cut(runner: Runner, run_dir: Path) -> None:
    status(run_dir, problem="x" * 5000)
    assert look(runner, run_dir) == not_here("x" * 159)


def test_nodes_without_agent_are_named_once_settled(runner: Runner, run_dir: Path) -> None:
    status(run_dir, missing="n[2-3],n7", unplugged="n9", settled="0")
    assert look(runner, run_dir) == FINE
    status(run_dir, missing="n[2-3],n7", unplugged="n9")
    assert look(runner, run_dir) == "here=ok why= missing=n[2-3],n7 unplugged=n9 others=4"


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ("n1", 1),
        ("n1,n2", 2),
        ("n[1-3]", 3),
        ("n[1-3,7],x", 5),
        ("r[1-2]n[1-4]", 8),
        ("n[08-10]-ib", 3),
        ("n[1", 1),
        ("n[", 1),
        ("n[]", 1),
        ("n]x,[", 2),
        ("n[5-1]", 1),
        ("n[-]", 1),
        (",", 1),
        ("n[1-99999999999999999999999]", 65_536),
        ("[1-9999999]" * 400, 65_536),
        ("n[1-60000]," * 2000 + "n", 65_536),
    ],
)
def test_hosts_are_counted_whatever_the_list_holds(
    runner: Runner, run_dir: Path, names: str, count: int
) -> None:
    status(run_dir, missing=names)
    assert int(look(runner, run_dir).rpartition("others=")[2]) == pytest.approx(count, abs=1)


def test_a_long_list_is_cut_for_the_message(runner: Runner, run_dir: Path) -> None:
    names = ",".join(f"host{number}" for number in range(100))
    status(run_dir, missing=names)
    assert f" missing={names[:196]}... unplugged= others=100" in look(runner, run_dir)


# Hostile files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b"v=1",
        b"v=2\nupdated_mono_ns=1",
        b"v=1\nupdated_mono_ns=",
        b"v=1\nupdated_mono_ns=-5",
        b"v=1\nupdated_mono_ns=12x",
        b"v=1\nv=1\nupdated_mono_ns=1",
        b"v=1\nproblem=\x1b[2J\nupdated_mono_ns=1",
        b"\x00" * 4096,
        b"a=" + b"x" * 70_000,
        os.urandom(65_536),
        b"=" * 65_537,
    ],
)
def test_a_damaged_status_is_never_fine(runner: Runner, run_dir: Path, text: bytes) -> None:
    (run_dir / "jobs" / str(JOB) / "status").write_bytes(text)
    assert look(runner, run_dir) == DAMAGED


def test_a_number_too_large_is_of_another_boot(runner: Runner, run_dir: Path) -> None:
    status(run_dir, updated_mono_ns="9" * 5000)
    assert look(runner, run_dir) == not_here("its agent's status file is from another boot")


def test_a_fifo_in_place_of_the_status_holds_nobody_up(runner: Runner, run_dir: Path) -> None:
    os.mkfifo(run_dir / "jobs" / str(JOB) / "status")
    with service(run_dir):
        assert look(runner, run_dir).startswith("here=starting")


@pytest.mark.parametrize("kind", ["link", "directory", "device"])
def test_only_a_regular_file_is_read_as_status(runner: Runner, run_dir: Path, kind: str) -> None:
    file = status(run_dir)
    if kind == "link":
        file.rename(file.with_name("real"))
        file.symlink_to("real")
    else:
        file.unlink()
        if kind == "directory":
            file.mkdir()
        else:
            os.mknod(file, 0o020644, os.makedev(1, 5))  # /dev/zero never ends
    assert look(runner, run_dir) == not_here("its node service is not running")


def test_a_job_directory_behind_a_link_is_not_entered(runner: Runner, run_dir: Path) -> None:
    status(run_dir)
    real = run_dir / "jobs" / str(JOB)
    real.rename(run_dir / "elsewhere")
    real.symlink_to(run_dir / "elsewhere")
    assert look(runner, run_dir) == not_here("its node service is not running")


# Marks of steps -------------------------------------------------------------------------------


def mark(runner: Runner, run_dir: Path, step: str = "0") -> str:
    return runner("mark", str(run_dir), str(JOB), step).strip()


def test_a_mark_is_an_empty_file_that_everybody_can_see(runner: Runner, run_dir: Path) -> None:
    before = os.umask(0o022)
    try:
        assert mark(runner, run_dir, "batch") == "ok"
    finally:
        os.umask(before)
    file = run_dir / "steps" / str(JOB) / "batch"
    assert (file.stat().st_size, file.stat().st_mode & 0o777) == (0, 0o644)
    assert file.parent.stat().st_mode & 0o777 == 0o755


def test_a_mark_made_twice_is_one(runner: Runner, run_dir: Path) -> None:
    assert mark(runner, run_dir) == "ok"
    path = run_dir / "steps" / str(JOB) / "0"
    os.utime(path, (1, 1))
    assert mark(runner, run_dir) == "ok"
    assert path.stat().st_mtime > 1  # it is the new attempt's now


def test_a_mark_does_not_follow_a_link(runner: Runner, run_dir: Path, tmp_path: Path) -> None:
    (run_dir / "steps" / str(JOB)).mkdir(mode=0o755)
    (run_dir / "steps" / str(JOB) / "0").symlink_to(tmp_path / "target")
    mark(runner, run_dir)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("where", ["steps", f"steps/{JOB}"])
def test_no_mark_is_made_where_others_can_write(runner: Runner, run_dir: Path, where: str) -> None:
    (run_dir / "steps" / str(JOB)).mkdir(mode=0o755)
    (run_dir / where).chmod(0o777)
    assert mark(runner, run_dir) == "EPERM"
    assert not (run_dir / "steps" / str(JOB) / "0").exists()


@pytest.mark.parametrize("where", ["steps", f"steps/{JOB}"])
def test_no_mark_is_made_behind_a_link(
    runner: Runner, run_dir: Path, tmp_path: Path, where: str
) -> None:
    (run_dir / "steps" / str(JOB)).mkdir(mode=0o755)
    victim = tmp_path / "victim"
    (run_dir / where).rename(victim)
    (run_dir / where).symlink_to(victim)
    assert mark(runner, run_dir) in ("ELOOP", "ENOTDIR")
    assert not list(victim.rglob("0"))


@pytest.mark.skipif(os.geteuid() != 0, reason="chown needs root")
def test_no_mark_is_made_in_another_users_directory(runner: Runner, run_dir: Path) -> None:
    (run_dir / "steps" / str(JOB)).mkdir(mode=0o755)
    os.chown(run_dir / "steps" / str(JOB), 65_534, 65_534)
    assert mark(runner, run_dir) == "EPERM"


def test_without_the_services_steps_directory_there_is_no_mark(
    runner: Runner, run_dir: Path
) -> None:
    (run_dir / "steps").rmdir()
    assert mark(runner, run_dir) == "ENOENT"
