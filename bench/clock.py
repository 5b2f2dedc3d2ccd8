"""The job clock on eight namespaced nodes, beside chronyd and ptp4l on the same links.

Every node runs the clock as the agent does (fabricctl/clock/live.py) and writes its page. One
process reads all pages, back to back, and knows the truth: there is one kernel. Ours has clocks
injected (offset, drift, wander), chronyd -x and ptp4l -S --free_running cannot be given any and
measure a true offset of zero. Needs root; chrony and linuxptp for the peers.

    python bench/clock.py                        # the whole table, some minutes
    python bench/clock.py --case saturated --seconds 60 --seed 5
"""

import argparse
import json
import os
import random
import resource
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from clock_bed import (
    CASES,
    MBIT,
    Case,
    Run,
    chrony_offset,
    on_node,
    ptp_offsets,
    start_peers,
    wired,
)
from needs import lack, need_root

from fabricctl.clock.live import JobClock, Member
from fabricctl.clock.page import ClockPage
from fabricctl.clock.probing import Rail
from fabricctl.errors import ClockError

PORTS = (20600, 20601, 20602)
SETTLE_S = 6.0  # of the run, not counted
QUIET_S = 8.0  # before a port is saturated: its floor must have been seen
BURST = 200  # readings of the page at once, for the count of false intervals


def ourselves(what: str, run: Run, node: int) -> list[str]:
    given = {**run.__dict__, "case": run.case.name}
    return [sys.executable, __file__, what, json.dumps(given), str(node)]


# What runs on the nodes


def clock_node(run: Run, node: int) -> None:
    """The job clock as the agent runs it; logs what it knows after the fact."""
    names = tuple(f"n{i}" for i in range(run.nodes))
    # As agents run (agent.realtime): the probe engine's thread does not inherit it.
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    begin = int(Path(run.dir, "begin").read_text())
    rails = [Rail(f"r{rail}", run.address(node, rail)) for rail in range(run.rails)]
    clock = JobClock(
        Member(7, names, names[node], b"k" * 32, time.time_ns()),
        rails,
        PORTS,
        lambda name: run.address(int(name[1:])),
        page=Path(run.dir, f"page{node}"),
        virtual=run.virtual(node, begin),
    )
    end, seen = time.monotonic() + run.seconds, None
    begun = time.monotonic()
    steady, started, first = end - 0.4 * run.seconds, (0.0, 0.0, 0), 0.0
    with Path(run.dir, f"node{node}").open("w") as log:
        while time.monotonic() < end:
            wait = clock.next_due_s() - time.monotonic()
            ready, _, _ = select.select([clock.fileno()], [], [], min(max(wait, 0), 0.5))
            if ready:
                clock.receive()
            clock.run_due()
            if not started[0] and time.monotonic() > steady:
                started = spent(clock)
            if not first and clock.clock.told:
                first = time.monotonic() - begun
            centre = clock.clock.centre
            if clock.clock.told and centre is not None and centre != seen:
                seen = centre
                raw_ns = centre.at_job_ns + round(centre.theta_ns) + clock.base_ns
                fraction = centre.theta_ns - round(centre.theta_ns)
                log.write(f"{centre.at_job_ns} {raw_ns} {fraction}\n")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    total, own, sent = (
        (now - before) / (0.4 * run.seconds)
        for now, before in zip(spent(clock), started, strict=True)
    )
    summary = {
        "cpu": total,
        "python": own,
        "rss_mb": usage.ru_maxrss / 1024,
        "packets_per_s": sent,
        "rate": clock._rate,
        "wander": clock.clock.wander_ppb,
        "settled": clock.clock.settled,
        "first": first,
    }
    Path(run.dir, f"summary{node}").write_text(json.dumps(summary))
    clock.close()


def spent(clock: JobClock) -> tuple[float, float, int]:
    """Seconds of CPU of this process and of its Python part alone, and probes sent."""
    return time.process_time(), time.thread_time(), int(clock.prober.counters()["sent"].sum())


def traffic(run: Run, node: int) -> None:
    """Bursts to random others; onto a saturated port by two senders of 60 % each."""
    rng = random.Random(run.seed * 77 + node)
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sink.bind(("", 9))
    victim = run.seed % run.nodes if run.case.saturated else -1
    attackers = {(victim + 1) % run.nodes, (victim + 2) % run.nodes} if victim >= 0 else set()
    others = [i for i in range(run.nodes) if i not in (node, victim)]
    packet_s = 1442 * 8 / (MBIT * 1e6)
    end = time.monotonic() + run.seconds - (QUIET_S if run.case.quiet else 0)
    due, data = time.monotonic(), bytes(1400)
    share = 0.6 if node in attackers else run.case.load
    if node == victim or share == 0:
        share = run.case.load
    while due < end and share:
        count = max(1, int(rng.expovariate(1 / run.case.burst_packets)))
        to = victim if node in attackers else rng.choice(others)
        rail = rng.randrange(run.rails)
        for _ in range(count):
            try:
                sender.sendto(data, (run.address(to, rail), 9))
            except OSError:
                break  # the sender's own queue is full
        due += rng.expovariate(1 / (count * packet_s / share / run.rails))
        time.sleep(max(0.0, min(due, end) - time.monotonic()))


def hog(run: Run, node: int) -> None:
    del node
    end = time.monotonic() + run.seconds
    while time.monotonic() < end:
        pass


def awake(run: Run, node: int) -> None:
    """Runs where nobody else wants to: a CPU that slept is slower for a while than one that did
    not, and on this machine it is the sender's CPU that carries a probe all the way."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    hog(run, node)


# Measuring


@dataclass
class Seen:
    """Readings of all pages at about the same true instants, and chronyd's offsets."""

    error: list[list[float]]  # time read beyond true time, ns, by node
    low: list[list[float]]
    high: list[list[float]]
    likely: list[list[float]]
    status: list[list[int]]
    chrony: list[list[float]]
    queries: int = 0
    false: int = 0


def mono_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def both_clocks() -> tuple[int, int]:
    """CLOCK_MONOTONIC and CLOCK_MONOTONIC_RAW at one instant: the narrowest of some readings.

    Pushed aside for 3 ms between the two, by a busy process, one alone made errors of 40 us."""
    best = (1 << 62, 0, 0)
    for _ in range(5):
        before = mono_ns()
        raw_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        after = mono_ns()
        best = min(best, (after - before, (before + after) // 2, raw_ns))
    return best[1:]


def watch(run: Run) -> tuple[Seen, list[tuple[int, int]]]:
    """Reads all pages until the run ends."""
    begin, seen, pairs = time.monotonic(), Seen([], [], [], [], [], []), []
    pages: dict[int, ClockPage] = {}
    origin, next_chrony = 0, 0.0
    while time.monotonic() < begin + run.seconds - 0.3:
        time.sleep(0.02)
        pairs.append(both_clocks())
        if time.monotonic() < begin + SETTLE_S:
            continue
        try:
            for node in range(run.nodes):
                pages.setdefault(node, ClockPage(Path(run.dir, f"page{node}")))
            origin = origin or pages[0].body().job_ns(0)
            read_all(run, pages, origin, seen)
        except ClockError:
            pass  # not settled yet
        if run.peers and time.monotonic() > next_chrony:
            next_chrony = time.monotonic() + 1.0
            offsets = [chrony_offset(run, node) for node in range(1, run.nodes)]
            if all(offset is not None for offset in offsets):
                seen.chrony.append([0.0, *[offset for offset in offsets if offset is not None]])
    return seen, pairs


def read_all(run: Run, pages: dict[int, ClockPage], origin: int, seen: Seen) -> None:
    rows: list[list[float]] = [[], [], [], []]
    status = []
    raw_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
    for node in range(run.nodes):
        reading, true = pages[node].at(raw_ns), raw_ns + origin
        values = (reading.time_ns, reading.earliest_ns, reading.latest_ns)
        for row, value in zip(rows, values, strict=False):
            row.append(float(value - true))
        rows[3].append(float(reading.likely_ns))
        status.append(reading.status)
    for target, row in zip((seen.error, seen.low, seen.high, seen.likely), rows, strict=True):
        target.append(row)
    seen.status.append(status)
    count_false(run, pages, seen)


def count_false(run: Run, pages: dict[int, ClockPage], seen: Seen) -> None:
    """Two nodes asked one after the other must not contradict the order of asking."""
    for _ in range(BURST):
        a, b = random.sample(range(run.nodes), 2)
        first, second = pages[a].now(), pages[b].now()
        seen.queries += 2
        if second.latest_ns < first.earliest_ns:
            if not seen.false:
                print(f"first false interval: node {a} {first}, then node {b} {second}")
            seen.false += 1


def pairwise(rows: list[list[float]]) -> np.ndarray:
    table = np.array(rows)
    i, j = np.triu_indices(table.shape[1], 1)
    return np.asarray(np.abs(table[:, i] - table[:, j]).ravel())


def quantiles(values: np.ndarray) -> str:
    if not len(values):
        return f"{'-':>10} {'-':>11} {'-':>11}"
    p50, p99 = np.quantile(values, (0.5, 0.99))
    return f"{p50:10,.1f} {p99:11,.1f} {values.max():11,.1f}"


def after_the_fact(run: Run, pairs: list[tuple[int, int]]) -> np.ndarray:
    """Errors of what each node says of the windows' centres once it has measured them."""
    begin = int(Path(run.dir, "begin").read_text())
    mono, raw = np.array(pairs, np.int64).T
    base = raw[0] - mono[0]
    lead = ((raw - mono) - base).astype(float)
    windows: dict[int, dict[int, float]] = {}
    for node in range(run.nodes):
        virtual = run.virtual(node, begin)
        for text in Path(run.dir, f"node{node}").read_text().splitlines():
            job, shown, fraction = text.split()
            # shown = true raw + the virtual clock's error then; two rounds find the true raw.
            at = int(shown) - base
            for _ in range(3):
                extra = float(np.interp(float(at - mono[0]), (mono - mono[0]).astype(float), lead))
                error = virtual.error_ns(at)
                at = int(shown) - int(base) - round(extra + error)
            rest = float(fraction) + (int(shown) - int(base) - at) - extra - error
            windows.setdefault(int(job), {})[node] = at - begin + rest
    late = begin + int(SETTLE_S * 1e9)
    rows = [
        [row[node] for node in range(run.nodes)]
        for row in windows.values()
        if len(row) == run.nodes and min(row.values()) + begin > late
    ]
    return pairwise(rows) if rows else np.empty(0)


def report(run: Run, seen: Seen, pairs: list[tuple[int, int]]) -> None:
    post = after_the_fact(run, pairs)
    live = pairwise(seen.error) if seen.error else np.empty(0)
    summaries = [json.loads(Path(run.dir, f"summary{n}").read_text()) for n in range(run.nodes)]
    name = run.case.name
    print(f"{name:16} ours, after     {quantiles(post)}")
    if len(live):
        table, likely = np.array(seen.error), np.array(seen.likely)
        i, j = np.triu_indices(run.nodes, 1)
        inside = np.abs(table[:, i] - table[:, j]) <= likely[:, i] + likely[:, j]
        width = (np.array(seen.high) - np.array(seen.low)) / 2
        held = float((np.array(seen.status) == 2).mean())
        print(
            f"{name:16} ours, live      {quantiles(live)}  likely holds {inside.mean():.4f} "
            f"(median {np.median(likely):,.0f}), hard half-width {np.median(width):,.0f}, "
            f"false {seen.false} of {seen.queries:,}, held over {held:.3f}"
        )
    cpu = sorted(s["cpu"] * 100 for s in summaries)
    median, python = (np.median([s[of] * 100 for s in summaries]) for of in ("cpu", "python"))
    print(
        f"{'':16} {'':14}   cpu of a core {cpu[0]:.2f}-{cpu[-1]:.2f} %, median {median:.2f} "
        f"(Python {python:.2f}), load {os.getloadavg()[0]:.1f}, "
        f"{max(s['rss_mb'] for s in summaries):.0f} MB, "
        f"{np.mean([s['packets_per_s'] for s in summaries]):.0f} probes/s a node, "
        f"rate {summaries[0]['rate']:.0f}, wander {summaries[0]['wander']:.0f}, "
        f"synchronised after {max(s['first'] for s in summaries):.2f} s"
    )
    late = [node for node, summary in enumerate(summaries) if not summary["settled"]]
    if late:
        print(f"{'':16} never synchronised: {late}")
    if run.peers:
        chrony = pairwise(seen.chrony) if seen.chrony else np.empty(0)
        print(f"{name:16} chronyd -x      {quantiles(chrony)}  16 polls/s a node")
        ptp = [ptp_offsets(run, node) for node in range(1, run.nodes)]
        count = min((len(values) for values in ptp), default=0)
        rows = (
            [[0.0, *row] for row in zip(*(v[-count:] for v in ptp), strict=True)] if count else []
        )
        print(
            f"{name:16} ptp4l -S        {quantiles(pairwise(rows) if rows else np.empty(0))}"
            "  8 syncs/s, unfiltered"
        )
    sys.stdout.flush()


def measure(given: argparse.Namespace, case: Case, seed: int) -> None:
    with tempfile.TemporaryDirectory(prefix="fabric-clock-") as folder:
        run = Run(
            case,
            given.nodes,
            given.rails,
            given.seconds,
            seed,
            given.wander_ppm * 1e3,
            tuple(given.periods),
            not given.alone,
            f"fc{os.getpid()}-",
            folder,
        )
        Path(folder, "begin").write_text(str(mono_ns()))
        children: list[subprocess.Popen[bytes]] = []
        with wired(run):
            try:
                clocks = [
                    on_node_loud(run, n, *ourselves("node", run, n)) for n in range(run.nodes)
                ]
                children += clocks
                children += start_peers(run) if run.peers else []
                loops = ["hog"] * case.hogs + ["awake"] * (given.awake * (os.cpu_count() or 1))
                children += [subprocess.Popen(ourselves(what, run, 0)) for what in loops]
                if case.load or case.saturated:
                    time.sleep(QUIET_S if case.quiet else 0)
                    children += [
                        on_node(run, n, *ourselves("traffic", run, n)) for n in range(run.nodes)
                    ]
                shortened = QUIET_S if case.quiet else 0
                seen, pairs = watch(shorter(run, shortened))
                for child in clocks:
                    child.wait(timeout=60)
            finally:
                for child in children:
                    child.terminate()
                    child.wait(timeout=20)
        report(run, seen, pairs)


def shorter(run: Run, by_s: float) -> Run:
    return Run(**{**run.__dict__, "seconds": run.seconds - by_s})


def on_node_loud(run: Run, node: int, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["ip", "netns", "exec", f"{run.prefix}{node}", *words])


def child(what: str, text: str, node: str) -> None:
    given = json.loads(text)
    run = Run(**{**given, "case": CASES[given["case"]], "periods_s": tuple(given["periods_s"])})
    ROLES[what](run, int(node))


ROLES = {"node": clock_node, "traffic": traffic, "hog": hog, "awake": awake}


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] in ROLES:
        return child(*sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="*", choices=list(CASES), default=list(CASES)[:-1])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--rails", type=int, default=1)
    parser.add_argument("--seed", type=int, nargs="*", default=[1])
    parser.add_argument("--wander-ppm", type=float, default=0.1)
    parser.add_argument("--periods", type=float, nargs="*", default=[20.0, 63.0, 200.0])
    parser.add_argument(
        "--awake", action="store_true", help="no CPU sleeps, as where ranks compute"
    )
    parser.add_argument("--alone", action="store_true", help="without chronyd and ptp4l")
    given = parser.parse_args()
    if not given.alone and not (shutil.which("chronyd") and shutil.which("ptp4l")):
        lack("chronyd and ptp4l are missing: apt-get install chrony linuxptp, or: --alone")
    need_root()
    print(
        f"{given.nodes} nodes, {given.rails} rail(s), {given.seconds:.0f} s; errors over all pairs "
        f"in ns; ours with up to 10 ms, 50 ppm and {given.wander_ppm} ppm rms wander of "
        f"{', '.join(f'{p:g}' for p in given.periods)} s injected, the others none"
    )
    print(f"{'case':16} {'clock':14}  {'p50':>10} {'p99':>11} {'max':>11}")
    for name in given.case:
        for seed in given.seed:
            measure(given, CASES[name], seed)
    return None


if __name__ == "__main__":
    main()
