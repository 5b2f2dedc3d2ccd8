"""Who takes a dead one's rank while the others run on, event by event."""

from dataclasses import dataclass, field

import pytest

from fabricctl.launch.roster import (
    FAILED_S,
    REFORM_S,
    WAITERS_MOST,
    Action,
    End,
    Roster,
    Send,
    Start,
    Tell,
)
from fabricctl.store.schema import LaunchEvent

HOSTS = ["n1", "n2", "n3"]


@dataclass
class World:
    """Processes are numbers: 1 to 3 hold ranks 0 to 2 on n1 to n3, 4 waits on n4."""

    deaths_most: int = 20
    spares: tuple[str, ...] = ("n4",)
    now_s: float = 0.0
    told: list[tuple[LaunchEvent, str]] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    says: dict[int, list[dict[str, str]]] = field(default_factory=dict)
    end: End | None = None

    def __post_init__(self) -> None:
        started = dict.fromkeys([*HOSTS, *self.spares], 1)
        self.roster = Roster(
            list(HOSTS), self.spares, started, 5, self.deaths_most, lambda: self.now_s
        )

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(who, message):
                    self.says.setdefault(who, []).append(message)
                case Start(node):
                    self.begun.append(node)
                case Tell(event, node, _):
                    self.told.append((event, node))
                case End():
                    self.end = self.end or action

    def all_join(self) -> "World":
        for who, node in enumerate([*HOSTS, *self.spares], 1):
            self.do(self.roster.join(who, node, 0))
        self.form()
        return self

    def form(self) -> None:
        """Rank 0's process opens the store."""
        first = [who for who, said in self.says.items() if said[-1].get("port") == "0"][-1]
        self.do(self.roster.opened(first, 999))

    def rank(self, who: int) -> int | None:
        """As it was told last; None: it waits."""
        forms = [said for said in self.says.get(who, []) if said["kind"] == "form"]
        return int(forms[-1]["rank"]) if forms else None

    def last(self, who: int) -> str:
        return self.says[who][-1]["kind"] if who in self.says else ""

    def come_out(self, *who: int) -> None:
        for one in who:
            self.do(self.roster.ready(one))


def test_rank_0_opens_the_store_before_the_others_are_called() -> None:
    world = World()
    for who, node in [(3, "n3"), (4, "n4"), (1, "n1"), (2, "n2")]:
        assert not world.says
        world.do(world.roster.join(who, node, 0))
    assert list(world.says) == [1]
    world.do(world.roster.opened(1, 999))
    assert [world.rank(who) for who in (1, 2, 3, 4)] == [0, 1, 2, None]
    assert world.says[3][-1] | {"kind": "", "rank": ""} == {
        "kind": "", "generation": "5", "rank": "", "ranks": "3", "host": "n1", "port": "999",
        "dead": "",
    }  # fmt: skip
    assert not world.told, "the first start is told by who starts it"


def test_ranks_of_one_node_are_in_the_order_of_its_processes() -> None:
    world = World()
    world.roster = Roster(["n1", "n1"], (), {"n1": 2}, 0, 20, lambda: 0.0)
    world.do(world.roster.join(7, "n1", 1))
    world.do(world.roster.join(8, "n1", 0))
    world.do(world.roster.opened(8, 1))
    assert (world.rank(8), world.rank(7)) == (0, 1)


def test_a_dead_process_is_replaced_by_one_that_waits_and_another_begins_to_wait() -> None:
    world = World().all_join()
    world.do(world.roster.gone(2))
    assert [world.last(who) for who in (1, 3)] == ["broken", "broken"]
    assert (world.begun, world.roster.generation) == (["n2"], 6)
    world.come_out(1)
    assert world.last(1) == "broken", "rank 2 is still inside"
    world.come_out(3)
    world.form()
    assert [world.rank(who) for who in (1, 4, 3)] == [0, 1, 2]
    assert world.roster.hosts == ["n1", "n4", "n3"]
    assert world.told == [(LaunchEvent.RANKS_DEAD, "n2"), (LaunchEvent.START, "n[1,3-4]")]
    world.do(world.roster.join(9, "n2", 0))  # the new one waits
    world.do(world.roster.lost(["n3"]))
    world.come_out(1, 4)
    world.form()
    assert world.rank(9) == 2 and world.says[1][-1]["dead"] == "n3"


def test_a_dead_node_is_not_started_on_again() -> None:
    world = World().all_join()
    world.do(world.roster.lost(["n3"]))
    world.come_out(1, 2)
    world.form()
    assert (world.begun, world.rank(4)) == ([], 2)
    assert world.told[0] == (LaunchEvent.NODE_DEAD, "n3")
    world.do(world.roster.gone(3))  # its connection ends later
    assert world.roster.generation == 6


def test_rank_0_is_replaced_as_any_other() -> None:
    world = World().all_join()
    world.do(world.roster.lost(["n1"]))
    world.come_out(2, 3)
    assert world.says[4][-1]["port"] == "0" and world.says[4][-1]["host"] == "n4"
    world.form()
    assert [world.rank(who) for who in (4, 2, 3)] == [0, 1, 2]


def test_a_survivor_that_dies_while_all_come_out_is_replaced_too() -> None:
    world = World(spares=("n4", "n5")).all_join()
    world.do(world.roster.gone(2))
    world.do(world.roster.gone(3))
    world.come_out(1)
    world.form()
    assert [world.rank(who) for who in (1, 4, 5)] == [0, 1, 2]
    assert world.roster.generation == 6, "no group was made between"


def test_one_that_dies_while_the_group_is_made_breaks_it_again() -> None:
    world = World(spares=("n4", "n5")).all_join()
    world.do(world.roster.gone(2))
    world.come_out(1, 3)  # rank 0 is called, the store not open yet
    world.do(world.roster.gone(1))
    assert [world.last(who) for who in (3, 4)] == ["broken", "broken"]
    world.do(world.roster.opened(1, 5))  # nobody's any more
    world.come_out(3, 4)
    world.form()
    assert world.roster.generation == 7
    assert sorted(world.rank(who) or 0 for who in (3, 4, 5)) == [0, 1, 2]


def test_a_spare_that_dies_changes_nothing_and_is_not_counted_upon() -> None:
    world = World(spares=("n4", "n5")).all_join()
    world.do(world.roster.gone(4))
    assert (world.roster.generation, world.begun) == (5, ["n4"])
    world.do(world.roster.lost(["n2", "n4"]))
    world.come_out(1, 3)
    world.form()
    assert world.rank(5) == 1


def test_a_process_that_dies_waiting_is_begun_anew_but_not_for_ever() -> None:
    """Else nobody would be there at the next death, and all would start again in place."""
    world = World().all_join()
    world.do(world.roster.gone(4))
    assert (world.begun, world.told, world.roster.generation) == (["n4"], [], 5)
    world.do(world.roster.gone(2))  # before the new one is there
    world.come_out(1, 3)
    assert world.end is None
    world.do(world.roster.join(10, "n4", 0))
    world.form()
    assert world.rank(10) == 1
    for who in range(11, 30):
        world.do(world.roster.join(who, "n2", 0))
        world.do(world.roster.gone(who))
    assert len(world.begun) == 1 + 1 + WAITERS_MOST - 1


def test_a_spare_that_was_chosen_and_dies_is_replaced_by_the_next() -> None:
    world = World(spares=("n4", "n5")).all_join()
    world.do(world.roster.lost(["n2"]))
    world.do(world.roster.lost(["n4"]))
    world.come_out(1, 3)
    world.form()
    assert world.rank(5) == 1


def test_a_dead_process_without_a_spare_is_waited_for_on_its_node() -> None:
    world = World(spares=()).all_join()
    world.do(world.roster.gone(2))
    world.come_out(1, 3)
    assert (world.begun, world.end) == (["n2"], None)
    world.do(world.roster.join(9, "n2", 0))
    world.form()
    assert world.rank(9) == 1


def test_a_dead_node_without_a_spare_is_the_end() -> None:
    world = World(spares=()).all_join()
    world.do(world.roster.lost(["n2"]))
    assert world.end == End(1, "rank 1: no process is left for it")
    assert world.last(1) == "leave"


def test_a_process_that_was_begun_again_and_ends_at_once_is_the_end() -> None:
    world = World(spares=()).all_join()
    world.do(world.roster.gone(2))
    world.do(world.roster.ended("n2", 1))
    assert world.end == End(1, "rank 1: no process is left for it")


def test_a_program_that_never_joins_is_told_so() -> None:
    world = World()
    for node in [*HOSTS, "n4"]:
        world.do(world.roster.ended(node, 1))
    assert world.end == End(1, "rank 0: it ended before state.live")


def test_a_node_that_dies_before_it_joined_is_replaced() -> None:
    world = World()
    for who, node in [(1, "n1"), (3, "n3"), (4, "n4")]:
        world.do(world.roster.join(who, node, 0))
    world.do(world.roster.lost(["n2"]))
    world.form()
    assert [world.rank(who) for who in (1, 4, 3)] == [0, 1, 2]


def test_deaths_have_an_end() -> None:
    world = World(spares=(), deaths_most=2).all_join()
    for _ in range(2):
        world.do(world.roster.gone(2))
        world.come_out(1, 3)
        world.do(world.roster.join(2, "n2", 0))
        world.form()
    assert world.end is None
    world.do(world.roster.gone(2))
    assert world.end == End(1, "3 deaths (--max-restarts)")


def test_all_end_together_and_spares_with_them() -> None:
    world = World().all_join()
    for who in (1, 2):
        world.do(world.roster.done(who))
    assert world.end is None
    world.do(world.roster.done(3))
    assert world.end == End(0)
    assert [world.last(who) for who in (1, 2, 3, 4)] == ["end"] * 4
    world.do(world.roster.gone(1))
    assert not world.told
    world.do(world.roster.join(9, "n2", 0))
    assert world.last(9) == "end", "it was begun for one that died shortly before"


def test_who_was_done_comes_back_for_one_that_died_before_the_end() -> None:
    world = World().all_join()
    world.do(world.roster.done(1))
    world.do(world.roster.gone(3))
    world.come_out(1, 2)
    world.form()
    for who in (2, 4):
        world.do(world.roster.done(who))
    assert world.end is None, "rank 0 has not ended in this group"
    world.do(world.roster.done(1))
    assert world.end == End(0)


def test_an_error_of_the_program_ends_it_where_nobody_died() -> None:
    world = World().all_join()
    world.do(world.roster.failed(2, "ValueError: no"))
    world.now_s = FAILED_S / 2
    world.do(world.roster.tick())
    assert world.end is None
    world.now_s = FAILED_S * 1.1
    world.do(world.roster.tick())
    assert world.end == End(1, "rank 1 failed: ValueError: no")
    assert world.says[2][-2]["kind"] == "raise"


def test_an_error_that_came_of_a_death_is_none() -> None:
    world = World().all_join()
    world.do(world.roster.failed(2, "RuntimeError: Connection closed by peer"))
    world.now_s = 1.0
    world.do(world.roster.lost(["n3"]))
    world.come_out(1, 2)
    world.form()
    world.now_s = 10.0
    world.do(world.roster.tick())
    assert world.end is None


@pytest.mark.parametrize("status", [79, 3])
def test_a_status_that_the_program_chose_is_kept(status: int) -> None:
    world = World().all_join()
    world.do(world.roster.exits(2, status))
    assert world.end is not None and world.end.status == status


def test_who_does_not_come_out_is_not_waited_for_for_ever() -> None:
    world = World().all_join()
    world.do(world.roster.gone(2))
    world.come_out(1)
    world.now_s = REFORM_S + 1
    world.do(world.roster.tick())
    assert world.end == End(1, f"rank 2 did not come out within {REFORM_S:g} s")


def test_a_node_is_left_after_a_save_and_its_process_ends() -> None:
    world = World().all_join()
    actions = world.roster.leave("n2")
    assert actions is not None
    world.do(actions)
    assert [world.last(who) for who in (1, 2, 3)] == ["move"] * 3
    world.come_out(1, 2)
    assert world.last(2) == "end"
    assert world.rank(4) is None, "one is still inside"
    world.come_out(3)
    world.form()
    assert [world.rank(who) for who in (1, 4, 3)] == [0, 1, 2]
    world.do(world.roster.gone(2))
    assert (world.roster.hosts, world.roster.generation, world.end) == (["n1", "n4", "n3"], 6, None)
    assert not world.begun
    assert [event for event, _ in world.told] == [LaunchEvent.START]


def test_a_death_while_a_node_is_left_breaks_the_group_for_the_others() -> None:
    world = World(spares=("n4", "n5")).all_join()
    world.do(world.roster.leave("n2", "n5") or [])
    world.come_out(1)
    world.do(world.roster.gone(3))  # the second one waits for it
    assert world.last(2) == "broken"
    world.come_out(2)
    world.form()
    assert world.last(2) == "end"
    assert sorted(world.rank(who) or 0 for who in (1, 5, 4)) == [0, 1, 2]


def test_a_node_cannot_be_left_without_a_spare() -> None:
    world = World(spares=()).all_join()
    assert world.roster.leave("n2") is None
    world = World().all_join()
    assert world.roster.leave("n2", "n3") is None
    world.do(world.roster.leave("n4") or [])  # a spare itself
    assert world.last(4) == "end"
    assert world.roster.leave("n2") is None
