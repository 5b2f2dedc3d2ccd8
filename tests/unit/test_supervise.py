"""What `fabricctl run` does when ranks or nodes die, with Slurm and the agents played."""

from datetime import UTC, datetime

import pytest

from fabricctl.cli.job_halt import at_time
from fabricctl.errors import UsageError
from fabricctl.launch.placement import first
from fabricctl.launch.policy import DO_NOT_RESTART
from fabricctl.launch.supervise import GRACE_S, Supervisor
from fabricctl.store.schema import LaunchEvent
from tests.support.launches import NODES, FakeLive, FakeStep, Play, World, played


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    return played(monkeypatch)


def test_a_program_that_ends_well_is_started_once(play: Play) -> None:
    status, world = play(World(lambda _launch, looks: 0 if looks > 3 else None))
    assert (status, world.placed) == (0, [("n1", "n2", "n3", "n4")])
    assert world.events == [(LaunchEvent.START, "n[1-4]"), (LaunchEvent.END, "n[1-4]")]


def test_nccl_is_led_to_the_tracker_when_that_is_asked_for(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    def led(**policy: bool) -> str | None:
        world = play(World(lambda _launch, looks: 0 if looks > 3 else None), **policy)[1]
        return world.environments[0].get("NCCL_PROFILER_PLUGIN")

    monkeypatch.delenv("NCCL_PROFILER_PLUGIN", raising=False)
    assert (led(track=True), led(nccl=True)) == (None, None)
    assert str(led(track=True, nccl=True)).endswith("/libfabrictrack.so")
    monkeypatch.setenv("NCCL_PROFILER_PLUGIN", "mine")
    assert led(track=True, nccl=True) == "mine"


def test_a_dead_rank_is_started_again_in_its_place(play: Play) -> None:
    status, world = play(World(lambda launch, _looks: 137 if launch == 0 else 0))
    assert (status, world.placed) == (0, [("n1", "n2", "n3", "n4")] * 2)
    assert [env["FABRIC_LAUNCH"] for env in world.environments] == ["0", "1"]
    assert (LaunchEvent.RANKS_DEAD, "") in world.events


def test_a_dead_rank_costs_no_wait_for_a_nodes_death_when_all_nodes_answer(play: Play) -> None:
    world = World(lambda launch, _looks: 137 if launch == 0 else 0)
    begin_s = world.now_s
    assert play(world)[0] == 0
    assert world.now_s - begin_s < GRACE_S


def test_ranks_that_fail_because_a_node_died_are_told_as_that(play: Play) -> None:
    """Their connections end before the node's silence is long enough."""
    world = World(lambda _launch, _looks: None)

    def plays(launch: int, _looks: int) -> int | None:
        if launch == 0:
            world.silent = {"n3"}
        return 1 if launch == 0 else 0

    world.plays = plays
    status, _ = play(world)
    assert (status, world.placed[1]) == (0, ("n1", "n2", "n5", "n4"))
    assert (LaunchEvent.NODE_DEAD, "n3") in world.events


def test_a_dead_node_is_replaced_without_waiting_for_srun(play: Play) -> None:
    world = World(lambda _launch, _looks: None)

    def plays(launch: int, looks: int) -> int | None:
        if launch == 0 and looks > 5:
            world.silent = {"n3"}
        return 0 if launch else None  # srun over the dead node hangs

    world.plays = plays
    status, _ = play(world)
    assert (status, world.placed[1]) == (0, ("n1", "n2", "n5", "n4"))
    assert world.environments[1]["FABRIC_DEAD_NODES"] == "n3"
    assert world.signals == ["KILL"]
    assert (LaunchEvent.NODE_DEAD, "n3") in world.events


def test_the_node_of_rank_0_is_replaced_as_any_other(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job script runs on n1, which is excluded: rank 0 is on n2."""
    placed = first(NODES, "n1", 1, None, {"n1"})
    monkeypatch.setattr(
        Supervisor, "_launches", lambda self: setattr(self, "placement", placed) or 0
    )
    world = World(lambda _launch, _looks: None)

    def plays(launch: int, looks: int) -> int | None:
        if launch == 0 and looks > 5:
            world.silent = {"n2"}
        return 0 if launch else None

    world.plays = plays
    status, _ = play(world)
    assert (status, world.placed) == (0, [("n2", "n3", "n4"), ("n5", "n3", "n4")])
    assert [env["MASTER_ADDR"] for env in world.environments] == ["n2", "n5"]


def test_live_a_dead_node_is_nothing_to_start_again_for(play: Play) -> None:
    world = World(lambda _launch, looks: 0 if looks > 30 else None)

    def plays(_launch: int, looks: int) -> int | None:
        if looks > 5:
            world.silent = {"n3"}
        return 0 if looks > 30 else None

    world.plays = plays
    assert play(world, live=True)[0] == 0
    assert len(world.placed) == 1 and not world.signals
    assert world.events[-1] == (LaunchEvent.END, "n[1-2,4-5]")


@pytest.mark.parametrize(("ends", "event"), [(0, LaunchEvent.END), (3, LaunchEvent.GIVE_UP)])
def test_live_nothing_begins_anew_when_all_steps_are_done(
    play: Play, monkeypatch: pytest.MonkeyPatch, ends: int, event: LaunchEvent
) -> None:
    """A node dies then, or what follows the last step fails: checkpoints have been given back."""
    world = World(lambda _launch, _looks: None)

    def plays(_launch: int, looks: int) -> int | None:
        if looks > 5:
            world.silent = {"n3"}
        return ends if looks > 30 else None

    world.plays = plays
    monkeypatch.setattr(FakeLive, "lost", FakeStep.lost)
    monkeypatch.setattr(FakeLive, "finished", True)
    assert play(world, live=True)[0] == ends
    assert len(world.placed) == 1
    assert world.events[-1] == (event, "n[1-4]")


def test_live_a_program_that_does_not_know_it_is_run_once(
    play: Play, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not three times from its begin to its end, each process by itself."""
    monkeypatch.setattr(FakeLive, "unused", True)
    status, world = play(World(lambda _launch, looks: 1 if looks > 800 else None), live=True)
    assert (status, len(world.placed)) == (1, 1)
    assert "never called state.live" in capsys.readouterr().err


def test_live_without_a_spare_all_start_again_in_place(play: Play) -> None:
    """Two nodes die, one spare is there: on three nodes, where that is allowed."""
    world = World(lambda _launch, _looks: None)

    def plays(launch: int, looks: int) -> int | None:
        if launch == 0 and looks > 5:
            world.silent = {"n3", "n4"}
        return 0 if launch >= 2 else None

    world.plays = plays
    status, _ = play(world, live=True, min_nodes=3)
    assert (status, world.placed[1:]) == (0, [("n1", "n2", "n5")])
    assert world.signals == ["KILL"]


def test_two_nodes_at_once_are_replaced_by_two_spares(play: Play) -> None:
    world = World(lambda _launch, _looks: None)

    def plays(launch: int, looks: int) -> int | None:
        if launch == 0 and looks > 5:
            world.silent = {"n2", "n3"}
        return 0 if launch else None

    world.plays = plays
    status, _ = play(world, spares=2)
    assert (status, world.placed) == (0, [("n1", "n2", "n3"), ("n1", "n4", "n5")])
    assert world.environments[1]["FABRIC_DEAD_NODES"] == "n2,n3"


def test_a_node_that_dies_during_recovery_is_replaced_too(play: Play) -> None:
    """n2 dies; while its ranks start on n4, n4 dies before it has done anything."""
    world = World(lambda _launch, _looks: None)

    def plays(launch: int, looks: int) -> int | None:
        if launch == 0 and looks > 5:
            world.silent = {"n2"}
        if launch == 1:
            world.silent = {"n2", "n4"}
        return 0 if launch == 2 else None

    world.plays = plays
    status, _ = play(world, spares=2)
    assert (status, world.placed[1:]) == (0, [("n1", "n4", "n3"), ("n1", "n5", "n3")])


def test_a_dead_spare_is_nothing_to_stop_for(play: Play) -> None:
    world = World(lambda _launch, looks: 0 if looks > 20 else None, silent={"n5"})
    status, _ = play(world)
    assert (status, len(world.placed)) == (0, 1)


def test_without_a_spare_it_gives_up_with_a_reason(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(lambda _launch, _looks: None, silent={"n3", "n4"})
    status, _ = play(world)
    assert status == 1
    assert "no spare left for n[3-4]" in capsys.readouterr().err
    assert world.events[-1][0] == LaunchEvent.GIVE_UP


def test_a_status_that_means_no_is_heeded(play: Play) -> None:
    status, world = play(World(lambda _launch, _looks: DO_NOT_RESTART))
    assert (status, len(world.placed)) == (DO_NOT_RESTART, 1)


def test_a_program_that_never_gets_anywhere_is_left(play: Play) -> None:
    status, world = play(World(lambda _launch, _looks: 3))
    assert (status, len(world.placed)) == (3, 3)


def test_a_program_that_gets_further_each_time_is_not_left(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks that die every few seconds, each time after more iterations than before."""
    world = World(lambda launch, _looks: 9 if launch < 6 else 0)
    monkeypatch.setattr(Supervisor, "_iteration", lambda self: 10 * (self.launch + 1))
    status, _ = play(world)
    assert (status, len(world.placed)) == (0, 7)


def test_restarts_have_an_end(play: Play) -> None:
    world = World(lambda _launch, looks: 9 if looks > 700 else None)
    status, _ = play(world, max_restarts=4)
    assert (status, len(world.placed)) == (9, 5)


def test_halt_ends_it_after_a_checkpoint(play: Play) -> None:
    world = World(lambda _launch, _looks: None)

    def plays(_launch: int, looks: int) -> int | None:
        if looks == 5:
            world.order = "checkpoint"
        return 0 if "USR1" in world.signals else None

    world.plays = plays
    assert play(world)[0] == 0
    assert (len(world.placed), world.signals) == (1, ["USR1"])


def test_a_spare_whose_agent_was_never_heard_is_the_last_choice(play: Play) -> None:
    world = World(lambda _launch, _looks: None)
    mute = {"n4"}

    def plays(launch: int, looks: int) -> int | None:
        world.silent = {"n3"} if launch == 0 and looks > 5 else set()
        return 0 if launch else None

    world.plays = plays
    world.mute = mute
    assert play(world, spares=2)[0] == 0
    assert world.placed[1] == ("n1", "n2", "n5")


def ordered(order: str) -> World:
    """Ranks that end when they are told to save, and an order while they run first."""
    world = World(lambda _launch, _looks: None)

    def plays(launch: int, looks: int) -> int | None:
        if launch == 0 and looks == 5:
            world.order = order
        return 0 if launch or "USR1" in world.signals else None

    world.plays = plays
    return world


def test_migrate_moves_ranks_after_a_checkpoint(play: Play) -> None:
    world = ordered("from:n2")
    assert play(world)[0] == 0
    assert world.placed == [("n1", "n2", "n3", "n4"), ("n1", "n5", "n3", "n4")]


def test_migrate_goes_to_the_spare_that_is_named(play: Play) -> None:
    world = ordered("from:n2:n5")
    assert play(world, spares=2)[0] == 0
    assert world.placed[1] == ("n1", "n5", "n3")


def test_live_ranks_leave_a_node_and_nothing_is_ended(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[tuple[str, str]] = []
    world = World(lambda _launch, _looks: None)

    def plays(_launch: int, looks: int) -> int | None:
        if looks == 5:
            world.order = "from:n2"
        return 0 if looks > 30 else None

    world.plays = plays
    monkeypatch.setattr(FakeLive, "leave", lambda _, *what: not left.append(what))
    assert play(world, live=True)[0] == 0
    assert (left, world.signals, len(world.placed)) == ([("n2", "")], [], 1)


def test_migrate_without_a_spare_changes_nothing(
    play: Play, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(lambda _launch, _looks: None)

    def plays(_launch: int, looks: int) -> int | None:
        if looks == 5:
            world.order = "from:n2"
        return 0 if looks > 30 else None

    world.plays = plays
    assert play(world, spares=0)[0] == 0
    assert (len(world.placed), world.signals) == (1, [])
    assert "no spare to take the place of n2" in capsys.readouterr().err


def test_with_fewer_nodes_allowed_it_goes_on_without_a_spare(play: Play) -> None:
    world = World(lambda _launch, _looks: None)

    def plays(launch: int, looks: int) -> int | None:
        if launch == 0 and looks > 5:
            world.silent = {"n3", "n4"}
        return 0 if launch else None

    world.plays = plays
    status, _ = play(world, min_nodes=3)
    assert (status, world.placed[1]) == (0, ("n1", "n2", "n5"))


def test_excluded_nodes_are_neither_used_nor_spares() -> None:
    placed = first(NODES, "n1", 1, None, {"n2"})
    assert (placed.nodes, placed.spares) == (("n1", "n3", "n4"), ("n5",))


def test_all_save_and_end_before_a_time(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(lambda _launch, _looks: 0 if "USR1" in world.signals else None)
    monkeypatch.setattr("time.time", lambda: world.now_s)
    begin_s = world.now_s
    assert play(world, halt_at_s=begin_s + 30)[0] == 0
    assert world.signals == ["USR1"] and 30 <= world.now_s - begin_s < 35


def test_an_order_to_end_before_a_time_waits_for_it(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(lambda _launch, _looks: 0 if "USR1" in world.signals else None)
    world.order = f"before:{int(world.now_s) + 60}"
    monkeypatch.setattr("time.time", lambda: world.now_s)
    begin_s = world.now_s
    assert play(world)[0] == 0
    assert world.signals == ["USR1"] and 60 <= world.now_s - begin_s < 65


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("17:30", "2026-03-01 17:30"),
        ("09:15", "2026-03-02 09:15"),
        ("+20", "2026-03-01 12:20"),
        ("2026-03-05T08:00", "2026-03-05 08:00"),
    ],
)
def test_times_of_halt_are_read(text: str, found: str) -> None:
    now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    assert f"{at_time(text, now):%F %H:%M}" == found


def test_what_is_no_time_is_refused() -> None:
    with pytest.raises(UsageError, match="--before 'soon'"):
        at_time("soon", datetime.now(UTC))
