"""Counters, clocks, coverage and series: resets, holes and missing values never become zeros."""

import numpy as np
import pytest

from fabricctl.store import dtypes, schema
from fabricctl_analysis.align import node_clock
from fabricctl_analysis.counters import increments
from fabricctl_analysis.coverage import Span, gap_limit_ns, gaps, measured_spans
from fabricctl_analysis.rows import clean
from fabricctl_analysis.series import reduce_series
from fabricctl_analysis.spark import binned

S = 1_000_000_000
NOT_MEASURED = 2**64 - 1


def u64(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def seconds(*values: float) -> np.ndarray:
    return np.array([round(value * S) for value in values], dtype=np.int64)


def test_increments_of_large_counters_are_exact() -> None:
    found = increments(seconds(0, 1), u64(2**63, 2**63 + 5))
    assert found.total == 5


def test_a_reset_loses_its_interval_and_is_counted() -> None:
    found = increments(seconds(0, 1, 2, 3), u64(100, 110, 3, 7))
    assert np.isnan(found.amount[1])
    assert (found.total, found.resets) == (14, 1)


def test_a_missing_reading_is_bridged_and_counted() -> None:
    found = increments(seconds(0, 1, 2), u64(100, NOT_MEASURED, 130))
    assert found.amount.tolist() == [30]
    assert found.not_measured == 1
    assert (found.end_ns - found.begin_ns).tolist() == [2 * S]


def test_nothing_measured_has_no_total() -> None:
    assert np.isnan(increments(seconds(0, 1), u64(NOT_MEASURED, NOT_MEASURED)).total)
    assert np.isnan(increments(seconds(0), u64(5)).total)


def test_two_readings_of_one_instant_make_no_infinite_rate() -> None:
    found = increments(seconds(0, 0, 1), u64(1, 9, 11))
    assert np.isfinite(found.rate_per_s).all()


def clock_tables(mono_s: list[float], real_s: list[float]) -> dict[str, np.ndarray]:
    tables = {table.name: dtypes.empty(table) for table in schema.TABLES}
    rows = dtypes.empty(schema.CLOCK, len(mono_s))
    rows["time_mono_ns"], rows["time_real_ns"] = seconds(*mono_s), seconds(*real_s)
    rows["width_ns"] = 400
    tables["clock"] = rows
    return tables


def test_times_between_readings_are_interpolated_and_beyond_them_kept() -> None:
    clock = node_clock(clock_tables([10, 20], [1010, 1020.000_1]))
    assert clock is not None and clock.steps == ()
    assert (
        clock.real(seconds(5, 15, 25)).tolist() == seconds(1005, 1015.000_05, 1025.000_1).tolist()
    )
    assert clock.error_ns == 400 + 100_000


def test_a_clock_that_was_set_is_told_and_old_times_stay() -> None:
    clock = node_clock(clock_tables([10, 20, 30], [1010, 1025, 1035]))
    assert clock is not None
    (step,) = clock.steps
    assert step.size_ns == 5 * S
    assert clock.real(seconds(19)).tolist() == seconds(1019).tolist()
    assert clock.real(seconds(21)).tolist() == seconds(1026).tolist()


def test_without_clock_readings_rows_with_both_times_serve() -> None:
    tables = {table.name: dtypes.empty(table) for table in schema.TABLES}
    assert node_clock(tables) is None
    note = dtypes.empty(schema.NOTE, 1)
    note["time_mono_ns"], note["time_real_ns"] = 7 * S, 1007 * S
    tables["note"] = note
    clock = node_clock(tables)
    assert clock is not None and clock.error_ns is None
    assert clock.real(seconds(8)).tolist() == seconds(1008).tolist()


def test_impossible_times_do_not_move_the_clock() -> None:
    tables = clock_tables([10, 20], [1010, 1020])
    tables["clock"]["time_real_ns"][1] = -(2**63)
    clock = node_clock(tables)
    assert clock is not None
    assert clock.real(seconds(20)).tolist() == seconds(1020).tolist()


def test_gaps_are_what_samples_leave_open_with_both_edges() -> None:
    limit = gap_limit_ns(S)
    spans = measured_spans(seconds(10, 11, 12, 20, 21), limit)
    assert spans == [Span(10 * S, 12 * S), Span(20 * S, 21 * S)]
    assert gaps(spans, Span(0, 22 * S), limit) == [Span(0, 10 * S), Span(12 * S, 20 * S)]


def test_no_samples_are_one_gap() -> None:
    assert gaps([], Span(0, 5), 1) == [Span(0, 5)]


def test_reduced_series_keep_extremes_and_the_mean() -> None:
    at = np.arange(0, 10_001, dtype=np.int64) * S
    values = np.ones(10_000)
    values[1234] = 50
    series = reduce_series(at[:-1], at[1:], values, 3 * S, bins=100)
    assert len(series.mean) == 100
    assert np.nanmax(series.high) == 50 and np.nanmin(series.low) == 1
    assert series.mean.mean() == pytest.approx(values.mean())


def test_a_gap_is_not_drawn() -> None:
    series = reduce_series(seconds(0, 1, 9), seconds(1, 9, 10), np.ones(3), 3 * S)
    assert np.isnan(series.mean).tolist() == [False, True, False]


def test_parts_of_the_job_without_measurement_are_unknown_in_the_sparkline() -> None:
    series = reduce_series(seconds(0, 1), seconds(1, 2), np.array([2.0, 4.0]), 3 * S)
    found = binned(series, Span(0, 4 * S), 4)
    assert found[:2].tolist() == [2, 4] and np.isnan(found[2:]).all()


def test_texts_that_steer_terminals_or_turn_direction_are_disarmed() -> None:
    assert clean("a\x1b[31mb\u202ec\nd") == "a�[31mb�c�d"
    assert clean(b"\xff\x00ok") == "��ok"
    assert clean("rack-7 Ä ✓") == "rack-7 Ä ✓"
