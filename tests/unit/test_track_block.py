"""The preloaded tracker against a stub MPI, and its block as it is read."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fabricctl.errors import DataError
from fabricctl.state.track import block
from fabricctl.state.track.block import State
from fabricctl.state.track.ranks import Ranks
from fabricctl.store.schema import RankState

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "tests" / "c" / "track"
WORLD = 1


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracker, the stub and a program that calls it."""
    where = tmp_path_factory.mktemp("track")
    make = ["make", "-s", "-C", str(ROOT / "fabricctl/state"), f"OUT={where}"]
    subprocess.run([*make, str(where / "libfabrictrack.so")], check=True)
    stub, program = where / "libstubmpi.so", where / "program"
    flags = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*flags, "-shared", "-fPIC", "-o", stub, SOURCES / "stub_mpi.c"], check=True)
    rpath = f"-Wl,-rpath,{where}"
    source = SOURCES / "program.c"
    subprocess.run([*flags, "-o", program, source, stub, rpath], check=True)
    return where


@pytest.fixture
def process(built: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {
        "FABRIC_TRACK_DIR": str(tmp_path),
        "LD_PRELOAD": str(built / "libfabrictrack.so"),
        "SLURM_STEP_ID": "3",
        "FABRIC_LAUNCH": "2",
    }
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [built / "program"], env=environment, stdin=pipe, stdout=pipe, text=True
    ) as made:
        assert made.stdout is not None and made.stdout.readline() == "ready\n"
        yield made
        made.kill()


def alive(pid: int, _start: int) -> str:
    return "S" if Path(f"/proc/{pid}").exists() else ""


def test_every_call_is_counted_with_its_bytes_and_place(
    process: subprocess.Popen[str], tmp_path: Path
) -> None:
    (rank,) = block.read_all(tmp_path)
    assert (rank.rank, rank.ranks, rank.pid, rank.step) == (0, 1, process.pid, "3")
    assert (rank.launch, rank.library, rank.state) == (2, "MPICH ABI", State.RUNNING)
    sums = {block.op_name(item.op): item for item in rank.sums}
    assert (sums["MPI_Allreduce"].calls, sums["MPI_Allreduce"].bytes) == (10, 10 * 4 * 8)
    assert (sums["MPI_Barrier"].calls, sums["MPI_Comm_split"].calls) == (201, 201)
    assert (sums["MPI_Send"].calls, sums["MPI_Send"].bytes) == (2, (2 + 3) * 8)
    assert rank.calls == 2 * sum(item.calls for item in rank.sums)
    assert (rank.steps, rank.comm) == (42, WORLD)
    assert all(item.ns > 0 and item.most_ns <= item.ns for item in rank.sums)
    begin = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    assert rank.start_ticks == int(begin)


def test_collectives_are_numbered_per_communicator(
    process: subprocess.Popen[str], tmp_path: Path
) -> None:
    (rank,) = block.read_all(tmp_path)
    comms = {comm.id: comm for comm in rank.comms}
    assert comms[WORLD].colls == 10 + 201  # splits are collectives of the parent
    recent = comms[WORLD].recent.to_bytes(8, "big")
    assert [block.op_name(op) for op in recent] == ["MPI_Comm_split"] * 8
    (made,) = (comm for comm in rank.comms if comm.id > 2)
    assert (made.colls, block.op_name(made.recent)) == (1, "MPI_Barrier")
    assert made.size == 1


def test_phases_are_timed_and_what_finds_no_place_is_other(
    process: subprocess.Popen[str], tmp_path: Path
) -> None:
    (rank,) = block.read_all(tmp_path)
    found = {phase.name: phase for phase in rank.phases}
    assert [*found][:2] == ["load", "pa"] and len(found) == block.PHASES
    assert (found["load"].entered, found["pa"].entered, found["other"].entered) == (2, 1, 7)
    assert rank.phase == "other" and rank.phase_mono_ns > 0
    ranks = Ranks(tmp_path, alive)
    ranks.take()
    first = {row[3]: row for row in ranks.rows()[3]}
    ranks.take(last=True)
    ((_, _, launch, name, entered, took_ns),) = ranks.rows()[3]
    assert (launch, name, entered) == (2, "other", 7), "only the one that goes on has a new row"
    assert took_ns > int(first["other"][5])
    process.kill()
    process.wait()
    ranks.take(last=True)
    assert ranks.rows()[3] == [], "nobody is in a phase who is gone"


def test_once_a_second_is_each_time_when_seconds_are_not_exact(
    process: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timer that is early by a millisecond must not cost the sample of that second."""
    clock = SimpleNamespace(
        clock_gettime_ns=time.clock_gettime_ns, CLOCK_MONOTONIC=time.CLOCK_MONOTONIC
    )
    monkeypatch.setattr("fabricctl.state.track.ranks.time", clock)
    ranks = Ranks(tmp_path, alive)
    for at_s in (100.0, 100.999, 102.003, 102.998, 103.5, 104.0):
        clock.monotonic = lambda at_s=at_s: at_s
        ranks.take()
    assert len(ranks.rows()[2]) == 5, "each but the one half a second after another"


def test_the_block_outlives_a_killed_rank(process: subprocess.Popen[str], tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, alive)
    assert [seen.state for seen in ranks.look()] == [RankState.RUNNING]
    ranks.take()
    process.kill()
    process.wait()
    assert [seen.state for seen in ranks.look()] == [RankState.GONE]
    ranks.take(last=True)
    states, sums, positions, _ = ranks.rows()
    assert [row[-1] for row in states] == [RankState.RUNNING, RankState.GONE]
    assert len(positions) == 2
    assert len(sums) == len({row[3] for row in sums}), "what did not change has no second row"


def test_a_rank_that_finalized_is_not_gone(process: subprocess.Popen[str], tmp_path: Path) -> None:
    process.communicate("f")
    (seen,) = Ranks(tmp_path, alive).look()
    assert seen.state == RankState.FINALIZED


def test_without_a_directory_the_program_runs_all_the_same(built: Path) -> None:
    environment = {"LD_PRELOAD": str(built / "libfabrictrack.so")}
    argv = [built / "program"]
    done = subprocess.run(
        argv, env=environment, input="f", text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ready\n", "")


def test_it_can_be_preloaded_into_what_has_no_mpi(built: Path) -> None:
    environment = {**os.environ, "LD_PRELOAD": str(built / "libfabrictrack.so")}
    done = subprocess.run(["true"], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (0, b"X"),  # magic
        (8, b"\2"),  # version
        (12, b"\1"),  # size
        (44, b"\xff\xff\xff\xff"),  # rank -1
        (56, b"\x63"),  # state
    ],
)
def test_a_damaged_block_is_refused(
    process: subprocess.Popen[str], tmp_path: Path, at: int, data: bytes
) -> None:
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    block.parse(whole)
    with pytest.raises(DataError):
        block.parse(whole[:at] + data + whole[at + len(data) :])
    with pytest.raises(DataError):
        block.parse(whole[:5000])


def test_whatever_a_user_puts_into_the_directory_is_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.track")
    (tmp_path / "b.track").symlink_to("/etc/passwd")
    (tmp_path / "c.track").mkdir()
    (tmp_path / "d.track").write_bytes(b"FBTRACK\0" + bytes(60_000))
    assert block.read_all(tmp_path) == []


def test_layout_is_what_the_document_says() -> None:
    text = (ROOT / "docs" / "tracker.md").read_text()
    for place in (block.NOW_AT, block.PHASES_AT, block.COMMS_AT, block.OPS_AT, block.RING_AT):
        assert f"| {place} |" in text


@pytest.mark.parametrize(
    ("given", "launch"),
    [
        ({"PMIX_NAMESPACE": "slurm.pmix.77.12"}, 12),
        ({"PMI_JOBID": "77.3"}, 3),
        ({"PMIX_NAMESPACE": "slurm.pmix.77.12", "FABRIC_LAUNCH": "2"}, 2),
        ({"PMIX_NAMESPACE": "prterun-n1-4711@1", "SLURM_STEP_ID": "5"}, 0),
        ({"PMI_JOBID": "77.x"}, 0),
    ],
)
def test_a_step_of_srun_alone_has_its_number(
    built: Path, tmp_path: Path, given: dict[str, str], launch: int
) -> None:
    """An earlier step of the job, in which ranks stood elsewhere, is not taken for this one."""
    environment = {"FABRIC_TRACK_DIR": str(tmp_path), **given}
    environment["LD_PRELOAD"] = str(built / "libfabrictrack.so")
    argv, pipe = [built / "program"], subprocess.PIPE
    with subprocess.Popen(argv, env=environment, stdin=pipe, stdout=pipe, text=True) as made:
        assert made.stdout is not None and made.stdout.readline() == "ready\n"
        (rank,) = block.read_all(tmp_path)
        made.kill()
    assert rank.launch == launch


def test_of_two_programs_under_one_number_the_later_one_counts(built: Path, tmp_path: Path) -> None:
    environment = {"FABRIC_TRACK_DIR": str(tmp_path)}
    environment["LD_PRELOAD"] = str(built / "libfabrictrack.so")
    argv, pipe = [built / "program"], subprocess.PIPE
    pids = []
    for _ in range(2):
        with subprocess.Popen(argv, env=environment, stdin=pipe, stdout=pipe, text=True) as made:
            assert made.stdout is not None and made.stdout.readline() == "ready\n"
            made.kill()
        pids.append(made.pid)
        time.sleep(2 / os.sysconf("SC_CLK_TCK"))  # their starts are told apart by it
    assert len(block.read_all(tmp_path)) == 2
    (seen,) = Ranks(tmp_path, alive).look()
    assert seen.rank.pid == pids[1]


TORCH = """
import ctypes, sys, types
from fabricctl.state import torch_hooks
dist = types.SimpleNamespace(get_rank=lambda: 1, get_world_size=lambda: 4,
    all_reduce=lambda t, op=None, group=None: "reduced", broadcast=lambda t, src, group=None: t,
    send=lambda t, dst: None, barrier=lambda group=None: None)
assert torch_hooks.install(dist)
assert dist.all_reduce(memoryview(bytes(800))) == "reduced"
dist.broadcast(memoryview(bytes(8)), 2)
dist.broadcast(memoryview(bytes(8)), src=3)
dist.all_reduce(memoryview(bytes(8)), group="other")
dist.all_reduce(memoryview(bytes(8)), None, "other")
dist.barrier("other")
dist.send(memoryview(bytes(16)), 3)
ctypes.CDLL(None).fabric_track_step(ctypes.c_uint64(9))
sys.stdout.write("ready\\n"); sys.stdout.flush()
sys.stdin.readline()
import os
os.environ["FABRIC_LAUNCH"] = "3"  # a new group, in the place of another rank
sys.modules["torch.distributed"] = dist
dist.get_rank = lambda: 2
torch_hooks.begin_again()
dist.all_reduce(memoryview(bytes(8)))
sys.stdout.write("again\\n"); sys.stdout.flush()
sys.stdin.read()
"""


def test_torch_distributed_is_stamped_without_mpi(built: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "FABRIC_TRACK_DIR": str(tmp_path)}
    environment["LD_PRELOAD"] = str(built / "libfabrictrack.so")
    argv = [sys.executable, "-c", TORCH]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        (rank,) = block.read_all(tmp_path)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "again\n"
        (again,) = block.read_all(tmp_path)
        process.communicate("")
    assert (rank.rank, rank.ranks, rank.library) == (1, 4, "torch.distributed")
    sums = {block.op_name(item.op): (item.calls, item.bytes) for item in rank.sums}
    assert sums == {
        "torch.all_reduce": (3, 816),
        "torch.barrier": (1, 0),
        "torch.broadcast": (2, 16),
        "torch.send": (1, 16),
    }
    assert rank.steps == 9
    assert rank.comms[0].colls == 3, "three were on another group"
    assert (again.rank, again.launch, again.comms[0].colls) == (2, 3, 1)
    assert (again.steps, [item.calls for item in again.sums]) == (0, [1])


ENDS = """
import os, sys, types
from fabricctl.state import torch_hooks
dist = types.SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda: 1)
assert torch_hooks.install(dist)
"""


@pytest.mark.parametrize(
    ("ends", "state"),
    [
        ("", State.FINALIZED),
        ("sys.exit(0)", State.FINALIZED),
        ("1 / 0", State.RUNNING),
        ("os.kill(os.getpid(), 9)", State.RUNNING),
        # A child's end, while the rank goes on, is not the rank's.
        ("if os.fork() == 0: sys.exit(0)\nos.wait()\nos.kill(os.getpid(), 9)", State.RUNNING),
    ],
)
def test_a_rank_of_torch_that_ends_well_has_ended_and_no_other(
    built: Path, tmp_path: Path, ends: str, state: State
) -> None:
    environment = {**os.environ, "FABRIC_TRACK_DIR": str(tmp_path)}
    environment["LD_PRELOAD"] = str(built / "libfabrictrack.so")
    argv = [sys.executable, "-c", ENDS + ends]
    subprocess.run(argv, env=environment, check=False, stderr=subprocess.DEVNULL)
    (rank,) = block.read_all(tmp_path)
    assert rank.state == state
