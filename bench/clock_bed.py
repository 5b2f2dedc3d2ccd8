"""What bench/clock.py measures on: namespaced nodes on bridges; chronyd and ptp4l on the same."""

import math
import random
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fabricctl.clock.probing import Virtual

MBIT = 40  # of each port, shaped in the switch: what two cores can fill eight times


@dataclass(frozen=True)
class Case:
    name: str
    load: float = 0.0  # of every port's rate, bursty
    saturated: bool = False  # one receive port at 120 %
    hogs: int = 0  # busy processes
    burst_packets: int = 20
    quiet: bool = False  # a free network first


CASES = {
    case.name: case
    for case in (
        Case("idle"),
        Case("hogs", hogs=2),
        Case("load40", load=0.4),
        Case("load70", load=0.7),
        Case("load90", load=0.9, quiet=True),
        Case("saturated", load=0.3, saturated=True, quiet=True),
        Case("saturated-start", load=0.3, saturated=True),
        Case("saturated-bulk", load=0.2, saturated=True, burst_packets=200, quiet=True),
        Case("harm", load=0.9, saturated=True, quiet=True),  # bench/clock_harm.py
    )
}


@dataclass(frozen=True)
class Run:
    case: Case
    nodes: int
    rails: int
    seconds: float
    seed: int
    wander_ppb: float
    periods_s: tuple[float, ...]
    peers: bool
    prefix: str
    dir: str

    def address(self, node: int, rail: int = 0) -> str:
        return f"10.{90 + rail}.0.{node + 1}"

    def virtual(self, node: int, begin_mono_ns: int) -> Virtual:
        """10 ms and 50 ppm at most, and waves of frequency with the rms asked for."""
        rng = random.Random(self.seed * 1000 + node)
        rate = self.wander_ppb * math.sqrt(2 / len(self.periods_s))
        waves = tuple(
            (rate * period / (2 * math.pi), period, rng.uniform(0, 2 * math.pi))
            for period in self.periods_s
        )
        offset, drift = rng.randint(-10_000_000, 10_000_000), rng.uniform(-5e4, 5e4)
        return Virtual(begin_mono_ns, offset, drift, waves)


def call(*command: str) -> None:
    subprocess.run(command, check=True)


@contextmanager
def wired(run: Run) -> Iterator[None]:
    """A bridge a rail in a middle namespace, whose ports queue what goes to the nodes."""
    names = [f"{run.prefix}{i}" for i in range(run.nodes)]
    switches = [f"{run.prefix}s{rail}" for rail in range(run.rails)]
    try:
        for name in (*names, *switches):
            call("ip", "netns", "add", name)
            call("ip", "-n", name, "link", "set", "lo", "up")
        for rail, switch in enumerate(switches):
            call("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
            call("ip", "-n", switch, "link", "set", "br0", "up")
            for i, name in enumerate(names):
                plug(run, i, name, rail, switch)
        yield
    finally:
        for name in (*names, *switches):
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def plug(run: Run, node: int, name: str, rail: int, switch: str) -> None:
    port = f"p{node}"
    call(
        "ip",
        "link",
        "add",
        f"r{rail}",
        "netns",
        name,
        "type",
        "veth",
        "peer",
        "name",
        port,
        "netns",
        switch,
    )
    call("ip", "-n", switch, "link", "set", port, "master", "br0", "up")
    call("ip", "-n", name, "addr", "add", run.address(node, rail) + "/24", "dev", f"r{rail}")
    call("ip", "-n", name, "link", "set", f"r{rail}", "up")
    if run.case.load or run.case.saturated:
        # A burst of 1,600 bytes would saturate far below the rate.
        call(
            "ip",
            "netns",
            "exec",
            switch,
            "tc",
            "qdisc",
            "add",
            "dev",
            port,
            "root",
            "tbf",
            "rate",
            f"{MBIT}mbit",
            "burst",
            "4k",
            "latency",
            "20ms",
        )


def on_node(run: Run, node: int, *words: str) -> subprocess.Popen[bytes]:
    command = ["ip", "netns", "exec", f"{run.prefix}{node}", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


# Peers


def start_peers(run: Run) -> list[subprocess.Popen[bytes]]:
    started = []
    for node in range(run.nodes):
        folder = Path(run.dir, f"chrony{node}")
        folder.mkdir(mode=0o750)  # chronyd insists
        words = (
            f"server {run.address(0)} minpoll -4 maxpoll -4 xleave\n"
            if node
            else "local stratum 8\nallow\nmaxdistance 100\n"
        )
        (folder / "conf").write_text(
            f"{words}cmdport 0\nbindcmdaddress {folder}/sock\npidfile {folder}/pid\nuser root\n"
        )
        started.append(on_node(run, node, "chronyd", "-x", "-d", "-f", str(folder / "conf")))
        conf = Path(run.dir, f"ptp{node}.conf")
        table = f"[unicast_master_table]\ntable_id 1\nlogQueryInterval 1\nUDPv4 {run.address(0)}\n"
        conf.write_text(
            "[global]\nfree_running 1\ntime_stamping software\ndelay_mechanism E2E\n"
            "logSyncInterval -3\nlogMinDelayReqInterval -3\nsummary_interval -4\n"
            f"uds_address {run.dir}/ptp{node}.sock\nlogAnnounceInterval 0\n"
            + (
                "slaveOnly 1\n" + table + "[r0]\nunicast_master_table 1\n"
                if node
                else "masterOnly 1\nunicast_listen 1\nhybrid_e2e 1\n[r0]\n"
            )
        )
        command = [
            "ip",
            "netns",
            "exec",
            f"{run.prefix}{node}",
            "ptp4l",
            "-m",
            "-q",
            "-f",
            str(conf),
        ]
        with Path(run.dir, f"ptp{node}.log").open("wb") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
    return started


def chrony_offset(run: Run, node: int) -> float | None:
    """What chronyd says that the system clock is off, in ns; the truth is 0."""
    socket_path = f"{run.dir}/chrony{node}/sock"
    shown = subprocess.run(
        [
            "ip",
            "netns",
            "exec",
            f"{run.prefix}{node}",
            "chronyc",
            "-h",
            socket_path,
            "-c",
            "tracking",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    words = shown.stdout.split(",")
    if shown.returncode or len(words) < 5 or words[2] == "0":
        return None
    return float(words[4]) * 1e9


def ptp_offsets(run: Run, node: int) -> list[float]:
    text = Path(run.dir, f"ptp{node}.log").read_text(errors="replace")
    found = re.findall(r"(?:master|rms) offset\s+(-?\d+)", text)
    return [float(value) for value in found[len(found) // 4 :]]
