"""What is made of where ranks stand."""

from dataclasses import replace

import pytest

from fabricctl.errors import DataError
from fabricctl.state.track import block, position
from fabricctl.state.track.position import CommSeen, Position
from fabricctl.state.track.verdict import Sure, judge, tell_paths
from fabricctl.store.schema import RankState, StallKind

OPS = {name: number for number, name in enumerate(block.op_names())}


def at(
    rank: int, op: str = "MPI_Allreduce", coll: int = 7, age_s: float = 2.0, **more: object
) -> Position:
    """A rank of four on node n<rank>, in a collective of MPI_COMM_WORLD."""
    comms = {1: CommSeen(rank, 4, coll or 6, OPS[op]), 2: CommSeen(0, 1, 0, 0)}
    made = Position(
        rank=rank, ranks=4, launch=0, node=f"n{rank}", pid=100 + rank, state=RankState.RUNNING,
        letter="S", calls=21, op=OPS[op], peer=-1, comm=1, coll=coll, age_ms=int(age_s * 1000),
        step=0, step_age_ms=0, comms=comms,
    )  # fmt: skip
    return replace(made, **more)  # type: ignore[arg-type]


def computing(rank: int, age_s: float = 2.0) -> Position:
    return at(rank, coll=6, age_s=age_s, calls=20, letter="R")


ALL = [at(0), at(1), at(2), at(3)]


def test_ranks_that_move_are_no_stall() -> None:
    found = judge([at(rank, age_s=0.1) for rank in range(4)])
    assert (found.kind, found.hard, found.waiting) == (StallKind.NONE, False, 0)


def test_a_killed_rank_is_named() -> None:
    found = judge([*ALL[:3], replace(ALL[3], state=RankState.GONE)])
    assert (found.kind, found.rank, found.node, found.hard) == (StallKind.RANK, 3, "n3", True)


def without_mpi(one: Position) -> Position:
    """As a PyTorch program's: it has no MPI_COMM_SELF."""
    op = next(number for number, name in block.HOOK_OPS.items() if name == "torch.all_reduce")
    return replace(one, op=op, comms={1: replace(one.comms[1], recent=op)})


def test_a_verdict_on_a_program_without_mpi_has_no_word_of_mpi() -> None:
    three = [without_mpi(one) for one in ALL[:3]]
    last = without_mpi(computing(3))
    dead = judge([*three, replace(last, state=RankState.GONE)])
    assert (dead.kind, dead.rank, dead.hard) == (StallKind.RANK, 3, True)
    assert dead.text == "rank 3 on n3 died: killed, or by an error"
    ended = judge([*three, replace(last, state=RankState.FINALIZED)])
    assert (ended.kind, ended.rank, ended.hard) == (StallKind.APPLICATION, 3, True)
    assert ended.text == "rank 3 on n3 ended and never came to torch.all_reduce of rank 0"
    other = judge([*three, replace(without_mpi(ALL[3]), op=last.op + 1)])
    assert (other.kind, other.rank) == (StallKind.APPLICATION, 3)
    assert "(collective 7 of the default group)" in other.text
    for found in (dead, ended, other):
        assert "MPI" not in found.text
    assert "without MPI_Finalize" in judge([*ALL[:3], replace(ALL[3], state=RankState.GONE)]).text


def test_a_rank_that_ended_well_while_others_work_on_is_no_stall() -> None:
    """One saves what was trained, the others have ended."""
    ended = [replace(without_mpi(one), state=RankState.FINALIZED, calls=22) for one in ALL[1:]]
    assert not judge([without_mpi(computing(0, age_s=60)), *ended]).hard


def test_a_stopped_rank_is_named() -> None:
    found = judge([*ALL[:3], replace(computing(3), state=RankState.STOPPED)])
    assert (found.kind, found.rank, found.hard) == (StallKind.RANK, 3, True)


def test_a_stopped_rank_that_nobody_waits_for_is_no_stall() -> None:
    stopped = replace(computing(3), state=RankState.STOPPED)
    assert not judge([computing(0), computing(1), computing(2), stopped]).hard


def test_a_silent_node_with_ranks_is_named() -> None:
    found = judge(ALL[:3], silent=["n3"])
    assert (found.kind, found.node, found.hard) == (StallKind.HOST, "n3", True)


def test_a_silent_spare_is_no_stall() -> None:
    assert not judge(ALL, silent=["n9"]).hard


def test_another_collective_of_the_same_number_is_a_mismatch() -> None:
    found = judge([*ALL[:3], at(3, "MPI_Barrier")])
    assert (found.kind, found.rank, found.hard) == (StallKind.APPLICATION, 3, True)
    assert "MPI_Barrier" in found.text and "MPI_Allreduce" in found.text


def after(rank: int, *ops: str) -> Position:
    """A rank that called these as the 7th and following collectives, and is in the last."""
    recent = 0
    for op in ops:
        recent = recent << 8 | OPS[op]
    coll = 6 + len(ops)
    return at(rank, ops[-1], coll, comms={1: CommSeen(rank, 4, coll, recent)})


@pytest.mark.parametrize("odd_passed", [True, False])
def test_a_mismatch_that_one_side_passed_names_the_few(odd_passed: bool) -> None:
    """A broadcast's root need not wait for the others, who are in a barrier, or the reverse."""
    most, odd = ["MPI_Bcast", "MPI_Allreduce"], ["MPI_Barrier"]
    if odd_passed:
        most, odd = odd, most
    found = judge([*(after(rank, *most) for rank in range(3)), after(3, *odd)])
    assert (found.kind, found.rank, found.hard) == (StallKind.APPLICATION, 3, True)
    assert "MPI_Bcast" in found.text and "MPI_Barrier (collective 7 of" in found.text


@pytest.mark.parametrize("on", [1, 3, 12])
def test_a_rank_whose_last_message_is_under_way_is_no_mismatch(on: int) -> None:
    """A dead rail holds up what rank 2 waits for in the 7th; the others have all that they need of
    it, and went on as far as they can without rank 2."""
    onward = ["MPI_Allreduce", *["MPI_Bcast"] * (on - 1), "MPI_Allreduce"]
    ranks = [after(0, *onward), after(1, *onward), at(2), after(3, *onward)]
    assert not judge(ranks).hard
    links = {"n0": "no rail reaches n2", "n1": "no rail reaches n2", "n2": "no rail reaches n0, n1"}
    found = judge(ranks, links=links)
    assert (found.kind, found.node) == (StallKind.LINK, "n2")


CIRCLE = [*ALL[:2], at(2, "MPI_Recv", coll=0, peer=0), ALL[3]]


@pytest.mark.parametrize(
    "paths",
    [
        {"n0": "r1:n2:4000"},
        {"n2": "r1:n0:4000,r1:n1:4000"},
        {"n0": "r0:n1:90,r1:n2:20000", "n2": "r1:n0:20000"},
    ],
)
def test_a_circle_over_a_path_that_died_is_the_links(paths: dict[str, str]) -> None:
    """Rank 2 waits for what rank 0 sent, which lies on a dead rail; the other rail is well."""
    found = judge(CIRCLE, paths=paths)
    assert (found.kind, found.hard) == (StallKind.LINK, True)
    assert "rail r1 does not reach" in found.text and "rank 2 in MPI_Recv" in found.text
    assert not Sure().holds(found, 10.0, 10.0), "it is compared, as every circle"


def test_of_a_dead_paths_ends_the_one_with_more_of_them_is_named() -> None:
    paths = {"n0": "r1:n2:4000", "n1": "r1:n2:4000", "n2": "r1:n0:4000,r1:n1:4000"}
    assert judge(CIRCLE, paths=paths).node == "n2"


@pytest.mark.parametrize(
    "paths",
    [
        {"n0": "r1:n1:4000", "n1": "r1:n0:4000"},  # nobody in the circle waits for a message there
        {"n0": "r1:n2:600000"},  # they have long done without it
        {"n0": "r1:n2", "n2": "x"},
    ],
)
def test_a_deadlock_beside_a_dead_path_stays_one(paths: dict[str, str]) -> None:
    assert judge(CIRCLE, paths=paths).kind == StallKind.APPLICATION


def test_agents_tell_of_the_paths_that_died_last() -> None:
    told = tell_paths([("r0", f"n{n}", 1000 * n) for n in range(100, 0, -1)])
    assert told.startswith("r0:n1:1000,r0:n2:2000,") and told.count(":") == 24
    there = [*CIRCLE[:2], replace(CIRCLE[2], node="n3"), CIRCLE[3]]
    assert judge(there, paths={"n0": told}).kind == StallKind.LINK


def test_a_spare_without_links_is_no_stall() -> None:
    links = {"n9": "rail r0, r1 without carrier", "n1": "no rail reaches n9"}
    assert not judge(ALL, links=links).hard
    assert judge(CIRCLE, links=links).kind == StallKind.APPLICATION


def test_a_rank_that_was_told_before_it_went_on_is_no_deadlock() -> None:
    """n2's word is two seconds old: it waited for rank 0 then, and rank 0 waits for it now."""
    sure = Sure()
    found = judge(CIRCLE)
    assert found.hard and found.kind == StallKind.APPLICATION
    assert not sure.holds(found, 8.0, 10.0)
    assert not sure.holds(found, 8.0, 10.4), "n2 has said nothing new"
    assert sure.holds(judge(ALL), 10.8, 10.8)
    assert not sure.holds(found, 11.2, 11.2), "it began anew"


def test_a_deadlock_that_stays_is_told_at_the_second_look() -> None:
    sure = Sure()
    assert not sure.holds(judge(CIRCLE), 10.0, 10.005)
    assert sure.holds(judge(CIRCLE), 10.4, 10.405)


def test_a_mismatch_is_told_at_once() -> None:
    """The number of a collective says it, whenever each rank was looked at."""
    assert Sure().holds(judge([*ALL[:3], at(3, "MPI_Barrier")]), 8.0, 10.0)
    passed = [after(rank, "MPI_Bcast", "MPI_Allreduce") for rank in range(3)]
    found = judge([*passed, at(3)])
    assert found.kind == StallKind.APPLICATION
    assert Sure().holds(found, 8.0, 10.0)


def test_what_is_no_comparison_is_told_at_once() -> None:
    assert Sure().holds(judge([*ALL[:3], replace(ALL[3], state=RankState.GONE)]), 10.0, 10.0)


def test_another_root_is_a_mismatch() -> None:
    ranks = [at(rank, "MPI_Bcast", peer=0) for rank in range(3)]
    found = judge([*ranks, at(3, "MPI_Bcast", peer=2)])
    assert (found.kind, found.rank) == (StallKind.APPLICATION, 3)


def test_a_skipped_collective_is_a_deadlock() -> None:
    receiving = at(2, "MPI_Recv", coll=0, peer=0)
    found = judge([ALL[0], ALL[1], receiving, ALL[3]])
    assert (found.kind, found.hard) == (StallKind.APPLICATION, True)
    assert "deadlock" in found.text and "rank 2 in MPI_Recv" in found.text


def test_two_that_receive_from_each_other_are_a_deadlock() -> None:
    ranks = [at(0, "MPI_Recv", coll=0, peer=1), at(1, "MPI_Recv", coll=0, peer=0)]
    assert judge(ranks).kind == StallKind.APPLICATION


def test_a_long_transfer_is_no_deadlock() -> None:
    ranks = [at(0, "MPI_Send", coll=0, peer=1), at(1, "MPI_Recv", coll=0, peer=0)]
    assert not judge(ranks).hard
    assert not judge([at(r, "MPI_Sendrecv", coll=0, peer=1 - r) for r in (0, 1)]).hard


def test_a_rank_that_left_is_named() -> None:
    left = replace(at(3, "MPI_Finalize", coll=0), comms={1: CommSeen(3, 4, 6, 0)})
    found = judge([*ALL[:3], left])
    assert (found.kind, found.rank, found.hard) == (StallKind.APPLICATION, 3, True)
    gone = replace(left, state=RankState.FINALIZED)
    assert judge([*ALL[:3], gone]).rank == 3


def test_a_node_that_nobody_reaches_is_named_not_the_first_that_says_so() -> None:
    links = {"n0": "no rail reaches n2", "n1": "no rail reaches n2", "n2": "no rail reaches n0, n1"}
    assert judge(ALL, links=links).node == "n2"
    del links["n2"]  # its agent is not heard either
    found = judge(ALL, links=links)
    assert (found.kind, found.node) == (StallKind.LINK, "n2")
    assert (
        judge(ALL, links={"n0": "no rail reaches n2", "n2": "rail r0, r1 without carrier"}).node
        == "n2"
    )


def test_a_dead_link_is_named() -> None:
    found = judge(ALL, links={"n2": "rail r0, r1 without carrier"})
    assert (found.kind, found.node, found.hard) == (StallKind.LINK, "n2", True)


def test_a_long_compute_phase_is_no_alarm_and_is_explained() -> None:
    found = judge([*ALL[:3], computing(3, age_s=20)])
    assert (found.kind, found.rank, found.hard) == (StallKind.RANK, 3, False)
    assert "computing" in found.text


@pytest.mark.parametrize(("usual_s", "hard"), [(1, True), (8, False)])
def test_a_slow_rank_is_an_alarm_by_what_is_usual(usual_s: float, hard: bool) -> None:
    assert judge([*ALL[:3], computing(3, age_s=33)], usual_s=usual_s).hard is hard


def test_positions_survive_the_message() -> None:
    there = [at(3, step=9, step_age_ms=4), computing(0)]
    there[0] = replace(there[0], node="n1")
    there[1] = replace(there[1], node="n1")
    assert position.decode(position.encode(there), "n1") == there


@pytest.mark.parametrize("text", ["x", "1.2.3", "1" * 500, position.encode(ALL) + "~1"])
def test_what_no_agent_writes_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        position.decode(text, "n1")


def test_numbers_of_operations_are_never_moved() -> None:
    """They lie in blocks of running programs."""
    assert (OPS["MPI_Send"], OPS["MPI_Barrier"], OPS["MPI_Allreduce"]) == (4, 31, 43)
