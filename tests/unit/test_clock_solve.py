"""The probe graph and the solve over it: network effect, liars, refusals."""

import numpy as np
import pytest

from fabricctl.clock import bounds, peers
from fabricctl.clock.edges import REPORT
from fabricctl.clock.solve import Edges, largest_part, solve
from fabricctl.clock.solver import Answer, NodeReport, Solver

NODES = [f"n{i:03}" for i in range(64)]


def graph(truth: np.ndarray, noise: float = 10.0, seed: int = 5) -> Edges:
    rng = np.random.default_rng(seed)
    index = {name: i for i, name in enumerate(NODES)}
    pairs = peers.edges(seed, 0, NODES)
    a = np.array([index[a] for a, _ in pairs])
    b = np.array([index[b] for _, b in pairs])
    offset = truth[b] - truth[a] + rng.normal(0, noise, len(a))
    return Edges(64, a, b, offset, np.full(len(a), noise), np.zeros(len(a)))


TRUTH = np.random.default_rng(1).normal(0, 1e6, 64)
TRUTH -= TRUTH.mean()


def all_of(edges: Edges) -> np.ndarray:
    return np.ones(len(edges.a), bool)


def test_many_noisy_edges_know_the_clocks_better_than_one() -> None:
    edges = graph(TRUTH)
    found = solve(edges, all_of(edges))
    error = found.theta_ns - TRUTH
    assert error.std() < 5
    assert 0.5 < (error / found.sigma_ns).std() < 1.5


def test_edges_that_contradict_their_loops_are_rejected() -> None:
    edges = graph(TRUTH)
    offset = edges.offset_ns.copy()
    offset[::30] += 700.0
    lying = Edges(64, edges.a, edges.b, offset, edges.sigma_ns, edges.common_ns)
    found = solve(lying, all_of(edges))
    assert not found.used[::30].any()
    assert found.used.mean() > 0.94
    assert np.abs(found.theta_ns - TRUTH).max() < 25


def test_a_node_whose_edges_all_fail_is_not_solved() -> None:
    edges = graph(TRUTH)
    usable = (edges.a != 7) & (edges.b != 7)
    found = solve(edges, usable)
    assert np.isnan(found.theta_ns[7])
    assert np.isnan(found.sigma_ns[7])
    assert found.solved.sum() == 63


def test_a_window_that_ties_no_majority_together_is_refused() -> None:
    edges = graph(TRUTH)
    usable = (edges.a < 30) & (edges.b < 30)
    assert largest_part(edges, usable).sum() > 20
    assert not solve(edges, usable).solved.any()
    assert solve(edges, usable, alive=30).solved.any()


def test_nothing_measured_solves_nothing() -> None:
    edges = graph(TRUTH)
    found = solve(edges, np.zeros(len(edges.a), bool))
    assert not found.solved.any()


def test_who_joins_does_not_move_job_time() -> None:
    truth = np.zeros(64)
    truth[9] = 1e7  # new, not yet corrected
    edges = graph(truth)
    anchor = np.full(64, 1 / 5.0**2)
    anchor[9] = 1e-18
    found = solve(edges, all_of(edges), anchor=anchor)
    assert np.abs(np.delete(found.theta_ns, 9)).max() < 15
    assert abs(found.theta_ns[9] - 1e7) < 15


def test_an_erring_clock_that_is_sure_of_itself_does_not_move_job_time() -> None:
    truth = np.zeros(64)
    truth[9] = 50_000.0  # its prediction was wrong, and it does not know
    edges = graph(truth)
    anchor = np.full(64, 1 / 30.0**2)
    anchor[9] = 1.0
    found = solve(edges, all_of(edges), anchor=anchor)
    assert np.abs(np.delete(found.theta_ns, 9)).max() < 20
    assert abs(found.theta_ns[9] - 50_000) < 20


def test_a_long_chain_is_solved_too() -> None:
    a, b = np.arange(63), np.arange(1, 64)
    edges = Edges(64, a, b, TRUTH[b] - TRUTH[a], np.full(63, 10.0), np.zeros(63))
    assert np.abs(solve(edges, np.ones(63, bool)).theta_ns - TRUTH).max() < 1


def test_shared_queueing_is_not_averaged_away() -> None:
    edges = graph(TRUTH)
    queued = (edges.a == 3) | (edges.b == 3)
    common = np.where(queued, 100.0, 0.0)
    sigma = np.hypot(edges.sigma_ns, common)
    found = solve(
        Edges(64, edges.a, edges.b, edges.offset_ns, sigma, common), np.ones(len(edges.a), bool)
    )
    assert found.sigma_ns[3] > 100
    assert np.median(found.sigma_ns) < 10


def all_alike(nodes: int) -> np.ndarray:
    """Job time made of all clocks alike."""
    return np.full(nodes, 1 / nodes)


def test_a_clock_that_job_time_is_not_made_of_does_not_move_the_bounds() -> None:
    pairs = peers.edges(1, 0, NODES[:8])
    a = np.array([NODES.index(a) for a, _ in pairs])
    b = np.array([NODES.index(b) for _, b in pairs])
    edges = Edges(8, a, b, np.zeros(28), np.ones(28), np.zeros(28))
    lost = (a == 3) | (b == 3)  # solved 4 ms wrong; its edges say so
    above = np.where(lost, np.where(b == 3, 5e6, 1e5), 1_000.0)
    below = np.where(lost, np.where(b == 3, -1e5, -5e6), -1_000.0)
    gauge = np.where(np.arange(8) == 3, 0, 1 / 7)
    found = bounds.hard(edges, above, below, gauge)
    least, most = found.least_ns, found.most_ns
    others = np.arange(8) != 3
    assert most[others] == pytest.approx(np.full(7, 6_000 / 7))
    assert least[others] == pytest.approx(np.full(7, -6_000 / 7))


def test_hard_bounds_add_up_along_paths_and_hold() -> None:
    edges = graph(np.zeros(64), noise=0.001)
    found = bounds.hard(
        edges, np.full(len(edges.a), 3_000.0), np.full(len(edges.a), -2_000.0), all_alike(64)
    )
    least, most = found.least_ns, found.most_ns
    assert (most > 2_000).all()
    assert (most < 9_000).all()
    assert (least < 0).all()


def test_all_pairs_are_bounded_by_half_a_round_trip() -> None:
    pairs = peers.edges(1, 0, NODES[:8])
    a = np.array([NODES.index(a) for a, _ in pairs])
    b = np.array([NODES.index(b) for _, b in pairs])
    edges = Edges(8, a, b, np.zeros(28), np.ones(28), np.zeros(28))
    found = bounds.hard(edges, np.full(28, 4_000.0), np.full(28, -4_000.0), all_alike(8))
    least, most = found.least_ns, found.most_ns
    assert most == pytest.approx(np.full(8, 3_500.0))  # 7 of the 8 clocks of the mean are others
    assert least == pytest.approx(np.full(8, -3_500.0))


def test_a_clock_behind_a_full_port_does_not_make_the_others_unsure() -> None:
    pairs = peers.edges(1, 0, NODES[:8])
    a = np.array([NODES.index(a) for a, _ in pairs])
    b = np.array([NODES.index(b) for _, b in pairs])
    edges = Edges(8, a, b, np.zeros(28), np.ones(28), np.zeros(28))
    wide = np.where((a == 3) | (b == 3), 8e6, 1_000.0)
    found = bounds.hard(edges, wide, -wide, all_alike(8))
    others = np.arange(8) != 3
    assert found.gauge[3] == 0
    assert found.gauge.sum() == pytest.approx(1)
    assert found.most_ns[others] == pytest.approx(np.full(7, 6_000 / 7))
    assert found.most_ns[3] == pytest.approx(8e6)


def test_edges_of_an_owner_whose_clock_was_wrong_bound_with_room_for_that() -> None:
    # Node 0 does not know yet that it is 10 ms off: what it says of "the window's centre" is of
    # 10 ms later, and its clock runs 100 ppm faster than the others by then: 1 us.
    ahead_ns, drift_ppb = 1e7, 1e5
    slipped_ns = ahead_ns * drift_ppb * 1e-9
    solver = Solver(3, 0.25, 50.0)
    for node, peers_of, theta in ((0, (1, 2), 0.0), (1, (2,), 0.0), (2, (), 0.0)):
        table = np.zeros(len(peers_of), REPORT)
        table["a"], table["b"], table["usable"], table["sigma_ns"] = node, peers_of, 1, 10.0
        table["offset_ns"] = -ahead_ns - slipped_ns if node == 0 else 0.0
        table["slope_ppb"] = -drift_ppb if node == 0 else 0.0
        table["hard_above_ns"], table["hard_below_ns"] = 300.0, -300.0
        solver.add(NodeReport(node, 8, theta, 1.0 if node else 1e18, node > 0, table), 8)
    answer = solver.solve()[0]
    assert answer.theta_ns + answer.least_ns <= ahead_ns <= answer.theta_ns + answer.most_ns
    assert answer.most_ns - answer.least_ns < 5_000


def told(
    node: int, *, base: int, own: bool, settled: bool = False, off_ns: float = 0.0
) -> NodeReport:
    """Of three nodes in a ring, whose clocks agree but for ``off_ns``."""
    table = np.zeros(1, REPORT)
    table["a"], table["b"], table["usable"], table["sigma_ns"] = node, (node + 1) % 3, 1, 10.0
    table["hard_above_ns"], table["hard_below_ns"] = 300.0, -300.0
    return NodeReport(node, 8, -off_ns, 100.0, settled, table, base, own)


def solved(*reports: NodeReport) -> list[Answer]:
    solver = Solver(3, 0.25, 50.0)
    for report in reports:
        solver.add(report, 8)
    return solver.solve()


def test_before_anybody_is_settled_only_a_clock_that_follows_none_is_job_time() -> None:
    followers = [told(node, base=50, own=False) for node in (0, 1, 2)]
    assert solved(*followers) == []  # another time under the same name
    answers = solved(*followers[:2], told(2, base=50, own=True))
    assert [answer.base for answer in answers] == [50] * 3
    assert all(answer.agreed for answer in answers)


def test_a_time_is_agreed_on_when_most_follow_it() -> None:
    beginners = [told(node, base=50 + node, own=True) for node in (0, 1, 2)]
    assert {(a.base, a.agreed) for a in solved(*beginners)} == {(50, False)}
    assert all(a.agreed for a in solved(*beginners[:2], told(2, base=50, own=False)))


def test_most_of_the_settled_say_which_time_it_is() -> None:
    reports = [told(0, base=9, own=True, settled=True)]
    reports += [told(node, base=50, own=False, settled=True) for node in (1, 2)]
    assert {answer.base for answer in solved(*reports)} == {50}


@pytest.mark.parametrize(
    ("settled", "off_ns", "certain"),
    [(3, 0.0, True), (2, 0.0, True), (1, 0.0, False), (2, 9_000.0, False)],
)
def test_nothing_is_certain_unless_most_are_settled_and_say_the_same(
    settled: int, off_ns: float, certain: bool
) -> None:
    """Or the next window's mean of those who count is another one."""
    reports = [
        told(node, base=50, own=node == 0, settled=node < settled, off_ns=off_ns * (node == 1))
        for node in (0, 1, 2)
    ]
    answers = solved(*reports)
    assert len(answers) == 3
    assert all(np.isfinite(answer.most_ns - answer.least_ns) == certain for answer in answers)


def test_a_node_that_nothing_reaches_is_not_bounded() -> None:
    edges = Edges(3, np.array([0]), np.array([1]), np.zeros(1), np.ones(1), np.zeros(1))
    found = bounds.hard(edges, np.array([10.0]), np.array([-10.0]), np.array([0.5, 0.5, 0]))
    least, most = found.least_ns, found.most_ns
    assert np.isinf(most[2])
    assert np.isinf(least[2])
    assert np.isfinite(most[:2]).all()


def test_large_graphs_are_bounded_by_way_of_a_centre() -> None:
    names = [f"m{i}" for i in range(300)]
    index = {name: i for i, name in enumerate(names)}
    pairs = peers.edges(1, 0, names)
    a, b = (np.array([index[pair[end]] for pair in pairs]) for end in (0, 1))
    count = len(pairs)
    edges = Edges(300, a, b, np.zeros(count), np.ones(count), np.zeros(count))
    above, below = np.full(count, 1_000.0), np.full(count, -1_000.0)
    found = bounds.hard(edges, above, below, all_alike(300))
    assert (found.most_ns <= 8_000).all()
    assert (found.least_ns >= -8_000).all()
    # One behind a full port: the others are as sure as before.
    lost = (a == 7) | (b == 7)
    wide = bounds.hard(
        edges, np.where(lost, 5e6, above), np.where(lost, -5e6, below), all_alike(300)
    )
    others = np.arange(300) != 7
    assert wide.gauge[7] == 0
    assert (wide.most_ns[others] <= 8_000).all()
    assert wide.most_ns[7] > 4e6


def test_the_probe_graph_is_sparse_connected_and_the_same_everywhere() -> None:
    pairs = peers.edges(4711, 1, NODES)
    assert pairs == peers.edges(4711, 1, list(reversed(NODES)))
    degrees = [len(peers.neighbours(pairs, node)) for node in NODES]
    assert max(degrees) <= 10
    assert np.mean(degrees) > 8
    a, b = (np.array([NODES.index(pair[end]) for pair in pairs]) for end in (0, 1))
    edges = Edges(64, a, b, a * 0.0, a * 0.0, a * 0.0)
    assert largest_part(edges, np.ones(len(a), bool)).all()


def test_rails_and_jobs_have_graphs_of_their_own() -> None:
    assert peers.edges(1, 0, NODES) != peers.edges(1, 1, NODES)
    assert peers.edges(1, 0, NODES) != peers.edges(2, 0, NODES)


def test_small_jobs_probe_all_pairs() -> None:
    assert len(peers.edges(1, 0, NODES[:11])) == 55
    assert peers.edges(1, 0, NODES[:1]) == []


def test_the_graph_heals_around_the_dead_and_moves_nobody_else() -> None:
    before = set(peers.edges(1, 0, NODES))
    after = set(peers.edges(1, 0, NODES, dead=["n005"]))
    assert not any("n005" in pair for pair in after)
    assert len(after - before) <= 5
    assert all("n005" in pair for pair in before - after)
