"""What the clocks of a job tell each other: sealed, fresh, and checked before it is believed."""

from dataclasses import replace

import numpy as np
import pytest

from fabricctl.clock import exchange
from fabricctl.clock.edges import REPORT
from fabricctl.clock.exchange import ANSWER, HELLO, Hello, Seal
from fabricctl.clock.solver import Answer, NodeReport, Solver
from fabricctl.errors import DataError

KEY = b"k" * 32


def seal(me: int, key: bytes = KEY, job: int = 7, life: int = 1) -> Seal:
    return Seal(key, job, me, life)


def report(node: int, window: int = 40, **changes: float) -> NodeReport:
    table = np.zeros(2, REPORT)
    table["a"], table["b"], table["usable"], table["sigma_ns"] = node, (5, 6), 1, 10.0
    table["hard_above_ns"], table["hard_below_ns"] = 800.0, -800.0
    for name, value in changes.items():
        table[name] = value
    return NodeReport(node, window, 12.5, 400.0, True, table, base=7_000_000_000 % 2**32, own=False)


def test_messages_come_out_as_they_went_in() -> None:
    hello = Hello((("10.0.0.1", 4242), ("fd00::1", 4243)), 1_800_000_000_000_000_000, True, 5, 6)
    sent = seal(3).close(HELLO, 4, exchange.pack_hello(hello))
    message = seal(4).open(sent)
    assert (message.kind, message.sender) == (HELLO, 3)
    assert exchange.unpack_hello(message.body) == hello
    back = exchange.unpack_report(exchange.pack_report(report(3)), 3)
    assert (back.node, back.window, back.theta_ns, back.settled) == (3, 40, 12.5, True)
    assert (back.base, back.own) == (report(3).base, False)
    assert (back.edges == report(3).edges).all()
    answer = Answer(4, 40, 1.5, 10.0, -700.0, 800.0, 50.0, np.array([1.0, np.nan]), 17, False)
    got = exchange.unpack_answer(exchange.pack_answer(answer), 4)
    assert (got.theta_ns, got.most_ns, got.rate) == (1.5, 800.0, 50.0)
    assert (got.base, got.agreed) == (17, False)
    assert np.array_equal(got.residuals_ns, answer.residuals_ns, equal_nan=True)


@pytest.mark.parametrize(
    "opener",
    [seal(4, key=b"x" * 32), seal(4, job=8), seal(5)],
    ids=["another key", "another job", "another node"],
)
def test_what_is_not_for_us_is_refused(opener: Seal) -> None:
    with pytest.raises(DataError):
        opener.open(seal(3).close(ANSWER, 4, b"body"))


def test_a_changed_or_copied_message_is_refused() -> None:
    opener, sent = seal(4), seal(3).close(ANSWER, 4, b"body")
    for place in range(len(sent)):
        with pytest.raises(DataError):
            opener.open(sent[:place] + bytes([sent[place] ^ 1]) + sent[place + 1 :])
    opener.open(sent)
    with pytest.raises(DataError, match="a copy of an old one"):
        opener.open(sent)


def test_an_earlier_life_of_a_node_is_heard_no_more() -> None:
    opener, old = seal(4), seal(3, life=1)
    opener.open(seal(3, life=2).close(ANSWER, 4, b"body"))
    with pytest.raises(DataError):
        opener.open(old.close(ANSWER, 4, b"body"))


@pytest.mark.parametrize(
    "change",
    [
        *({name: value} for name in ("offset_ns", "slope_ppb", "sigma_ns", "common_ns")
          for value in (np.nan, np.inf)),
        {"sigma_ns": 0.0}, {"sigma_ns": -1.0}, {"a": 2}, {"b": 8}, {"b": 2**32 - 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_report_that_no_node_of_ours_writes_is_left_out(change: dict[str, float]) -> None:
    """Of edges that are another's, of nodes that are none, or not of numbers."""
    solver = Solver(8, 0.25, 100.0)
    for node in range(8):
        told = change if node == 3 else {}
        given = exchange.pack_report(report(node, **{"hard_above_ns": 800.0, **told}))
        solver.add(exchange.unpack_report(given, node), 40)
    answers = {answer.node: answer for answer in solver.solve()}
    assert answers.keys() == set(range(8)) - {3}
    assert all(np.isfinite(answer.theta_ns) for answer in answers.values())


def test_of_nothing_but_such_reports_nothing_is_solved() -> None:
    solver = Solver(2, 0.25, 100.0)
    for node in range(2):
        solver.add(report(node, sigma_ns=-1.0), 40)
    assert solver.solve() == []


def test_a_report_whose_prediction_is_not_a_number_is_refused() -> None:
    for changed in ({"theta_ns": np.nan}, {"p_theta": np.inf}, {"p_theta": 0.0}):
        body = exchange.pack_report(replace(report(3), **changed))
        with pytest.raises(DataError, match="cannot be"):
            exchange.unpack_report(body, 3)


def test_bodies_of_any_length_are_refused_or_read() -> None:
    noise = np.random.default_rng(1).bytes(300)
    for size in range(300):
        for unpack in (
            lambda body: exchange.unpack_report(body, 3),
            lambda body: exchange.unpack_answer(body, 3),
            exchange.unpack_hello,
        ):
            try:
                unpack(noise[:size])
            except DataError:
                continue


def test_a_solver_waits_for_all_who_reported_lately_and_no_longer() -> None:
    solver = Solver(8, 0.25, 100.0)
    solver.alive = 4
    # At first nobody else is known; of four the third makes a majority.
    assert [solver.add(report(n, 40), 40) for n in (0, 1, 2)] == [False, False, True]
    assert [solver.add(report(n, 41), 41) for n in (2, 0, 1)] == [False, False, True]
    assert solver.waiting() == 41
    assert not solver.add(report(3, 90), 41)  # not of this time
    assert not solver.add(report(3, 40), 41)  # late


def test_a_solver_whom_reports_reach_late_solves_the_last_window_that_most_told_of() -> None:
    solver = Solver(8, 0.25, 100.0)
    solver.alive = 4
    for node, window in ((0, 40), (0, 41), (0, 42), (1, 41), (2, 41)):
        solver.add(report(node, window), 42)
    assert solver.waiting() == 41  # its own 42 alone would be its own clock


def test_beginners_do_not_solve_between_two_windows_of_those_who_know() -> None:
    solver = Solver(8, 0.25, 100.0)
    solver.alive = 5
    settled = [replace(report(node, 40), settled=True) for node in (0, 1)]
    for window in (40, 41):
        new = [replace(report(node, window), settled=False) for node in (2, 3, 4)]
        for one in (*settled, *new):
            solver.add(one, 41)
    assert solver.waiting() == 40
