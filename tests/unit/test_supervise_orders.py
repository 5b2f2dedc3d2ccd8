"""`fabricctl run` and what it is told meanwhile: signals, `job halt`, `job migrate`; Slurm and the
agents are played."""

import signal
from collections.abc import Callable

import pytest

from fabricctl.launch.orders import OLD_S, Orders
from fabricctl.launch.supervise import Supervisor
from fabricctl.store.schema import LaunchEvent
from tests.support.launches import FakeLive, Play, World, played


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    return played(monkeypatch)


def world(plays: Callable[[World, int, int], int | None]) -> World:
    made = World(lambda _launch, _looks: None)
    made.plays = lambda launch, looks: plays(made, launch, looks)
    return made


def test_an_end_at_once_is_obeyed_while_an_end_after_a_checkpoint_is_waited_for(
    play: Play,
) -> None:
    """A program that never looks at `checkpoint.ending`."""

    def plays(of: World, _launch: int, looks: int) -> int | None:
        if looks in (5, 50):
            of.order = "checkpoint" if looks == 5 else "now"
        return 137 if "KILL" in of.signals else None

    status, told = play(world(plays))
    assert (status, told.signals, len(told.placed)) == (137, ["USR1", "KILL"], 1)


def test_an_end_takes_the_place_of_a_migration(play: Play) -> None:
    def plays(of: World, _launch: int, looks: int) -> int | None:
        if looks in (5, 50):
            of.order = "from:n2" if looks == 5 else "checkpoint"
        return 0 if looks > 80 else None

    status, told = play(world(plays))
    assert (status, len(told.placed)) == (0, 1)
    assert told.events[-1][0] == LaunchEvent.END


def test_a_program_that_fails_when_it_is_to_leave_a_node_begins_on_the_spare(play: Play) -> None:
    """SIGUSR1 ends one that does not catch it. What was ordered is over then: when it ends well
    later, it has ended."""

    def plays(of: World, launch: int, looks: int) -> int | None:
        if launch == 0 and looks == 5:
            of.order = "from:n2"
        if launch == 0:
            return 138 if "USR1" in of.signals else None
        return 0 if looks > 20 else None

    status, told = play(world(plays), spares=2)
    assert status == 0
    assert told.placed == [("n1", "n2", "n3"), ("n1", "n4", "n3")]


def test_a_node_that_is_to_be_left_and_one_that_dies_meanwhile_are_both_replaced(
    play: Play,
) -> None:
    def plays(of: World, launch: int, looks: int) -> int | None:
        if launch == 0 and looks == 5:
            of.order = "from:n2"
        if launch == 0 and "USR1" in of.signals:
            of.silent = {"n3"}
        return 0 if launch else None

    status, told = play(world(plays), spares=2)
    assert (status, told.placed[1:]) == (0, [("n1", "n4", "n5")])
    # n2's keeper is there, and so is what it holds.
    assert told.environments[1]["FABRIC_DEAD_NODES"] == "n3"


def test_a_program_that_just_ended_does_not_begin_anew_to_leave_a_node(play: Play) -> None:
    """Its last step was done when the order came: it has given its checkpoints back."""

    def plays(of: World, _launch: int, looks: int) -> int | None:
        if looks == 5:
            of.order = "from:n2"
        if "USR1" in of.signals:
            of.done = "0"
            return 0
        return None

    status, told = play(world(plays))
    assert (status, len(told.placed)) == (0, 1)
    assert told.events[-1] == (LaunchEvent.END, "n[1-4]")


def test_a_spare_that_dies_while_ranks_save_for_it_costs_no_run(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    def plays(of: World, launch: int, looks: int) -> int | None:
        if launch == 0 and looks == 5:
            of.order = "from:n2"
        if "USR1" in of.signals:
            of.silent = {"n5"}
        if launch == 0:
            return 0 if looks > 40 else None
        return 0

    status, told = play(world(plays))
    assert (status, told.placed) == (0, [("n1", "n2", "n3", "n4")] * 2)
    assert "the ranks stay on n2" in capsys.readouterr().err


def test_a_spare_that_is_to_be_left_ends_nothing_and_is_none_any_more(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    def plays(of: World, launch: int, looks: int) -> int | None:
        if launch == 0 and looks == 5:
            of.order = "from:n4"
        if launch == 0 and looks == 40:
            assert of.told == {"run": "1", "on": "n[1-3]", "spares": "n5"}
            of.silent = {"n3"}
        return 0 if launch else None

    status, told = play(world(plays), spares=2)
    assert (status, told.signals, told.placed[1:]) == (0, ["KILL"], [("n1", "n2", "n5")])
    assert "no rank is on n4" in capsys.readouterr().err


def test_a_signal_waits_for_tasks_and_is_given_once(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm's SIGTERM comes when srun has not begun yet; later it is not given again and again."""
    taken: list[Callable[[int, None], None]] = []

    def plays(of: World, _launch: int, looks: int) -> int | None:
        if looks == 2:
            taken[0](signal.SIGTERM, None)
        return 143 if looks > 120 else None

    made = world(plays)
    made.tasks_after = 50
    start = Supervisor._start
    monkeypatch.setattr(
        Supervisor, "_start", lambda self: (taken.append(self._take), start(self))[1]
    )
    status, told = play(made)
    assert (status, told.signals, len(told.placed)) == (143, ["TERM"], 1)


def test_live_ranks_leave_as_soon_as_a_group_is_there(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody died the moment before: nobody is ended for it, as SIGUSR1 would."""
    asked: list[tuple[str, str]] = []

    def leave(_: FakeLive, *what: str) -> bool:
        asked.append(what)
        return len(asked) > 30

    def plays(of: World, _launch: int, looks: int) -> int | None:
        if looks == 5:
            of.order = "from:n2"
        return 0 if looks > 60 else None

    monkeypatch.setattr(FakeLive, "leave", leave)
    status, told = play(world(plays), live=True)
    assert (status, told.signals, len(told.placed)) == (0, [], 1)
    assert asked == [("n2", "")] * 31


def test_live_a_spare_without_a_process_is_not_waited_for_for_ever(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    def plays(of: World, _launch: int, looks: int) -> int | None:
        if looks == 5:
            of.order = "from:n2"
        return 0 if of.now_s > 1000 + OLD_S + 30 else None

    assert play(world(plays), live=True)[0] == 0
    said = "no process of a spare was ready to leave n2 for"
    assert capsys.readouterr().err.count(said) == 1


def test_who_orders_something_is_told_by_the_agent_where_ranks_are(play: Play) -> None:
    seen: list[dict[str, str]] = []

    def plays(of: World, _launch: int, looks: int) -> int | None:
        seen.append(of.told)
        return 0 if looks > 3 else None

    _, told = play(world(plays))
    assert seen[-1] == {"run": "1", "on": "n[1-4]", "spares": "n5"}
    assert told.told == {"run": "0"}, "it has ended"


def test_of_two_orders_the_stronger_one_counts() -> None:
    orders = Orders()
    assert orders.take("from:n2:n5", 1.0) and orders.leaving == ("n2", "n5")
    assert not orders.take("from:n3", 2.0) and orders.leaving == ("n2", "n5")
    assert orders.take("checkpoint", 3.0) and orders.halts and orders.leaving == ("", "")
    assert not orders.take("from:n3", 4.0)
    orders.left()
    assert orders.halts, "nothing takes it back"
    assert orders.take("now", 5.0) and not orders.take("checkpoint", 6.0)
    assert not orders.take("before:1700000000", 7.0) and orders.halt_at_s == 1_700_000_000
