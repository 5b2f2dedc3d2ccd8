"""A running job's journal is fetched in pieces and judged as it stands."""

from pathlib import Path

import numpy as np
import pytest

from fabricctl import wire
from fabricctl.agent import tail
from fabricctl.cli.report_follow import _fresh
from fabricctl.errors import DataError
from fabricctl.store import schema
from fabricctl.store.journal import JournalWriter
from fabricctl_analysis import live
from fabricctl_analysis.live import Tail
from tests.support.simjobs import BEGIN_NS, Fault, S, Sim

NODES = ("n0", "n1", "n2", "n3")


class Node:
    """Writes what the agent of a node of a simulated job would have written."""

    def __init__(self, folder: Path, node: str, sim: Sim) -> None:
        self.path = folder / f"{node}.journal"
        self._rows = sim._node(int(node[1:]), sim._pace())
        head = {"job": "7", "nodes": "n[0-3]", "node": node, "rails": "r0 r1", "sample_hz": "1",
                "addresses": "0/10.78.0.1", "begin_real_ns": str(BEGIN_NS)}  # fmt: skip
        self._writer = JournalWriter(self.path, head)
        self._written_ns = 0

    def write(self, until_s: float) -> None:
        until_ns = BEGIN_NS + int(until_s * S)
        for name in ("clock", "step", "rail", "host", "job", "link_event"):
            times = self._rows.real_ns[name]
            for row in self._rows.tables[name][(times > self._written_ns) & (times <= until_ns)]:
                self._writer.append(schema.BY_NAME[name], *(value.item() for value in row))
        self._written_ns = until_ns
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def fetched(path: Path, known: Tail) -> int:
    """Asked and answered as over the network; how many pieces it took."""
    pieces = 0
    more = True
    while more:
        answer = tail.answer(path, {"from": str(known.offset)})
        datagram = wire.seal(answer, b"k" * 32)
        piece, size = tail.taken(wire.open_sealed(datagram, b"k" * 32), known.offset)
        more = known.put(piece, size)
        pieces += 1
    return pieces


def test_a_fault_is_told_seconds_after_it_began_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = Sim(3, [Fault("link_down", 2, 60.0, 30.0)], seconds=120)
    tails = {node: Tail() for node in NODES}
    told: set = set()
    nodes = {node: Node(tmp_path, node, sim) for node in NODES}
    for until_s, expected in ((50.0, 0), (64.0, 1), (75.0, 0)):
        for node, writes in nodes.items():
            writes.write(until_s)
            fetched(writes.path, tails[node])
        now_ns = BEGIN_NS + int(until_s * S)
        monkeypatch.setattr(live.time, "time_ns", lambda at=now_ns: at)
        fresh = list(_fresh(live.report(7, NODES, tails), told))
        assert len(fresh) == expected, until_s
        if fresh:
            assert (fresh[0].cause, fresh[0].nodes, fresh[0].rail) == ("link_down", ("n2",), 0)
    for writes in nodes.values():
        writes.close()


def test_a_long_journal_comes_by_its_begin_and_its_end(tmp_path: Path) -> None:
    path = tmp_path / "0.journal"
    noise = np.random.default_rng(1).bytes(live.KEPT_BYTES * 3)
    path.write_bytes(noise)
    known = Tail()
    assert fetched(path, known) > 20
    assert known.offset == len(noise)
    assert len(known._tail) <= 2 * live.KEPT_BYTES
    assert noise.startswith(known._head) and noise.endswith(bytes(known._tail))
    assert known.rows("n0") is None, "garbage is no journal"


def test_a_journal_that_is_not_there_yet_is_nothing_to_tell(tmp_path: Path) -> None:
    known = Tail()
    assert fetched(tmp_path / "none", known) == 1
    assert live.report(7, ("n0",), {"n0": known}) is None


@pytest.mark.parametrize(
    "message",
    [
        {"kind": "there"},
        {"kind": "journal", "from": "5", "size": "9", "data": ""},
        {"kind": "journal", "from": "0", "size": "x", "data": "eJwDAAAAAAE="},
        {"kind": "journal", "from": "0", "size": "9", "data": "!!!"},
        {"kind": "journal", "from": "0", "size": "9", "data": "AAAA"},
    ],
)
def test_an_answer_that_is_none_is_refused(message: dict[str, str]) -> None:
    with pytest.raises(DataError):
        tail.taken(message, 0)


def test_a_piece_cannot_be_larger_than_asked_for(tmp_path: Path) -> None:
    import base64
    import zlib

    bomb = base64.b64encode(zlib.compress(bytes(10 << 20))).decode()
    piece, _ = tail.taken({"kind": "journal", "from": "0", "size": "1", "data": bomb}, 0)
    assert len(piece) == tail.PIECE_BYTES
