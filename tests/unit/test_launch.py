"""Who takes whose place, and who is called dead."""

import contextlib
import socket
from collections.abc import Collection

import pytest

from fabricctl.errors import UsageError
from fabricctl.launch.heartbeat import ASK_S, KNOCKS_MOST, Heartbeat, Knocking
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


class Machine:
    """Asked without waiting for it."""

    def __init__(self, is_there: bool) -> None:
        self._is_there = is_there
        self.closed = False

    def answered(self) -> bool:
        return self._is_there

    def close(self) -> None:
        self.closed = True


class Fabric:
    """Agents that answer, machines that are there, and a clock."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.silent: set[str] = set()
        self.gone: set[str] = set()
        self.asked: list[Machine] = []
        self.hearts = Heartbeat(NODES, self._ask, self._witness, clock=lambda: self.now_s)

    def _ask(self, nodes: Collection[str], wait_s: float) -> set[str]:
        self.now_s += wait_s
        return set(nodes) - self.silent

    def _witness(self, node: str) -> Machine:
        self.asked.append(Machine(node not in self.gone))
        return self.asked[-1]

    def looks(self, count: int) -> set[str]:
        return set().union(*(self.hearts.look() for _ in range(count)))


def test_a_dead_node_is_found_within_half_a_second_and_once() -> None:
    fabric = Fabric()
    assert fabric.looks(10) == set()
    fabric.silent = fabric.gone = {"n3"}
    begin_s = fabric.now_s
    while not fabric.hearts.look():
        assert fabric.now_s - begin_s < 0.5
    assert fabric.looks(10) == set()
    assert fabric.hearts.dead == {"n3"}
    assert [machine.closed for machine in fabric.asked] == [True]


def test_a_silent_agent_on_a_living_node_is_no_death() -> None:
    fabric = Fabric()
    fabric.looks(3)
    fabric.silent = {"n3"}
    assert fabric.looks(30) == set()
    assert all(machine.closed for machine in fabric.asked[:-1])


def test_an_agent_that_comes_back_in_time_is_no_death() -> None:
    fabric = Fabric()
    fabric.looks(3)
    fabric.silent = fabric.gone = {"n3"}
    assert fabric.looks(3) == set()
    fabric.silent = set()
    assert fabric.looks(1) == set()
    fabric.silent = {"n3"}
    assert fabric.looks(3) == set()


def test_a_machine_that_refuses_or_takes_a_connection_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        taken = Knocking("127.0.0.1", [port])
        assert taken.answered()
        taken.close()
    refused = Knocking("127.0.0.1", [port])
    assert refused.answered()
    refused.close()
    assert Knocking("", [port]).answered()  # a name that cannot be looked up


def test_a_machine_that_says_nothing_is_asked_again_but_not_for_ever() -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = server.getsockname()
        for _ in range(3):  # its queue is full: the kernel drops what comes
            made = stack.enter_context(socket.socket())
            made.setblocking(False)
            made.connect_ex(address)
        silent = Knocking(address[0], [address[1]])
        assert not any(silent.answered() for _ in range(10))
        assert len(silent._open) == KNOCKS_MOST
        silent.close()


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
