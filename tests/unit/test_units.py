import math

import pytest

from fabricctl.units import format_bytes, format_duration, format_rate


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (math.nan, "-")],
)
def test_bytes_are_binary(value: float, text: str) -> None:
    assert format_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 bit/s"), (125e6, "1.00 Gbit/s"), (1.25e3, "10.00 kbit/s"), (math.nan, "-")],
)
def test_rates_are_decimal_bits(value: float, text: str) -> None:
    assert format_rate(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (25e-9, "25 ns"),
        (3.2e-5, "32 us"),
        (0.0123, "12.3 ms"),
        (3.017, "3.02 s"),
        (75, "1 min 15 s"),
        (7260, "2 h 1 min"),
        (-75, "-1 min 15 s"),
        (math.nan, "-"),
    ],
)
def test_durations_choose_their_unit(value: float, text: str) -> None:
    assert format_duration(value) == text
