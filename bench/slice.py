"""Shares of a rail: does a job keep what it was promised while another floods, and what do the
small messages of one job wait beside the bulk of another?

    bench/slice.py [--repeat 3] [--seconds 10] [--only NAME] [--json FILE]

Two users' jobs in the lab, on one rail of 200 Mbit/s. Each case is run with and without shares, in
turn. What counts is what the receiver sees in the second half of the time that both ran. Numbers of
the lab compare settings on one noisy machine; they predict no real network.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec

ROOT = Path(__file__).resolve().parents[1]
STREAM = ["/usr/bin/python3", str(ROOT / "bench" / "slice_stream.py")]
NODES = ("n1", "n2", "n3", "n4")
RATE_MBIT = 200
# Of which 1,448 bytes of 1,538 are payload: Ethernet with preamble and gap, IP, TCP with stamps.
PAYLOAD_MBIT = RATE_MBIT * 1448 / 1538
CONFIG = f"""
[share]
rail_mbit = {RATE_MBIT}
max_percent = 100
"""


@dataclass(frozen=True)
class Case:
    """What alice's job does, from where bob's floods n2, and what each asks for."""

    says: str
    alice_share: str
    bob_share: str
    bob_from: str
    latency: bool = False


CASES = {
    "same-node": Case("both on n1, bob has no share", "60", "", "n1"),
    "other-node": Case("bob floods from n3 and slows down", "60", "0-100", "n3"),
    "latency": Case("alice's 64 bytes beside bob's bulk from n1", "20", "0-100", "n1", True),
    "latency-other": Case("the same, bob on n3 and n4", "20", "0-100", "n3,n4", True),
}


class ApartError(Exception):
    """What was to be compared did not run side by side."""


class Bench:
    def __init__(self, lab: Lab, seconds: float) -> None:
        self.lab = lab
        self.seconds = seconds

    def configure(self) -> None:
        etc = self.lab.paths.etc
        toml = etc / "fabricctl.toml"
        toml.write_text(toml.read_text() + CONFIG)
        plugstack = etc / "slurm" / "plugstack.conf"
        plugstack.write_text(plugstack.read_text().rstrip() + " max_share=100\n")
        for node in NODES:
            self.lab.fault("kill", node, "fabricctl-node")
            self.lab.heal("kill", node, "fabricctl-node")

    @contextlib.contextmanager
    def job(self, user: str, share: str) -> Iterator[int]:
        flags = ["--fabric-resilience", f"--fabric-share={share}"] if share else []
        argv = ["sbatch", "--parsable", *flags, "-s", "-N4", "-o", "/dev/null"]
        done = self.lab.exec("ctl", argv, user=user, input="#!/bin/bash\nsleep 600\n")
        number = int(done.stdout)
        try:
            self._wait(number, bool(share))
            yield number
        finally:
            self.lab.exec("ctl", ["scancel", str(number)], check=False)
            self._gone(number)

    def _wait(self, job: int, ours: bool) -> None:
        ready = ["grep", "-q", "state=ready", f"/run/fabricctl/paths/{job}/state"]
        for _ in range(300):
            state = self.lab.exec("ctl", ["squeue", "-h", "-j", str(job), "-o", "%T"], check=False)
            there = not ours or all(
                self.lab.exec(node, ready, check=False).returncode == 0 for node in NODES
            )
            if state.stdout.strip() == "RUNNING" and there:
                return
            time.sleep(0.05)
        raise SystemExit(f"bench: job {job} did not begin")

    def _gone(self, job: int) -> None:
        for _ in range(200):
            there = ["test", "-e", f"/run/fabricctl/paths/{job}"]
            if all(self.lab.exec(node, there, check=False).returncode for node in NODES):
                return
            time.sleep(0.1)

    def _start(self, node: str, user: str, *words: str) -> subprocess.Popen[str]:
        argv = [*STREAM, *words, "--seconds", str(self.seconds)]
        return subprocess.Popen(
            self.lab.exec_argv(node, argv, user=user), stdout=subprocess.PIPE, text=True
        )

    @contextlib.contextmanager
    def flood(self, user: str, source: str, port: int, streams: int) -> Iterator[dict[str, Any]]:
        """Fills in what n2 had of it, and when."""
        to = self.address
        result: dict[str, Any] = {}
        with self._start("n2", user, "sink", to, str(port)) as there:
            assert there.stdout is not None
            there.stdout.readline()
            with self._start(source, user, "flood", to, str(port), "--streams", str(streams)):
                yield result
            result.update(json.loads(there.stdout.read()))

    @contextlib.contextmanager
    def pings(self, user: str, port: int) -> Iterator[dict[str, Any]]:
        result: dict[str, Any] = {}
        with self._start("n2", user, "echo", self.address, str(port)) as there:
            assert there.stdout is not None
            there.stdout.readline()
            with self._start("n1", user, "ping", self.address, str(port)) as client:
                yield result
                said, _ = client.communicate(timeout=60)
        result.update(json.loads(said))

    @property
    def address(self) -> str:
        show = self.lab.exec("n2", ["ip", "-j", "-4", "address", "show", "r0"]).stdout
        return str(json.loads(show)[0]["addr_info"][0]["local"])

    def run(self, case: Case, shares: bool) -> dict[str, Any]:
        alice, bob = (case.alice_share, case.bob_share) if shares else ("", "")
        with self.job("alice", alice) as job, self.job("bob", bob):
            hers = self.pings("alice", 5001) if case.latency else self.flood("alice", "n1", 5001, 2)
            with contextlib.ExitStack() as stack:
                his = [
                    stack.enter_context(self.flood("bob", node, 5002 + number, 8))
                    for number, node in enumerate(case.bob_from.split(","))
                ]
                her = stack.enter_context(hers)
                time.sleep(self.seconds / 2)
            path = f"/run/fabricctl/paths/{job}/events"
            found = self.lab.exec("n1", ["cat", path], check=False).stdout.splitlines()
        trouble = [line for line in found if "event=trouble" in line]
        said = {"trouble": trouble, "load": os.getloadavg()[0]}
        if case.latency:
            return said | latency(her, his) | {"bob_mbit": mbit(his, his)}
        return said | {"alice_mbit": mbit([her], [her, *his]), "bob_mbit": mbit(his, [her, *his])}


def window(counted: list[dict[str, Any]]) -> tuple[float, float]:
    """The second half of the time that all ran."""
    begin = max(one["begin_mono_s"] for one in counted)
    end = min(one["begin_mono_s"] + len(one["bytes"]) / 10 for one in counted)
    if min(one["begin_mono_s"] for one in counted) == 0 or end - begin < 2:
        raise ApartError("they did not run at the same time: give more --seconds")
    return (begin + end) / 2, end


def mbit(of: list[dict[str, Any]], counted: list[dict[str, Any]]) -> float:
    """What ``of`` had while all of ``counted`` ran."""
    begin, end = window(counted)
    total = 0.0
    for one in of:
        first, last = (round((at - one["begin_mono_s"]) * 10) for at in (begin, end))
        total += sum(one["bytes"][first:last]) * 8 / 1e5 / (last - first)
    return total


def latency(her: dict[str, Any], his: list[dict[str, Any]]) -> dict[str, float]:
    begin, end = window(his)
    inside = sorted(ns for at, ns in her["exchanges_ns"] if begin * 1e9 < at < end * 1e9)
    if len(inside) < 50:
        raise ApartError("too few exchanges beside the bulk: give more --seconds")
    return {
        "alice_p50_ms": inside[len(inside) // 2] / 1e6,
        "alice_p99_ms": inside[int(0.99 * (len(inside) - 1))] / 1e6,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--name", default=os.environ.get("FABRICCTL_LAB", "bench-slice"))
    args = parser.parse_args()
    subprocess.run(["make", "-s", "-C", str(ROOT / "fabricctl" / "paths")], check=True)
    lab = Lab(LabSpec(name=args.name, rate_bit_per_s=RATE_MBIT * 1_000_000))
    lab.up()
    results: list[dict[str, Any]] = []
    failed: list[str] = []
    try:
        bench = Bench(lab, args.seconds)
        bench.configure()
        for name in args.only.split(","):
            for _ in range(args.repeat):
                for shares in (False, True):
                    one = measured(bench, name, shares, args.seconds)
                    if one is None:
                        failed.append(name)
                        continue
                    results.append(one)
                    print(as_text(one), flush=True)
                    if args.json:
                        args.json.write_text(json.dumps(results, indent=1))
    finally:
        lab.down()
    return 1 if failed else 0


def measured(bench: Bench, name: str, shares: bool, seconds: float) -> dict[str, Any] | None:
    """A busy machine starts programs seconds apart: then once more, for three times as long."""
    for bench.seconds in (seconds, 3 * seconds):
        try:
            return {"case": name, "shares": shares} | bench.run(CASES[name], shares)
        except ApartError as error:
            print(f"{name}: {bench.seconds:g} s each: {error}", flush=True)
    return None


def as_text(one: dict[str, Any]) -> str:
    if "alice_p50_ms" in one:
        her = f"alice p50 {one['alice_p50_ms']:.2f} p99 {one['alice_p99_ms']:.2f} ms"
    else:
        part = one["alice_mbit"] / PAYLOAD_MBIT
        her = f"alice {one['alice_mbit']:.1f} Mbit/s, {part:.1%} of what the rail can carry"
    words = "with shares" if one["shares"] else "without    "
    return (
        f"{one['case']:14} {words}: {her}; bob {one['bob_mbit']:.1f} Mbit/s "
        f"(load {one['load']:.1f}){''.join(chr(10) + line for line in one['trouble'])}"
    )


if __name__ == "__main__":
    sys.exit(main())
