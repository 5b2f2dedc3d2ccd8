"""Agents finding each other, simulated: a clock that is stepped and a network that obeys."""

import pytest

from fabricctl.agent.peers import PORTS, View
from fabricctl.errors import DataError
from tests.support.agents import Fabric


def test_a_job_of_one_node_is_settled_at_once() -> None:
    fabric = Fabric(1)
    assert fabric.views()["n1"] == View(1, frozenset(), frozenset(), True)
    assert fabric.peers["n1"].due(fabric.now_s) == []


@pytest.mark.parametrize("count", [2, 3, 4, 9, 64])
def test_all_agents_know_within_two_seconds_that_all_are_there(count: int) -> None:
    fabric = Fabric(count)
    fabric.run(2)
    assert set(fabric.views().values()) == {View(count, frozenset(), frozenset(), True)}


def test_agents_on_other_ports_are_found() -> None:
    fabric = Fabric(6)
    fabric.port.update({node: nth % PORTS for nth, node in enumerate(fabric.nodes)})
    fabric.run(3)
    assert all(view.settled and not view.missing for view in fabric.views().values())


def test_a_node_without_an_agent_is_missing_once_all_had_their_time() -> None:
    fabric = Fabric(5, dead=["n4"])
    fabric.run(5)
    assert not any(view.settled for view in fabric.views().values())
    fabric.run(5)
    assert {(v.missing, v.protected) for v in fabric.views().values()} == {(frozenset({"n4"}), 4)}
    assert "no agent heard from n4" in [text for _, node, text in fabric.said if node == "n5"]


def test_dead_coordinators_are_reported_and_replaced() -> None:
    fabric = Fabric(8, dead=["n1", "n2", "n3", "n7"])
    fabric.run(30)
    expected = frozenset({"n1", "n2", "n3", "n7"})
    assert {view.missing for view in fabric.views().values()} == {expected}
    assert {view.protected for view in fabric.views().values()} == {4}


def test_an_agent_that_falls_silent_is_missing_and_comes_back() -> None:
    fabric = Fabric(6)
    fabric.run(5)
    gone = fabric.peers.pop("n5")
    fabric.run(25)
    assert {view.missing for view in fabric.views().values()} == {frozenset({"n5"})}
    fabric.peers["n5"] = gone
    fabric.run(10)
    assert {view.missing for view in fabric.views().values()} == {frozenset()}
    told = [text for _, node, text in fabric.said if node == "n6"]
    assert told == [
        "agents of all 6 nodes were heard",
        "no agent heard from n5",
        "agent heard from n5",
    ]


@pytest.mark.parametrize("cut", ["n1", "n2", "n6"])
def test_a_node_that_is_cut_off_says_so_and_claims_nothing_else(cut: str) -> None:
    fabric = Fabric(6)
    fabric.run(5)
    fabric.cut = {cut}
    fabric.run(40)
    for node, view in fabric.views().items():
        if node != cut:
            assert view.missing == {cut}
    told = [text for _, node, text in fabric.said if node == cut]
    assert any("this node hears nobody and may be cut off itself" in text for text in told)
    fabric.cut = set()
    fabric.run(40)
    assert {view.missing for view in fabric.views().values()} == {frozenset()}
    assert {view.protected for view in fabric.views().values()} == {6}


def test_agents_that_say_goodbye_are_not_missed() -> None:
    fabric = Fabric(6)
    fabric.run(5)
    before = len(fabric.said)
    for node in ("n1", "n3", "n2", "n5"):
        fabric.end(node)
        fabric.run(30)
    assert fabric.said[before:] == []
    assert {view.missing for view in fabric.views().values()} == {frozenset()}


def test_steps_without_the_plugin_are_known_everywhere() -> None:
    fabric = Fabric(7)
    fabric.run(3)
    fabric.peers["n6"].unplugged = True
    fabric.run(10)
    assert {view.unplugged for view in fabric.views().values()} == {frozenset({"n6"})}
    assert "steps ran without the plugin on n6" in [text for _, _, text in fabric.said]


def test_a_coordinator_gets_at_most_200_messages_a_second() -> None:
    fabric = Fabric(600)
    fabric.run(3)  # the first hellos of all
    assert max(fabric.received.values()) <= 3 * 200 * 1.25
    fabric.run(10)
    before = dict(fabric.received)
    fabric.run(20)
    rates = [(fabric.received[node] - before[node]) / 20 for node in fabric.nodes]
    assert max(rates) < 200
    assert all(view.settled and view.protected == 600 for view in fabric.views().values())


def test_messages_that_no_agent_writes_are_refused() -> None:
    peers = Fabric(3).peers["n1"]
    for message in (
        {"node": "x9", "kind": "hello"},
        {"node": "n1", "kind": "hello"},
        {"node": "n2", "kind": "shout"},
        {"node": "n2"},
        {"node": "n2", "kind": "answer", "protected": "x"},
        {"node": "n2", "kind": "answer", "protected": "1", "missing": "z[1-3]"},
        {"node": "n2", "kind": "answer", "protected": "1", "missing": "n[1-"},
    ):
        with pytest.raises(DataError):
            peers.receive(message, 100.0)
    assert peers.view(100.0).protected == 1


def test_a_name_that_never_resolves_is_not_asked_for_all_the_time() -> None:
    peers = Fabric(2).peers["n1"]
    now_s, tries = 100.0, 0
    while now_s < 160:
        for send in peers.due(now_s):
            tries += 1
            peers.not_sent(send.node, now_s)
        now_s += 0.01
    assert tries < 40
