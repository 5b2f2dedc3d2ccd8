"""The tracker as NCCL's profiler plugin, called as NCCL calls it, by structures of its interface
(plugins/profiler/README.md of NCCL); the machine has no GPU on which NCCL itself could run."""

import ctypes
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fabricctl.state.track import block, position
from fabricctl.state.track.ranks import Ranks
from fabricctl.state.track.verdict import judge
from fabricctl.store.schema import StallKind

ROOT = Path(__file__).parents[2]
COLL, P2P, KERNEL_CHANNEL, GROUP = 2, 4, 64, 1
OPS = {name: op for op, name in block.HOOK_OPS.items()}


class Coll(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_uint64), ("func", ctypes.c_char_p), ("from_", ctypes.c_void_p),
        ("to", ctypes.c_void_p), ("count", ctypes.c_size_t), ("root", ctypes.c_int),
        ("datatype", ctypes.c_char_p), ("channels", ctypes.c_uint8), ("warps", ctypes.c_uint8),
        ("algo", ctypes.c_char_p), ("proto", ctypes.c_char_p), ("group", ctypes.c_void_p),
    )  # fmt: skip


class P2p(ctypes.Structure):
    _fields_ = (
        ("func", ctypes.c_char_p), ("buffer", ctypes.c_void_p), ("datatype", ctypes.c_char_p),
        ("count", ctypes.c_size_t), ("peer", ctypes.c_int), ("channels", ctypes.c_uint8),
        ("group", ctypes.c_void_p),
    )  # fmt: skip


class What(ctypes.Union):
    _fields_ = (("coll", Coll), ("p2p", P2p))


class Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint64), ("parent", ctypes.c_void_p), ("rank", ctypes.c_int),
        ("what", What),
    )  # fmt: skip


_HANDLE = ctypes.POINTER(ctypes.c_void_p)
_I, _P, _U = ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64
_EVENTS = ctypes.POINTER(ctypes.c_int)
INIT = {
    4: ctypes.CFUNCTYPE(_I, _HANDLE, _EVENTS, ctypes.c_char_p, _U, _I, _I, _I, _P),
    5: ctypes.CFUNCTYPE(_I, _HANDLE, _U, _EVENTS, ctypes.c_char_p, _I, _I, _I, _P),
}


def table(version: int) -> type[ctypes.Structure]:
    start = ctypes.CFUNCTYPE(_I, _P, _HANDLE, ctypes.POINTER(Event))
    fields = (
        ("name", ctypes.c_char_p), ("init", INIT[version]), ("start", start),
        ("stop", ctypes.CFUNCTYPE(_I, _P)), ("record", ctypes.CFUNCTYPE(_I, _P, _I, _P)),
        ("finalize", ctypes.CFUNCTYPE(_I, _P)),
    )  # fmt: skip
    return type(f"Profiler{version}", (ctypes.Structure,), {"_fields_": fields})


@dataclass
class Nccl:
    """NCCL of one rank, as far as its profiler plugin sees of it."""

    library: ctypes.CDLL
    where: Path
    version: int

    def __post_init__(self) -> None:
        self.plugin: Any = table(self.version).in_dll(self.library, f"ncclProfiler_v{self.version}")

    def comm(self, name: int, rank: int, ranks: int) -> int:
        made, events = ctypes.c_void_p(), ctypes.c_int()
        if self.version == 4:
            given: tuple[Any, ...] = (ctypes.byref(events), b"", name, 2, ranks, rank, None)
        else:
            given = (name, ctypes.byref(events), b"", 2, ranks, rank, None)
        assert self.plugin.init(ctypes.byref(made), *given) == 0
        assert events.value == COLL | P2P | KERNEL_CHANNEL
        return made.value or 0

    def _start(self, comm: int, event: Event) -> int | None:
        handle = ctypes.c_void_p(1)
        if self.version == 4:
            event.type |= 0x5A5A00  # a byte there, and padding
        assert self.plugin.start(comm, ctypes.byref(handle), ctypes.byref(event)) == 0
        return handle.value

    def enqueue(self, comm: int, func: bytes, count: int = 1024, channels: int = 2) -> int | None:
        what = Coll(0, func, None, None, count, 0, b"ncclBfloat16", channels)
        group = self._start(comm, Event(GROUP, None, 0))
        assert group is None
        made = self._start(comm, Event(COLL, group, 0, What(coll=what)))
        self.plugin.stop(made)
        self.plugin.stop(group)
        return made

    def send(self, comm: int, peer: int) -> int | None:
        what = P2p(b"Send", None, b"ncclFloat32", 10, peer, 1)
        made = self._start(comm, Event(P2P, None, 0, What(p2p=what)))
        self.plugin.stop(made)
        return made

    def begin(self, op: int | None) -> int | None:
        """A channel of it, on the GPU."""
        return self._start(self.any_comm, Event(KERNEL_CHANNEL, op, 0))

    any_comm = 1

    def end(self, channel: int | None) -> None:
        self.plugin.record(channel, 22, None)
        self.plugin.stop(channel)

    def run(self, comm: int, func: bytes) -> None:
        op = self.enqueue(comm, func)
        for channel in [self.begin(op), self.begin(op)]:
            self.end(channel)

    @property
    def rank(self) -> block.Rank:
        (found,) = block.read_all(self.where)
        return found


Make = Callable[..., Nccl]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("nccl")
    make = ["make", "-s", "-C", str(ROOT / "fabricctl/state"), f"OUT={where}"]
    subprocess.run([*make, str(where / "libfabrictrack.so")], check=True)
    return where / "libfabrictrack.so"


@pytest.fixture
def make(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A rank's NCCL: a copy of the library of its own, so that each is as in its own process."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "FABRIC_LAUNCH"):
        monkeypatch.delenv(name, raising=False)

    def made(rank: int = 0, ranks: int = 2, version: int = 5) -> Nccl:
        where = tmp_path / f"rank{rank}"
        where.mkdir()
        copy = shutil.copy(library, where / "libcopy.so")
        monkeypatch.setenv("FABRIC_TRACK_DIR", str(where))
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        return Nccl(ctypes.CDLL(str(copy)), where, version)

    return made


@pytest.mark.parametrize("version", [4, 5])
def test_an_operation_lasts_from_its_first_channel_to_its_last(make: Make, version: int) -> None:
    nccl = make(version=version)
    comm = nccl.comm(77, 0, 2)
    op = nccl.enqueue(comm, b"AllReduce")
    assert (nccl.rank.inside, nccl.rank.library) == (False, "NCCL")
    first, second = nccl.begin(op), nccl.begin(op)
    rank = nccl.rank
    assert (rank.inside, rank.op, rank.coll, rank.peer) == (True, OPS["ncclAllReduce"], 1, -1)
    assert (rank.rank, rank.ranks, rank.bytes) == (0, 2, 2048)
    nccl.end(first)
    assert nccl.rank.inside
    nccl.end(second)
    rank = nccl.rank
    assert not rank.inside
    assert [(s.op, s.calls, s.bytes) for s in rank.sums] == [(OPS["ncclAllReduce"], 1, 2048)]
    (seen,) = rank.comms
    assert (seen.id, seen.size, seen.rank, seen.colls) == (77 | 1 << 63, 2, 0, 1)
    assert nccl.plugin.finalize(comm) == 0
    assert nccl.rank.comms == ()


def test_of_several_at_once_the_oldest_is_shown(make: Make) -> None:
    nccl = make()
    data, tensor = nccl.comm(1, 0, 2), nccl.comm(2, 0, 2)
    gather, reduce = nccl.enqueue(data, b"AllGather", channels=1), nccl.enqueue(tensor, b"Mystery")
    old = nccl.begin(gather)
    new = [nccl.begin(reduce), nccl.begin(reduce)]
    assert nccl.rank.op == OPS["ncclAllGather"]
    nccl.end(old)
    rank = nccl.rank
    assert (rank.inside, rank.op, rank.comm) == (True, OPS["nccl"], 2 | 1 << 63)
    for channel in new:
        nccl.end(channel)
    assert (nccl.rank.inside, nccl.rank.calls) == (False, 4)


def test_who_sends_says_to_whom(make: Make) -> None:
    nccl = make()
    channel = nccl.begin(nccl.send(nccl.comm(9, 0, 2), 1))
    rank = nccl.rank
    assert (rank.op, rank.peer, rank.coll, rank.bytes) == (OPS["ncclSend"], 1, 0, 40)
    nccl.end(channel)


def test_the_rank_that_does_not_come_is_named(make: Make) -> None:
    """The program of both enqueued ahead; the GPU of rank 1 has not come to the third."""
    ranks = []
    for number in range(2):
        nccl = make(number)
        ranks.append(nccl)
        comm = nccl.comm(5, number, 2)
        for _ in range(2):
            nccl.run(comm, b"AllReduce")
        op = nccl.enqueue(comm, b"ReduceScatter")
        if number == 0:
            nccl.begin(op)
    time.sleep(0.6)
    now_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    found = [
        position.of(seen, f"n{number}", now_ns)
        for number, nccl in enumerate(ranks)
        for seen in Ranks(nccl.where, lambda *_: "S").look()
    ]
    verdict = judge(found)
    assert (verdict.kind, verdict.rank, verdict.node) == (StallKind.RANK, 1, "n1")
    assert verdict.waiting == 1


def test_the_gpus_place_is_joined_to_the_programs(make: Make) -> None:
    nccl = make()
    nccl.library.fabric_track_begin(ctypes.c_uint32(0), ctypes.c_uint32(2), b"torch.distributed")
    nccl.library.fabric_track_meet(OPS["torch.all_reduce"], -1, ctypes.c_uint64(8))
    nccl.library.fabric_track_exit()
    op = nccl.enqueue(nccl.comm(5, 0, 2), b"AllReduce")
    rank = nccl.rank
    assert (rank.inside, rank.op) == (False, OPS["torch.all_reduce"])
    nccl.begin(op)
    rank = nccl.rank
    assert (rank.library, rank.inside, rank.op) == (
        "torch.distributed", True, OPS["ncclAllReduce"],
    )  # fmt: skip
    assert {comm.id for comm in rank.comms} == {1, 5 | 1 << 63}


def test_more_than_can_be_tracked_are_passed_over(make: Make) -> None:
    nccl = make()
    comm = nccl.comm(5, 0, 2)
    held = [nccl.enqueue(comm, b"AllReduce") for _ in range(1100)]
    assert held.count(None) == 1100 - 1024
    assert nccl.begin(None) is None
    nccl.plugin.finalize(comm)  # aborted: none of them will end
    again = nccl.comm(6, 0, 2)
    nccl.run(again, b"AllReduce")
    assert (nccl.rank.sums[0].calls, nccl.rank.inside) == (1, False)


def test_what_an_aborted_communicator_says_late_is_passed_over(make: Make) -> None:
    nccl = make()
    comm = nccl.comm(5, 0, 2)
    begun, waiting = nccl.enqueue(comm, b"AllReduce", channels=1), nccl.enqueue(comm, b"AllReduce")
    channel = nccl.begin(begun)
    nccl.plugin.finalize(comm)
    nccl.end(channel)
    assert nccl.begin(waiting) is None
    assert (nccl.rank.sums, nccl.rank.inside) == ((), False)
    again = nccl.comm(6, 0, 2)
    held = [nccl.enqueue(again, b"AllReduce") for _ in range(1100)]
    assert len(set(held)) == 1024 + 1, "each once, and None"


def test_threads_that_call_at_once_lose_nothing(make: Make) -> None:
    nccl = make()
    comms = [nccl.comm(name, 0, 2) for name in range(1, 5)]

    def calls(comm: int) -> None:
        for _ in range(200):
            nccl.run(comm, b"AllReduce")

    threads = [threading.Thread(target=calls, args=(comm,)) for comm in comms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rank = nccl.rank
    assert (rank.inside, rank.calls, rank.sums[0].calls) == (False, 1600, 800)
    assert [comm.colls for comm in rank.comms] == [200] * 4


def test_a_new_group_begins_anew(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    nccl = make()
    nccl.begin(nccl.enqueue(nccl.comm(5, 0, 2), b"AllReduce"))
    monkeypatch.setenv("FABRIC_LAUNCH", "1")
    monkeypatch.setenv("RANK", "1")
    nccl.comm(6, 1, 2)
    rank = nccl.rank
    assert (rank.launch, rank.rank, rank.calls, len(rank.comms)) == (1, 1, 0, 1)


def test_without_a_place_for_it_nccl_leaves_the_plugin_out(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    nccl = make()
    monkeypatch.delenv("FABRIC_TRACK_DIR")
    made, events = ctypes.c_void_p(), ctypes.c_int()
    given = (ctypes.byref(made), 7, ctypes.byref(events), b"", 2, 2, 0, None)
    assert nccl.plugin.init(*given) != 0
    assert (made.value, events.value) == (None, 0)
