"""One edge, one window: the band, its refinement, and what it refuses to say."""

import numpy as np
import pytest

from fabricctl.clock.fit import Window, fit_edges

RNG = np.random.default_rng(3)
NOISE_NS = 14.0
NEAR_NS = 4 * NOISE_NS


def window(offset: float, slope: float, free: float, edges: int = 50, count: int = 100) -> Window:
    """Edges with a floor of 5 us, ``free``: the share of samples that wait in no queue."""
    at = RNG.uniform(-0.5, 0.5, (2, edges, count))

    def delay() -> np.ndarray:
        wait = np.where(
            RNG.random((edges, count)) < free, 0.0, RNG.exponential(20_000, (edges, count))
        )
        return 5_000 + wait + RNG.normal(0, NOISE_NS, (edges, count))

    above = offset + slope * at[0] + delay()
    below = offset + slope * at[1] - delay()
    return Window(at[0], above, at[1], below)


@pytest.mark.parametrize("free", [0.1, 0.3, 1.0])
def test_offset_and_drift_are_found_through_queueing(free: float) -> None:
    fit = fit_edges(window(1_234.0, -80.0, free), NEAR_NS)
    assert np.abs(fit.offset_ns - 1_234).mean() < 5
    assert np.abs(fit.slope_ppb + 80).mean() < 20
    assert np.abs(fit.margin_ns - 5_000).mean() < 10


def test_the_claimed_error_is_the_error() -> None:
    fit = fit_edges(window(0.0, 0.0, 0.1, edges=500), NEAR_NS)
    ratio = fit.offset_ns / fit.sigma_ns
    assert 0.5 < ratio.std() < 1.6


def test_exchanging_the_clocks_changes_the_sign_and_nothing_else() -> None:
    seen = window(500.0, 30.0, 0.2)
    one, other = fit_edges(seen, NEAR_NS), fit_edges(seen.mirrored(), NEAR_NS)
    assert np.allclose(one.offset_ns, -other.offset_ns, atol=1e-3)
    assert np.allclose(one.slope_ppb, -other.slope_ppb, atol=1e-3)
    assert np.allclose(one.margin_ns, other.margin_ns, atol=1e-3)


def test_the_hard_bounds_hold_the_truth_whatever_the_network_does() -> None:
    seen = window(0.0, 0.0, 0.02)
    one_way = Window(seen.above_s, seen.above_ns + 30_000, seen.below_s, seen.below_ns)
    fit = fit_edges(one_way, NEAR_NS, slope_sigma_ppb=1.0)
    assert (fit.hard_above_ns > 0).all()
    assert (fit.hard_below_ns < 0).all()


def test_a_few_early_stamps_do_not_hold_the_band() -> None:
    seen = window(0.0, 0.0, 0.3)
    early = seen.above_ns.copy()
    early[:, :2] = 4_500.0
    fit = fit_edges(Window(seen.above_s, early, seen.below_s, seen.below_ns), NEAR_NS, 100.0)
    assert np.abs(fit.offset_ns).mean() < 20


def test_a_known_drift_keeps_sparse_samples_from_turning_the_line() -> None:
    free = fit_edges(window(0.0, 0.0, 0.02), NEAR_NS)
    held = fit_edges(window(0.0, 0.0, 0.02), NEAR_NS, slope_sigma_ppb=10.0)
    assert np.abs(held.slope_ppb).max() <= 31
    assert np.abs(held.slope_ppb).mean() < np.abs(free.slope_ppb).mean()


def test_an_edge_heard_in_one_direction_only_says_nothing() -> None:
    seen = window(0.0, 0.0, 1.0, edges=2)
    below = seen.below_ns.copy()
    below[1] = -np.inf
    fit = fit_edges(Window(seen.above_s, seen.above_ns, seen.below_s, below), NEAR_NS)
    assert np.isfinite(fit.offset_ns[0])
    assert np.isnan([fit.offset_ns[1], fit.slope_ppb[1], fit.hard_above_ns[1]]).all()
    assert fit.used_below[1] == 0


def test_the_hard_bounds_hold_whatever_drift_was_believed() -> None:
    seen = window(0.0, 40_000.0, 0.3)  # the filter believes in no drift at all
    fit = fit_edges(seen, NEAR_NS, slope_sigma_ppb=1.0)
    assert (fit.hard_above_ns > 0).all()
    assert (fit.hard_below_ns < 0).all()
    right = fit_edges(seen, NEAR_NS, slope_sigma_ppb=1.0, slope_ppb=40_000.0)
    assert np.allclose(fit.hard_above_ns, right.hard_above_ns, atol=5)


def test_the_hard_bounds_are_the_hull_of_the_samples_at_the_centre() -> None:
    at = np.array([[-0.5, -0.2, 0.1, 0.5]])
    above = np.array([[100.0, 500.0, 900.0, 300.0]])  # the hull passes from -0.5 to 0.5
    fit = fit_edges(Window(at, above, at, -above), NEAR_NS)
    assert fit.hard_above_ns[0] == pytest.approx(200.0, abs=1)
    assert fit.hard_below_ns[0] == pytest.approx(-200.0, abs=1)
