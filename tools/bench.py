"""``make bench``: every benchmark, one page, one JSON, and what has changed since earlier runs.

    tools/bench.py [--short] [--only NAME...] [--out build/bench]
                   [--history build/bench/history.jsonl]

All of it takes some hours. ``--short``: fewer turns and smaller jobs, compared with short runs
alone. Each program of bench/ runs by itself and prints its figures beside a peer's or
the limit. Nothing of that is rewritten here: a figure is known by its program, the words of its
line and its place in it. One that is further from the median of the runs on the same machine than
``--tolerance`` (a quarter) is marked, and so is a goal that was met before and no longer is. Times
of a busy machine move by more; the load stands beside each.

Page, JSON and history are written as each program ends; what the running one says is in
OUT/NAME.txt. A program that is broken off takes its lab down itself (also where make bench is
killed); what a killed one leaves is taken away before the next and by the next run.
"""

import argparse
import contextlib
import fcntl
import html
import json
import math
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import BASE

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "bench"
TIMEOUT_S, SHORT_TIMEOUT_S = 3600.0, 600.0
TAKE_DOWN_S = 60.0  # for a program that was told to end: seconds, on a busy machine more
# What others run; make fuzz has the last.
HELPERS = frozenset(
    {"failover_mpi", "failover_stream", "slice_stream", "training_program", "fuzz_report"}
)
MISSED, UNAVAILABLE, TIMED_OUT, BROKEN_OFF = (
    1,
    69,
    124,
    130,
)  # 69: sysexits.h; it says what it lacks
REFUSED = "fabricctl.errors.SystemRefusedError: "
LAB = os.environ.get("FABRICCTL_LAB", "make-bench")  # all labs of a run: so, or so and -more
SHORT = {  # where what a program does by itself takes more than a minute or two
    "agent_cost": "--seconds 8",
    "attribution": "--jobs 50 --healthy 10",
    "audit_faults": "--clean 1 --batches 1",
    "checkpoint": "--mib 64 --rounds 3",
    "clock": "--case idle hogs --seconds 20",
    "clock_faults": "--seeds 2 --seconds 30",
    "clock_first": "--nodes 2 --jobs 2",
    "clock_harm": "--seconds 40 --seed 11",
    "clock_intake": "--nodes 300 1000 --windows 10",
    "clock_sim": "--nodes 32 --seconds 8",
    "diagnose": "--faults 4 --healthy 1",
    "failover": "--turns 2",
    "maintenance": "--seconds 1",
    "noise": "--seconds 130 --rates 1",
    "pair": "--turns 8",
    "prolog": "--jobs 12",
    "recover": "--kills 2",
    "report": "--nodes 8 32 --hours 2",
    "scale": "--nodes 64 256 1000 --parts 64",
    "sh5util": "--hours 3",
    "slice": "--repeat 1 --seconds 4",
    "soak": "--minutes 0.5",
    "stalls": "--stalls 3 --clean 1",
    "stalls_link": "--cuts 2",
    "throughput": "--turns 1",
    "trace_size": "--seconds 60",
    "tracker": "--calls 2000000",
    "training": "--ways free,live --steps 100",
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

    def told(self) -> str:
        """How it ended, in words."""
        last = (self.output.strip().splitlines() or [""])[-1]
        if self.status == UNAVAILABLE:
            return f"left out: {last.removeprefix(REFUSED)}"
        if self.status == MISSED and "Traceback (most recent call last)" not in self.output:
            return "missed its goal"
        known = {0: "done", TIMED_OUT: "took too long", BROKEN_OFF: "broken off"}
        return known.get(self.status, f"failed with status {self.status}: {last}")


@dataclass(frozen=True)
class Change:
    """A figure that moved: ``before`` is the median of earlier runs, whose last ones follow.
    ``nth``: which of the line's figures."""

    name: str
    line: str
    nth: int
    now: float
    before: float
    runs: int
    last: tuple[float, ...]

    @property
    def times(self) -> float:
        """How many times what it was; not known where it was nothing."""
        return self.now / self.before if self.before else math.nan

    @property
    def apart(self) -> float:
        """The same for twice and half."""
        return abs(math.log(abs(self.times))) if self.now and self.before else math.inf


@dataclass
class Run:
    """All of them, on one machine."""

    machine: Mapping[str, Any]
    at: str
    results: list[Result] = field(default_factory=list)
    code: str = ""  # git's name for it


def programs(only: Sequence[str] = ()) -> list[str]:
    """Modules of bench/ that can be run, by name."""
    files = [*BENCH.glob("*.py"), *BENCH.glob("*/__main__.py")]
    names = {f.stem if f.parent == BENCH else f.parent.name for f in files
             if "__main__" in f.read_text() or f.stem == "__main__"}  # fmt: skip
    unknown = set(only) - names
    if unknown:
        sys.exit(f"bench: no {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}")
    return sorted(set(only) or names - HELPERS - {"__init__"})


def machine() -> dict[str, Any]:
    """What figures depend on."""
    cpu = re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M) or [
        "unknown"
    ]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    return {"cpu": cpu[0], "cores": os.cpu_count(), "memory_gib": memory,
            "kernel": platform.release(), "python": platform.python_version()}  # fmt: skip


def code() -> str:
    """The commit that is measured; a + where files are changed."""
    argv = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def run_one(
    name: str, arguments: Sequence[str] = (), timeout_s: float = TIMEOUT_S, out: Path = Path()
) -> Result:
    """Runs ``python -m bench.NAME``; one that fails or hangs is a result, too, and so is one that
    is broken off: with ``BROKEN_OFF``."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a script's background job has it
        signal.signal(signal.SIGINT, signal.default_int_handler)  # or the program would, too
    begin_s, load = time.monotonic(), os.getloadavg()[0]
    said = out / f"{name}.txt"  # a file: what outlives the program may hold it open
    with said.open("wb") as stream:
        running = subprocess.Popen(
            ["setpriv", "--pdeathsig", "INT", sys.executable, "-m", f"bench.{name}", *arguments],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(BENCH),  # they import each other either way
                 "PYTHONUNBUFFERED": "1", "FABRICCTL_LAB": LAB, "FABRICCTL_BENCH": LAB},
            start_new_session=True,
        )  # fmt: skip
        told = ""
        try:
            status = running.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status, told = TIMED_OUT, f"\nbench: ended after {timeout_s:g} s"
        except KeyboardInterrupt:
            status, told = BROKEN_OFF, "\nbench: broken off"
        if told:
            end(running)
    output = said.read_text(errors="replace") + told
    if status == MISSED and (output.strip().splitlines() or [""])[-1].startswith(REFUSED):
        status = UNAVAILABLE
    return Result(name, status, time.monotonic() - begin_s, load, output)


def end(running: subprocess.Popen[bytes]) -> None:
    """Has it take down what it made; whoever does not is killed."""
    running.send_signal(signal.SIGINT)
    try:
        running.wait(TAKE_DOWN_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def take_away() -> list[str]:
    """What a program of ours that was killed has left: its processes, labs, network namespaces."""
    found = []
    mark = f"FABRICCTL_BENCH={LAB}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if mark in (path / "environ").read_bytes().split(b"\0"):
                found.append(f"process {path.name} ({(path / 'comm').read_text().strip()})")
                os.kill(int(path.name), signal.SIGKILL)
    for path in sorted(BASE.glob("*.lock")):
        if path.stem == LAB or path.stem.startswith(f"{LAB}-"):
            found.append(f"lab {path.stem}")
            Lab(name=path.stem).down()
    for path in Path("/run/netns").glob("*"):
        owner = re.match(r"(?:pair|fc)(\d+)", path.name)  # bench/pair.py, bench/clock.py
        if owner and not Path("/proc", owner.group(1)).exists():
            found.append(f"namespace {path.name}")
            subprocess.run(["ip", "netns", "del", path.name], check=False)
    return found


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Two runs with labs of one name would take down each other's."""
    with Path(f"/tmp/fabricctl-bench-{os.getuid()}-{LAB}.lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"bench: another run has labs called {LAB}; set FABRICCTL_LAB to another name")
        yield


def figures(result: Result) -> Iterator[tuple[str, int, float, str]]:
    """(words of the line, place in it, number, line) of a run's output."""
    seen: dict[str, int] = {}
    for line in result.output.splitlines():
        words = " ".join(NUMBER.sub("#", TIMES.sub("", line)).split())
        nth = seen[words] = seen.get(words, 0) + 1  # rows of a table look alike
        for place, found in enumerate(NUMBER.findall(TIMES.sub("", line))):
            yield f"{words} /{nth}", place, float(found.replace(",", "")), line.strip()


def past(run: Run, earlier: Sequence[Mapping[str, Any]]) -> Iterator[Result]:
    """Earlier results of this machine, oldest first."""
    for old in earlier:
        if old["machine"] == run.machine:
            for given in old["results"]:
                yield Result(**given)


def changes(run: Run, earlier: Sequence[Mapping[str, Any]], tolerance: float) -> list[Change]:
    """Figures further from the median of earlier runs of this machine than ``tolerance``, those
    first that moved most."""
    known: dict[tuple[str, str, int], list[float]] = {}
    for old in past(run, earlier):
        if old.told() in ("done", "missed its goal"):
            for words, place, number, _ in figures(old):
                known.setdefault((old.name, words, place), []).append(number)
    found = []
    for result in run.results:
        for words, place, number, line in figures(result):
            before = known.get((result.name, words, place), [])
            if len(before) < LEAST_RUNS:
                continue
            median = statistics.median(before)
            if abs(number - median) > tolerance * max(abs(median), 1e-9):
                last = tuple(before[-4:])
                found.append(Change(result.name, line, place, number, median, len(before), last))
    return sorted(found, key=lambda change: change.apart, reverse=True)


def worse(run: Run, earlier: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Programs that ended well when they last ran on this machine, and no longer do."""
    before: dict[str, list[int]] = {}
    for old in past(run, earlier):
        if old.status not in (UNAVAILABLE, BROKEN_OFF):
            before.setdefault(old.name, []).append(old.status)
    failed = [result.name for result in run.results
              if result.status not in (0, UNAVAILABLE, BROKEN_OFF)]  # fmt: skip
    return {
        name: f"(met in {known.count(0)} of {len(known)} runs before)"
        for name, known in before.items() if name in failed and known[-1] == 0
    }  # fmt: skip


STYLE = """body{font:15px system-ui;max-width:75em;margin:2em auto;padding:0 1em}
pre{background:#f6f6f6;padding:1em;overflow:auto;font-size:13px}.bad{color:#a00;font-weight:600}
.out{color:#777}td,th{padding:.15em 1.2em .15em 0;text-align:left;vertical-align:top}
.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}table{border-spacing:0}
tr:nth-child(even) td{background:#fafafa}mark{background:#ffe08a}h2{margin-top:2em}
th{border-bottom:1px solid #ccc}td code{font-size:12px}
code{white-space:pre-wrap}"""


def marked(line: str, places: Sequence[int]) -> str:
    """The line with the figures at these places marked, for the page. Those of a time of day are
    none."""
    times = [found.span() for found in TIMES.finditer(line)]
    found = [match for match in NUMBER.finditer(line)
             if not any(begin <= match.start() < end for begin, end in times)]  # fmt: skip
    text, at = "", 0
    for place in sorted(set(places)):
        if place < len(found):
            begin, end = found[place].span()
            text += html.escape(line[at:begin]) + f"<mark>{html.escape(line[begin:end])}</mark>"
            at = end
    return text + html.escape(line[at:])


def page(run: Run, moved: Sequence[Change], regressed: Mapping[str, str]) -> str:
    """One HTML file that needs nothing else."""
    has = run.machine
    about = ", ".join(f"{key} {value}" for key, value in has.items() if key != "short")
    rows = []
    for each in run.results:
        count = sum(change.name == each.name for change in moved)
        rows.append(
            f"<tr><td><a href='#{each.name}'>{each.name}</a><td>{ended(each, regressed)}"
            f"<td class=n>{each.seconds:.0f}<td class=n>{each.load:.1f}<td class=n>{count or ''}"
            f"<td><code>{html.escape(chr(10).join(key_lines(each)))}</code>"
        )
    parts = [
        "<!doctype html><meta charset=utf-8><title>fabricctl: benchmarks</title>",
        f"<style>{STYLE}</style><h1>Benchmarks</h1>",
        f"<p>{html.escape(run.at)}, {'short form' if has.get('short') else 'full length'}, code "
        f"{html.escape(run.code)}; {html.escape(about)}</p><table><tr><th>program<th>how it ended"
        "<th class=n>seconds<th class=n>load<th class=n>figures moved<th>goals and ratios"
        f"{''.join(rows)}</table>",
    ]
    if any(each.load > has.get("cores", math.inf) for each in run.results):
        parts.append(
            "<p class=bad>More wanted to run than there are cores (load): times are those of a "
            "busy machine, ratios say more than they do, and goals may be missed for that.</p>"
        )
    for each in run.results:
        mine = [change for change in moved if change.name == each.name]
        places: dict[str, list[int]] = {}
        for change in mine:
            places.setdefault(change.line, []).append(change.nth)
        parts.append(
            f"<h2 id={each.name}>{each.name}</h2><p>{ended(each, regressed)}; "
            f"{each.seconds:.0f} s, load at its begin {each.load:.1f}</p>"
        )
        if mine:
            parts.append(
                "<table><tr><th>moved<th class=n>now<th class=n>before<th class=n>times"
                "<th class=n>last runs" + "".join(map(row, mine)) + "</table>"
            )
        lines = each.output.rstrip().lstrip("\n").split("\n")
        shown = (marked(line, places.get(line.strip(), ())) for line in lines)
        parts.append("<pre>" + "\n".join(shown) + "</pre>")
    return "\n".join(parts) + "\n"


def key_lines(result: Result) -> list[str]:
    """Those that tell of a goal or a ratio; of a program that tells none, its last line."""
    lines = [" ".join(line.split()) for line in result.output.splitlines() if line.strip()]
    found = [line for line in lines if re.search(r"goal|ratio\b.*\d", line) and NUMBER.search(line)]
    return (found or lines[-1:])[-4:] if result.status in (0, MISSED) else []


def ended(result: Result, regressed: Mapping[str, str]) -> str:
    """How it ended, for the page."""
    kind = {0: "", UNAVAILABLE: "out"}.get(result.status, "bad")
    words = " ".join((result.told(), regressed.get(result.name, ""))).strip()
    return f"<span class='{kind}'>{html.escape(words)}</span>"


def row(change: Change) -> str:
    """Of the table of what moved."""
    last = ", ".join(f"{number:g}" for number in change.last)
    return (
        f"<tr><td><code>{marked(change.line, [change.nth])}</code><td class=n>{change.now:g}"
        f"<td class=n>{change.before:g}<td class=n>"
        f"{'' if math.isnan(change.times) else f'{change.times:.2f}'}<td class=n>{last}"
    )


def read_history(path: Path) -> list[dict[str, Any]]:
    """Runs kept there; a line that was cut short is passed over."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"bench: {path}: a damaged line is passed over", file=sys.stderr)
    return found


def remember(path: Path, run: Run, result: Result) -> None:
    """One line a program: whoever is killed loses only what ran. A line that somebody was killed in
    is not gone on with."""
    line = json.dumps({"version": 1, **asdict(run), "results": [asdict(result)]})
    with path.open("ab+") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            line = line if stream.read() == b"\n" else f"\n{line}"
        stream.write(f"{line}\n".encode())


def replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def write(
    out: Path, run: Run, earlier: Sequence[Mapping[str, Any]], tolerance: float
) -> tuple[list[Change], dict[str, str]]:
    """Page and JSON of what there is until now."""
    moved, regressed = changes(run, earlier, tolerance), worse(run, earlier)
    body = {"version": 1, **asdict(run)}
    for given, result in zip(body["results"], run.results, strict=True):
        given.update(ended=result.told(), ratios=key_lines(result))
        lines: dict[str, list[float]] = {}
        for words, _, number, _ in figures(result):
            lines.setdefault(words, []).append(number)
        given["figures"] = [
            {"line": words.rpartition(" /")[0], "row": int(words.rpartition("/")[2]),
             "values": values} for words, values in lines.items()
        ]  # fmt: skip
    body.update(changes=[asdict(change) for change in moved], worse=regressed)
    replace(out / "bench.json", json.dumps(body, indent=1))
    replace(out / "bench.html", page(run, moved, regressed))
    return moved, regressed


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--history", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.25)
    parser.add_argument("--timeout", type=float, help="seconds a program (3,600; short: 600)")
    options = parser.parse_args()
    history = options.history or options.out / "history.jsonl"
    timeout_s = options.timeout or (SHORT_TIMEOUT_S if options.short else TIMEOUT_S)
    about = {**machine(), **({"short": True} if options.short else {})}
    run = Run(about, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()), code=code())
    options.out.mkdir(parents=True, exist_ok=True)
    earlier = read_history(history)
    moved, regressed = list[Change](), dict[str, str]()
    # Whoever starts this in the background has it ignore SIGINT, and what it starts, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with alone():
        for name in programs(options.only):
            for left in take_away():
                print(f"bench: taken away: {left}", flush=True)
            print(f"== {name}", flush=True)
            arguments = SHORT.get(name, "").split() if options.short else []
            result = run_one(name, arguments, timeout_s, options.out)
            run.results.append(result)
            remember(history, run, result)
            moved, regressed = write(options.out, run, earlier, options.tolerance)
            print(
                f"{result.output}\n-- {name}: {result.told()}; {result.seconds:.0f} s", flush=True
            )
            if result.status == BROKEN_OFF:
                break
        for left in take_away():
            print(f"bench: taken away: {left}", flush=True)
    return tell(run, moved, regressed, options.out / "bench.html")


def tell(run: Run, moved: Sequence[Change], regressed: Mapping[str, str], page_at: Path) -> int:
    """The end of it; the status of this program."""
    for change in moved:
        print(f"moved: {change.name}: {change.line}: {change.now:g}, was {change.before:g}")
    for result in run.results:
        if result.status:
            print(f"{result.name}: {result.told()} {regressed.get(result.name, '')}".rstrip())
    seconds = sum(result.seconds for result in run.results)
    good = sum(result.status == 0 for result in run.results)
    print(
        f"bench: {good} of {len(run.results)} ended well in {seconds / 60:.0f} minutes; {page_at}"
    )
    if run.results and run.results[-1].status == BROKEN_OFF:
        return BROKEN_OFF
    return 1 if any(result.status not in (0, UNAVAILABLE) for result in run.results) else 0


if __name__ == "__main__":
    sys.exit(main())
