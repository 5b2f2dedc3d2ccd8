"""The clock page: job time for programs, in Python and C."""

import multiprocessing
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fabricctl import clock
from fabricctl.clock.page import ROW, SYNCHRONISED, ClockPage, Line, PageWriter
from fabricctl.errors import ClockError
from tests.support.clock_page import sure

_page = pytest.importorskip("fabricctl.clock._page", reason="built without a C compiler")
ROOT = Path(__file__).parents[2]
CPAGE = ROOT / "fabricctl" / "clock" / "cpage"


def raw_now() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


JOB0 = 1_700_000_000_000_000_000


@pytest.fixture
def pair(tmp_path: Path) -> tuple[PageWriter, ClockPage, Line]:
    """A page whose job time began at JOB0 when its line did, running 10 ppm fast."""
    writer = PageWriter(tmp_path / "clock", 7, 3)
    line = Line(raw_now(), JOB0, 1e-5)
    return writer, ClockPage(tmp_path / "clock"), line


def test_before_anything_is_known_there_is_no_time(
    pair: tuple[PageWriter, ClockPage, Line],
) -> None:
    with pytest.raises(ClockError, match="no job time yet"):
        pair[1].now()


def test_a_reading_is_an_interval_around_the_line(
    pair: tuple[PageWriter, ClockPage, Line],
) -> None:
    writer, page, line = pair
    writer.write(line, sure(raw_now()))
    before = line.at(raw_now())
    reading = page.now()
    assert before <= reading.time_ns <= line.at(raw_now())
    assert 700 <= reading.time_ns - reading.earliest_ns < 800
    assert 600 <= reading.latest_ns - reading.time_ns < 700
    assert 53 <= reading.likely_ns < 70
    assert reading.status == SYNCHRONISED


def test_job_time_never_steps_nor_runs_back(pair: tuple[PageWriter, ClockPage, Line]) -> None:
    writer, page, line = pair
    writer.write(line, sure(raw_now()))
    seen = []
    for off_ns in (5_000, -20_000, 90_000, -300_000):
        line, written = replace(line, job_ns=line.job_ns + off_ns), raw_now()
        writer.write(line, sure(raw_now()))
        end, enough = time.monotonic() + 0.05, len(seen) + 100
        while time.monotonic() < end or len(seen) < enough:
            raw = raw_now()
            seen.append((page.now().time_ns, raw))
    job, raw = np.array(seen).T
    assert (np.diff(job) > 0).all()
    rate = np.diff(job) / np.maximum(np.diff(raw), 1)
    assert abs(np.median(rate) - 1) < 3e-3
    soon = written + 20_000_000
    assert abs(page.at(soon).time_ns - line.at(soon)) > 100_000  # still on its way, and says so
    assert page.at(soon).likely_ns > 100_000


def test_a_writer_that_was_held_up_moves_no_time_that_was_read(
    pair: tuple[PageWriter, ClockPage, Line],
) -> None:
    writer, page, line = pair
    writer.write(line, sure(raw_now()))
    time.sleep(0.002)
    read: list[tuple[int, int]] = []

    class Held(Line):
        """50 ms pass as it is asked for the first time, in which somebody reads."""

        def at(self, raw_ns: int) -> int:
            if not read:
                time.sleep(0.05)
                now_ns = raw_now()
                read.append((now_ns, page.at(now_ns).time_ns))
            return super().at(raw_ns)

    writer.write(Held(line.raw_ns, line.job_ns - 50_000, line.rate), sure(raw_now()))
    at_ns, time_ns = read[0]
    assert abs(page.at(at_ns).time_ns - time_ns) <= 2


def test_a_correction_is_complete_after_its_slew(
    pair: tuple[PageWriter, ClockPage, Line],
) -> None:
    writer, page, line = pair
    writer.write(line, sure(raw_now()))
    line = replace(line, job_ns=line.job_ns + 10_000)
    writer.write(line, sure(raw_now()))
    time.sleep(0.12)
    raw = raw_now()
    assert line.at(raw) - 1 <= page.now().time_ns <= line.at(raw_now()) + 1
    assert page.body().job_ns(raw) == pytest.approx(line.at(raw), abs=1)


def test_bounds_grow_and_the_status_changes_when_nobody_writes(
    pair: tuple[PageWriter, ClockPage, Line],
) -> None:
    writer, page, line = pair
    walks = {"p_drift": 100.0, "wander2": 100.0, "hard_drift_ppb": 50.0}
    writer.write(line, sure(raw_now() - 10**10, holdover_raw_ns=raw_now(), **walks))
    reading = page.now()
    assert reading.status == 2
    assert reading.latest_ns - reading.time_ns > 1_000
    with pytest.raises(ClockError, match=r"holding over, known to \d+ ns only; 1000 were asked"):
        page.now(within_ns=1_000)


def test_an_agent_that_comes_back_goes_on_with_the_same_time(
    pair: tuple[PageWriter, ClockPage, Line], tmp_path: Path
) -> None:
    writer, page, line = pair
    writer.write(line, sure(raw_now()))
    writer.close()
    again = PageWriter(tmp_path / "clock", 7, 3)
    assert page.now().time_ns > JOB0
    soon = raw_now() + 20_000_000
    again.write(replace(line, job_ns=line.job_ns + 50_000), sure(raw_now()))
    assert abs(page.at(soon).time_ns - line.at(soon)) < 40_000  # not there at once


def test_another_job_begins_anew(pair: tuple[PageWriter, ClockPage, Line], tmp_path: Path) -> None:
    writer, _, line = pair
    writer.write(line, sure(raw_now()))
    other = PageWriter(tmp_path / "clock", 8, 3)
    other.write(Line(raw_now(), JOB0 // 2, 0.0), sure(raw_now()))
    assert ClockPage(tmp_path / "clock").now().time_ns < JOB0


def test_past_stamps_of_every_clock_are_converted(
    pair: tuple[PageWriter, ClockPage, Line],
) -> None:
    writer, page, line = pair
    writer.write(line, sure(raw_now()))
    writer.add_row()
    instants = []
    for _ in range(5):
        time.sleep(0.02)
        instants.append(_page.instant())
        writer.add_row()
    raw, mono, real, tsc, width = np.array(instants, dtype=np.int64).T
    want = [line.at(int(r)) for r in raw]
    for name, stamps in (("raw", raw), ("mono", mono), ("real", real), ("tsc", tsc)):
        job, error = page.to_job(stamps, name)
        assert np.abs(job - want).max() < 300 + width.max(), name
        assert (error > 50).all()


def test_stamps_that_cannot_be_converted_are_refused(
    pair: tuple[PageWriter, ClockPage, Line],
) -> None:
    writer, page, line = pair
    writer.write(line, sure(raw_now()))
    writer.add_row()
    writer.add_row()
    with pytest.raises(ClockError, match="older than"):
        page.to_job([1], "mono")
    with pytest.raises(ClockError, match="no clock 'wall'"):
        page.to_job([1], "wall")


STEPPED_AT_S = 4.3


def stepped(page: ClockPage, step_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of ten seconds in which CLOCK_REALTIME was set; job time begins with raw time."""
    at_ns = np.arange(10) * 1_000_000_000 + 7_000_000_000
    rows = np.zeros(10, ROW)
    rows["raw_ns"] = rows["mono_ns"] = rows["job_ns"] = at_ns
    rows["real_ns"] = at_ns + JOB0 + (at_ns > (STEPPED_AT_S + 7) * 1e9) * round(step_s * 1e9)
    rows["likely_ns"] = 100.0
    monkeypatch.setattr(page, "rows", lambda: rows[:-1])
    monkeypatch.setattr(page, "_instant", lambda: rows[-1:])


@pytest.mark.parametrize("step_s", [2e-4, 0.5, 3600.0, -2e-4, -0.5])
def test_stamps_around_a_step_of_the_system_clock_are_as_unsure_as_it_is_long(
    pair: tuple[PageWriter, ClockPage, Line], step_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped(pair[1], step_s, monkeypatch)
    true_ns = np.arange(0, 9_000, 50) * 1_000_000 + 7_000_000_000
    real_ns = true_ns + JOB0 + (true_ns > (STEPPED_AT_S + 7) * 1e9) * round(step_s * 1e9)
    job_ns, error_ns = pair[1].to_job(real_ns, "real")
    assert (np.abs(job_ns - true_ns) <= error_ns).all()
    assert (error_ns[:60] == 100).all()
    assert (error_ns[120:] == 100).all()


def test_a_system_clock_that_was_set_back_by_seconds_is_not_converted(
    pair: tuple[PageWriter, ClockPage, Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped(pair[1], -3.0, monkeypatch)
    with pytest.raises(ClockError, match="real was set back"):
        pair[1].to_job([JOB0 + 9_000_000_000], "real")
    assert len(pair[1].to_job([9_000_000_000], "mono")[0]) == 1


def test_everybody_may_read_the_page_and_its_owner_alone_writes_it(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        PageWriter(tmp_path / "clock", 7, 3)
    finally:
        os.umask(before)
    assert (tmp_path / "clock").stat().st_mode & 0o777 == 0o644


def test_rows_wrap_around(pair: tuple[PageWriter, ClockPage, Line]) -> None:
    writer, page, line = pair
    writer.write(line, sure(raw_now()))
    for _ in range(_page.ROWS + 20):
        writer.add_row()
    rows = page.rows()
    assert len(rows) == _page.ROWS - 2
    assert (np.diff(rows["raw_ns"]) > 0).all()


def test_what_is_no_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClockError, match="no job clock at"):
        ClockPage(tmp_path / "none")
    (tmp_path / "small").write_bytes(b"x" * 10)
    with pytest.raises(ClockError, match="no job clock at"):
        ClockPage(tmp_path / "small")
    (tmp_path / "other").write_bytes(bytes(_page.PAGE_BYTES))
    with pytest.raises(ClockError, match="not a clock page of version 1"):
        ClockPage(tmp_path / "other")


def test_programs_find_the_clock_of_their_job(
    pair: tuple[PageWriter, ClockPage, Line], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, _, line = pair
    writer.write(line, sure(raw_now()))
    monkeypatch.setattr(clock, "_own", None)
    monkeypatch.delenv("FABRIC_JOB_DIR", raising=False)
    with pytest.raises(ClockError, match="not in a protected job"):
        clock.now()
    monkeypatch.setenv("FABRIC_JOB_DIR", str(tmp_path))
    a = clock.now()
    time.sleep(0.001)
    b = clock.now()
    assert clock.compare(a, b) == -1
    assert clock.compare(b, a) == 1
    assert clock.compare(a, a) == 0
    monkeypatch.setattr(clock, "_own", None)


def _scribble(path: Path, seconds: float) -> None:
    """Writes lines that all tell the same time, as fast as it can."""
    writer, end = PageWriter(path, 7, 3), time.monotonic() + seconds
    while time.monotonic() < end:
        raw = raw_now()
        writer.write(Line(raw, raw + JOB0, 0.0), sure(raw))


def test_readers_never_see_half_a_page(tmp_path: Path) -> None:
    path = tmp_path / "clock"
    raw = raw_now()
    writer = PageWriter(path, 7, 3)
    writer.write(Line(raw, raw + JOB0, 0.0), sure(raw))
    writer.add_row()
    child = multiprocessing.get_context("spawn").Process(target=_scribble, args=(path, 0.8))
    child.start()
    page = ClockPage(path)
    while child.is_alive():
        before = raw_now()
        reading = page.now()
        assert before - 2 <= reading.time_ns - JOB0 <= raw_now() + 2
        assert abs(int(page.to_job([before], "raw")[0][0]) - JOB0 - before) <= 2
    child.join()


def test_the_c_library_reads_the_same_time(
    pair: tuple[PageWriter, ClockPage, Line], tmp_path: Path
) -> None:
    writer, _, line = pair
    (tmp_path / "read.c").write_text(
        """
        #include "fabric_clock.h"
        #include <stdio.h>
        int main(int count, char **word)
        {
            struct fabric_clock *clock = fabric_clock_open(count > 1 ? word[1] : NULL);
            struct fabric_clock_reading r;
            if (!clock) return 3;
            if (fabric_clock_now(clock, &r)) return 4;
            printf("%ld %ld %ld %ld %d\\n", (long)r.time_ns, (long)r.earliest_ns,
                   (long)r.latest_ns, (long)r.likely_ns, r.status);
            fabric_clock_close(clock);
            return 0;
        }"""
    )
    source, program = str(CPAGE / "fabric_clock.c"), str(tmp_path / "read")
    command = ["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Werror", f"-I{CPAGE}"]
    subprocess.run([*command, str(tmp_path / "read.c"), source, "-lm", "-o", program], check=True)
    file = str(tmp_path / "clock")
    assert subprocess.run([program, file], check=False).returncode == 4
    assert subprocess.run([program, "/nonexistent"], check=False).returncode == 3
    writer.write(line, sure(raw_now()))
    before = line.at(raw_now())
    shown = subprocess.run([program, file], check=True, capture_output=True, text=True).stdout
    time_ns, earliest, latest, likely, status = map(int, shown.split())
    assert before <= time_ns <= line.at(raw_now())
    bounds = (time_ns - earliest, latest - time_ns)
    assert bounds == pytest.approx((701, 601), abs=200)  # 5 ppb: 40 s
    assert likely >= 53
    assert status == SYNCHRONISED
