"""Who solves, as every node chooses for itself."""

from fabricctl.clock.choice import LONGEST_PAUSE, SolverChoice

NOBODY: frozenset[int] = frozenset()


def run(choice: SolverChoice, windows: range, living: set[int], dead: frozenset[int]) -> list[int]:
    asked: list[int] = []
    for window in windows:
        asked = choice.choose(window, dead)
        for node in set(asked) & living:
            choice.answered(node, window)
    return asked


def test_the_first_two_that_answer_solve() -> None:
    assert run(SolverChoice(8), range(10), set(range(8)), NOBODY) == [0, 1]


def test_those_known_to_be_dead_are_not_asked() -> None:
    assert run(SolverChoice(8), range(10), set(range(8)), frozenset({0, 2})) == [1, 3]


def test_a_solver_that_dies_is_replaced_while_the_other_goes_on() -> None:
    choice = SolverChoice(8)
    run(choice, range(100), set(range(8)), NOBODY)
    for window in range(100, 110):
        asked = choice.choose(window, NOBODY)
        assert 1 in asked
        for node in set(asked) & set(range(1, 8)):
            choice.answered(node, window)
    assert choice.choose(110, NOBODY) == [1, 2]


def test_ten_solvers_in_a_row_may_die_and_somebody_always_answers() -> None:
    choice, living = SolverChoice(16), set(range(16))
    window = 0
    for victim in range(10):
        run(choice, range(window, window + 20), living, NOBODY)
        window += 20
        living.discard(victim)
        answered = [bool(set(choice.choose(w, NOBODY)) & living) for w in range(window, window + 8)]
        assert all(answered)
    assert run(choice, range(window, window + 20), living, NOBODY)[-2:] == [10, 11]


def test_who_comes_back_is_asked_again_and_nobody_is_given_up_for_him() -> None:
    choice = SolverChoice(8)
    run(choice, range(40), {2, 3, 4}, NOBODY)
    asked = run(choice, range(40, 41), {2, 3, 4}, NOBODY)
    assert {2, 3} <= set(asked)
    assert run(choice, range(41, 41 + 2 * LONGEST_PAUSE), set(range(8)), NOBODY) == [0, 1]


def test_when_all_are_silent_all_are_asked_in_turn() -> None:
    choice, asked = SolverChoice(8), set()
    for window in range(60):
        asked |= set(choice.choose(window, NOBODY))
    assert asked == set(range(8))
