"""Parts become one job trace, whoever merges, however often, and wherever a merge is killed."""

import contextlib
import errno
import os
import random
import signal
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from fabricctl import layout
from fabricctl.store import collect, dtypes, hdf5, lock, part, schema
from fabricctl.store.journal_reader import Journal
from fabricctl.store.trace import open_trace

T0 = 1_790_000_000 * 10**9
S = 10**9
NODES = ("n1", "n2", "n3")


@pytest.fixture
def user_dir(tmp_path: Path) -> Path:
    tmp_path.chmod(0o1777)
    return collect.ensure_user_dir(tmp_path, "alice", os.geteuid())


def put(user_dir: Path, node: str, begin_s: float = 0, end_s: float = 60, **more: int) -> Path:
    """A part as a node leaves it; its job rows are told apart by ``cpu_ns``: the begin."""
    begin = T0 + int(begin_s * S)
    rows = dtypes.empty(schema.JOB, 20)
    rows["time_mono_ns"] = np.arange(20) * S
    rows["cpu_ns"] = begin
    tables = {table.name: dtypes.empty(table) for table in schema.TABLES} | {"job": rows}
    given = {"job": 7, "node": node, "nodes": "n[1-3]", "begin_real_ns": begin, **more}
    path = layout.part_file(user_dir, 7, node, begin)
    read = Journal({"boot_id": "b"}, 1, tables, None)
    part.write_part([read], {**given, "end_real_ns": T0 + int(end_s * S)}, path)
    return path


def merge(user_dir: Path, complete_only: bool = False, **more: object) -> Path | None:
    return collect.merge(user_dir, 7, NODES, T0, complete_only, **more)  # type: ignore[arg-type]


def content(path: Path) -> dict[str, list[int]]:
    """Per node the begins that its job rows carry, and that every row is there."""
    found = {}
    with open_trace(path) as trace:
        for name in trace.nodes:
            rows = trace.table(name, schema.JOB)
            assert rows["time_mono_ns"].tolist() == (np.arange(20) * S).tolist()
            found[name] = sorted({(int(ns) - T0) // S for ns in rows["cpu_ns"]})
    return found


def all_begin(nodes: Sequence[str], begin_s: int) -> dict[str, list[int]]:
    return {node: [begin_s] for node in nodes}


def names(user_dir: Path) -> list[str]:
    return sorted(str(path.relative_to(user_dir)) for path in user_dir.rglob("*"))


def test_all_parts_make_one_trace_and_nothing_else_stays(user_dir: Path) -> None:
    for node in NODES:
        put(user_dir, node)
    path = merge(user_dir, complete_only=True)
    assert path == user_dir / "job-7.h5"
    assert content(path) == {"n1": [0], "n2": [0], "n3": [0]}
    assert names(user_dir) == ["job-7.h5"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with open_trace(path) as trace:
        assert trace.job.missing_nodes == ()
        assert (trace.job.begin_real_ns, trace.job.end_real_ns) == (T0, T0 + 60 * S)


def test_an_incomplete_job_waits_when_asked_to_and_else_names_who_is_missing(
    user_dir: Path,
) -> None:
    put(user_dir, "n1")
    assert merge(user_dir, complete_only=True) is None
    assert names(user_dir) == [".parts", ".parts/job-7", f".parts/job-7/n1.{T0}.h5"]
    path = merge(user_dir)
    assert path is not None
    with open_trace(path) as trace:
        assert trace.job.missing_nodes == ("n2", "n3")


def test_a_late_part_is_added_and_no_longer_missing(user_dir: Path) -> None:
    put(user_dir, "n1")
    put(user_dir, "n2")
    merge(user_dir)
    put(user_dir, "n3", 0.1, 59)
    path = merge(user_dir, complete_only=True)
    assert path == user_dir / "job-7.h5"
    assert content(path) == {"n1": [0], "n2": [0], "n3": [0]}
    with open_trace(path) as trace:
        assert trace.job.missing_nodes == ()


def test_nothing_to_merge_gives_the_newest_trace_or_none(user_dir: Path) -> None:
    assert merge(user_dir) is None
    put(user_dir, "n1")
    path = merge(user_dir)
    assert merge(user_dir) == merge(user_dir, complete_only=True) == path


def test_merging_kept_parts_again_changes_nothing(user_dir: Path) -> None:
    for node in NODES:
        put(user_dir, node)
    path = merge(user_dir, keep_parts=True)
    assert path is not None
    before = path.stat()
    assert merge(user_dir, keep_parts=True) == path
    assert path.stat() == before
    assert len(list((user_dir / ".parts" / "job-7").glob("n*.h5"))) == 3


def test_a_requeued_job_gets_a_trace_of_its_own_and_the_first_keeps_its_name(
    user_dir: Path,
) -> None:
    for node in ("n1", "n2"):
        put(user_dir, node, 0, 60)
    assert merge(user_dir) == user_dir / "job-7.h5"
    for node in ("n2", "n3"):
        put(user_dir, node, 181, 240)
    assert merge(user_dir) == user_dir / "job-7.r1.h5"
    put(user_dir, "n1", 400, 401)
    assert merge(user_dir) == user_dir / "job-7.r2.h5"
    assert content(user_dir / "job-7.h5") == {"n1": [0], "n2": [0]}
    assert content(user_dir / "job-7.r1.h5") == {"n2": [181], "n3": [181]}
    assert names(user_dir) == ["job-7.h5", "job-7.r1.h5", "job-7.r2.h5"]


def test_parts_of_two_attempts_that_wait_together_are_told_apart(user_dir: Path) -> None:
    for node in NODES:
        put(user_dir, node, 0, 60)
        put(user_dir, node, 60.05, 90)  # requeued at once, and the clocks differ
    put(user_dir, "n4", 59.9, 90)
    assert merge(user_dir) == user_dir / "job-7.r1.h5"
    assert content(user_dir / "job-7.h5") == all_begin(NODES, 0)
    assert content(user_dir / "job-7.r1.h5") == {**all_begin(NODES, 60), "n4": [59]}


def test_attempts_are_numbered_by_their_begin_not_their_length(user_dir: Path) -> None:
    put(user_dir, "n1", 181, 900)
    put(user_dir, "n1", 0, 60)
    assert merge(user_dir) == user_dir / "job-7.r1.h5"
    assert content(user_dir / "job-7.h5") == {"n1": [0]}


def test_the_nodes_of_a_very_short_job_need_not_overlap(user_dir: Path) -> None:
    put(user_dir, "n1", 0, 0.05)
    put(user_dir, "n2", 0.3, 0.35)
    put(user_dir, "n3", 0.7, 0.75)
    assert merge(user_dir) == user_dir / "job-7.h5"
    assert names(user_dir) == ["job-7.h5"]


def test_a_late_part_of_the_first_attempt_finds_it_after_the_second_was_merged(
    user_dir: Path,
) -> None:
    put(user_dir, "n1", 0, 60)
    merge(user_dir)
    put(user_dir, "n1", 181, 240)
    merge(user_dir)
    put(user_dir, "n2", 0, 31)
    merge(user_dir)
    assert content(user_dir / "job-7.h5") == {"n1": [0], "n2": [0]}
    assert content(user_dir / "job-7.r1.h5") == {"n1": [181]}


def test_a_node_that_left_and_came_back_has_two_stays_in_one_trace(user_dir: Path) -> None:
    put(user_dir, "n1", 0, 60)
    put(user_dir, "n2", 0, 20)
    put(user_dir, "n2", 40, 60)
    path = merge(user_dir)
    assert path is not None
    assert content(path) == {"n1": [0], "n2": [0], f"n2@{T0 + 40 * S}": [40]}
    assert names(user_dir) == ["job-7.h5"]


def test_array_tasks_are_found_by_their_usual_name(user_dir: Path) -> None:
    put(user_dir, "n1", 0, 60, array_job=5, array_task=3)
    merge(user_dir)
    assert (user_dir / "job-5_3.h5").readlink() == Path("job-7.h5")
    put(user_dir, "n1", 181, 240, array_job=5, array_task=3)
    merge(user_dir)
    assert (user_dir / "job-5_3.h5").readlink() == Path("job-7.r1.h5")


def test_a_file_of_the_user_with_the_name_of_an_array_link_is_left_alone(user_dir: Path) -> None:
    (user_dir / "job-5_3.h5").write_text("mine")
    put(user_dir, "n1", 0, 60, array_job=5, array_task=3)
    merge(user_dir)
    assert (user_dir / "job-5_3.h5").read_text() == "mine"


def test_a_damaged_part_is_set_aside_and_its_node_missing(user_dir: Path) -> None:
    for node in ("n1", "n2"):
        put(user_dir, node)
    broken = put(user_dir, "n3")
    broken.write_bytes(broken.read_bytes()[:-500])
    path = merge(user_dir, complete_only=True)
    assert path is not None
    with open_trace(path) as trace:
        assert trace.job.missing_nodes == ("n3",)
    assert names(user_dir)[2:] == [f".parts/job-7/n3.{T0}.h5.damaged", "job-7.h5"]
    assert merge(user_dir) == path


def test_a_damaged_trace_is_set_aside_and_made_anew_from_what_waits(user_dir: Path) -> None:
    (user_dir / "job-7.h5").write_bytes(b"not HDF5")
    put(user_dir, "n1")
    path = merge(user_dir)
    assert path is not None
    assert content(path) == {"n1": [0]}
    assert (user_dir / "job-7.h5.damaged").read_bytes() == b"not HDF5"


def test_a_part_of_a_newer_version_waits_for_a_node_that_knows_it(user_dir: Path) -> None:
    put(user_dir, "n1")
    newer = put(user_dir, "n2")
    with h5py.File(newer, "r+") as file:
        file.attrs["schema_version"] = schema.SCHEMA_VERSION + 1
    path = merge(user_dir)
    assert path is not None
    assert content(path) == {"n1": [0]}
    assert newer.exists()


def test_a_part_of_another_layout_is_merged_by_its_values(user_dir: Path) -> None:
    """Chunks of ours are copied as they are; other chunks, columns or filters are converted."""
    path = put(user_dir, "n1")
    with h5py.File(path, "r+") as file:
        rows = file["nodes/n1/job"][()]
        del file["nodes/n1/job"]
        wide = np.zeros(20, [*((n, rows.dtype[n]) for n in rows.dtype.names), ("later", "<u4")])
        for name in rows.dtype.names:
            wide[name] = rows[name]
        file["nodes/n1"].create_dataset("job", data=wide, chunks=(7,))
    merged = merge(user_dir)
    assert merged is not None
    assert content(merged) == {"n1": [0]}


def test_many_parts_are_merged_in_batches_each_of_which_is_kept(
    user_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "_BATCH", 2)
    nodes = [f"n{nth}" for nth in range(1, 8)]
    for node in nodes:
        put(user_dir, node)
    renamed = []

    def die(name: str) -> None:
        renamed.append(name == "renamed")
        if sum(renamed) == 2:
            os._exit(99)

    assert in_child(lambda: merge(user_dir, step=die) and None) == 99
    assert len(content(user_dir / "job-7.h5")) == 4
    assert len(list((user_dir / ".parts" / "job-7").glob("n*.h5"))) == 5
    assert merge(user_dir) == user_dir / "job-7.h5"
    assert content(user_dir / "job-7.h5") == all_begin(nodes, 0)
    with open_trace(user_dir / "job-7.h5") as trace:
        assert set(trace.job.nodes) == set(nodes)


def test_what_a_user_added_to_a_trace_outlives_a_late_part(user_dir: Path) -> None:
    put(user_dir, "n1")
    path = merge(user_dir)
    assert path is not None
    with h5py.File(path, "r+") as file:
        file["mine"] = np.arange(5)
    put(user_dir, "n2")
    merge(user_dir)
    with h5py.File(path) as file:
        assert file["mine"][:].tolist() == [0, 1, 2, 3, 4]
    assert content(path) == {"n1": [0], "n2": [0]}


def test_a_late_part_joins_a_trace_that_an_older_version_made(user_dir: Path) -> None:
    put(user_dir, "n1")
    path = merge(user_dir)
    assert path is not None
    with h5py.File(path, "r+") as file:  # as if tables had fewer columns then
        rows = file["nodes/n1/job"][()][["time_mono_ns", "cpu_ns"]]
        del file["nodes/n1/job"], file["schema/job"]
        older = np.dtype([("time_mono_ns", "<i8"), ("cpu_ns", "<u8")])
        file["schema/job"] = older
        file["nodes/n1"].create_dataset("job", data=rows.astype(older), chunks=(20,))
    put(user_dir, "n2", 1)
    merge(user_dir)
    assert content(path) == {"n1": [0], "n2": [1]}


# --- crashes ---------------------------------------------------------------------------------


def in_child(body: Callable[[], None]) -> int:
    """Exit status of ``body`` in a process of its own."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            body()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


STEPS = [
    *((step, 1) for step in ("locked", "scanned", "merged", "renamed", "linked")),
    ("scanned", 2),
    *(("removed", nth) for nth in (1, 2, 3)),
]


@pytest.mark.parametrize(("step", "nth"), STEPS)
@pytest.mark.parametrize("late", [False, True])
def test_a_merge_killed_before_any_step_costs_nothing(
    step: str, nth: int, late: bool, user_dir: Path
) -> None:
    if late:
        put(user_dir, "n0", 0, 60)
        merge(user_dir)
    for node in NODES:
        put(user_dir, node, array_job=5, array_task=3)
    left = [nth]

    def die(name: str) -> None:
        left[0] -= name == step
        if left[0] == 0:
            os._exit(99)

    assert in_child(lambda: merge(user_dir, step=die) and None) == 99
    path = merge(user_dir)
    assert path == user_dir / "job-7.h5"
    assert content(path) == {node: [0] for node in [*["n0"] * late, *NODES]}
    assert names(user_dir) == ["job-5_3.h5", "job-7.h5"]


@pytest.mark.parametrize("seed", range(10))
def test_merges_killed_at_random_moments_lose_nothing(seed: int, user_dir: Path) -> None:
    rng = random.Random(seed)
    for node in NODES:
        put(user_dir, node)
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            try:
                merge(user_dir)
            finally:
                os._exit(0)
        time.sleep(rng.random() * 0.04)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    path = merge(user_dir)
    assert path is not None
    assert content(path) == {"n1": [0], "n2": [0], "n3": [0]}
    assert set(names(user_dir)) <= {"job-7.h5", ".parts", ".parts/job-7", ".parts/job-7/.lock"}


def race(user_dir: Path, nodes: Sequence[str]) -> None:
    """Every node puts its part and merges, all at once, as epilogs do."""
    pids = []
    for node in nodes:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                put(user_dir, node)
                collect.merge(user_dir, 7, nodes, T0, random.random() < 0.5)
                status = 0
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(status)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * len(nodes)


def test_who_comes_last_finds_the_job_whole_whatever_nodes_the_parts_speak_of(
    user_dir: Path,
) -> None:
    nodes = [f"n{nth}" for nth in range(1, 9)]  # the parts say n[1-3]
    for node in nodes[:-1]:
        put(user_dir, node)
    assert collect.merge(user_dir, 7, nodes, T0, False) is not None
    put(user_dir, nodes[-1])
    assert collect.merge(user_dir, 7, nodes, T0, True) is not None
    assert names(user_dir) == ["job-7.h5"]
    with open_trace(user_dir / "job-7.h5") as trace:
        assert trace.job.nodes == tuple(nodes)


@pytest.mark.parametrize("seed", range(5))
def test_epilogs_that_race_make_one_whole_trace(seed: int, user_dir: Path) -> None:
    nodes = [f"n{nth}" for nth in range(1, 9)]
    race(user_dir, nodes)
    assert names(user_dir) == ["job-7.h5"]
    assert content(user_dir / "job-7.h5") == all_begin(nodes, 0)


@contextlib.contextmanager
def _no_lock(path: Path, wait_s: float) -> Iterator[None]:
    yield


@pytest.mark.parametrize("seed", range(5))
def test_a_lock_that_locks_nothing_costs_time_but_no_data(
    seed: int, user_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lustre's ``localflock``, seen from two nodes."""
    monkeypatch.setattr(lock, "exclusive", _no_lock)
    nodes = [f"n{nth}" for nth in range(1, 7)]
    race(user_dir, nodes)
    monkeypatch.undo()
    collect.merge(user_dir, 7, nodes, T0, False)
    assert content(user_dir / "job-7.h5") == all_begin(nodes, 0)


@pytest.mark.parametrize("seed", range(3))
def test_without_flock_a_lease_keeps_racing_merges_apart(
    seed: int, user_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    nodes = [f"n{nth}" for nth in range(1, 9)]
    race(user_dir, nodes)
    assert content(user_dir / "job-7.h5") == all_begin(nodes, 0)
    assert not list(user_dir.rglob("*.lease*"))


@pytest.mark.parametrize("kib", [0, 4])
def test_a_full_shared_disk_keeps_the_parts_for_a_later_merge(kib: int, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "none", disk], check=True)
    try:
        user_dir = collect.ensure_user_dir(disk, "alice", 0)
        parts = [put(user_dir, node) for node in NODES]
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "fill").write_bytes(bytes(free - (kib << 10)))
        code = f"""
from pathlib import Path
from fabricctl.errors import SystemRefusedError
from fabricctl.store import collect
try:
    collect.merge(Path({str(user_dir)!r}), 7, {NODES!r}, 0, False)
except SystemRefusedError as error:
    print(error)
"""
        command = [sys.executable, "-c", code]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (answer.returncode, answer.stderr) == (0, "")
        assert "cannot be written: No space left on device" in answer.stdout
        assert all(path.exists() for path in parts)
        assert not list(user_dir.rglob("*.tmp"))
        (disk / "fill").unlink()
        path = merge(user_dir)
        assert path is not None
        assert content(path) == {"n1": [0], "n2": [0], "n3": [0]}
    finally:
        subprocess.run(["umount", disk], check=True)


# --- the user's folder -----------------------------------------------------------------------


def test_files_of_killed_writers_on_other_machines_go_when_they_are_old(user_dir: Path) -> None:
    young, old = (user_dir / f".job-7.h5.elsewhere.{pid}.tmp" for pid in (1, 2))
    young.touch()
    old.touch()
    os.utime(old, (time.time() - 3600, time.time() - 3600))
    put(user_dir, "n1")
    merge(user_dir)
    assert names(user_dir) == [young.name, "job-7.h5"]
    assert hdf5.FORMAT == "fabricctl-trace"
