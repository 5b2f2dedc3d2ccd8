"""fabric-pathd killed at random points: routes, rules, nexthops, queues and sysctls are as before.

Two nodes as network namespaces, without Slurm: one fabric-pathd on each, with a share of the rails;
then what the node service does after a crash. 200 kills take some minutes: FABRICCTL_KILLS=200.
"""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATHD = ROOT / "build" / "paths" / "fabric-pathd"
KILLS = int(os.environ.get("FABRICCTL_KILLS", "4"))
SEED = int(os.environ.get("FABRICCTL_SEED", "1"))
NAMES = ("m0", "r0", "r1")
TRACES = """
ip -br link; ip -br address; ip rule; ip -6 rule; ip nexthop
ip route show table all; ip -6 route show table all
grep . /proc/sys/net/ipv4/conf/r*/rp_filter
for what in qdisc class filter; do tc $what show dev r0; tc $what show dev r1; done
"""
CONFIGURATION = """job {job}
self {node}
key 000102030405060708090a0b0c0d0e0f
ports 20501 20502 20503 20504
manage 10.77.0.{host}
dir {leases}/{job}
leases {leases}
own 1000
rail r0 fab0 10.78.0.{host}/24 -
rail r1 fab1 10.79.0.{host}/24 -
rate r0 1000000
rate r1 1000000
share 1000 600 1000 1
node n1 10.77.0.1
node n2 10.77.0.2
end
"""

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


class Node:
    """A network namespace, kept by a process that sleeps."""

    def __init__(self, number: int, leases: Path) -> None:
        self.number = number
        self.leases = leases
        self.keeper = subprocess.Popen(["unshare", "--net", "sleep", "3600"])
        own = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{self.keeper.pid}/ns/net").readlink() == own:
            time.sleep(0.005)

    def inside(self, *argv: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.keeper.pid}/ns/net", *argv]

    def run(self, script: str) -> str:
        argv = self.inside("unshare", "--mount", "sh", "-c", f"mount -t sysfs none /sys; {script}")
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout

    def start(self, job: int) -> subprocess.Popen[str]:
        (self.leases / str(job)).mkdir(exist_ok=True)
        text = CONFIGURATION.format(
            job=job, node=self.number, host=self.number + 1, leases=self.leases
        )
        argv = self.inside(str(PATHD), "run")
        begun = subprocess.Popen(argv, stdin=subprocess.PIPE, text=True)
        assert begun.stdin is not None
        begun.stdin.write(text)
        begun.stdin.close()
        return begun

    def clean(self) -> None:
        subprocess.run(
            self.inside(str(PATHD), "clean", str(self.leases)),
            check=True, capture_output=True, timeout=30,
        )  # fmt: skip

    def left(self) -> set[str]:
        """Files of a node that are not a job's."""
        return {path.name for path in self.leases.iterdir() if path.is_file()} - {"lock"}


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [int(word) for word in text.split()]
    return []


def end(guardian: subprocess.Popen[str], workers: list[int]) -> None:
    """As the node service ends it: asked first, killed when it does not go."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in (guardian.pid, *workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            guardian.poll()
            alive = [pid for pid in workers if Path(f"/proc/{pid}/exe").exists()]
            if guardian.returncode is not None and not alive:
                return
            time.sleep(0.01)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    subprocess.run(["make", "-s", "-C", str(ROOT / "fabricctl" / "paths")], check=True)
    made = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        made.append(Node(number, tmp_path / str(number)))
    first, second = made
    try:
        for index, name in enumerate(NAMES):
            peer = f"peer name {name} netns {second.keeper.pid}"
            first.run(f"ip link add {name} type veth {peer}")
            for node in made:
                node.run(
                    f"echo 1 >/proc/sys/net/ipv4/conf/{name}/rp_filter; "
                    f"ip address add 10.{77 + index}.0.{node.number + 1}/24 dev {name}; "
                    f"ip link set {name} up; ip link set lo up"
                )
        for node in made:  # IPv6 addresses become usable
            deadline = time.monotonic() + 10
            while node.run("ip -6 address show tentative") and time.monotonic() < deadline:
                time.sleep(0.1)
        yield first, second
    finally:
        for node in made:
            node.keeper.kill()
            node.keeper.wait()


def wait_until_whole(node: Node) -> None:
    """It has its routes to the other node and its share of both rails."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = node.run(TRACES)
        if "group 1174" in found and found.count("htb fab0: root") == 2 and "bpf" in found:
            return
        time.sleep(0.1)
    raise AssertionError(found)


def worker_of(node: Node) -> set[int]:
    """As the job's state names it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = (node.leases / "7" / "state").read_text()
        pid = int(text.partition("\npid=")[2].split()[0])
        if "fabric-pathd" in Path(f"/proc/{pid}/comm").read_text():
            return {pid}
    return set()


def end_all(begun: list[subprocess.Popen[str]], orphans: set[int]) -> None:
    for one in begun:
        end(one, sorted(orphans.union(children(one.pid))))


def test_what_a_dead_pathd_leaves_is_found_and_removed(nodes: tuple[Node, Node]) -> None:
    before = [node.run(TRACES) for node in nodes]
    begun = [node.start(7) for node in nodes]
    for node in nodes:
        wait_until_whole(node)
    workers = {pid for one in begun for pid in children(one.pid)}
    for pid in (*workers, *(one.pid for one in begun)):
        os.kill(pid, signal.SIGKILL)
    for one in begun:
        one.wait()
    for node, was in zip(nodes, before, strict=True):
        assert node.run(TRACES) != was
        node.clean()
        assert node.run(TRACES) == was
        assert node.left() == set()


def test_kills_at_random_points_leave_nothing(nodes: tuple[Node, Node]) -> None:
    rng = random.Random(SEED)
    before = [node.run(TRACES) for node in nodes]
    for turn in range(KILLS):
        begun = [node.start(7) for node in nodes]
        victim = rng.randrange(2)
        time.sleep(rng.random() ** 2 * 0.4)  # often while it sets up
        workers = [children(one.pid) for one in begun]
        chosen = rng.choice(("worker", "guardian", "both"))
        pids = [] if chosen == "worker" else [begun[victim].pid]
        pids += [] if chosen == "guardian" else workers[victim]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(rng.random() * 0.15)
        orphans = {pid for found in workers for pid in found}.union(*map(worker_of, nodes))
        end_all(begun, orphans)
        for node, was in zip(nodes, before, strict=True):
            node.clean()
            found = node.run(TRACES)
            assert found == was, f"turn {turn}: {chosen} of node {victim}"
            assert node.left() == set(), f"turn {turn}: {chosen} of node {victim}"
