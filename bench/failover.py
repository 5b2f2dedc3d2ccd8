"""Stall of running traffic when a link fails: ours, kernel MPTCP, MPI libraries as they come, TCP.

    bench/failover.py [--faults cut,blackhole] [--systems ours,mptcp,tcp] [--turns 30]
                      [--healthy SECONDS] [--hogs N] [--json FILE] [--show]

A job in the lab, and in it one fault after the other, each healed after some seconds. Streams of
all systems run side by side through the same faults; an MPI library has a job of its own. The stall
is the longest exchange (or MPI iteration) that was under way between fault and heal; a system that
still waits for the fault before is not counted. All payload is checked, so a byte lost, doubled or
changed ends the run as `broken`. `--hogs` has so many busy loops beside. `--healthy` runs traffic
with every core and rail busy and counts moves, which must be none. With --json what was measured is
added to what the file has, so that many runs fit into short ones; --show only prints it. Numbers of
the lab compare systems with each other on one noisy machine; they predict no real network.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from failover_runs import ROOT, SYSTEMS, Bench, Turn, longest, net_ns

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec

QUIET_S = 1.2  # before a fault: what the machine does to the traffic by itself
HEAL_S = 1.8  # after one: until the rail is trusted again and all streams are back
# Plain TCP tries again 0.2, 0.6, 1.4 and 3 s after a loss: it is back before the next fault.
FAULT_S = 2.0
STALL_GOAL_MS = 20.0

Fault = tuple[str, tuple[str, ...], dict[str, Any]]
FAULTS: dict[str, tuple[Fault, float]] = {  # and seconds until it is healed
    "cut": (("cut", ("n2", "r0"), {}), FAULT_S),
    "blackhole": (("blackhole", ("n2", "r0"), {}), FAULT_S),
    "blackhole-tx": (("blackhole", ("n2", "r0"), {"direction": "tx"}), FAULT_S),
    "blackhole-rx": (("blackhole", ("n2", "r0"), {"direction": "rx"}), FAULT_S),
    "switch-dead": (("switch-dead", ("r0",), {}), FAULT_S),
    "loss-5": (("loss", ("n2", "r0"), {"percent": 5.0}), FAULT_S),
    "loss-large": (("loss-large", ("n2", "r0"), {"above": 1000}), FAULT_S),
    "rate-1": (("rate", ("n2", "r0"), {"rate": "10mbit"}), FAULT_S),
    "flap-1": (("flap", ("n2", "r0"), {"period_s": 1.0}), 2 * FAULT_S),
    "flap-5": (("flap", ("n2", "r0"), {"period_s": 0.2}), FAULT_S),
    "flap-20": (("flap", ("n2", "r0"), {"period_s": 0.05}), FAULT_S),
}


@dataclass
class Outcome:
    """All turns of one system under one fault."""

    stalls_ms: list[float] = field(default_factory=list)
    net_ms: list[float] = field(default_factory=list)  # less what both ends waited for a core
    quiet_ms: list[float] = field(default_factory=list)  # the longest gap before the fault
    moved_ms: list[float] = field(default_factory=list)  # the first end
    all_moved_ms: list[float] = field(default_factory=list)  # the last of both
    loads: list[float] = field(default_factory=list)
    broken: int = 0
    healthy_s: float = 0.0  # of runs without a fault
    false_moves: int = 0  # in these

    def add(self, result: dict[str, Any], turns: list[Turn], ours: bool) -> None:
        self.loads.append(os.getloadavg()[0])
        if not result:
            self.broken += 1
            return
        for turn in turns:
            if any(
                gap["begin_mono_ns"] < turn.begin_ns - 0.5e9
                and gap["begin_mono_ns"] + gap["gap_ns"] > turn.begin_ns
                for gap in result["longest"]
            ):
                continue
            stall = longest(result, turn.begin_ns, turn.healed_ns)
            quiet_ns = turn.begin_ns - int(QUIET_S * 1e9)
            quiet = longest(result, quiet_ns, turn.begin_ns - 1, whole=True)
            self.stalls_ms.append(stall["gap_ns"] / 1e6)
            self.quiet_ms.append(quiet["gap_ns"] / 1e6)
            if "waits" in result:
                self.net_ms.append(net_ns(result, stall) / 1e6)
            if ours and (moved := turn.moved_ms):
                self.moved_ms.append(min(moved))
                self.all_moved_ms.append(max(moved))


Results = dict[tuple[str, str], Outcome]


def turns(bench: Bench, job: int, fault: str, count: int) -> list[Turn]:
    done = []
    for _ in range(count):
        time.sleep(QUIET_S)
        done.append(bench.turn(*FAULTS[fault]))
        time.sleep(HEAL_S)
    events = bench.events(job)
    for turn in done:
        turn.events = events
    return done


def run(bench: Bench, fault: str, names: list[str], count: int, results: Results) -> None:
    """One job of one MPI library, or the streams of all ``names``."""
    seconds = count * (QUIET_S + FAULTS[fault][1] + HEAL_S + 0.2) + 2
    mpi = bool(SYSTEMS[names[0]].python)
    system = SYSTEMS[names[0] if mpi else "ours"]
    with bench.job(system, seconds) as job:
        if mpi:
            with bench.mpi(job, seconds) as result:
                done = turns(bench, job, fault, count)
            found = {names[0]: result}
        else:
            with bench.streams(names, seconds) as found:
                done = turns(bench, job, fault, count)
    for name, result in found.items():
        outcome = results.setdefault((fault, name), Outcome())
        outcome.add(result, done, SYSTEMS[name].ours)
        last = ", ".join(f"{stall:.0f}" for stall in outcome.stalls_ms[-count:]) or "broken"
        sys.stderr.write(f"{fault} {name}: {last} ms\n")


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))] if ordered else 0.0


COLUMNS = ("p50", "p99", "max", ">20 ms", "net p50", "n.p99", "n.max",
           "quiet", "q.p99", "moved", "both", "b.max")  # fmt: skip


def table(results: Results) -> Iterator[str]:
    yield " ".join(
        [f"{'fault':13}", f"{'system':14}", "  n", *(f"{word:>7}" for word in COLUMNS),
         " load broken"]
    )  # fmt: skip
    for (fault, name), item in sorted(results.items()):
        stalls = item.stalls_ms
        late = sum(stall > STALL_GOAL_MS for stall in stalls)
        values = [percentile(stalls, share) for share in (0.5, 0.99, 1)]
        shown = [f"{value:7.1f}" for value in values] + [f"{late:4}/{len(stalls):<3}"[:7]]
        net, quiet, both = item.net_ms, item.quiet_ms, item.all_moved_ms
        for some, *shares in (
            (net, 0.5, 0.99, 1),
            (quiet, 0.5, 0.99),
            (item.moved_ms, 0.5),
            (both, 0.5, 1),
        ):
            shown += [f"{percentile(some, share):7.1f}" if some else "      -" for share in shares]
        load = percentile(item.loads, 0.5)
        yield f"{fault:13} {name:14} {len(stalls):3} {' '.join(shown)} {load:5.0f} {item.broken:6}"


def load(file: Path | None) -> Results:
    """What earlier runs measured."""
    if not file or not file.exists():
        return {}
    found = json.loads(file.read_text())
    return {tuple(key.split("/")): Outcome(**value) for key, value in found.items()}


def save(file: Path | None, results: Results) -> None:
    if file:
        plain = {f"{fault}/{name}": vars(item) for (fault, name), item in results.items()}
        file.write_text(json.dumps(plain, indent=1))


def show(results: Results) -> None:
    healthy = results.pop(("none", "healthy"), None)
    if healthy:
        print(f"healthy for {healthy.healthy_s:g} s under full load: {healthy.false_moves} moves")
    if results:
        print(
            "stall in ms; net: less the time that either end was ready to run and had no core;\n"
            "quiet: the longest exchange in the second before the fault, median and p99;\n"
            "moved: from the fault to the first end that had moved; both: to the last one, longest"
        )
        print("\n".join(table(results)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", default="cut,blackhole")
    parser.add_argument("--systems", default="ours,mptcp,tcp")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--hogs", type=int, default=0)
    parser.add_argument("--healthy", type=float, default=0, metavar="SECONDS")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--name", default=os.environ.get("FABRICCTL_LAB", "bench-failover"))
    parser.add_argument("--show", action="store_true", help="print what the file has, run nothing")
    args = parser.parse_args()
    if args.show:
        show(load(args.json))
        return 0
    subprocess.run(["make", "-s", "-C", str(ROOT / "fabricctl" / "paths")], check=True)
    names = [name for name in args.systems.split(",") if name]
    streams = [name for name in names if not SYSTEMS[name].python]
    groups = [streams] * bool(streams) + [[name] for name in names if SYSTEMS[name].python]
    lab = Lab(LabSpec(name=args.name))
    lab.up()
    bench = Bench(lab)
    results = load(args.json)
    spin = ["timeout", "3600", "sh", "-c", "while :; do :; done"]
    hogs = [subprocess.Popen(lab.exec_argv("n1", spin)) for _ in range(args.hogs)]
    try:
        bench.prepare()
        if args.healthy:
            moves = bench.healthy(args.healthy)
            outcome = results.setdefault(("none", "healthy"), Outcome())
            outcome.healthy_s += args.healthy
            outcome.false_moves += len(moves)
            print("\n".join(moves))
        for fault in filter(None, args.faults.split(",")):
            for group in groups:
                run(bench, fault, group, args.turns, results)
                save(args.json, results)
    finally:
        for hog in hogs:
            hog.terminate()
        lab.down()
        save(args.json, results)
    show(results)
    return 1 if any(item.broken for (_, name), item in results.items() if "ours" in name) else 0


if __name__ == "__main__":
    sys.exit(main())
