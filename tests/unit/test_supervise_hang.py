"""What `fabricctl run` does when ranks hang, with Slurm and the agents played."""

import pytest

from fabricctl.launch.policy import HangWatch, Policy
from fabricctl.store.schema import LaunchEvent, StallKind
from tests.support.launches import Play, World, played


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    return played(monkeypatch)


def stalled(kind: StallKind, node: str, usual_ms: int = 0) -> dict[str, str]:
    said = {"stall": str(int(kind)), "stall_node": node, "stall_text": "rank 2 is stopped"}
    return {**said, "stall_launch": "0", "stall_ms": "1000", "usual_ms": str(usual_ms)}


def hangs(kind: StallKind, node: str, looks_at: int = 5, usual_ms: int = 0) -> World:
    """The first start hangs from its fifth look on."""
    world = World(lambda _launch, _looks: None)

    def plays(launch: int, looks: int) -> int | None:
        world.stall = stalled(kind, node, usual_ms) if launch == 0 and looks >= looks_at else {}
        return 0 if launch else None

    world.plays = plays
    return world


def test_ranks_that_hang_are_ended_and_started_again(play: Play) -> None:
    world = hangs(StallKind.RANK, "n3")
    status, _ = play(world)
    assert (status, world.placed) == (0, [("n1", "n2", "n3", "n4")] * 2)
    assert (LaunchEvent.HANG, "n3") in world.events
    assert world.signals == ["KILL"]


@pytest.mark.parametrize("kind", [StallKind.HOST, StallKind.LINK])
def test_a_node_that_holds_the_ranks_up_is_left_for_a_spare(play: Play, kind: StallKind) -> None:
    world = hangs(kind, "n3")
    status, _ = play(world)
    assert (status, world.placed[1]) == (0, ("n1", "n2", "n5", "n4"))
    assert world.environments[1]["FABRIC_DEAD_NODES"] == "n3"


def test_a_host_or_link_without_a_spare_is_waited_for(play: Play) -> None:
    world = World(lambda _launch, _looks: None)

    def plays(_launch: int, looks: int) -> int | None:
        world.stall = stalled(StallKind.LINK, "n3") if looks < 200 else {}
        return 0 if looks > 220 else None

    world.plays = plays
    assert (play(world, spares=0)[0], len(world.placed)) == (0, 1)


def test_who_computes_has_a_quarter_of_an_hour() -> None:
    """Rank 0 reads its input while all others wait for it."""
    now = 100.0
    watch = HangWatch(Policy(), clock=lambda: now)
    for at_s in range(100, 1100):
        now = float(at_s)
        watch.hear({**stalled(StallKind.RANK, "n3"), "computing": "1"}, 0)
        assert (watch.expired() is not None) == (at_s >= 999), at_s


def test_a_hang_waits_for_five_times_what_is_usual() -> None:
    now = 100.0
    watch = HangWatch(Policy(), clock=lambda: now)
    for at_s in range(100, 160):
        now = float(at_s)
        watch.hear(stalled(StallKind.RANK, "n3", usual_ms=9000), 0)
        assert (watch.expired() is not None) == (at_s >= 144), at_s
    now += 3
    assert watch.expired() is None, "the ranks go on"


def test_a_hang_timeout_of_zero_never_acts() -> None:
    now = 100.0
    watch = HangWatch(Policy(hang_s=0), clock=lambda: now)
    for at_s in range(100, 400, 10):
        now = float(at_s)
        watch.hear(stalled(StallKind.RANK, "n3"), 0)
        assert watch.expired() is None


@pytest.mark.parametrize(
    "damage", [{"stall": "99"}, {"stall": "x"}, {"stall_ms": "-1"}, {"stall_launch": "1"}]
)
def test_what_is_no_verdict_is_none(damage: dict[str, str]) -> None:
    watch = HangWatch(Policy(hang_s=1e-9), clock=lambda: 1e6)
    watch.hear({**stalled(StallKind.RANK, "n3"), **damage}, 0)
    assert watch.expired() is None
