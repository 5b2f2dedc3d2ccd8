"""Checkpoints through real keepers, one process a node."""

import contextlib
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fabricctl import built
from fabricctl.errors import DataError, SystemRefusedError
from fabricctl.state import Same, Share
from fabricctl.state.ckpt import bytes as raw
from fabricctl.state.ckpt import events, partfile
from fabricctl.state.ckpt.api import Checkpoint
from fabricctl.state.ckpt.files import Alone, Files
from fabricctl.state.ckpt.items import item_of
from fabricctl.store.schema import CheckpointEvent
from tests.support.keepers import KeeperSet
from tests.support.ranks import RANKS, expected, program, run


@pytest.fixture
def keepers(tmp_path: Path) -> Iterator[KeeperSet]:
    with KeeperSet(tmp_path) as made:
        yield made


def test_a_start_again_goes_on_where_the_last_one_stopped(keepers: KeeperSet) -> None:
    assert run(keepers, program(10), every_steps=1) == expected(10, 0)
    assert run(keepers, program(15), every_steps=1) == expected(15, 10)


def test_a_lost_node_is_restored_from_its_partner(keepers: KeeperSet) -> None:
    run(keepers, program(10), every_steps=1)
    keepers.kill("n1")
    assert run(keepers, program(12), places=["n0", "n2", "n2"], every_steps=1) == expected(12, 10)


def test_a_lost_pair_without_another_copy_begins_anew(keepers: KeeperSet) -> None:
    """n1's copies are on n2: both are gone, so nobody may go on from memory."""
    run(keepers, program(10), every_steps=1)
    keepers.kill("n1")
    keepers.kill("n2")
    places = ["n0", "n0", "n0"]
    assert run(keepers, program(4), places=places, every_steps=1) == expected(4, 0)


def test_what_all_ranks_have_is_restored_from_any_of_them(keepers: KeeperSet) -> None:
    """n1 and its partner n2 are lost, as for data-parallel training; rank 0's part serves all."""

    def replicated(steps: int) -> Callable[..., Any]:
        def of(checkpoint: Checkpoint, rank: int) -> tuple[int, float]:
            weights = np.zeros(1000)
            checkpoint.protect(weights=Same(weights))
            begin = checkpoint.restore()
            for n in range(begin, steps):
                weights += n
                checkpoint.step(n + 1)
            checkpoint.close(done=False)
            return begin, float(weights[0])

        return of

    assert run(keepers, replicated(10), every_steps=1) == [(0, 45.0)] * 3
    keepers.kill("n1")
    keepers.kill("n2")
    places = ["n0", "n0", "n0"]
    assert run(keepers, replicated(12), places=places, every_steps=1) == [(10, 66.0)] * 3


def test_a_lost_pair_is_restored_from_a_second_copy(keepers: KeeperSet) -> None:
    run(keepers, program(10), every_steps=1, copies=2)
    keepers.kill("n1")
    keepers.kill("n2")
    places = ["n0", "n0", "n0"]
    assert run(keepers, program(12), places=places, every_steps=1) == expected(12, 10)


def test_where_memory_is_gone_the_shared_level_serves(keepers: KeeperSet, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    options = {"every_steps": 1, "shared": shared, "shared_every": 4}
    run(keepers, program(10), **options)
    for node in keepers.nodes:
        keepers.kill(node)
        keepers.start(node)
    assert run(keepers, program(12), **options) == expected(12, 9)


def test_a_step_that_is_being_written_is_not_thinned_out(tmp_path: Path) -> None:
    """The directory is there before its first part is whole."""
    for step in (1, 5, 9, 13):
        (tmp_path / f"ckpt.{step}").mkdir()
        for rank in range(2 if step < 13 else 0):
            (tmp_path / f"ckpt.{step}" / f"{rank}-of-2.part").touch()
    partfile.thin(tmp_path, "ckpt", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt.13", "ckpt.5", "ckpt.9"]


def test_a_finished_program_leaves_nothing(keepers: KeeperSet) -> None:
    run(keepers, program(10, done=True), every_steps=1)
    assert run(keepers, program(3), every_steps=1)[0][0] == 0


@pytest.mark.parametrize(("code", "begin"), [(0, 0), (3, 1)])
def test_a_program_that_exits_inside_has_ended_as_its_status_says(
    keepers: KeeperSet, code: int, begin: int
) -> None:
    def exits(checkpoint: Checkpoint, _rank: int) -> bool:
        with contextlib.suppress(SystemExit), checkpoint:
            checkpoint.protect(grid=np.zeros(10)).restore()
            checkpoint.save(1)
            checkpoint._commit()
            sys.exit(code)
        return True

    run(keepers, exits)
    found = run(keepers, lambda c, _rank: c.protect(grid=np.zeros(10)).restore())
    assert found == [begin] * RANKS


def test_a_step_that_not_all_ranks_saved_is_not_restored(keepers: KeeperSet) -> None:
    def dies(checkpoint: Checkpoint, rank: int) -> bool:
        grid = np.zeros(1000)
        checkpoint.protect(grid=grid).restore()
        checkpoint.save(1)
        checkpoint._commit()
        if rank != 1:  # rank 1 dies before it has copied
            checkpoint._keeper.fill(2, checkpoint._items, checkpoint._wanted(2, share=False))
        return True

    def looks(checkpoint: Checkpoint, _rank: int) -> int:
        return checkpoint.protect(grid=np.zeros(1000)).restore()

    run(keepers, dies, every_steps=1)
    assert run(keepers, looks, every_steps=1) == [1, 1, 1]


@pytest.mark.parametrize("memory", [True, False])
def test_two_saves_of_one_step_are_never_mixed(
    keepers: KeeperSet, tmp_path: Path, memory: bool
) -> None:
    """Rank 2 dies in it, all go on from the step before, and rank 1 dies as it is done again: then
    there is a part of each rank, and that of rank 1 is another run's."""
    options = {"shared": tmp_path / "shared", "shared_every": 1}

    def dies(dead: int, value: float) -> Callable[..., Any]:
        def of(checkpoint: Checkpoint, rank: int) -> int:
            grid = np.zeros(1000)
            begin = checkpoint.protect(grid=grid).restore()
            if not begin:
                checkpoint.save(1)
                checkpoint._commit()
            grid[:] = value
            if rank != dead:
                wanted = checkpoint._wanted(2, share=True)
                checkpoint._keeper.fill(2, checkpoint._items, wanted)
                assert checkpoint._keeper.safe(2, shared=True) == (True, "")
            return begin

        return of

    def looks(checkpoint: Checkpoint, _rank: int) -> tuple[int, float]:
        grid = np.zeros(1000)
        return checkpoint.protect(grid=grid).restore(), float(grid[0])

    assert run(keepers, dies(2, 3.0), **options) == [0] * RANKS
    assert run(keepers, dies(1, 7.0), **options) == [1] * RANKS
    if not memory:
        for node in keepers.nodes:
            keepers.kill(node)
            keepers.start(node)
    assert run(keepers, looks, **options) == [(1, 0.0)] * RANKS


def test_no_room_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    with KeeperSet(tmp_path, quota_bytes=1 << 20) as keepers:

        def fills(checkpoint: Checkpoint, _rank: int) -> bool:
            checkpoint.protect(grid=np.zeros(1 << 20)).restore()
            with pytest.raises(SystemRefusedError, match="memory_share"):
                checkpoint.save(1)
            return True

        assert all(run(keepers, fills, every_steps=1))


def test_other_names_than_were_saved_are_told(
    keepers: KeeperSet, capsys: pytest.CaptureFixture[str]
) -> None:
    run(keepers, program(3), every_steps=1)

    def other(checkpoint: Checkpoint, _rank: int) -> int:
        return checkpoint.protect(mesh=np.zeros(50_000)).restore()

    assert run(keepers, other) == [0, 0, 0]
    assert "grid, other were saved, mesh are protected" in capsys.readouterr().err


def test_every_flipped_bit_in_memory_is_found_and_the_copy_serves(keepers: KeeperSet) -> None:
    """What lies in n0's keeper is damaged through its descriptors; its partner's copy is good."""
    run(keepers, program(10), every_steps=1)
    rng = random.Random(1)
    pid = keepers.processes["n0"].pid
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if str(link.readlink()).startswith("/memfd:fabric-main-0"):
            with link.open("r+b") as stream:
                at = rng.randrange(400_000)
                stream.seek(at)
                byte = stream.read(1)[0]
                stream.seek(at)
                stream.write(bytes([byte ^ 1 << rng.randrange(8)]))
    assert run(keepers, program(12), every_steps=1) == expected(12, 10)


def test_a_thousand_flipped_bits_change_the_checksum() -> None:
    rng = random.Random(2)
    data = bytearray(rng.randbytes(100_003))
    good = raw.crc(memoryview(data))
    for _ in range(1000):
        at, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
        data[at] ^= bit
        assert raw.crc(memoryview(data)) != good
        data[at] ^= bit
    assert raw.crc(memoryview(b"123456789")) == 0xE3069283  # RFC 3720


def test_the_copy_is_the_checksum_of_what_was_read() -> None:
    for size in (0, 1, 7, 8, 16383, 16384, 100_001):
        data = random.Random(size).randbytes(size)
        into = bytearray(size)
        assert raw.copy_crc(memoryview(into), memoryview(data)) == raw.crc(memoryview(data))
        assert into == data


def test_what_cannot_be_restored_is_refused_at_once() -> None:
    for thing in (b"read-only", 3, np.zeros((4, 4))[:, 1]):
        with pytest.raises(DataError, match="protect 'x'"):
            item_of("x", thing)


def test_without_a_keeper_the_program_runs_all_the_same(tmp_path: Path) -> None:
    checkpoint = Checkpoint(shared=tmp_path, every_steps=1, shared_every=1)
    grid = np.arange(5.0)
    assert checkpoint.protect(grid=grid).restore() == 0
    assert checkpoint.step(1)
    grid[:] = 0
    assert checkpoint.restore() == 1
    assert list(grid) == [0, 1, 2, 3, 4]


def test_files_of_all_ranks_become_a_checkpoint_and_come_back(
    keepers: KeeperSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In file mode ranks do not talk to each other: a step counts when all have committed it."""

    def of(rank: int, node: str) -> Files:
        monkeypatch.setenv("FABRIC_KEEPER", str(keepers.where / node))
        return Files(Alone(rank, RANKS))

    def commit(rank: int, step: int) -> None:
        work = tmp_path / f"rank{rank}"
        work.mkdir(exist_ok=True)
        (work / "grid.bin").write_bytes(bytes([rank, step]) * 70_000)
        (work / "seed.txt").write_text(f"{step}\n")
        one = of(rank, f"n{rank}")
        assert one.commit(work, step) == 2
        one.close(done=False)

    for step in (1, 2):
        for rank in range(RANKS):
            commit(rank, step)
    commit(0, 3)  # the others did not come that far
    keepers.kill("n1")
    for rank, node in enumerate(("n0", "n2", "n2")):
        one = of(rank, node)
        back = tmp_path / f"back{rank}"
        back.mkdir()
        assert sorted(one.steps()) == [1, 2]
        assert one.fetch(back) == 2
        assert (back / "grid.bin").read_bytes() == bytes([rank, 2]) * 70_000
        assert (back / "seed.txt").read_text() == "2\n"
        assert one.fetch(back, before=2) == 1
        one.close(done=False)


def test_what_was_saved_and_restored_is_told_for_the_trace(keepers: KeeperSet) -> None:
    run(keepers, program(4), every_steps=2)
    run(keepers, program(6, done=True), every_steps=2)
    lines = (keepers.where / "events").read_text().splitlines()
    rows = [events.row(line) for line in lines]
    kinds = [CheckpointEvent(row[2]) for row in rows]
    saved = CheckpointEvent.SAVED
    again = [CheckpointEvent.RESTORED, saved, CheckpointEvent.DONE]
    assert kinds == [CheckpointEvent.BEGUN, saved, saved, *again]
    assert [row[4] for row in rows] == [0, 2, 4, 4, 6, 6]
    assert all(row[5] == RANKS for row in rows)
    assert rows[1][6] >= 400_000 and rows[1][7] > 0


@pytest.mark.parametrize(
    "line", ["", "event=saved", "event=nonsense", "event=saved;time_mono_ns=-1", "x" * 500]
)
def test_what_no_program_of_ours_tells_is_refused(line: str) -> None:
    with pytest.raises(DataError):
        events.row(line)


def test_without_an_interval_cost_and_failures_decide(keepers: KeeperSet) -> None:
    """Young: the square root of 2 x cost x time between failures, never above 5 % of the run."""

    def loops(checkpoint: Checkpoint, _rank: int) -> tuple[int, int]:
        checkpoint.protect(grid=np.zeros(1000)).restore()
        saved = [n for n in range(1, 200) if checkpoint.step(n)]
        planned = checkpoint._interval.next_step
        assert planned is not None
        return len(saved), planned

    often = run(keepers, loops, name="often", mtbf_s=1e-9)
    seldom = run(keepers, loops, name="seldom", mtbf_s=1e9)
    assert len(set(often)) == len(set(seldom)) == 1, "all ranks agree"
    assert seldom[0][0] == 1 and seldom[0][1] > 200
    assert often[0][0] > 1


def test_a_signal_to_one_rank_saves_all_and_asks_for_the_end(keepers: KeeperSet) -> None:
    def loops(checkpoint: Checkpoint, rank: int) -> tuple[int, bool]:
        checkpoint.protect(grid=np.zeros(1000)).restore()
        for n in range(1, 1000):
            if n == 20 and rank == 1:
                checkpoint._signalled = True
            if checkpoint.step(n) and checkpoint.ending:
                checkpoint.close(done=False)
                return n, True
        return 0, False

    found = run(keepers, loops, every_steps=10)
    assert len(set(found)) == 1 and found[0][1] and 20 <= found[0][0] <= 40
    again = run(keepers, lambda c, _rank: c.protect(grid=np.zeros(1000)).restore())
    assert set(again) == {found[0][0]}


def heat(rows: int, step: int) -> np.ndarray:
    return np.arange(rows * 3, dtype=float).reshape(rows, 3) * step


def shares(steps: int, total: int = 23) -> Callable[..., Any]:
    """A program whose array is divided among its ranks, and that has something all share."""

    def of(checkpoint: Checkpoint, rank: int) -> tuple[int, bool, int]:
        ranks = checkpoint._ranks
        first, end = rank * total // ranks, (rank + 1) * total // ranks
        mine, same = np.zeros((end - first, 3)), {"step": 0}
        checkpoint.protect(heat=Share(mine, first, total), other=Same(same))
        begin = checkpoint.restore()
        good = bool((mine == heat(total, begin)[first:end]).all()) and same["step"] == begin
        for n in range(begin + 1, steps + 1):
            mine[:] = heat(total, n)[first:end]
            same["step"] = n
            checkpoint.step(n)
        checkpoint.close(done=False)
        return begin, good, ranks

    return of


def test_another_number_of_ranks_goes_on_from_declared_shares(tmp_path: Path) -> None:
    with KeeperSet(tmp_path, nodes=4) as keepers:
        run(keepers, shares(3), ranks=4, every_steps=1)
        for ranks, begin in ((2, 3), (3, 5), (7, 7)):
            again = run(keepers, shares(begin + 2), ranks=ranks, places=keepers.nodes * 2,
                        every_steps=1)  # fmt: skip
            assert again == [(begin, True, ranks)] * ranks


def test_another_number_of_ranks_reads_the_shared_level(tmp_path: Path) -> None:
    shared: dict[str, Any] = {"every_steps": 1, "shared": tmp_path / "s", "shared_every": 1}
    with KeeperSet(tmp_path, nodes=2) as keepers:
        run(keepers, shares(3), ranks=2, **shared)
        for node in keepers.nodes:
            keepers.kill(node)
            keepers.start(node)
        again = run(keepers, shares(4), ranks=3, places=["n0", "n1", "n1"], **shared)
        assert again == [(3, True, 3)] * 3


def test_without_shares_another_number_of_ranks_begins_anew(keepers: KeeperSet) -> None:
    run(keepers, program(4), every_steps=1)
    assert run(keepers, program(2), ranks=2, every_steps=1)[0][0] == 0


def test_a_keeper_that_died_serves_from_the_nodes_disk(tmp_path: Path) -> None:
    options: dict[str, Any] = {"every_steps": 1, "scheme": "single", "disk_every": 3}
    with KeeperSet(tmp_path, disk=tmp_path / "disks") as keepers:
        run(keepers, program(10), **options)
        for node in keepers.nodes:
            keepers.kill(node)
            keepers.start(node)
        assert run(keepers, program(12, done=True), **options) == expected(12, 10)
        assert not list((tmp_path / "disks").glob("*/*.part")), "a finished program leaves nothing"


def test_old_steps_on_the_shared_file_system_go(keepers: KeeperSet, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    options: dict[str, Any] = {"every_steps": 1, "shared": shared, "shared_every": 1}
    run(keepers, program(12), shared_keep=3, **options)
    assert sorted(partfile.whole_steps(shared, "main")) == [10, 11, 12]


def test_the_c_functions_commit_restore_and_forget(tmp_path: Path) -> None:
    """Through the library, in a process of its own, as a program's rank has it."""
    program = """
import ctypes, pathlib, sys
library = ctypes.CDLL(sys.argv[1])
library.fabric_ckpt_dir.restype = ctypes.c_char_p
step, none = ctypes.c_uint64(7), ctypes.c_uint64(0)
place = pathlib.Path(library.fabric_ckpt_dir().decode())
assert library.fabric_ckpt_restore(ctypes.byref(step), none) == 66 and step.value == 0
(place / "heat.bin").write_bytes(b"state")
assert library.fabric_ckpt_commit(ctypes.c_uint64(40)) == 0
(place / "heat.bin").unlink()
assert library.fabric_ckpt_restore(ctypes.byref(step), none) == 0 and step.value == 40
assert (place / "heat.bin").read_bytes() == b"state"
assert library.fabric_ckpt_restore(ctypes.byref(step), ctypes.c_uint64(40)) == 66
assert library.fabric_ckpt_done() == 0 and not place.exists()
assert library.fabric_ckpt_restore(ctypes.byref(step), none) == 66
print(place)
"""
    command = Path(sys.executable).with_name("fabricctl")
    with KeeperSet(tmp_path, nodes=2) as keepers:
        env = {"FABRIC_KEEPER": str(keepers.where / "n0"), "FABRICCTL": str(command),
               "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_JOB_ID": "12",
               "TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"}  # fmt: skip
        argv = [sys.executable, "-c", program, str(built.find("state", "libfabricckpt.so"))]
        done = subprocess.run(
            argv, env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()) == tmp_path / "fabric-ckpt-12.0.0"
        assert Path(done.stdout.strip()).stat().st_mode & 0o777 == 0o700
        left = tmp_path / "fabric-ckpt-12.run.0"  # by a start that was killed
        left.mkdir()
        (left / "half.bin").touch()
        again = {**env, "FABRIC_LAUNCH": "1"}
        done = subprocess.run(argv, env=again, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == left and not list(left.iterdir())
