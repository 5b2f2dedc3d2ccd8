"""The virtual clock: its error over time, and its file."""

import math

import pytest

from fabricctl.errors import DataError
from fabricctl.lab.vclock import VirtualClock, wander

BEGIN = 10**12


def test_offset_drift_and_step_add_up() -> None:
    clock = VirtualClock(BEGIN, offset_ns=-500, drift_ppb=1000.0, steps=((2.0, 7000),))
    assert clock.error_ns(BEGIN) == -500
    assert clock.error_ns(BEGIN + 10**9) == 500
    assert clock.error_ns(BEGIN + 2 * 10**9) == 8500


def test_wander_begins_at_zero_and_has_the_rate_that_was_asked_for() -> None:
    clock = VirtualClock(BEGIN, waves=wander(100.0, seed=5))
    assert clock.error_ns(BEGIN) == 0
    rates = [
        clock.error_ns(BEGIN + (s + 1) * 10**8) / 0.1 - clock.error_ns(BEGIN + s * 10**8) / 0.1
        for s in range(0, 60000, 7)
    ]
    rms = math.sqrt(sum(rate * rate for rate in rates) / len(rates))
    assert rms == pytest.approx(100, rel=0.1)


def test_the_seed_decides_the_wander() -> None:
    assert wander(100.0, 1) == wander(100.0, 1)
    assert wander(100.0, 1) != wander(100.0, 2)
    assert wander(0.0, 1) == ()


def test_a_clock_survives_its_file_to_the_last_bit() -> None:
    clock = VirtualClock(BEGIN, 5, 0.1, wander(3.0, 2), ((0.5, -4), (1.0, 2)))
    assert VirtualClock.parse(clock.text()) == clock
    assert VirtualClock.parse(VirtualClock(BEGIN).text()) == VirtualClock(BEGIN)


@pytest.mark.parametrize(
    "text", ["", "v=2\nbegin_mono_ns=1", "v=1", VirtualClock(1).text().replace("=1\n", "=x\n")]
)
def test_what_is_no_clock_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        VirtualClock.parse(text)
