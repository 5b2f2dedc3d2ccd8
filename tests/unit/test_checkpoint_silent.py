"""A partner node that is gone in the middle of a copy, without a word: nobody waits for it."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fabricctl.state.ckpt.client import Client
from fabricctl.state.ckpt.items import item_of
from tests.support.keepers import KeeperSet

RANKS = 6  # of one node: more than a keeper copies at once


@pytest.fixture
def keepers(tmp_path: Path) -> Iterator[KeeperSet]:
    """Copies of n0's ranks are under way to n1, which says nothing more."""
    with KeeperSet(tmp_path) as made:
        made.stand_still("n1")
        yield made


@pytest.fixture
def ranks(keepers: KeeperSet) -> Iterator[list[Client]]:
    made = [keepers.client("n0", rank, RANKS) for rank in range(RANKS)]
    wanted = {"copies": 1, "set": None, "keep": [], "disk": False, "shared": "", "serial": ""}
    for rank, client in enumerate(made):
        client.link.socket.settimeout(120)
        client.fill(1, {"grid": item_of("grid", np.full(1000, float(rank)))}, wanted)
    end_s = time.monotonic() + 60
    while len(list(keepers.where.glob("stands.n1.*"))) < 4:
        assert time.monotonic() < end_s
        time.sleep(0.01)
    yield made
    for client in made:
        client.link.close()


def test_who_restores_waits_for_no_copy_and_copies_go_elsewhere(
    keepers: KeeperSet, ranks: list[Client]
) -> None:
    end_s = time.monotonic() + 60
    while {one.rank for one in ranks[0].find("") if one.node == "n0"} != set(range(RANKS)):
        assert time.monotonic() < end_s, "also those whose copies have not begun"
        time.sleep(0.01)
    ranks[0].find("n1")
    for rank in ranks:
        assert rank.safe(1) == (True, "")
    assert {one.rank for one in keepers.found("n0") if one.node == "n2"} == set(range(RANKS))


def test_a_rank_whose_group_is_broken_does_not_wait_for_its_copy(ranks: list[Client]) -> None:
    said: list[tuple[bool, str]] = []
    waiting = threading.Thread(target=lambda: said.append(ranks[0].safe(1)))
    waiting.start()
    ranks[0].given_up = True
    waiting.join(60)
    assert said == [(False, "its copies are still under way")]
