"""``make bench``: every benchmark, one page, one JSON, and what has changed since earlier runs.

    tools/bench.py [--short] [--only NAME...] [--out build/bench]
                   [--history build/bench/history.jsonl]

All of it takes some hours. ``--short``: fewer turns and smaller jobs, compared with short runs
alone. Each program of bench/ runs by itself and prints its figures beside a peer's or
the limit. Nothing of that is rewritten here: a figure is known by its program, the words of its
line and its place in it. One that is further from the median of the runs on the same machine than
``--tolerance`` (a quarter) is marked. Times of a busy machine move by more; the load stands beside
each.
"""

import argparse
import html
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "bench"
TIMEOUT_S = 3600.0
# What others run; make fuzz has the last.
HELPERS = frozenset(
    {"failover_mpi", "failover_stream", "slice_stream", "training_program", "fuzz_report"}
)
UNAVAILABLE = 69  # sysexits.h: it needs what this machine has not, and says what
SHORT = {  # where what a program does by itself takes more than a minute or two
    "attribution": "--jobs 50 --healthy 10",
    "audit_faults": "--clean 1 --batches 1",
    "checkpoint": "--mib 64 --rounds 3",
    "clock": "--case idle hogs --seconds 20",
    "clock_faults": "--seeds 2 --seconds 30",
    "clock_first": "--nodes 2 --jobs 2",
    "clock_harm": "--seconds 40 --seed 11",
    "clock_intake": "--nodes 300 1000 --windows 10",
    "clock_sim": "--seconds 30",
    "diagnose": "--faults 4 --healthy 1",
    "failover": "--turns 2",
    "maintenance": "--seconds 1",
    "noise": "--seconds 130 --rates 1",
    "pair": "--turns 8",
    "prolog": "--jobs 12",
    "recover": "--kills 2",
    "report": "--nodes 8 64 --hours 6",
    "scale": "--nodes 64 256 1000 --parts 64",
    "sh5util": "--hours 1",
    "slice": "--repeat 1 --seconds 4",
    "soak": "--minutes 0.5",
    "stalls": "--stalls 3 --clean 1",
    "stalls_link": "--cuts 2",
    "throughput": "--turns 1",
    "trace_size": "--seconds 60",
    "tracker": "--calls 2000000",
    "training": "--ways free,live --steps 200",
}
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.])")
LEAST_RUNS = 2  # before anything is called a change
TIMES = re.compile(r"\b(20\d\d-\d\d-\d\d|\d\d:\d\d:\d\d)")


@dataclass(frozen=True)
class Result:
    """One program's run."""

    name: str
    status: int
    seconds: float
    load: float
    output: str


@dataclass(frozen=True)
class Change:
    """A figure that moved: ``before`` is the median of earlier runs."""

    name: str
    line: str
    now: float
    before: float
    runs: int


@dataclass
class Run:
    """All of them, on one machine."""

    machine: Mapping[str, Any]
    at: str
    results: list[Result] = field(default_factory=list)


def programs(only: Sequence[str] = ()) -> list[str]:
    """Modules of bench/ that can be run, by name."""
    files = [*BENCH.glob("*.py"), *BENCH.glob("*/__main__.py")]
    names = {f.stem if f.parent == BENCH else f.parent.name for f in files
             if "__main__" in f.read_text() or f.stem == "__main__"}  # fmt: skip
    unknown = set(only) - names
    if unknown:
        raise SystemExit(
            f"bench: no {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}"
        )
    return sorted(set(only) or names - HELPERS - {"__init__"})


def machine() -> dict[str, Any]:
    """What figures depend on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    return {"cpu": model, "cores": os.cpu_count(), "memory_gib": memory,
            "kernel": platform.release(), "python": platform.python_version()}  # fmt: skip


def run_one(name: str, arguments: Sequence[str] = (), timeout_s: float = TIMEOUT_S) -> Result:
    """Runs ``python -m bench.NAME``; one that fails or hangs is a result, too."""
    begin_s, load = time.monotonic(), os.getloadavg()[0]
    try:
        done = subprocess.run(
            [sys.executable, "-m", f"bench.{name}", *arguments],
            cwd=ROOT, text=True, timeout=timeout_s,
            env={**os.environ, "PYTHONPATH": str(BENCH)},  # they import each other either way
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode(errors="replace") if error.stdout else ""
        status, output = 124, f"{output}\nbench: ended after {timeout_s:g} s"
    return Result(name, status, time.monotonic() - begin_s, load, output)


def figures(result: Result) -> Iterator[tuple[str, int, float, str]]:
    """(words of the line, place in it, number, line) of a run's output."""
    seen: dict[str, int] = {}
    for line in result.output.splitlines():
        words = " ".join(NUMBER.sub("#", TIMES.sub("", line)).split())
        nth = seen[words] = seen.get(words, 0) + 1  # rows of a table look alike
        for place, found in enumerate(NUMBER.findall(TIMES.sub("", line))):
            yield f"{words} /{nth}", place, float(found.replace(",", "")), line.strip()


def changes(run: Run, earlier: Sequence[Mapping[str, Any]], tolerance: float) -> list[Change]:
    """Figures further from the median of earlier runs of this machine than ``tolerance``."""
    known: dict[tuple[str, str, int], list[float]] = {}
    for old in earlier:
        if old["machine"] != run.machine:
            continue
        for given in old["results"]:
            if given["status"] == 0:
                for words, place, number, _ in figures(Result(**given)):
                    known.setdefault((given["name"], words, place), []).append(number)
    found = []
    for result in run.results:
        for words, place, number, line in figures(result):
            before = known.get((result.name, words, place), [])
            if len(before) < LEAST_RUNS:
                continue
            median = statistics.median(before)
            if abs(number - median) > tolerance * max(abs(median), 1e-9):
                found.append(Change(result.name, line, number, median, len(before)))
    return found


def page(run: Run, moved: Sequence[Change]) -> str:
    """One HTML file that needs nothing else."""
    about = ", ".join(f"{key} {value}" for key, value in run.machine.items())
    parts = [
        "<!doctype html><meta charset=utf-8><title>fabricctl: benchmarks</title>",
        "<style>body{font:15px system-ui;max-width:70em;margin:2em auto}pre{background:#f4f4f4;"
        "padding:1em;overflow:auto}.bad{color:#a00}td{padding:0 1em 0 0}</style>",
        f"<h1>Benchmarks</h1><p>{html.escape(run.at)}; {html.escape(about)}</p>",
    ]
    if moved:
        rows = "".join(
            f"<tr><td>{html.escape(c.name)}<td><code>{html.escape(c.line)}</code>"
            f"<td class=bad>{c.now:g}<td>{c.before:g} ({c.runs} runs)"
            for c in moved
        )
        parts.append(f"<h2>Moved</h2><table><tr><th>program<th>line<th>now<th>before{rows}</table>")
    for each in run.results:
        bad = "" if each.status == 0 else f" <span class=bad>status {each.status}</span>"
        parts.append(
            f"<h2 id={each.name}>{each.name}{bad}</h2><p>{each.seconds:.0f} s, load at its begin "
            f"{each.load:.1f}</p><pre>{html.escape(each.output)}</pre>"
        )
    return "\n".join(parts) + "\n"


def read_history(path: Path) -> list[dict[str, Any]]:
    """Runs kept there; a line that was cut short is passed over."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"bench: {path}: a damaged line is passed over", file=sys.stderr)
    return found


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--history", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.25)
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S)
    options = parser.parse_args()
    history = options.history or options.out / "history.jsonl"
    about = {**machine(), **({"short": True} if options.short else {})}
    run = Run(about, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))
    for name in programs(options.only):
        print(f"== {name}", flush=True)
        arguments = SHORT.get(name, "").split() if options.short else []
        run.results.append(run_one(name, arguments, options.timeout))
        print(run.results[-1].output, flush=True)
    moved = changes(run, read_history(history), options.tolerance)
    options.out.mkdir(parents=True, exist_ok=True)
    body = {"version": 1, **asdict(run)}
    (options.out / "bench.json").write_text(
        json.dumps({**body, "changes": [asdict(change) for change in moved]}, indent=1) + "\n"
    )
    (options.out / "bench.html").write_text(page(run, moved))
    with history.open("a") as stream:
        stream.write(json.dumps(body) + "\n")
    for change in moved:
        print(f"moved: {change.name}: {change.line}: {change.now:g}, was {change.before:g}")
    lacks = [result.name for result in run.results if result.status == UNAVAILABLE]
    failed = [result.name for result in run.results if result.status not in (0, UNAVAILABLE)]
    print(
        f"bench: {options.out / 'bench.html'}; left out for what is not installed: "
        f"{', '.join(lacks) or 'none'}; failed: {', '.join(failed) or 'none'}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
