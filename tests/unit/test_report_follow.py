"""A running job's journal is fetched in pieces and judged as it stands."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from fabricctl import wire
from fabricctl.agent import tail
from fabricctl.cli.report_follow import ANSWER_S, SILENT_S, _fresh, _Look
from fabricctl.errors import DataError
from fabricctl.store import schema
from fabricctl.store.journal import JournalWriter
from fabricctl_analysis import live
from fabricctl_analysis.live import Live, Tail
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
        for name in ("clock", "step", "rail", "host", "job", "link_event", "tcp"):
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


@contextlib.contextmanager
def running(folder: Path, sim: Sim) -> Iterator[tuple[Live, dict[str, Node]]]:
    nodes = {node: Node(folder, node, sim) for node in NODES}
    yield Live(7, NODES), nodes
    for writes in nodes.values():
        writes.close()


def grown(live: Live, nodes: dict[str, Node], until_s: float, but: str = "") -> None:
    for node, writes in nodes.items():
        if node != but:
            writes.write(until_s)
            fetched(writes.path, live.tails[node])


def test_a_fault_is_told_seconds_after_it_began_with_its_place(tmp_path: Path) -> None:
    sim = Sim(3, [Fault("link_down", 2, 60.0, 30.0)], seconds=120)
    told: set = set()
    with running(tmp_path, sim) as (live, nodes):
        for until_s, expected in ((50.0, 0), (64.0, 1), (75.0, 0)):
            grown(live, nodes, until_s)
            fresh = list(_fresh(live.report(), told))
            assert len(fresh) == expected, until_s
            if fresh:
                assert (fresh[0].cause, fresh[0].nodes, fresh[0].rail) == ("link_down", ("n2",), 0)


@pytest.mark.parametrize("phase_s", [0.1, 0.4, 0.7, 0.9])
@pytest.mark.parametrize("kind", ["link_down", "queueing", "host_cpu"])
def test_the_second_sample_after_a_fault_tells_of_it_at_the_latest(
    tmp_path: Path, kind: str, phase_s: float
) -> None:
    """Windows end where the samples do, wherever the job and the fault began."""
    begin_s = 60.05 + phase_s
    with running(tmp_path, Sim(4, [Fault(kind, 1, begin_s, 20.0)], seconds=90)) as (live, nodes):
        grown(live, nodes, begin_s)
        assert not list(_fresh(live.report(), set()))
        for until_s in (begin_s + 1.0, begin_s + 2.0):
            grown(live, nodes, until_s)
            fresh = list(_fresh(live.report(), set()))
            if fresh:
                break
        assert [(one.cause, one.nodes) for one in fresh] == [(kind, ("n1",))]


def test_without_new_samples_there_is_no_new_report(tmp_path: Path) -> None:
    with running(tmp_path, Sim(3, seconds=60)) as (live, nodes):
        grown(live, nodes, 30.0)
        assert live.report() is not None
        grown(live, nodes, 30.0)
        assert live.report() is None


def test_a_node_that_tells_nothing_is_waited_for_and_then_not(tmp_path: Path) -> None:
    with running(tmp_path, Sim(3, seconds=60)) as (live, nodes):
        grown(live, nodes, 30.0)
        assert live.report() is not None
        first_ns = live.until_ns
        grown(live, nodes, 31.0, but="n1")
        assert live.report() is None, "it may be a little late"
        grown(live, nodes, 32.0, but="n1")
        assert live.report(answering={"n1"}) is None, "its agent lives"
        assert live.report() is not None and live.until_ns - first_ns == 2 * S
        grown(live, nodes, 32.0)
        assert live.report() is None, "what came late is of a time that was judged"
        grown(live, nodes, 33.0)
        assert live.report() is not None and live.until_ns - first_ns == 3 * S


def test_agents_that_sample_often_tell_once_a_second_all_the_same(tmp_path: Path) -> None:
    with running(tmp_path, Sim(3, seconds=20, hz=20)) as (live, nodes):
        grown(live, nodes, 15.0)
        grown(live, nodes, 15.9, but="n1")
        assert live.report() is not None
        assert 14.9 * S < live.until_ns - BEGIN_NS <= 15.0 * S


class Agents:
    """The agents of a job as who asks them sees them: what each answers, or that it does not."""

    def __init__(self, paths: dict[str, Path]) -> None:
        self.paths, self.silent = paths, set[str]()
        self.asked: list[tuple[tuple[str, ...], float]] = []
        self.late: list[tuple[str, Mapping[str, str]]] = []

    def ask(
        self,
        nodes: Collection[str],
        wait_s: float,
        kind: str,
        more: object,
        token: str,
        good: Callable[[str, Mapping[str, str]], bool],
    ) -> Iterator[tuple[str, Mapping[str, str]]]:
        assert kind == "journal" and token and callable(more)
        self.asked.append((tuple(nodes), wait_s))
        late, self.late, missing = self.late, [], set(nodes)
        answers = [(node, tail.answer(self.paths[node], more(node))) for node in sorted(nodes)]
        self.late += [(node, answer) for node, answer in answers if node in self.silent]
        for node, answer in [*late, *(one for one in answers if one[0] not in self.silent)]:
            if node in missing and good(node, answer):
                missing.discard(node)
                yield node, answer


def test_a_silent_node_holds_up_one_look_and_is_heard_when_it_speaks(tmp_path: Path) -> None:
    with running(tmp_path, Sim(3, seconds=60)) as (live, nodes):
        agents = Agents({node: made.path for node, made in nodes.items()})
        look = _Look(agents, live)  # type: ignore[arg-type]
        for made in nodes.values():
            made.write(20.0)
        assert look.take()
        assert {asked for asked, _ in agents.asked} == {(node,) for node in NODES}, "one by one"
        assert all(tail.offset == nodes[n].path.stat().st_size for n, tail in live.tails.items())
        agents.silent, agents.asked = {"n2"}, []
        for made in nodes.values():
            made.write(22.0)
        assert look.take()
        assert agents.asked == [(NODES, ANSWER_S)]
        assert live.tails["n2"].offset < nodes["n2"].path.stat().st_size
        for made in nodes.values():
            made.write(23.0)
        assert look.take()
        assert "n2" in look.answering, "late by a look, and so at each"
        assert look.take() and look.take()
        assert live.tails["n2"].offset == nodes["n2"].path.stat().st_size
        agents.silent, agents.late = set(NODES), []
        assert not look.take()
        agents.asked = []
        assert not look.take() or agents.late
        assert agents.asked == [(NODES, SILENT_S)], "nobody is waited for any more"


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


def test_the_journal_of_an_agent_that_was_started_again_is_read_from_its_begin(
    tmp_path: Path,
) -> None:
    """Else the node seems to stand still until that one is longer than the one before."""
    known = Tail()
    for life, seconds in (("0", (0, 100)), ("1", (110, 116))):
        (tmp_path / life).mkdir()
        node = Node(tmp_path / life, "n1", Sim(1, seconds=200))
        node._written_ns = BEGIN_NS + seconds[0] * S
        node.write(seconds[1])
        fetched(node.path, known)
        assert known.offset == node.path.stat().st_size
        node.close()
    rows = known.rows("n1")
    assert rows is not None and len(rows.real_ns["host"]) == 6


def test_a_journal_that_is_not_there_yet_is_nothing_to_tell(tmp_path: Path) -> None:
    known = Tail()
    assert fetched(tmp_path / "none", known) == 1
    assert Live(7, ("n0",)).report() is None


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
