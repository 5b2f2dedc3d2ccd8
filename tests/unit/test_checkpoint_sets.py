"""Parity in sets of ranks: the arithmetic, the choice of sets, and restores after losses."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fabricctl.errors import DataError, UsageError
from fabricctl.state import groups
from fabricctl.state.ckpt import bytes as raw
from fabricctl.state.ckpt.api import Checkpoint
from fabricctl.state.ckpt.erasure import Code
from fabricctl.state.ckpt.files import Alone, Files
from fabricctl.state.ckpt.sets import Scheme, divide, scheme
from tests.support.keepers import KeeperSet
from tests.support.ranks import expected, program, run


def test_arithmetic_of_the_field_holds() -> None:
    for a in range(1, 256):
        assert raw.multiply(a, raw.inverse(a)) == 1
    rng = random.Random(3)
    for _ in range(200):
        a, b, c = (rng.randrange(256) for _ in range(3))
        assert raw.multiply(a, b ^ c) == raw.multiply(a, b) ^ raw.multiply(a, c)


@pytest.mark.parametrize(("members", "losses"), [(2, 1), (5, 1), (4, 2), (6, 3), (8, 2)])
def test_any_losses_within_the_code_are_made_good(members: int, losses: int) -> None:
    """Every combination of lost members, every lost member's part from the rest."""
    code = Code(members, losses)
    rng = np.random.default_rng(members * 10 + losses)
    sizes = [code.pieces * 40 - at for at in range(members)]  # parts of unequal length
    parts = [rng.integers(0, 256, size, dtype=np.uint8).tobytes() for size in sizes]
    parity = {}
    for stripe in range(members):
        for row in range(losses):
            total = bytearray(40)
            for member in range(members):
                piece = code.piece_of(member, stripe)
                if piece >= 0:
                    data = memoryview(parts[member])[piece * 40 : (piece + 1) * 40]
                    raw.add(memoryview(total), data, code.factor(row, member))
            parity[(stripe + row) % members, stripe] = total
    for lost in itertools.combinations(range(members), losses):
        left = [member for member in range(members) if member not in lost]
        for member in lost:
            assert code.recoverable(member, left, left)
            out = b""
            for piece in range(code.pieces):
                stripe = code.stripe_of(member, piece)
                assert code.piece_of(member, stripe) == piece
                recipe = code.recipe(member, stripe, left, left)
                assert recipe is not None
                total = bytearray(40)
                for (of_parity, source), factor in recipe.items():
                    at = code.piece_of(source, stripe) * 40
                    data = parity[source, stripe] if of_parity else parts[source][at : at + 40]
                    raw.add(memoryview(total), memoryview(data), factor)
                out += total
            assert out[: sizes[member]] == parts[member]
        more = [member for member in left if member != left[0]]
        assert not code.recoverable(lost[0], more, more)


def test_no_set_has_two_ranks_of_one_group() -> None:
    for nodes, each, size in [(4, 1, 8), (16, 4, 8), (5, 3, 4), (9, 2, 8)]:
        falls = [f"n{rank // each}" for rank in range(nodes * each)]
        made = divide(falls, Scheme(losses=1, size=size))
        assert sorted(itertools.chain(*made)) == list(range(nodes * each))
        assert all(len({falls[rank] for rank in one}) == len(one) <= size for one in made)
        assert max(map(len, made)) - min(map(len, made)) <= 1


def test_too_few_groups_are_told() -> None:
    with pytest.raises(DataError, match="4 ranks fall with 2 switchs: sets of 2"):
        divide(["a", "a", "b", "b"], Scheme(losses=2, apart="switch"))


@pytest.mark.parametrize(
    "given",
    [("raid", 1, 2, 8, "node"), ("rs", 1, 8, 8, "node"), ("rs", 1, 2, 8, "room")],
)
def test_a_scheme_that_cannot_be_is_refused(given: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError, match="checkpoint: "):
        scheme(*given)


XOR: dict[str, Any] = {"every_steps": 1, "scheme": "xor"}
RS: dict[str, Any] = {"every_steps": 1, "scheme": "rs", "losses": 2}


def test_a_lost_node_comes_back_from_the_exclusive_or(tmp_path: Path) -> None:
    with KeeperSet(tmp_path, nodes=4) as keepers:
        assert run(keepers, program(10), **XOR) == expected(10, 0)
        keepers.kill("n1")
        places = ["n0", "n3", "n2"]
        assert run(keepers, program(12), places=places, **XOR) == expected(12, 10)
        keepers.kill("n0")  # the set was made anew on the spare
        places = ["n2", "n3", "n2"]
        assert run(keepers, program(14), places=places, **XOR) == expected(14, 12)


def test_two_lost_nodes_come_back_from_reed_solomon_and_three_do_not(tmp_path: Path) -> None:
    with KeeperSet(tmp_path, nodes=7) as keepers:
        run(keepers, program(10), ranks=5, **RS)
        for node in ("n1", "n2"):  # neighbours: partner copies would be gone with them
            keepers.kill(node)
        places = ["n0", "n5", "n6", "n3", "n4"]
        again = run(keepers, program(12), ranks=5, places=places, **RS)
        assert [begin for begin, _, _ in again] == [10] * 5
        for node in ("n0", "n5", "n6"):
            keepers.kill(node)
        places = ["n3", "n3", "n3", "n3", "n4"]
        gone = run(keepers, program(3), ranks=5, places=places, **RS)
        assert [begin for begin, _, _ in gone] == [0] * 5


def test_sets_cost_less_memory_than_copies(tmp_path: Path) -> None:
    """Five ranks that survive one loss: a quarter more, where a copy would need six times 2 MiB."""

    def fills(checkpoint: Checkpoint, _rank: int) -> int:
        checkpoint.protect(grid=np.ones(1 << 18)).restore()
        for n in range(1, 4):
            checkpoint.save(n)
        checkpoint.close(done=False)
        return len(checkpoint._committed)

    quota = 4 * ((1 << 21) + (1 << 19)) + (1 << 18)
    with KeeperSet(tmp_path, nodes=5, quota_bytes=quota) as keepers:
        assert run(keepers, fills, ranks=5, **XOR) == [2] * 5


def test_sets_keep_apart_what_falls_together(tmp_path: Path) -> None:
    """Two nodes on each switch; a switch takes both with it."""
    falls = {f"n{n}": {"switch": f"s{n // 2}"} for n in range(6)}
    options = {**XOR, "apart": "switch"}
    with KeeperSet(tmp_path, nodes=6, groups=falls) as keepers:
        run(keepers, program(10), ranks=4, **options)
        for node in ("n0", "n1"):
            keepers.kill(node)
        places = ["n4", "n5", "n2", "n3"]
        again = run(keepers, program(12), ranks=4, places=places, **options)
        assert [begin for begin, _, _ in again] == [10] * 4


def test_the_sites_file_of_groups_is_read_for_the_jobs_nodes(tmp_path: Path) -> None:
    text = "n1 switch=leaf1 power=a\n# n2 is new\n\nn3 power=b  # no switch\nn9 switch=x\n"
    assert groups.parse(text, ("n1", "n2", "n3")) == {
        "n1": {"switch": "leaf1", "power": "a"},
        "n3": {"power": "b"},
    }
    with pytest.raises(DataError, match="line 2: NODE switch=NAME power=NAME expected"):
        groups.parse("n1 switch=a\nn2 room=b\n", ("n1",))
    assert groups.read(tmp_path / "none", ("n1",)) == {}


def test_copies_go_to_another_switch_first(tmp_path: Path) -> None:
    falls = {f"n{n}": {"switch": f"s{n // 2}"} for n in range(4)}
    with KeeperSet(tmp_path, nodes=4, groups=falls) as keepers:
        run(keepers, program(10), every_steps=1)
        for node in ("n0", "n1"):
            keepers.kill(node)
        places = ["n2", "n3", "n2"]
        assert run(keepers, program(12), places=places, every_steps=1) == expected(12, 10)


def test_files_of_ranks_come_back_from_a_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where ranks are is known from `fabricctl run`."""
    work = tmp_path / "work"
    work.mkdir()

    def of(rank: int, node: str) -> Files:
        monkeypatch.setenv("FABRIC_KEEPER", str(tmp_path / node))
        return Files(Alone(rank, 3), scheme="xor")

    monkeypatch.setenv("FABRIC_PLACES", "n0,n1,n2")
    with KeeperSet(tmp_path, nodes=4) as keepers:
        for rank in range(3):
            (work / "state.bin").write_bytes(bytes([rank + 1]) * (50_000 + rank))
            one = of(rank, f"n{rank}")
            one.commit(work, 5)
            one.close(done=False)
        keepers.kill("n1")
        one = of(1, "n3")
        assert one.fetch(work) == 5
        one.close(done=False)
        assert (work / "state.bin").read_bytes() == bytes([2]) * 50_001


def test_what_is_left_of_an_earlier_save_of_the_step_stands_in_nobodys_way(tmp_path: Path) -> None:
    """Rank 2 had been on n2, where its part and its share of the parity then still are."""

    def saves(value: float) -> Callable[..., Any]:
        def of(checkpoint: Checkpoint, _rank: int) -> bool:
            checkpoint.protect(grid=np.full(30_000, value)).save(1)
            checkpoint._commit()
            return True

        return of

    def looks(checkpoint: Checkpoint, _rank: int) -> tuple[int, float]:
        grid = np.zeros(30_000)
        return checkpoint.protect(grid=grid).restore(), float(grid[0])

    with KeeperSet(tmp_path, nodes=4) as keepers:
        run(keepers, saves(3.0), places=["n0", "n1", "n2"], scheme="xor")
        run(keepers, saves(7.0), places=["n0", "n1", "n3"], scheme="xor")
        keepers.kill("n1")
        found = run(keepers, looks, places=["n0", "n2", "n3"], scheme="xor")
        assert found == [(1, 7.0)] * 3
