"""fabric-pathd on two nodes without Slurm: the stall of a stream when a rail falls silent, false
moves, a host that stands still, the CPU that probing takes.

    bench/pair.py stall [--turns 25] [--block 1024]    rail 0 falls silent both ways
    bench/pair.py stall --fault cut [--plain --hogs 2] rail 0 of one node loses its cable
    bench/pair.py stall --fault loss --outage 1        5 % of all packets of rail 0 are lost; also
                                                       `rate`: it carries 10 Mbit/s alone,
                                                       `rx`: one node hears nothing there,
                                                       `drain`: as `fabricctl path drain-rail`
    bench/pair.py healthy [--seconds 60]               every core busy, no fault: moves must be none
    bench/pair.py freeze [--turns 40]                  one fabric-pathd stopped, 3 ms to 1 s
    bench/pair.py cpu [--seconds 10]                   of fabric-pathd with one busy peer, and of
                                                       its system calls alone

Two nodes and a switch a rail, each a network namespace. Streams run at real-time priority, below
fabric-pathd's, so that what else the machine does shows little: what is left are TCP's own timers,
which tick at the kernel's HZ, and the detection. With --plain they run as programs do, with --hogs
beside so many busy loops. --pathd names another executable, to compare. Needs root.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.needs import need_root

ROOT = Path(__file__).resolve().parents[1]
STREAM = ["/usr/bin/python3", str(ROOT / "bench" / "failover_stream.py")]
AS_USER = ["setpriv", "--reuid", "1000", "--clear-groups"]
REALTIME = ["chrt", "-f", "5"]
SILENT = " bpf bytecode '1,6 0 0 2,' da"  # TC_ACT_SHOT
# A random number (SKF_AD_RANDOM) of the upper 5 % is shot.
LOSSY = " bpf bytecode '4,32 0 0 4294963256,53 0 1 4080218931,6 0 0 2,6 0 0 0,' da"
SLOW = "tbf rate 10mbit burst 6000 limit 48000"
WHOLE = ("loss", "drain", "rate")  # faults that may hit an exchange as long as they last
STOPS_S = (0.003, 0.01, 0.05, 0.3, 1.0)
CONFIGURATION = """job 7
self {self}
key 000102030405060708090a0b0c0d0e0f
ports 20501 20502 20503 20504
manage 10.90.0.{host}
dir {dir}/7
leases {dir}
own 1000
interval_us {interval}
rto_min_ms {rto_min}
congestion {congestion}
hold_ms 200
hold_max_ms 200
rail r0 fab0 10.91.0.{host}/24 -
rail r1 fab1 10.92.0.{host}/24 -
rate r0 10000000
rate r1 10000000
reroute_us 2000
node n1 10.90.0.1
node n2 10.90.0.2
end
"""


def sh(command: str) -> str:
    done = subprocess.run(command, shell=True, check=True, capture_output=True, text=True)
    return done.stdout


class Pair:
    """Both nodes; names of their namespaces in :attr:`nodes`."""

    def __init__(self, stack: contextlib.ExitStack, args: argparse.Namespace) -> None:
        self.stack = stack
        self.pause = args.pause
        self.user = AS_USER if args.plain else [*REALTIME, *AS_USER]
        self.nodes = [f"pair{os.getpid()}{letter}" for letter in "ab"]
        self.switch = f"pair{os.getpid()}s"
        self.work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for node in (*self.nodes, self.switch):
            sh(f"ip netns add {node} && ip -n {node} link set lo up")
            stack.callback(sh, f"ip netns del {node}")
        for index, name in enumerate(("m0", "r0", "r1")):
            sh(f"ip -n {self.switch} link add {name} type bridge")
            sh(f"ip -n {self.switch} link set {name} up")
            for number, node in enumerate(self.nodes, 1):
                port = f"{name}p{number}"
                sh(f"ip -n {node} link add {name} type veth peer name {port} netns {self.switch}")
                sh(f"ip -n {self.switch} link set {port} master {name} up")
                sh(f"ip -n {node} address add 10.9{index}.0.{number}/24 dev {name}")
                sh(f"ip -n {node} link set {name} up")
                # veth has no queue: a port without carrier would refuse packets, real ones swallow
                sh(f"tc -n {node} qdisc replace dev {name} root pfifo_fast")
        for number, node in enumerate(self.nodes):
            sh(f"tc -n {node} qdisc add dev r0 clsact")
            (self.work / node / "7").mkdir(parents=True)
            begun = self.start(node, [args.pathd, "run"], stdin=subprocess.PIPE)
            assert begun.stdin is not None
            begun.stdin.write(CONFIGURATION.format(
                self=number, host=number + 1, dir=self.work / node,
                interval=args.interval_us, congestion=args.congestion,
                rto_min=args.rto_min_ms,
            ))  # fmt: skip
            begun.stdin.close()
        spin = ["sh", "-c", "while :; do :; done"]
        for _ in range(args.hogs):
            self.start(self.nodes[0], spin)
        time.sleep(1.5)

    def start(self, node: str, argv: list[str], **more: int) -> subprocess.Popen[str]:
        argv = ["ip", "netns", "exec", node, *argv]
        begun: subprocess.Popen[str] = subprocess.Popen(argv, text=True, **more)  # type: ignore[call-overload]
        self.stack.callback(begun.wait, 10)
        self.stack.callback(begun.terminate)
        return begun

    def stream(self, seconds: float, block: int) -> subprocess.Popen[str]:
        words = ["10.91.0.2", "5001", "--seconds", str(seconds)]
        there = self.start(
            self.nodes[1], [*self.user, *STREAM, "serve", *words], stdout=subprocess.PIPE
        )
        assert there.stdout is not None
        assert there.stdout.readline() == "listening\n"
        more = ["--keep", "1000000", "--block", str(block), "--pause", str(self.pause)]
        argv = [*self.user, *STREAM, "ask", *words, *more]
        begun = self.start(self.nodes[0], argv, stdout=subprocess.PIPE)
        time.sleep(2.5)
        return begun

    def fault(self, kind: str, on: bool) -> None:
        """On rail 0, and healed."""
        if kind == "drain":
            self.ask(do="drain" if on else "undrain", rail="0")
            return
        if kind == "cut":
            sh(f"ip -n {self.switch} link set r0p2 {'down' if on else 'up'}")
            return
        if kind == "rate":
            for port in ("r0p1", "r0p2"):
                what = f"replace dev {port} root {SLOW}" if on else f"del dev {port} root"
                sh(f"tc -n {self.switch} qdisc {what}")
            return
        what, drop = ("add", LOSSY if kind == "loss" else SILENT) if on else ("del", "")
        for node in self.nodes[kind == "rx" :]:
            sh(f"tc -n {node} filter {what} dev r0 ingress pref 1 protocol all{drop}")

    def ask(self, **request: str) -> str:
        """Of the first node's fabric-pathd, as `fabricctl path` does."""
        folder = self.work / self.nodes[0]
        mine = folder / "asks"  # in the file system: the same in all network namespaces
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
            link.bind(str(mine))
            link.settimeout(5)
            link.connect(str(folder / "7" / "control"))
            link.send("\n".join(f"{key}={value}" for key, value in request.items()).encode())
            answer = link.recv(65_536).decode()
        mine.unlink()
        return answer

    def counters(self) -> dict[str, int]:
        """TCP's, of both nodes."""
        found: dict[str, int] = {}
        for node in self.nodes:
            lines = sh(f"ip netns exec {node} cat /proc/net/netstat").splitlines()
            for names, values in zip(lines[::2], lines[1::2], strict=True):
                for name, value in zip(names.split()[1:], values.split()[1:], strict=True):
                    found[name] = found.get(name, 0) + int(value)
        return found

    def worker(self, node: str) -> int:
        lines = (self.work / node / "7" / "state").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("pid="))[4:])

    def moves(self) -> list[int]:
        """When traffic left a rail, at either end, CLOCK_MONOTONIC in ns."""
        found = []
        for node in self.nodes:
            for line in (self.work / node / "7" / "events").read_text().splitlines():
                event = dict(part.split("=", 1) for part in line.split(";"))
                if event["event"] == "rerouted":
                    found.append(int(event["time_mono_ns"]))
                if event["event"] == "path" and event["level"] != "good":
                    found.append(int(event["moved_mono_ns"]))
        return [at for at in found if at]


def percentiles(values: list[float]) -> str:
    ordered = sorted(values)
    at = [ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.9, 1)]
    return "p50 {:.1f}, p90 {:.1f}, max {:.1f} ms".format(*at)


def stall(pair: Pair, args: argparse.Namespace) -> int:
    client = pair.stream(args.turns * (args.outage + 1.0) + 5, args.block)
    faults = []
    for _ in range(args.turns):
        time.sleep(0.7)
        begin = time.monotonic_ns()
        pair.fault(args.fault, True)
        end = time.monotonic_ns() + (0 if args.fault in WHOLE else int(5e7))
        time.sleep(args.outage)
        pair.fault(args.fault, False)
        faults.append((begin, time.monotonic_ns() if args.fault in WHOLE else end))
    gaps = [
        (gap["begin_mono_ns"], gap["gap_ns"])
        for gap in json.loads(client.communicate()[0])["longest"]
    ]
    stalls, moved = [], []
    for begin, end in faults:  # the exchange that was lost tells when the fault was
        length, lost = max((g, b) for b, g in gaps if b < end and b + g > begin)
        lost = begin if args.fault in WHOLE else lost  # one of many
        ends = [at - lost for at in pair.moves() if 0 < at - lost < 3e8]
        if ends:
            stalls.append(length / 1e6)
            moved.append(max(ends) / 1e6)
    quiet = [
        g / 1e6
        for b, g in gaps
        if not any(-1e6 < b - begin < (args.outage + 0.3) * 1e9 for begin, _ in faults)
    ]
    print(f"blocks of {args.block} B, {len(stalls)} faults that hit: stall {percentiles(stalls)}")
    if args.each:
        print("  " + " ".join(f"{stall:.0f}" for stall in stalls))
    print(f"  both ends had moved after {percentiles(moved)}; exchanges without a fault: "
          f"{percentiles(quiet)}")  # fmt: skip
    return 0


def count_moves(pair: Pair, run: Iterator[None]) -> int:
    before = len(pair.moves())
    for _ in run:
        pass
    moves = len(pair.moves()) - before
    print(f"false moves: {moves}")
    return 1 if moves else 0


def healthy(pair: Pair, args: argparse.Namespace) -> int:
    def run() -> Iterator[None]:
        pair.stream(args.seconds + 5, args.block)
        spin = ["timeout", str(args.seconds), "sh", "-c", "while :; do :; done"]
        hogs = [pair.start(pair.nodes[0], spin) for _ in range((os.cpu_count() or 1) + 1)]
        for hog in hogs:
            hog.wait()
        yield

    return count_moves(pair, run())


def freeze(pair: Pair, args: argparse.Namespace) -> int:
    def run() -> Iterator[None]:
        pair.stream(args.turns * 1.5 + 5, args.block)
        for _ in range(args.turns):
            pid = pair.worker(random.choice(pair.nodes))
            os.kill(pid, signal.SIGSTOP)
            time.sleep(random.choice(STOPS_S))
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.3)
            yield

    return count_moves(pair, run())


def begin_floors(pair: Pair, args: argparse.Namespace) -> list[subprocess.Popen[str]]:
    """The same system calls at the same pace between the same nodes; the first one's counts."""
    program = pair.work / "floor"
    sh(f"cc -O2 -D_GNU_SOURCE -o {program} {ROOT}/bench/pair_floor.c")
    words = [str(program), str(int(args.seconds)), str(args.interval_us), "5100"]
    there = [[f"10.9{rail}.0.{host}" for rail in (1, 2)] for host in (2, 1)]
    return [
        pair.start(node, [*words, *to], stdout=subprocess.PIPE)
        for node, to in zip(pair.nodes, there, strict=True)
    ]


def cpu(pair: Pair, args: argparse.Namespace) -> int:
    pair.stream(args.seconds + 5, args.block)
    used = Path(f"/proc/{pair.worker(pair.nodes[0])}/schedstat")
    floors = begin_floors(pair, args)
    begin, since = int(used.read_text().split()[0]), time.monotonic()
    floor_ns, turns = map(int, floors[0].communicate()[0].split())
    part = (int(used.read_text().split()[0]) - begin) / 1e9 / (time.monotonic() - since)
    floor = floor_ns / 1e9 / args.seconds
    print(
        f"fabric-pathd: {part:.2%} of a core, probes every {args.interval_us} us; the same system "
        f"calls beside it, without it: {floor:.2%}, {floor_ns / turns / 1e3:.0f} us a turn"
    )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "what", nargs="?", default="stall", choices=("stall", "healthy", "freeze", "cpu")
    )
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--block", type=int, default=1024)
    parser.add_argument("--interval-us", type=int, default=4000)
    parser.add_argument(
        "--fault", choices=("silent", "cut", "rx", "loss", "rate", "drain"), default="silent"
    )
    parser.add_argument("--each", action="store_true", help="print every stall")
    parser.add_argument("--outage", type=float, default=0.3)
    parser.add_argument("--plain", action="store_true", help="streams at ordinary priority")
    parser.add_argument("--hogs", type=int, default=0, help="busy loops beside them")
    parser.add_argument("--pause", type=float, default=0.0005)
    parser.add_argument("--congestion", default="cubic", help="of the streams: cubic, bbr...")
    parser.add_argument("--rto-min-ms", type=int, default=4, help="of the routes")
    parser.add_argument("--pathd", default=str(ROOT / "build" / "paths" / "fabric-pathd"))
    args = parser.parse_args()
    need_root()
    run = {"stall": stall, "healthy": healthy, "freeze": freeze, "cpu": cpu}[args.what]
    with contextlib.ExitStack() as stack:
        status = run(Pair(stack, args), args)
        print(f"  (load {os.getloadavg()[0]:.0f})")
    return status


if __name__ == "__main__":
    sys.exit(main())
