"""The filter between windows, and the gates before it."""

from dataclasses import replace

import numpy as np
import pytest

from fabricctl.clock import kalman
from fabricctl.clock.fit import Fit
from fabricctl.clock.gates import Floors, GateRules, gated, learned

WANDER_PPB = 10.0


def followed(theta0: float, drift: float, seconds: int, sigma: float = 5.0) -> kalman.Clocks:
    rng = np.random.default_rng(2)
    clocks = kalman.first(1)
    for second in range(seconds):
        clocks = kalman.predicted(clocks, 1.0, WANDER_PPB)
        seen = theta0 + drift * second + rng.normal(0, sigma)
        clocks = kalman.measured(clocks, np.array([seen]), np.array([sigma]))
    return clocks


def test_offset_and_drift_are_followed() -> None:
    clocks = followed(1e7, 50_000.0, 20)
    assert clocks.theta_ns[0] == pytest.approx(1e7 + 50_000 * 19, abs=15)
    assert clocks.drift_ppb[0] == pytest.approx(50_000, abs=15)


def test_holdover_admits_that_it_knows_less_and_less() -> None:
    clocks = followed(0.0, 100.0, 20)
    nothing = np.array([np.nan])
    sigmas = []
    for _ in range(10):
        clocks = kalman.measured(kalman.predicted(clocks, 1.0, WANDER_PPB), nothing, nothing)
        sigmas.append(float(clocks.sigma_ns[0]))
    assert sigmas == sorted(sigmas)
    assert sigmas[-1] > 10 * sigmas[0]
    assert clocks.missed[0] == 10


def test_one_wild_measurement_is_not_believed() -> None:
    clocks = followed(0.0, 0.0, 20)
    after = kalman.measured(clocks, np.array([1e6]), np.array([5.0]))
    assert after.theta_ns[0] == clocks.theta_ns[0]
    assert after.missed[0] == 1


def test_a_clock_that_stepped_is_followed_after_two() -> None:
    clocks = followed(0.0, 0.0, 20)
    for _ in range(2):
        clocks = kalman.measured(clocks, np.array([5e6]), np.array([5.0]))
    assert clocks.theta_ns[0] == pytest.approx(5e6, abs=10)


@pytest.mark.parametrize("seed", range(20))
def test_rounding_leaves_no_uncertainty_that_is_less_than_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clocks = kalman.first(50)
    for _ in range(12):
        clocks = kalman.predicted(clocks, float(rng.choice([0.25, 0.5, 3.0])), 5.0)
        seen, sigma = rng.normal(0, 100, 50), 10 ** rng.uniform(-1, 5, 50)
        back_s = float(rng.uniform(0.25, 3.0))
        then, clocks = kalman.measured_before(clocks, back_s, seen, sigma, 5.0)
        for known in (then, clocks):
            assert (known.p_theta > 0).all()
            assert (known.p_drift > 0).all()
            assert (known.p_cross**2 <= known.p_theta * known.p_drift * (1 + 1e-6)).all()


def test_a_measurement_of_the_past_is_carried_to_now() -> None:
    clocks = followed(0.0, 1_000.0, 20)
    then, now = kalman.measured_before(
        clocks, 0.5, clocks.theta_ns - 500.0, np.array([1.0]), WANDER_PPB
    )
    assert now.theta_ns[0] - then.theta_ns[0] == pytest.approx(500, abs=10)


def fit(ceiling: float, floor: float, near_above: int = 20, near_below: int = 20) -> Fit:
    one = np.ones(1)
    return Fit(
        offset_ns=one * (ceiling + floor) / 2,
        slope_ppb=one * 0,
        ceiling_ns=one * ceiling,
        floor_ns=one * floor,
        sigma_ns=one * 3,
        near_above=np.array([near_above]),
        near_below=np.array([near_below]),
        used_above=np.array([100]),
        used_below=np.array([100]),
        hard_above_ns=one * ceiling,
        hard_below_ns=one * floor,
    )


RULES = GateRules()


def floors_of(margin: float) -> Floors:
    floors = Floors.unknown(1)
    for _ in range(10):
        floors = learned(floors, fit(margin, -margin), RULES, 0.5)
    return floors


def test_a_margin_above_its_floor_shuts_the_gate() -> None:
    floors = floors_of(5_000.0)
    assert gated(fit(5_000, -5_000), floors, RULES).usable[0]
    queued = gated(fit(9_000, -9_000, 1, 1), floors, RULES)
    assert not queued.usable[0]
    assert queued.excess_ns[0] == pytest.approx(4_000, abs=1)


def test_one_free_direction_and_the_floor_still_give_the_offset() -> None:
    floors = floors_of(5_000.0)
    # b is 70 ns ahead; towards b everything waits 30 us or more.
    seen = gated(fit(70 + 35_000, 70 - 5_000, near_above=1), floors, RULES)
    assert seen.usable[0]
    assert seen.one_sided[0]
    assert seen.offset_ns[0] == pytest.approx(70, abs=1)
    back = gated(fit(70 + 5_000, 70 - 35_000, near_below=1), floors, RULES)
    assert back.offset_ns[0] == pytest.approx(70, abs=1)
    unsure = replace(floors, age=np.array([2]))
    doubtful = gated(fit(35_070, -4_930, near_above=1), unsure, RULES)
    assert not doubtful.one_sided[0]
    assert doubtful.sigma_ns[0] > 5_000


def test_without_a_floor_a_thin_edge_is_worth_no_more_than_its_margin() -> None:
    thin = gated(fit(40_000, -40_000, 1, 1), Floors.unknown(1), RULES)
    assert thin.usable[0]
    assert thin.sigma_ns[0] >= 20_000
    assert thin.common_ns[0] == pytest.approx(20_000)


def test_a_floor_is_learned_from_free_windows_only() -> None:
    queued = learned(Floors.unknown(1), fit(9_000, -9_000, 1, 20), RULES, 0.5)
    assert np.isnan(queued.margin_ns[0])
    assert floors_of(5_000.0).margin_ns[0] == pytest.approx(5_000)


def test_a_shorter_path_is_learned_at_once_a_longer_one_after_a_while() -> None:
    floors = learned(floors_of(5_000.0), fit(4_000, -4_000), RULES, 0.5)
    assert floors.margin_ns[0] == pytest.approx(4_000)
    assert floors.age[0] == 1  # and believed when it was found again
    for _ in range(5):
        floors = learned(floors, fit(4_000, -4_000), RULES, 0.5)
    for _ in range(10):
        floors = learned(floors, fit(6_000, -6_000), RULES, 0.5)
    assert floors.margin_ns[0] == pytest.approx(4_000)
    for _ in range(60):
        floors = learned(floors, fit(6_000, -6_000), RULES, 0.5)
    assert floors.margin_ns[0] == pytest.approx(6_000)


def test_a_floor_found_only_once_is_replaced() -> None:
    floors = learned(Floors.unknown(1), fit(8, -8), RULES, 0.5)  # a window with a wrong slope
    for _ in range(5):
        floors = learned(floors, fit(5_000, -5_000), RULES, 0.5)
    assert floors.margin_ns[0] == pytest.approx(5_000)
    assert floors.age[0] >= RULES.confirmed


def test_a_wrong_drift_that_was_believed_is_found_again() -> None:
    clocks = replace(followed(0.0, 0.0, 20), drift_ppb=np.array([-459_000.0]))
    for second in range(1, 9):
        clocks = kalman.predicted(clocks, 1.0, WANDER_PPB)
        clocks = kalman.measured(clocks, np.array([14_000.0 * second]), np.array([5.0]))
    assert clocks.drift_ppb[0] == pytest.approx(14_000, abs=50)
    assert clocks.missed[0] == 0
