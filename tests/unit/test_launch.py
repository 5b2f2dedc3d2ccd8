"""Who takes whose place, and who is called dead."""

from collections.abc import Collection

import pytest

from fabricctl.errors import UsageError
from fabricctl.launch.heartbeat import ASK_S, Heartbeat
from fabricctl.launch.placement import first

NODES = ["n1", "n2", "n3", "n4", "n5"]


def test_the_last_nodes_are_spares_but_never_the_one_with_the_job_script() -> None:
    placed = first(NODES, "n1", 2, None)
    assert (placed.hosts, placed.spares) == (("n1", "n2", "n3"), ("n4", "n5"))
    placed = first(NODES, "n5", 1, None)
    assert (placed.hosts, placed.spares) == (("n1", "n2", "n3", "n5"), ("n4",))


def test_ranks_are_placed_in_blocks() -> None:
    assert first(NODES, "n1", 3, 5).hosts == ("n1", "n1", "n1", "n2", "n2")
    placed = first(NODES, "n1", 1, 2)
    assert (placed.hosts, placed.spares) == (("n1", "n2"), ("n3", "n4", "n5"))


def test_no_node_left_is_an_error() -> None:
    with pytest.raises(UsageError, match="5 spares of 5 nodes"):
        first(NODES, "n1", 5, None)


def test_a_spare_takes_the_place_and_others_stay() -> None:
    placed = first(NODES, "n1", 1, 8)
    again = placed.without({"n2"})
    assert again is not None
    assert again.hosts == ("n1", "n1", "n5", "n5", "n3", "n3", "n4", "n4")
    assert again.spares == ()
    assert again.without({"n2", "n3"}) is None


def test_a_dead_spare_is_no_spare() -> None:
    placed = first(NODES, "n1", 2, None)
    again = placed.without({"n4"})
    assert again is not None and (again.hosts, again.spares) == (placed.hosts, ("n5",))
    last = placed.without({"n4", "n2"})
    assert last is not None and last.hosts == ("n1", "n5", "n3")


class Fabric:
    """Agents that answer, machines that are there, and a clock."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.silent: set[str] = set()
        self.gone: set[str] = set()
        self.hearts = Heartbeat(NODES, self._ask, self._witness, clock=lambda: self.now_s)

    def _ask(self, nodes: Collection[str], wait_s: float) -> set[str]:
        self.now_s += wait_s
        return set(nodes) - self.silent

    def _witness(self, node: str) -> bool:
        self.now_s += 0.35
        return node not in self.gone

    def looks(self, count: int) -> set[str]:
        return set().union(*(self.hearts.look() for _ in range(count)))


def test_a_dead_node_is_found_within_a_second_and_once() -> None:
    fabric = Fabric()
    assert fabric.looks(10) == set()
    fabric.silent = fabric.gone = {"n3"}
    begin_s = fabric.now_s
    while not fabric.hearts.look():
        assert fabric.now_s - begin_s < 1.5
    assert fabric.now_s - begin_s < 1.5
    assert fabric.looks(10) == set()
    assert fabric.hearts.dead == {"n3"}


def test_a_silent_agent_on_a_living_node_is_no_death() -> None:
    fabric = Fabric()
    fabric.looks(3)
    fabric.silent = {"n3"}
    assert fabric.looks(30) == set()


def test_everybody_silent_is_our_own_trouble() -> None:
    fabric = Fabric()
    fabric.looks(3)
    fabric.silent = fabric.gone = set(NODES)
    assert fabric.looks(30) == set()


def test_a_pause_of_our_own_is_nobodys_silence() -> None:
    fabric = Fabric()
    fabric.looks(3)
    fabric.now_s += 60
    fabric.silent = {"n3"}
    assert fabric.hearts.look() == set()
    assert fabric.hearts.silence_s > ASK_S


def test_two_nodes_at_once_are_both_found() -> None:
    fabric = Fabric()
    fabric.looks(3)
    fabric.silent = fabric.gone = {"n3", "n4"}
    assert fabric.looks(8) == {"n3", "n4"}
