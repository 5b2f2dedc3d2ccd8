"""Two fabric-pathd of a job, each in a network namespace of its own, over two rails. Needs root."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fabricctl import fields

ROOT = Path(__file__).parents[2]
WAIT_S = 20.0  # for what takes some tenths of a second on a machine that is not busy
FILTER = ["dev", "r0", "ingress", "pref", "1"]
SILENT = [*FILTER, "protocol", "all", "bpf", "bytecode", "1,6 0 0 2,", "da"]  # TC_ACT_SHOT
CONFIGURATION = """job 7
self {self}
key 000102030405060708090a0b0c0d0e0f
ports 20501 20502 20503 20504
manage 10.90.0.{host}
dir {dir}/7
leases {dir}
own 1000
hold_ms 100
hold_max_ms 100
rail r0 fab0 10.91.0.{host}/24 -
rail r1 fab1 10.92.0.{host}/24 -
node n1 10.90.0.1
node n2 10.90.0.2
end
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")


def sh(command: str, *more: str) -> None:
    subprocess.run([*command.split(), *more], check=True, timeout=30, capture_output=True)


def has_carrier(node: str) -> bool:
    argv = ["ip", "-n", node, "-o", "link", "show", "up"]
    shown = subprocess.run(argv, check=True, timeout=30, capture_output=True, text=True).stdout
    return shown.count(" state UP ") == len(("m0", "r0", "r1"))


def wait_for(what: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


class Pair:
    def __init__(self, stack: contextlib.ExitStack, work: Path) -> None:
        self.nodes = [f"pathd{os.getpid()}{letter}" for letter in "ab"]
        self.work = work
        for node in self.nodes:
            sh(f"ip netns add {node}")
            stack.callback(sh, f"ip netns del {node}")
            sh(f"ip -n {node} link set lo up")
        for index, name in enumerate(("m0", "r0", "r1")):
            first, second = self.nodes
            sh(f"ip -n {first} link add {name} type veth peer name {name} netns {second}")
            for host, node in enumerate(self.nodes, 1):
                sh(f"ip -n {node} address add 10.9{index}.0.{host}/24 dev {name}")
                sh(f"ip -n {node} link set {name} up")
                sh(f"tc -n {node} qdisc add dev {name} clsact")
        wait_for(lambda: all(map(has_carrier, self.nodes)))
        for number, node in enumerate(self.nodes):
            (work / node / "7").mkdir(parents=True)
            given = CONFIGURATION.format(self=number, host=number + 1, dir=work / node)
            (work / node / "given").write_text(given)
            stack.enter_context(self.begin(node))

    @contextlib.contextmanager
    def begin(self, node: str) -> Iterator[None]:
        program = ROOT / "build" / "paths" / "fabric-pathd"
        argv = ["ip", "netns", "exec", node, str(program), "run"]
        with (self.work / node / "given").open() as given:
            daemon = subprocess.Popen(argv, stdin=given)
        try:
            yield
        finally:
            daemon.terminate()
            daemon.wait(WAIT_S)

    def events(self, kind: str) -> list[list[dict[str, str]]]:
        """Of either end."""
        files = [self.work / node / "7" / "events" for node in self.nodes]
        texts = [file.read_text() if file.exists() else "" for file in files]
        told = [[fields.decode(line, ";") for line in text.splitlines()] for text in texts]
        return [[event for event in one if event["event"] == kind] for one in told]

    def both(self, rail: str, level: str) -> bool:
        """What either end told last of the rail."""
        told = [[e["level"] for e in one if e["rail"] == rail] for one in self.events("path")]
        return all(one and one[-1] == level for one in told)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        yield Pair(stack, tmp_path)


def test_both_ends_leave_a_silent_rail_and_come_back(pair: Pair) -> None:
    wait_for(lambda: all(pair.events("met")))
    for node in pair.nodes:
        sh(f"tc -n {node} filter add", *SILENT)
    wait_for(lambda: pair.both("0", "dead"))
    assert "silent" in {event["reason"] for one in pair.events("path") for event in one}
    for node in pair.nodes:
        sh(f"tc -n {node} filter del", *FILTER)
    wait_for(lambda: pair.both("0", "good"))
    moves = [event["rail"] for one in pair.events("path") for event in one]
    assert set(moves) == {"0"}
