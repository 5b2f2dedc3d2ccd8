"""What reading the job clock costs, in C and in Python, beside the bare clock it rests on.

python bench/clock_now.py
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fabricctl.clock.page import ClockPage, Line, PageWriter
from tests.support.clock_page import sure

CLOCK = Path(__file__).parents[1] / "fabricctl" / "clock"
C = r"""
#include <fabric_clock.h>
#include <stdio.h>
#include <time.h>
#define ROUNDS 2000
#define TRIES 2000

static double now_s(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int count, char **word)
{
	struct fabric_clock *clock = fabric_clock_open(word[count - 1]);
	struct fabric_clock_reading r;
	struct timespec t;
	double bare = 1, page = 1;

	if (!clock || fabric_clock_now(clock, &r))
		return 1;
	for (int i = 0; i < TRIES; i++) {
		double begun = now_s(), middle;
		for (int j = 0; j < ROUNDS; j++)
			clock_gettime(CLOCK_MONOTONIC_RAW, &t);
		middle = now_s();
		for (int j = 0; j < ROUNDS; j++)
			fabric_clock_now(clock, &r);
		if (middle - begun < bare)
			bare = middle - begun;
		if (now_s() - middle < page)
			page = now_s() - middle;
	}
	printf("%g %g\n", bare / ROUNDS * 1e9, page / ROUNDS * 1e9);
	return 0;
}
"""


def page_of_a_job(folder: Path) -> ClockPage:
    writer = PageWriter(folder / "clock", 1, 0)
    raw_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
    writer.write(Line(raw_ns, time.time_ns(), 1e-6), sure(raw_ns))
    for _ in range(1000):
        writer.add_row()
    return ClockPage(folder / "clock")


def in_c(folder: Path) -> tuple[float, float]:
    (folder / "read.c").write_text(C)
    library = ["make", "-s", "-C", str(CLOCK), f"OUT={folder}/build", f"PREFIX={folder}", "install"]
    subprocess.run(library, check=True)
    where = [f"-I{folder}/include", f"-L{folder}/lib", f"-Wl,-rpath,{folder}/lib"]
    read = str(folder / "read")
    source = str(folder / "read.c")
    subprocess.run(["gcc", "-O2", *where, "-o", read, source, "-lfabricclock"], check=True)
    command = [read, str(folder / "clock")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    bare, page = map(float, done.stdout.split())
    return bare, page


def best_ns(call: Callable[[], object], rounds: int = 2_000, tries: int = 500) -> float:
    """Of one call, the fastest try: what the machine did besides is not asked for."""
    times = []
    for _ in range(tries):
        begun = time.perf_counter_ns()
        for _ in range(rounds):
            call()
        times.append((time.perf_counter_ns() - begun) / rounds)
    return min(times)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="fabric-clock-") as name:
        folder = Path(name)
        page = page_of_a_job(folder)
        bare, read = in_c(folder)
        more = read - bare
        print(f"C: clock_gettime {bare:.1f} ns, fabric_clock_now {read:.1f} ns: {more:.1f} more")
        clock_ns = best_ns(lambda: time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW))
        now_ns = best_ns(page.now)
        empty_ns = best_ns(lambda: None)
        print(
            f"Python: clock_gettime_ns {clock_ns - empty_ns:.0f} ns, now() {now_ns:.0f} ns "
            f"(an empty loop {empty_ns:.0f})"
        )
        stamps = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - np.arange(1_000_000)[::-1] * 10
        first = int(page.rows()["mono_ns"][0])
        stamps = np.maximum(stamps, first)
        bulk_ns = best_ns(lambda: page.to_job(stamps, "mono"), rounds=1, tries=5)
        print(f"to_job of {len(stamps):,} stamps: {bulk_ns / len(stamps):.1f} ns each")


if __name__ == "__main__":
    main()
