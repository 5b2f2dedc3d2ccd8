"""Checkpoints whose keeper dies, whose caller is a stranger, or that cannot be."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fabricctl.errors import DataError, SystemRefusedError, UsageError
from fabricctl.state.ckpt import keeper, others, parts
from fabricctl.state.ckpt.api import Checkpoint
from fabricctl.state.ckpt.assignment import Assignment
from fabricctl.state.ckpt.client import Client, check
from fabricctl.state.ckpt.files import Alone, Files
from fabricctl.state.ckpt.items import item_of
from fabricctl.state.ckpt.link import Link, ports
from tests.support.keepers import KEY, KeeperSet
from tests.support.ranks import RANKS, program, run


@pytest.fixture
def keepers(tmp_path: Path) -> Iterator[KeeperSet]:
    with KeeperSet(tmp_path) as made:
        yield made


def test_a_keeper_that_dies_meanwhile_costs_no_rank_and_no_step(
    keepers: KeeperSet, capsys: pytest.CaptureFixture[str]
) -> None:
    """The node service starts a new one, which the program finds; the copies are elsewhere."""

    def goes_on(checkpoint: Checkpoint, rank: int) -> int:
        grid = np.full(50_000, float(rank))
        checkpoint.protect(grid=grid).restore()
        for n in (1, 2, 3, 4):
            if n == 3:
                checkpoint._commit()
                checkpoint._gather(True)
                if rank == 1:
                    keepers.kill("n1")
                    keepers.start("n1")
                checkpoint._gather(True)
            grid += 1
            checkpoint.step(n)
        checkpoint.close(done=False)
        return int(grid[0])

    assert run(keepers, goes_on, every_steps=1) == [4, 5, 6]
    assert "rank 1: the keeper of this node is gone" in capsys.readouterr().err
    keepers.kill("n0")  # the new one of n1 has its own and n0's parts again

    def looks(checkpoint: Checkpoint, _rank: int) -> tuple[int, float]:
        grid = np.zeros(50_000)
        return checkpoint.protect(grid=grid).restore(), float(grid[0])

    found = run(keepers, looks, places=["n1", "n1", "n2"])
    assert found == [(4, 4.0), (4, 5.0), (4, 6.0)]


def test_a_keeper_that_dies_before_a_restore_sends_nobody_to_the_beginning(
    keepers: KeeperSet,
) -> None:
    run(keepers, program(10), every_steps=1)

    def goes_on(checkpoint: Checkpoint, rank: int) -> int:
        if rank == 1:
            keepers.kill("n1")
            keepers.start("n1")
        checkpoint._gather(True)
        return checkpoint.protect(grid=np.zeros(50_000), other={}).restore()

    assert run(keepers, goes_on) == [10] * RANKS


def test_keepers_that_stand_still_for_seconds_send_nobody_to_the_beginning(
    keepers: KeeperSet,
) -> None:
    """As where ranks that start take all cores: after a second they were taken for lost."""
    run(keepers, program(10), every_steps=1)

    def goes_on(checkpoint: Checkpoint, rank: int) -> int:
        checkpoint.protect(grid=np.zeros(50_000), other={})
        checkpoint._meet()
        if rank != 0:  # a part and its copy
            process = keepers.processes[f"n{rank}"]
            process.send_signal(signal.SIGSTOP)
            threading.Timer(2.5, process.send_signal, [signal.SIGCONT]).start()
        checkpoint._gather(True)
        return checkpoint.restore()

    assert run(keepers, goes_on) == [10] * RANKS


def test_a_trouble_is_told_once_and_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not at each of a million saves."""
    with KeeperSet(tmp_path, nodes=2) as keepers:

        def saves(checkpoint: Checkpoint, _rank: int) -> bool:
            checkpoint.protect(grid=np.zeros(10)).restore()
            checkpoint.save(1)
            checkpoint.wait_copied()
            keepers.kill("n1")
            for n in range(2, 6):
                checkpoint.save(n)
            keepers.start("n1")
            end_s = time.monotonic() + 60
            while checkpoint._unsafe and time.monotonic() < end_s:
                checkpoint.save(n := n + 1)
            checkpoint.close(done=False)
            return True

        run(keepers, saves, ranks=1, every_steps=1)
    said = [line for line in capsys.readouterr().err.splitlines() if "safe" in line]
    assert len(said) == 2, said
    assert "step 2 is not safe: n1: " in said[0] and said[1].endswith("is safe again")


def test_a_state_that_grows_takes_no_more_memory_than_it_has(keepers: KeeperSet) -> None:
    """A list in a dict, longer each time: what the keeper gave up must not stay mapped."""

    def maps() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:fabric-grows")

    def grows(checkpoint: Checkpoint, _rank: int) -> int:
        losses: dict[str, bytes] = {}
        checkpoint.protect(losses=losses).restore()
        for n in range(1, 30):
            losses["all"] = bytes(n * 10_000)
            checkpoint.step(n)
        found = maps()
        checkpoint.close(done=True)
        return found

    (most,) = run(keepers, grows, ranks=1, name="grows", every_steps=1)
    assert 0 < most <= 4


def test_what_cannot_be_restored_as_a_whole_changes_nothing(keepers: KeeperSet) -> None:
    """The program's second array has another size now: it begins anew, with what it began with."""

    def saves(checkpoint: Checkpoint, _rank: int) -> int:
        checkpoint.protect(small=np.ones(10), grid=np.ones(1000)).restore()
        checkpoint.save(5)
        checkpoint.close(done=False)
        return 1

    def other(checkpoint: Checkpoint, _rank: int) -> tuple[int, float]:
        small = np.zeros(10)
        begin = checkpoint.protect(small=small, grid=np.zeros(2000)).restore()
        return begin, float(small.sum())

    run(keepers, saves)
    assert run(keepers, other) == [(0, 0.0)] * RANKS


def test_where_one_rank_cannot_restore_no_other_is_changed(keepers: KeeperSet) -> None:
    """It begins at step 0: with step 5 in the others' arrays the result would be anything."""

    def saves(checkpoint: Checkpoint, _rank: int) -> int:
        checkpoint.protect(grid=np.ones(1000)).restore()
        checkpoint.save(5)
        checkpoint.close(done=False)
        return 1

    def other(checkpoint: Checkpoint, rank: int) -> tuple[int, float]:
        grid = np.zeros(2000 if rank == 1 else 1000)
        begin = checkpoint.protect(grid=grid).restore()
        return begin, float(grid.sum())

    run(keepers, saves)
    assert run(keepers, other) == [(0, 0.0)] * RANKS


def test_a_node_without_a_keeper_keeps_nobody_waiting(
    keepers: KeeperSet, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its rank had no word on what the others saved: they waited for it for ever."""

    def program(checkpoint: Checkpoint, rank: int) -> tuple[int, int]:
        begin = checkpoint.protect(grid=np.full(1000, float(rank))).restore()
        for n in (1, 2, 3):
            checkpoint.step(n)
        checkpoint.close(done=True)
        return begin, rank

    found = run(keepers, program, places=["n0", "nowhere", "n2"], every_steps=1)
    assert found == [(0, 0), (0, 1), (0, 2)]
    said = capsys.readouterr().err
    assert said.count("no step is kept in memory: no keeper for rank 1, 1 of 3 in all") == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"every_steps": 0}, "every_steps=0"),
        ({"every_s": -1.0}, "every_s=-1.0"),
        ({"mtbf_s": 0.0}, "mtbf_s=0.0"),
        ({"mtbf_s": float("inf")}, "mtbf_s=inf"),
        ({"shared_every": 0}, "shared_every=0"),
        ({"shared_keep": 0}, "shared_keep=0"),
        ({"copies": -1}, "copies=-1"),
        ({"name": "../other"}, "name='../other'"),
        ({"disk_every": -1}, "disk_every=-1"),
    ],
)
def test_what_a_checkpoint_cannot_be_is_refused_at_once(options: dict[str, Any], why: str) -> None:
    """Not by a division by zero at the first save, hours later."""
    with pytest.raises(UsageError, match=why.replace(".", r"\.")):
        Checkpoint(**options)


def test_a_time_between_failures_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FABRIC_MTBF_S", "6h")
    with pytest.raises(UsageError, match="FABRIC_MTBF_S='6h': seconds"):
        Checkpoint()


def test_directories_among_the_files_are_not_passed_over(
    keepers: KeeperSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FABRIC_KEEPER", str(keepers.where / "n0"))
    work = tmp_path / "work"
    (work / "fields").mkdir(parents=True)
    (work / "seed.txt").write_text("1")
    files = Files(Alone(0, 1))
    with pytest.raises(DataError, match="fields: is no file"):
        files.commit(work, 1)
    files.close(done=False)


def test_processes_of_a_step_without_a_communicator_are_no_one_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each would be rank 0 of 1, and restore what another saved."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(UsageError, match="one of 4 processes of a step, and no communicator"):
        Checkpoint()
    Checkpoint(name="mine-3").leave()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    Checkpoint().leave()


def test_a_strangers_program_on_a_keepers_port_is_passed_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ports follow from the job's number: anybody may have bound the first before, and take
    connections without a word."""
    monkeypatch.setattr(others, "WORD_S", 0.3)
    strangers, own = (socket.create_server(("", 0)) for _ in range(2))
    heard: list[dict[str, str]] = []

    def answer() -> None:
        for _ in range(2):
            made, _ = own.accept()
            link = Link.answer(made, KEY)
            heard.append(link.receive())
            link.send({"kind": "hello", "node": "n1", "port": str(own.getsockname()[1])})
            made.close()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    nodes, name = ("n0", "n1"), lambda _: ["127.0.0.1"]
    given = Assignment(1, 0, KEY, "n0", nodes, tmp_path, 1, 1, 1, name)
    known = others.Others(given, [each.getsockname()[1] for each in (strangers, own)])
    known.call("n1").close()
    strangers.close()
    known.call("n1").close()
    thread.join(60)
    own.close()
    assert [one["to"] for one in heard] == ["n1", "n1"]


@pytest.mark.parametrize("relays", [False, True])
def test_a_stranger_who_says_a_keepers_words_again_is_given_no_state(
    tmp_path: Path, relays: bool
) -> None:
    """On the likeliest port: the caller's own words come back, or those of the keeper beside it."""
    candidates = ports(os.getpid(), 24000, 6000)
    heard = bytearray()

    def pump(source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError), source, to:
            while data := source.recv(1 << 16):
                heard.extend(data)
                to.sendall(data)

    def answer() -> None:
        with contextlib.suppress(OSError):
            while True:
                made, _ = stranger.accept()
                if relays:
                    to = socket.create_connection(("127.0.0.1", candidates[2]))
                    threading.Thread(target=pump, args=(to.dup(), made.dup()), daemon=True).start()
                else:
                    to = made.dup()
                    made.sendall(bytes(32))
                threading.Thread(target=pump, args=(made, to), daemon=True).start()

    def saves(checkpoint: Checkpoint, _rank: int) -> tuple[bool, str]:
        checkpoint.protect(grid=bytearray(b"a secret" * 100)).restore()
        checkpoint.save(1)
        return checkpoint.wait_copied()

    with socket.create_server(("", candidates[0])) as stranger:
        thread = threading.Thread(target=answer)
        thread.start()
        with KeeperSet(tmp_path, nodes=2) as keepers:  # on the next two ports
            assert run(keepers, saves, ranks=2) == [(True, "")] * 2
            found = {(one.node, one.rank) for one in keepers.found("n0")}
        stranger.shutdown(socket.SHUT_RDWR)
        thread.join(60)
    assert found == {("n0", 0), ("n0", 1), ("n1", 0), ("n1", 1)}
    assert b"hello" in heard
    assert b"a secret" not in heard


@pytest.mark.parametrize("on_disk", [False, True])
def test_ranks_that_want_the_same_part_at_once_all_get_it(tmp_path: Path, on_disk: bool) -> None:
    """As when fewer ranks go on, or all ranks have the same."""
    disk = tmp_path / "disk" if on_disk else None
    with KeeperSet(tmp_path, nodes=2, disk=disk) as keepers, contextlib.ExitStack() as stack:

        def client(node: str, rank: int) -> Client:
            made = keepers.client(node, rank, 8)
            stack.callback(made.link.close)
            return made

        one = client("n1", 5)
        wanted = {"copies": 0, "keep": [], "disk": on_disk, "serial": ""}
        one.fill(1, {"grid": item_of("grid", np.full(250_000, 5.0))}, wanted)
        assert one.safe(1) == (True, "")
        if on_disk:
            keepers.kill("n1")
            keepers.start("n1")
        got: list[float] = []

        def gets(rank: int, node: str) -> None:
            mine = client(node, rank)
            for _ in range(10):
                manifest, view = mine.get(5, 1, "n1")
                check(manifest, view)
                got.append(float(view[:8].cast("d")[0]))

        places = ["n0", "n0", "n0", "n1"]
        threads = [threading.Thread(target=gets, args=each) for each in enumerate(places)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert got == [5.0] * 40


def test_callers_without_the_key_do_not_fill_a_keeper(tmp_path: Path) -> None:
    with KeeperSet(tmp_path, nodes=1) as keepers, contextlib.ExitStack() as stack:
        (process,) = keepers.processes.values()
        threads = Path(f"/proc/{process.pid}/task")
        before = len(list(threads.iterdir()))
        candidates = ports(os.getpid(), 24000, 6000)
        for _ in range(300):
            with contextlib.suppress(OSError):
                made = socket.create_connection(("127.0.0.1", candidates[0]), 1)
                stack.callback(made.close)
        # Those whose time is up end while others take their places.
        assert len(list(threads.iterdir())) < before + 2 * keeper.UNKNOWN_MOST


def test_callers_who_say_a_word_at_a_time_are_not_listened_to_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as are listened to at once, each a byte now and then, for hours."""
    monkeypatch.setattr(others, "WORD_S", 0.3)
    candidates = ports(os.getpid(), 24000, 6000)
    given = Assignment(
        os.getpid(), 0, KEY, "n1", ("n0", "n1"), tmp_path, 1, 1, 1, lambda _: ["127.0.0.1"]
    )
    with KeeperSet(tmp_path, nodes=1), contextlib.ExitStack() as stack:
        slow = []
        for _ in range(keeper.UNKNOWN_MOST):
            slow.append(socket.create_connection(("127.0.0.1", candidates[0])))
            stack.enter_context(slow[-1]).sendall((50_000).to_bytes(4, "big"))
        deadline = time.monotonic() + 120
        while True:
            for made in slow:
                with contextlib.suppress(OSError):
                    made.send(b"F")
            with contextlib.suppress(OSError, DataError):
                others.Others(given, candidates[:1]).call("n0").close()
                break
            assert time.monotonic() < deadline


def test_memory_that_the_node_has_not_is_refused_and_nobody_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quota is a share of all there is; the program may have taken that."""
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(parts, "_MEMINFO", meminfo)
    meminfo.write_text("MemTotal:  900000 kB\nMemFree: 1 kB\nMemAvailable:   102400 kB\n")
    assert parts.available_bytes() == 100 << 20
    held = parts.Parts(1 << 40)
    assert len(held.room(("main", 0, 1), 1, 30 << 20, set()).memory) == 30 << 20
    with pytest.raises(SystemRefusedError, match="40 MiB do not fit: 100 MiB of this node's"):
        held.room(("main", 0, 2), 1, 40 << 20, {1})
    meminfo.unlink()
    assert parts.available_bytes() is None
    held.clear("main")


def test_a_rank_that_cannot_save_leaves_no_other_waiting(tmp_path: Path) -> None:
    """All hear of it, and may go on: what was saved before is still there."""

    def saves(checkpoint: Checkpoint, rank: int) -> tuple[str, int]:
        checkpoint.protect(grid=np.zeros(10), more=(more := bytearray(10))).restore()
        checkpoint.save(1)
        more.extend(bytes(8 << 20 if rank == 1 else 0))
        try:
            checkpoint.save(2)
        except SystemRefusedError as error:
            why = str(error)
        del more[10:]
        checkpoint.save(3)
        checkpoint._commit()
        return why.partition(":")[2], *checkpoint._committed

    with KeeperSet(tmp_path, quota_bytes=4 << 20) as keepers:
        one, two, three = run(keepers, saves)
        assert one == three == (" step 2 is not saved: rank 1 could not", 1, 3)
        assert two[0].startswith(" 8 MiB do not fit")
        assert two[1:] == (1, 3)


def test_a_file_that_is_not_there_is_no_fault_of_the_keeper(
    keepers: KeeperSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def saves(checkpoint: Checkpoint, _rank: int) -> bool:
        checkpoint.protect(mesh=tmp_path / "mesh").restore()
        with pytest.raises(SystemRefusedError, match=r"No such file or directory: .*mesh"):
            checkpoint.save(1)
        return True

    assert all(run(keepers, saves))
    assert "is gone" not in capsys.readouterr().err
