"""The examples of docs/clock.md, as a user would copy, build and run them."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("fabricctl.clock._page", reason="built without a C compiler")

from fabricctl.clock import _page
from fabricctl.clock.page import Line, PageWriter
from tests.support.clock_page import sure

ROOT = Path(__file__).parents[2]
CLOCK = ROOT / "fabricctl" / "clock"
DOC = (ROOT / "docs" / "clock.md").read_text()


def example(language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return str(found[0])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `make install` of the library put it."""
    where = tmp_path_factory.mktemp("clock")
    make = ["make", "-s", "-C", str(CLOCK), f"OUT={where}/build", f"PREFIX={where}", "install"]
    subprocess.run(make, check=True, timeout=120)
    return where


@pytest.fixture
def in_job(tmp_path: Path, installed: Path) -> dict[str, str]:
    """The environment of a task of a protected job."""
    writer = PageWriter(tmp_path / "clock", 7, 0)
    raw_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
    writer.write(Line(raw_ns, time.time_ns(), 0.0), sure(raw_ns))
    paths = {"FABRIC_JOB_DIR": str(tmp_path), "LD_LIBRARY_PATH": str(installed / "lib")}
    return {**os.environ, **paths}


def run(command: list[str], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=60, check=False
    )


def outside(environ: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in environ.items() if key != "FABRIC_JOB_DIR"}


def tells_time(text: str) -> bool:
    match = re.fullmatch(r"(\d+) ns, likely within (\d+) ns\n", text)
    return match is not None and abs(int(match.group(1)) - time.time_ns()) < 60 * 10**9


def test_the_c_example_tells_job_time(
    tmp_path: Path, installed: Path, in_job: dict[str, str]
) -> None:
    source, program = tmp_path / "example.c", tmp_path / "example"
    source.write_text(example("c"))
    where = [f"-I{installed}/include", f"-L{installed}/lib"]
    flags = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-std=c99"]
    subprocess.run(
        ["gcc", *flags, *where, "-o", str(program), str(source), "-lfabricclock"],
        check=True,
        timeout=60,
    )
    done = run([str(program)], in_job)
    assert done.returncode == 0
    assert tells_time(done.stdout)
    assert run([str(program)], outside(in_job)).returncode == 1


@pytest.mark.skipif(not shutil.which("gfortran"), reason="no gfortran on this machine")
def test_the_fortran_example_tells_job_time(
    tmp_path: Path, installed: Path, in_job: dict[str, str]
) -> None:
    source, program = tmp_path / "example.f90", tmp_path / "example"
    source.write_text(example("fortran"))
    files = [str(installed / "include" / "fabric_clock.f90"), str(source)]
    where = [f"-L{installed}/lib", f"-J{tmp_path}"]
    subprocess.run(
        ["gfortran", "-Wall", "-Werror", *where, "-o", str(program), *files, "-lfabricclock"],
        check=True,
        timeout=60,
    )
    done = run([str(program)], in_job)
    assert done.returncode == 0
    assert tells_time(done.stdout)
    assert run([str(program)], outside(in_job)).returncode == 1


def test_the_python_example_orders_two_readings(in_job: dict[str, str]) -> None:
    done = run([sys.executable, "-c", example("python")], in_job)
    assert (done.stdout, done.stderr) == ("-1\n", "")


def test_the_page_is_as_it_is_drawn() -> None:
    drawn = re.findall(r"^ +(\d+)  (body|1,024 rows)", DOC, re.MULTILINE)
    assert drawn == [(str(_page.BODY_OFFSET), "body"), (str(_page.ROWS_OFFSET), "1,024 rows")]
