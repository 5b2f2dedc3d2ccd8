"""Agents of jobs of many nodes finding each other by blocks: 30 nodes in blocks of 10 here."""

import random

import pytest

from fabricctl.agent import blocks
from fabricctl.agent.blocks import FLAT_MAX, Blocks, find_others, plan
from fabricctl.agent.peers import Peers, Send, View
from fabricctl.errors import DataError
from tests.support.agents import Fabric

COUNT = 30
ALL = View(COUNT, frozenset(), frozenset(), True)


def big(dead: tuple[str, ...] = (), seed: int = 1) -> Fabric:
    return Fabric(COUNT, dead, seed, made=Blocks)


def names(first: int, last: int) -> frozenset[str]:
    return frozenset(f"n{number}" for number in range(first, last + 1))


def missing(fabric: Fabric) -> set[frozenset[str]]:
    return {view.missing for view in fabric.views().values()}


def test_small_jobs_have_no_blocks() -> None:
    for count, made in ((FLAT_MAX, Peers), (FLAT_MAX + 1, Blocks)):
        nodes = tuple(f"n{number}" for number in range(count))
        assert type(find_others(nodes, "n0", 0.0, lambda *_: None, random.Random(1))) is made


def test_blocks_grow_with_the_root_of_the_job() -> None:
    for count in (300, 1000, 10_000, 100_000):
        made = plan(tuple(f"n{number}" for number in range(count)))
        assert sum(map(len, made.blocks)) == count
        assert max(map(len, made.blocks)) <= 1 + (3 * count) ** 0.5
        assert len(made.first) <= 3 + 1.1 * (3 * count) ** 0.5


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_all_agents_know_that_all_are_there(seed: int) -> None:
    fabric = big(seed=seed)
    fabric.run(10)
    assert set(fabric.views().values()) == {ALL}
    told = {text for _, _, text in fabric.said}
    assert told == {f"agents of all {COUNT} nodes were heard"}


@pytest.mark.parametrize("gone", ["n30", "n12", "n11", "n1"])
def test_every_agent_knows_of_a_loss_and_of_a_return(gone: str) -> None:
    """An ordinary node, coordinators of a block, and one of the council."""
    fabric = big()
    fabric.run(10)
    lost = fabric.peers.pop(gone)
    fabric.run(32)
    assert missing(fabric) == {frozenset({gone})}
    assert {view.protected for view in fabric.views().values()} == {COUNT - 1}
    fabric.peers[gone] = lost
    fabric.run(12)
    assert missing(fabric) == {frozenset()}


@pytest.mark.parametrize(("first", "last"), [(1, 10), (11, 20), (11, 13), (1, 3)])
def test_a_rack_that_goes_is_missed_and_nobody_else(first: int, last: int) -> None:
    """A whole block, the council's too; and all coordinators of a block, whose work others take."""
    fabric = big()
    fabric.run(10)
    for name in names(first, last):
        del fabric.peers[name]
    fabric.run(70)
    assert missing(fabric) == {names(first, last)}


def test_a_block_without_agents_from_the_beginning_is_missed() -> None:
    fabric = big(dead=tuple(names(11, 20)))
    fabric.run(30)
    assert missing(fabric) == {names(11, 20)}


def test_a_node_that_is_cut_off_says_so() -> None:
    fabric = big()
    fabric.run(10)
    fabric.cut = {"n25"}
    fabric.run(45)
    assert all(v.missing == {"n25"} for node, v in fabric.views().items() if node != "n25")
    told = [text for _, node, text in fabric.said if node == "n25"]
    assert any("this node hears nobody and may be cut off itself" in text for text in told)
    fabric.cut = set()
    fabric.run(45)
    assert missing(fabric) == {frozenset()}


def test_agents_that_say_goodbye_are_not_missed() -> None:
    fabric = big()
    fabric.run(10)
    before = len(fabric.said)
    for node in ("n1", "n2", "n3", "n11", "n14", "n30"):
        fabric.end(node)
        fabric.run(8)
    fabric.run(20)
    assert fabric.said[before:] == []
    assert missing(fabric) == {frozenset()}


def test_steps_without_the_plugin_are_known_in_all_blocks() -> None:
    fabric = big()
    fabric.run(6)
    fabric.peers["n26"].unplugged = True
    fabric.run(15)
    assert {view.unplugged for view in fabric.views().values()} == {frozenset({"n26"})}


def test_an_agent_that_knows_of_no_blocks_is_heard_and_told() -> None:
    """One of an older version on a node: it asks the first three of the job, as ever."""
    fabric = big()
    old = Peers(fabric.nodes, "n27", fabric.now_s, lambda *_: None, random.Random(5))
    fabric.peers["n27"] = old
    fabric.run(40)
    assert old.view(fabric.now_s).missing == frozenset()
    assert missing(fabric) == {frozenset()}


def test_words_on_other_blocks_and_of_strangers_are_refused() -> None:
    peers = big().peers["n1"]
    told = {"protected": "9", "missing": "", "unplugged": "", "settled": "1"}
    for message in (
        {"node": "x1", "kind": "block", **told},
        {"node": "n1", "kind": "block", **told},
        {"node": "n12", "kind": "block", **told, "missing": "n1"},
        {"node": "n12", "kind": "block", **told, "missing": "x[1-"},
        {"node": "n12", "kind": "whole", **told, "protected": "many"},
        {"node": "n12", "kind": "answer", **told},
        {"node": "n2", "kind": "answer", **told, "all_protected": "9", "all_missing": "x9"},
        {"node": "n2", "kind": "shout"},
    ):
        with pytest.raises(DataError):
            peers.receive(message, 100.0)


def test_an_address_that_is_not_known_yet_is_asked_for_again() -> None:
    peers = big().peers["n11"]  # it coordinates: it asks its block and the council
    now_s, tries = 100.0, 0
    while now_s < 130:
        for send in peers.due(now_s):
            tries += 1
            peers.not_sent(send.node, now_s)
        now_s += 0.01
    assert 5 * 4 < tries < 5 * 40
    assert isinstance(peers.due(now_s), list) and blocks.MEMO_S < 1
    assert all(isinstance(send, Send) for send in peers.bye())
