"""Who is asked where ranks stand, and how much of that a job of many nodes costs."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fabricctl import layout
from fabricctl.agent import whereabouts
from fabricctl.agent.peers import PORTS, Send
from fabricctl.agent.record import Assignment
from fabricctl.agent.whereabouts import MESSAGES_PER_S, WATCH_S, Whereabouts
from fabricctl.records import Envelope, JobStart
from fabricctl.state.ckpt import events
from fabricctl.state.track import block, position
from fabricctl.state.track.position import CommSeen, Position
from fabricctl.store.schema import CheckpointEvent, PathEvent, PathLevel, RankState, StallKind

OPS = {name: number for number, name in enumerate(block.op_names())}
STUCK = Position(
    rank=0, ranks=2, launch=0, node="n2", pid=100, state=RankState.RUNNING, letter="R", calls=3,
    op=1, peer=-1, comm=0, coll=4, age_ms=60_000, step=0, step_age_ms=0,
)  # fmt: skip


class Box:
    """One agent's part, on a clock that is stepped; ``reach`` says which ports of whom answer."""

    def __init__(
        self,
        work: Path,
        count: int,
        own: str,
        monkeypatch: pytest.MonkeyPatch,
        rails: tuple[str, ...] = (),
    ) -> None:
        nodes = tuple(f"n{number}" for number in range(1, count + 1))
        start = JobStart(7, 1, "a", nodes, own, "c", Envelope("on", bytes(32)))
        given = Assignment(start, layout.NodeFiles(work), work, 0, 1, ())
        self.now_s, self.sent = 1000.0, Counter[tuple[str, str]]()
        self.sends: list[Send] = []
        self.rows: list[tuple[object, ...]] = []
        self.reach: Callable[[Send], bool] = lambda _: True
        record = SimpleNamespace(put=lambda _, rows: self.rows.extend(rows))
        rng = random.Random(1)
        self.it = Whereabouts(given, rails, record, self._send, rng)  # type: ignore[arg-type]
        monkeypatch.setattr(whereabouts.time, "monotonic", lambda: self.now_s)

    def _send(self, send: Send) -> bool:
        self.sends.append(send)
        if not self.reach(send):
            return False
        self.sent[send.node, send.fields["kind"]] += 1
        return True

    def watch(self, seconds: float) -> None:
        for _ in range(round(seconds / WATCH_S)):
            self.it.watch()
            self.now_s += WATCH_S


@pytest.mark.parametrize("count", [4, 100, 10_000])
def test_the_first_nodes_ask_all_and_never_more_than_they_may(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Box(tmp_path, count, "n1", monkeypatch)
    box.watch(2)
    assert not box.sent  # nobody waits: nobody is asked
    box.it.receive({"kind": "waits", "node": "n3"})
    box.watch(max(WATCH_S, count / MESSAGES_PER_S))
    asked = [node for node, kind in box.sent if kind == "where"]
    assert len(asked) == count - 1
    assert sum(box.sent.values()) <= max(count, MESSAGES_PER_S * (count / MESSAGES_PER_S + WATCH_S))


def test_of_ten_thousand_who_wait_the_first_nodes_hear_some_hundred_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for count, least, most in ((100, 30, 30), (10_000, 1, 12)):
        box = Box(tmp_path, count, "n9", monkeypatch)
        monkeypatch.setattr(box.it._ranks, "waiting", lambda _: True)
        box.watch(30 * WATCH_S if count == 100 else 300 * WATCH_S)
        assert least <= box.sent["n1", "waits"] <= most
        assert {node for node, _ in box.sent} == {"n1", "n2", "n3"}


def test_one_that_was_never_heard_is_tried_on_all_its_ports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In jobs of many nodes agents know the addresses of their own block only."""
    box = Box(tmp_path, 4, "n1", monkeypatch)
    box.reach = lambda send: send.port == 3
    box.it.receive({"kind": "waits", "node": "n3"})
    box.watch(1.6)
    assert {send.port for send in box.sends if send.node == "n4"} == {None, *range(PORTS)}
    assert box.sent["n4", "where"] == 1


def test_a_node_that_is_silent_in_a_long_round_is_not_called_so_too_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of 2,500 nodes take 5 s to come in; none of them is silent meanwhile."""
    box = Box(tmp_path, 2500, "n1", monkeypatch)
    box.it.receive({"kind": "waits", "node": "n3"})
    for _ in range(40):
        box.sends.clear()
        box.it.watch()
        box.now_s += WATCH_S
        for send in box.sends:
            rank = replace(STUCK, rank=int(send.node[1:]), ranks=2500, node=send.node)
            text = position.encode([rank])
            box.it.receive({"kind": "there", "node": send.node, "ranks": text})
        box.it.receive({"kind": "waits", "node": "n3"})
    kinds = {row[2] for row in box.rows}
    assert len(box.it._asked_s) == 2499
    assert not kinds & {int(StallKind.HOST), int(StallKind.LINK)}


def test_dead_paths_are_told_with_their_age_until_they_are_well_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Box(tmp_path, 3, "n1", monkeypatch, rails=("r0", "r1"))

    def path(at_ms: int, peer: str, rail: int, level: PathLevel) -> tuple[int | str, ...]:
        return (at_ms * 1_000_000, 0, int(PathEvent.PATH), peer, rail, int(level))

    monkeypatch.setattr(whereabouts, "mono_ns", lambda: 9_000_000_000)
    box.it.note_paths([path(5000, "n2", 1, PathLevel.DEAD), path(6000, "n2", 0, PathLevel.GOOD)])
    box.it.note_paths([path(8000, "n2", 1, PathLevel.DEAD), path(8500, "n3", 0, PathLevel.DEAD)])
    box.it.note_paths([(1, 1, int(PathEvent.PATH), "n3", 255, int(PathLevel.DEAD))])
    answer = box.it.receive({"kind": "where", "node": "n3"}) or {}
    assert answer["paths"] == "r0:n3:500,r1:n2:4000"
    box.it.note_paths([path(8900, "n2", 1, PathLevel.GOOD), path(8900, "n3", 0, PathLevel.POOR)])
    assert (box.it.receive({"kind": "where", "node": "n3"}) or {})["paths"] == ""


def test_a_circle_over_a_dead_path_is_told_as_the_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks receive from each other; n2 has said that a path between them died."""
    box = Box(tmp_path, 3, "n1", monkeypatch)
    receive = OPS["MPI_Recv"]
    told = {
        node: replace(STUCK, rank=nth, node=node, op=receive, peer=1 - nth, comm=1, coll=0,
                      comms={1: CommSeen(nth, 2, 0, 0)})
        for nth, node in enumerate(("n2", "n3"))
    }  # fmt: skip
    for _ in range(10):
        box.it.receive({"kind": "waits", "node": "n3"})
        box.watch(WATCH_S)
        for node, rank in told.items():
            given = {"ranks": position.encode([rank]), "at": str(int(box.now_s * 1000))}
            paths = "r0:n3:61000" if node == "n2" else ""
            box.it.receive({"kind": "there", "node": node, "paths": paths, **given})
    kinds = {row[2] for row in box.rows if len(row) == 8}
    assert kinds == {int(StallKind.LINK)}


def test_an_answer_that_lay_for_long_is_not_taken_for_a_new_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks receive from each other, it seems: n3 said so again, but long ago."""
    box = Box(tmp_path, 3, "n1", monkeypatch)
    receive = OPS["MPI_Recv"]
    told = {
        node: replace(
            STUCK, rank=rank, node=node, op=receive, peer=1 - rank, comm=1, coll=0,
            comms={1: CommSeen(rank, 2, 3, 0)},
        )
        for rank, node in enumerate(("n2", "n3"))
    }  # fmt: skip

    def answers(n3_lies: bool) -> None:
        box.it.receive({"kind": "waits", "node": "n3"})
        box.sends.clear()
        box.watch(WATCH_S)
        for send in box.sends:
            if send.fields["kind"] == "where":
                node, at = send.node, send.fields["at"]
                at = "1000" if n3_lies and node == "n3" else at
                ranks = position.encode([told[node]])
                box.it.receive({"kind": "there", "node": node, "ranks": ranks, "at": at})

    for _ in range(6):
        answers(n3_lies=True)
    assert not box.rows
    for _ in range(4):
        answers(n3_lies=False)
    (row,) = box.rows
    assert row[2] == StallKind.APPLICATION and "deadlock" in str(row[-1])


def test_what_a_first_word_is_about_is_told_as_soon_as_all_have_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Box(tmp_path, 3, "n1", monkeypatch)
    box.it.receive({"kind": "waits", "node": "n3"})
    for send in list(box.sends):
        rank = replace(STUCK, rank=int(send.node[1:]) - 2, node=send.node)
        given = {"ranks": position.encode([rank]), "links": "rail r0, r1 without carrier"}
        assert not box.rows
        box.it.receive({"kind": "there", "node": send.node, "at": send.fields["at"], **given})
    (row,) = box.rows
    assert (row[2], row[4]) == (StallKind.LINK, "n2")


def test_a_program_that_gave_its_checkpoints_back_is_told_as_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Box(tmp_path, 2, "n1", monkeypatch)
    path = layout.NodeFiles(tmp_path).checkpoint_events(7)
    path.parent.mkdir(parents=True)

    def told(event: CheckpointEvent, launch: int) -> str:
        numbers = dict.fromkeys(("step", "ranks", "bytes", "stall_ns"), 1)
        events.tell(path, event, {**numbers, "launch": launch})
        return (box.it.receive({"kind": "where"}) or {})["done"]

    assert told(CheckpointEvent.SAVED, 2) == ""
    assert told(CheckpointEvent.DONE, 2) == "2"
    assert told(CheckpointEvent.BEGUN, 3) == ""
    assert len(box.rows) == 3
