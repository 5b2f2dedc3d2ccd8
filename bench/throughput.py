"""What link failover costs when nothing fails: two rails filled by many streams, with and without.

    bench/throughput.py [--turns 5] [--seconds 6] [--rate-mbit 200] [--json FILE]
    bench/throughput.py --failback [--turns 5]     a cable out for 2 s: until the old rate is back

A job of two nodes sends over both rails' addresses at once, protected and not, in turn. Given are
the sum of both rails, as part of what they can carry, and the ratio of the two. Where the rails are
slower than the machine the figures do not depend on its load.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from slice import STREAM, mbit

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec

ROOT = Path(__file__).resolve().parents[1]
RAILS = ("r0", "r1")
STREAMS = 8  # a rail
# Of --failback: the cable is in, out, and in again; then for how long the rate is looked at.
BEFORE_S, OUT_S, AFTER_S = 3.0, 2.0, 2.0
# The old rate is back when a window of this length had so much of it.
WINDOW_S, STEP_S, STEPS, SAME = 0.3, 0.02, 150, 0.99


class Bench:
    def __init__(self, lab: Lab, seconds: float) -> None:
        self.lab = lab
        self.seconds = seconds

    @contextlib.contextmanager
    def job(self, ours: bool) -> Any:
        flags = ["--fabric-resilience"] if ours else []
        argv = ["salloc", "--no-shell", *flags, "-N2", "-w", "n1,n2", "-J", "throughput"]
        self.lab.exec("ctl", argv, user="alice")
        queue = self.lab.exec("ctl", ["squeue", "-h", "-n", "throughput", "-o", "%A"]).stdout
        ready = f"until grep -q state=ready /run/fabricctl/paths/{queue.strip()}/state; "
        try:
            for node in ("n1", "n2") if ours else ():
                self.lab.exec(node, ["timeout", "20", "sh", "-c", f"{ready} do sleep 0.1; done"])
            yield
        finally:
            self.lab.exec("ctl", ["scancel", queue.strip()])
            gone = "while squeue -h -n throughput | grep -q .; do sleep 0.1; done"
            self.lab.exec("ctl", ["timeout", "30", "sh", "-c", gone], check=False)

    def one(self, rail: str, port: int, stack: contextlib.ExitStack) -> subprocess.Popen[str]:
        show = self.lab.exec("n2", ["ip", "-j", "-4", "address", "show", rail]).stdout
        to = json.loads(show)[0]["addr_info"][0]["local"]
        words = [to, str(port), "--seconds", str(self.seconds)]
        sink = self._start(stack, "n2", [*STREAM, "sink", *words])
        assert sink.stdout is not None
        sink.stdout.readline()
        self._start(stack, "n1", [*STREAM, "flood", *words, "--streams", str(STREAMS)])
        return sink

    def _start(
        self, stack: contextlib.ExitStack, node: str, argv: list[str]
    ) -> subprocess.Popen[str]:
        command = self.lab.exec_argv(node, argv, user="alice")
        return stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))

    def run(self, ours: bool) -> float:
        """Mbit/s of both rails together."""
        with self.job(ours), contextlib.ExitStack() as stack:
            sinks = [self.one(rail, 5001 + number, stack) for number, rail in enumerate(RAILS)]
            counted = [json.loads(sink.communicate()[0]) for sink in sinks]
        return mbit(counted, counted)

    def failback(self) -> tuple[float, float]:
        """Seconds from the cable's return until the sinks get 99 % of what they got before it was
        out, and from then on what part of that."""
        with self.job(True), contextlib.ExitStack() as stack:
            sinks = [self.one(rail, 5001 + number, stack) for number, rail in enumerate(RAILS)]
            time.sleep(BEFORE_S)
            out_s = self.lab.fault("cut", "n2", "r0").mono_ns / 1e9
            time.sleep(OUT_S)
            back_s = self.lab.heal("cut", "n2", "r0").mono_ns / 1e9
            counted = [json.loads(sink.communicate()[0]) for sink in sinks]
        before = rate(counted, out_s - BEFORE_S + 1, out_s)
        for step in range(STEPS):
            at_s = back_s + step * STEP_S
            if rate(counted, at_s, at_s + WINDOW_S) >= SAME * before:
                return at_s - back_s, rate(counted, at_s, at_s + AFTER_S) / before
        return float("inf"), rate(counted, back_s + 1, back_s + 1 + AFTER_S) / before


def rate(counted: list[dict[str, Any]], begin_s: float, end_s: float) -> float:
    """Bytes a second that all sinks got; they count by tenths of a second."""
    total = 0.0
    for one in counted:
        for number, got in enumerate(one["bytes"]):
            at_s = one["begin_mono_s"] + number / 10
            part = min(end_s, at_s + 0.1) - max(begin_s, at_s)
            total += got * max(0.0, part) / 0.1
    return total / (end_s - begin_s)


def failbacks(bench: Bench, turns: int) -> None:
    for _ in range(turns):
        back_s, part = bench.failback()
        print(f"old rate after {back_s:.2f} s, then {part:.1%} of it "
              f"(load {os.getloadavg()[0]:.1f})", flush=True)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--failback", action="store_true")
    parser.add_argument("--rate-mbit", type=int, default=200)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--name", default=os.environ.get("FABRICCTL_LAB", "bench-throughput"))
    args = parser.parse_args()
    subprocess.run(["make", "-s", "-C", str(ROOT / "fabricctl" / "paths")], check=True)
    lab = Lab(LabSpec(name=args.name, rate_bit_per_s=args.rate_mbit * 1_000_000))
    lab.up()
    found: dict[bool, list[float]] = {False: [], True: []}
    try:
        bench = Bench(lab, BEFORE_S + OUT_S + 6 if args.failback else args.seconds)
        if args.failback:
            failbacks(bench, args.turns)
            return 0
        for _ in range(args.turns):
            for ours in (False, True):
                found[ours].append(bench.run(ours))
                load = os.getloadavg()[0]
                words = "protected" if ours else "plain    "
                print(f"{words} {found[ours][-1]:.1f} Mbit/s (load {load:.1f})", flush=True)
    finally:
        lab.down()
    whole = len(RAILS) * args.rate_mbit * 1448 / 1514  # payload of what the lab's links count
    plain, protected = (statistics.median(found[ours]) for ours in (False, True))
    print(
        f"both rails: plain {plain / whole:.1%}, protected {protected / whole:.1%} of what they "
        f"can carry; "
        f"protected / plain {protected / plain:.3f} (medians of {args.turns})"
    )
    if args.json:
        args.json.write_text(json.dumps({"plain": found[False], "protected": found[True]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
