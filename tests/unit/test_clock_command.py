"""``fabricctl clock``: what it says of a page, and which job's page it reads."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("fabricctl.clock._page", reason="built without a C compiler")

from fabricctl.clock.page import Line, PageWriter
from tests.support.clock_page import sure

PROGRAM = [sys.executable, "-m", "fabricctl.cli.main", "clock"]
AHEAD_NS = 5_000_000  # of the system clock, which job time is behind
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def call(*args: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("FABRIC")}
        return subprocess.run(
            [*PROGRAM, *args],
            env={**clean, "FABRICCTL_NODE_RUN_DIR": str(tmp_path), **environ},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return call


def keep(tmp_path: Path, job: int, *, synchronised: bool = True) -> Path:
    """A job's page on this node; its directory."""
    directory = tmp_path / "jobs" / str(job)
    directory.mkdir(parents=True)
    writer = PageWriter(directory / "clock", job, 2)
    if synchronised:
        raw_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        writer.write(Line(raw_ns, time.time_ns() - AHEAD_NS, 1e-5), sure(raw_ns, stamps=4))
        writer.add_row()
    writer.close()
    return directory


def test_now_is_job_time_with_its_interval(run: Run, tmp_path: Path) -> None:
    keep(tmp_path, 7)
    done = run("now", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    given = json.loads(done.stdout)
    assert (given["version"], given["job"], given["status"]) == (1, 7, "synchronised")
    assert given["earliest_ns"] <= given["time_ns"] - 700
    assert given["time_ns"] + 600 <= given["latest_ns"]
    assert abs(given["time_ns"] - time.time_ns()) < 60e9
    words = run("now").stdout
    assert words.endswith(", synchronised\n")
    assert "ns, likely within " in words
    # 700 and 600 ns, and they grow with age: on a busy machine to us.
    assert re.search(r", certainly within -[\d.]+ [nu]s \+[\d.]+ [nu]s, ", words), words


def test_now_refuses_when_it_is_not_sure_enough(run: Run, tmp_path: Path) -> None:
    keep(tmp_path, 7)
    assert run("now", "--within", "100000").returncode == 0
    done = run("now", "--within", "500")
    assert (done.returncode, done.stdout) == (69, "")
    assert "500 were asked for" in done.stderr


def test_status_says_how_sure_the_clock_is_and_what_the_system_clock_does(
    run: Run, tmp_path: Path
) -> None:
    keep(tmp_path, 7)
    given = json.loads(run("status", "--json").stdout)
    assert (given["job"], given["node_index"], given["status"]) == (7, 2, "synchronised")
    assert given["rate_ppb"] == pytest.approx(10_000)
    assert abs(given["system_clock_ahead_ns"] - AHEAD_NS) < 4e6  # 10 ppm on a busy machine
    assert given["conversions_reach_back_s"] == 1
    words = run("status").stdout
    assert words.startswith("job 7, node 2 of its list: synchronised\n")
    assert "ahead of job time" in words
    assert given["stamps"] == "hardware"
    assert words.endswith("stamps           the NIC's\n")


def test_without_job_time_status_says_so_and_now_fails(run: Run, tmp_path: Path) -> None:
    keep(tmp_path, 7, synchronised=False)
    done = run("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "job 7, node 2 of its list: unsynchronised\nno job time yet\n"
    assert json.loads(run("status", "--json").stdout)["reading"] is None
    done = run("now")
    assert done.returncode == 69
    assert "no job time yet" in done.stderr


def test_inside_a_job_its_own_page_is_read(run: Run, tmp_path: Path) -> None:
    own, _ = keep(tmp_path, 7), keep(tmp_path, 8)
    assert json.loads(run("now", "--json", FABRIC_JOB_DIR=str(own)).stdout)["job"] == 7
    named = run("now", "--json", "--job", "8", FABRIC_JOB_DIR=str(own))
    assert json.loads(named.stdout)["job"] == 8


def test_a_job_that_is_not_clear_or_not_here_is_an_error(run: Run, tmp_path: Path) -> None:
    done = run("now")
    assert done.returncode == 2
    assert "jobs with a clock on this node: none" in done.stderr
    keep(tmp_path, 7)
    keep(tmp_path, 12)
    done = run("status")
    assert done.returncode == 2
    assert "7, 12; name one with --job" in done.stderr
    done = run("status", "--job", "9")
    assert done.returncode == 69
    assert "no job clock at" in done.stderr
    assert run("status", "--job", "9; rm").returncode == 2


def reading(path: Path, time_ns: int, width_ns: int | None = 1_000, job: int = 7) -> str:
    given = {
        "version": 1,
        "job": job,
        "time_ns": time_ns,
        "earliest_ns": None if width_ns is None else time_ns - width_ns,
        "latest_ns": None if width_ns is None else time_ns + width_ns,
        "likely_ns": 60,
        "status": "synchronised",
    }
    path.write_text(json.dumps(given))
    return str(path)


@pytest.mark.parametrize(
    ("apart_ns", "width_ns", "order"),
    [
        (2_001, 1_000, "before"),
        (2_000, 1_000, "unknown"),
        (-2_001, 1_000, "after"),
        (0, 1_000, "unknown"),
        (10**12, None, "unknown"),  # nothing certain
    ],
)
def test_compare_tells_what_was_first_if_that_is_certain(
    run: Run, tmp_path: Path, apart_ns: int, width_ns: int | None, order: str
) -> None:
    first = reading(tmp_path / "a", 10**18, width_ns)
    second = reading(tmp_path / "b", 10**18 + apart_ns, width_ns)
    given = json.loads(run("compare", first, second, "--json").stdout)
    assert given == {
        "version": 1,
        "order": order,
        "apart_ns": apart_ns,
        "likely_within_ns": 120,
    }
    assert run("compare", first, second).stdout.startswith(f"{order}: second - first = ")


def test_compare_takes_what_now_prints(run: Run, tmp_path: Path) -> None:
    keep(tmp_path, 7)
    first = tmp_path / "first"
    first.write_text(run("now", "--json").stdout)
    done = run("compare", str(first), "-", stdin=run("now", "--json").stdout)
    assert done.stdout.startswith("before: ")


def test_compare_refuses_what_is_not_two_readings_of_one_job(run: Run, tmp_path: Path) -> None:
    first = reading(tmp_path / "a", 10**18)
    other = reading(tmp_path / "b", 10**18, job=8)
    done = run("compare", first, other)
    assert done.returncode == 2
    assert "readings of two jobs, 7 and 8" in done.stderr
    for text in ("", "{}", "[1]", '{"version": 1, "job": "x"}', '{"version": 2}'):
        (tmp_path / "b").write_text(text)
        done = run("compare", first, str(tmp_path / "b"))
        assert done.returncode == 65, text
        assert "clock: " in done.stderr
    assert run("compare", first, str(tmp_path / "none")).returncode == 2


def test_status_tells_what_follows_job_time(run: Run, tmp_path: Path) -> None:
    keep(tmp_path, 7)
    assert json.loads(run("status", "--json").stdout)["steering"] is None
    (tmp_path / "steer").mkdir()
    state = tmp_path / "steer" / "7.state"
    clock = "name0=system\noff_ns0=-35\nfreq_ppb0=-30112.4\nfound_ppb0=10000.0\npad=....\n"
    state.write_text(f"v=1\njob=7\nclock=system\nstate=steady\nwhy=\npid=1\n{clock}")
    lines = run("status").stdout.splitlines()
    assert lines[-2:] == [
        "--fabric-clock=system: steady",
        "system           35 ns behind job time, set to -30.112 ppm (before the job +10.000)",
    ]
    given = json.loads(run("status", "--json").stdout)["steering"]
    assert given["clocks"] == [
        {"name": "system", "off_ns": -35.0, "freq_ppb": -30112.4, "found_ppb": 10000.0}
    ]
    state.write_text("v=1\njob=7\nclock=ptp\nstate=refused\nwhy=r0: no clock\n")
    assert run("status").stdout.endswith("--fabric-clock=ptp: refused: r0: no clock\n")
