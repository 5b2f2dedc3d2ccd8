"""``fabricctl report`` on thousands of bad traces: a report or one clear error each, in bounds.

Each file is read as the command reads it, in a child with the command's limits; every tenth is
drawn as HTML too. What is wrong: a traceback, a crash of the reader that is not told, more time or
memory than the limits below. Exit status 1 for any.

    python -m bench.fuzz_report [--files 10000] [--first 0] [--trace job-7.h5]
"""

import argparse
import contextlib
import io
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fabricctl.errors import FabricError
from fabricctl_analysis.build import renderings
from fabricctl_analysis.guard import Limits, guarded
from tests.support.mutate import mutated
from tests.support.traces import Cut, Plan, write

SLOWEST_S = 20.0  # CPU of one file, HTML and all; the reader's own limit is 60
LARGEST_BYTES = 2 << 30


def good_traces(folder: Path, given: Sequence[Path]) -> list[bytes]:
    """A small one as a quiet job leaves it, one with rows in every table, and what was given."""
    plan = Plan(nodes=["n1", "n2"], seconds=40, cuts=[Cut("n1", 0, 20, 23)], away={"n2": (9, 14)})
    plans = {"quiet": plan, "full": replace(plan, every_table=True)}
    made = [write(one, folder / name).read_bytes() for name, one in plans.items()]
    return made + [path.read_bytes() for path in given]


def try_one(good: bytes, seed: int, path: Path) -> tuple[str, str, float]:
    """What was done to the file, what came of it, and the seconds of CPU."""
    done = mutated(good, seed, path)
    wanted = ["text", "json", *(["html"] if seed % 10 == 0 else [])]
    complaint = io.StringIO()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    try:
        with contextlib.redirect_stderr(complaint):
            texts = guarded(path, lambda: renderings(path, wanted), Limits.of(path))
        came = "partial report" if "is damaged, this report" in texts["text"] else "report"
    except FabricError as error:
        came = "error" if "ended with" not in str(error) else "crash, told"
        if not str(error).isprintable():
            came = f"WRONG: not printable: {error!s:.200}"
    except SystemExit:
        came = "WRONG: traceback"
    spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    if spent > SLOWEST_S:
        came = f"WRONG: {spent:.1f} s of CPU, {came}"
    return done, came, spent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--trace", type=Path, action="append", default=[], help="mutate this too")
    given = parser.parse_args()
    import bokeh.plotting  # noqa: F401  so that the children find it loaded

    begin_s = time.monotonic()
    counts: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    longest_s = (0.0, "")
    with tempfile.TemporaryDirectory() as folder:
        good = good_traces(Path(folder), given.trace)
        for seed in range(given.first, given.first + given.files):
            done, came, cpu_s = try_one(good[seed % len(good)], seed, Path(folder) / "bad.h5")
            longest_s = max(longest_s, (cpu_s, done))
            counts[done.split()[1], came.split(":")[0]] += 1
            if came.startswith("WRONG"):
                wrong.append(f"{done}: {came}")
                print(wrong[-1], flush=True)
    for (harm, came), count in sorted(counts.items()):
        print(f"{harm:24} {came:16} {count:6}")
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = spent.ru_maxrss * 1024
    print(
        f"{given.files} files from seed {given.first} in {time.monotonic() - begin_s:.0f} s "
        f"({spent.ru_utime + spent.ru_stime:.0f} s of CPU, the longest {longest_s[0]:.1f} s: "
        f"{longest_s[1]}; load {os.getloadavg()[0]:.1f}); the largest reader took "
        f"{peak / 2**20:.0f} MiB; {len(wrong)} wrong"
    )
    return 1 if wrong or peak > LARGEST_BYTES else 0


if __name__ == "__main__":
    sys.stdout.flush()
    os.environ.setdefault("PYTHONWARNINGS", "error")
    sys.exit(main())
