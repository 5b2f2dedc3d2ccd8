"""Who takes whose place, and who is called dead."""

import contextlib
import socket
import time
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest

from fabricctl.agent.knock import KNOCKS_MOST, Knocking, rails_told
from fabricctl.errors import UsageError
from fabricctl.launch import supervise
from fabricctl.launch.heartbeat import ASK_S, CUT_OFF_S, Heartbeat
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


def test_a_node_that_was_never_heard_is_not_dead_for_a_short_cut_of_its_network() -> None:
    """As a job begins: its rails are told by its agent, who could not be asked yet."""
    fabric = Fabric()
    fabric.silent = fabric.gone = {"n3"}
    assert fabric.looks(30) == set()
    fabric.silent, fabric.gone = set(), set()
    assert fabric.looks(10) == set()
    fabric.silent = fabric.gone = {"n3"}
    assert fabric.looks(10) == {"n3"}


def test_a_node_that_is_dead_from_the_beginning_is_found() -> None:
    fabric = Fabric()
    fabric.silent = fabric.gone = {"n3"}
    assert fabric.looks(60) == {"n3"}


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
        taken = Knocking(["127.0.0.1"], [port])
        assert taken.answered() and not taken.speaks()  # a kernel's own doing
        with server.accept()[0] as keeper:
            keeper.sendall(b"nonce")
            end_s = time.monotonic() + 10
            while not taken.speaks():
                assert time.monotonic() < end_s
        taken.close()
    refused = Knocking(["127.0.0.1"], [port])
    assert refused.answered()
    refused.close()
    assert Knocking([""], [port]).answered()  # a name that cannot be looked up


def test_a_machine_that_says_nothing_is_asked_again_but_not_for_ever() -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = server.getsockname()
        for _ in range(3):  # its queue is full: the kernel drops what comes
            made = stack.enter_context(socket.socket())
            made.setblocking(False)
            made.connect_ex(address)
        silent = Knocking([address[0]], [address[1]])
        assert not any(silent.answered() for _ in range(10))
        assert len(silent._open) == KNOCKS_MOST
        silent.close()


def test_a_machine_that_answers_over_a_rail_alone_is_there() -> None:
    """192.0.2.0/24 is nobody's (RFC 5737): the way by the node's name."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        one = Knocking(["192.0.2.7", *rails_told("127.0.0.1 nonsense 999.1.1.1")], [port])
        assert one.answered()
        one.close()


def test_an_agent_that_is_silent_on_a_living_node_is_known() -> None:
    fabric = Fabric()
    fabric.looks(3)
    assert fabric.hearts.silent() == set()
    fabric.silent = {"n3"}
    fabric.looks(10)
    assert fabric.hearts.silent() == {"n3"} and not fabric.hearts.dead
    fabric.silent = set()
    fabric.looks(1)
    assert fabric.hearts.silent() == set()


def test_everybody_silent_is_our_own_trouble() -> None:
    fabric = Fabric()
    fabric.looks(3)
    fabric.silent = fabric.gone = set(NODES)
    assert fabric.looks(30) == set()


def test_a_network_of_our_own_that_comes_back_has_killed_nobody() -> None:
    """This node's own agent is heard whatever the network does, which had all others dead."""
    fabric = Fabric()
    fabric.hearts.own = "n1"
    fabric.looks(3)
    others = set(NODES) - {"n1"}
    fabric.silent = fabric.gone = others
    assert fabric.looks(200) == set()
    fabric.silent = others - {"n2"}  # the first is heard, the others a moment later
    assert fabric.looks(2) == set()
    fabric.silent = fabric.gone = set()
    assert fabric.looks(20) == set() and not fabric.hearts.dead


def test_others_that_stay_silent_are_dead_after_all() -> None:
    fabric = Fabric()
    fabric.hearts.own = "n1"
    fabric.looks(3)
    fabric.silent = fabric.gone = others = set(NODES) - {"n1"}
    begin_s = fabric.now_s
    while fabric.hearts.dead != others:
        fabric.hearts.look()
        assert fabric.now_s - begin_s < CUT_OFF_S + 2
    assert fabric.now_s - begin_s > CUT_OFF_S


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


@pytest.mark.parametrize(("address", "left"), [("192.0.2.7", {"n3"}), ("127.0.0.1", set())])
def test_where_nothing_could_be_started_is_left_when_there_is_a_start(
    address: str,
    left: set[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """192.0.2.0/24 is nobody's (RFC 5737); on loopback the port refuses, which is an answer."""
    monkeypatch.setattr(supervise, "BACK_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    run: Any = SimpleNamespace(
        _hearts=SimpleNamespace(silent=lambda: {"n3", "n5"}),
        _asker=SimpleNamespace(address=lambda _node: address),
        _candidates=[port],
        _left=set(),
        placement=first(NODES, "n1", 1, None),
    )
    supervise.Supervisor._leave_unreachable(run)
    assert run._left == left  # n5 is a spare: the next start asks whether it is heard
    assert ("n3 answers over its rails alone" in capsys.readouterr().err) == bool(left)
