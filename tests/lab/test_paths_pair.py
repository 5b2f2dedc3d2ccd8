"""Two fabric-pathd of a job, each in a network namespace of its own, over two rails. Needs root."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fabricctl import fields

ROOT = Path(__file__).parents[2]
WAIT_S = 40.0  # for what takes some tenths of a second on a machine that is not busy
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
congestion reno
rail r0 fab0 10.91.0.{host}/24 -
rail r1 fab1 10.92.0.{host}/24 -
node n1 10.90.0.1
node n2 10.90.0.2
end
"""

# Sends and gets back until told to stop, and keeps the stream.
TALK = """
import socket, sys, threading, time
stop = threading.Event()
SIZE = int(sys.argv[2])
there = socket.create_server(("10.91.0.2", 5001)) if sys.argv[1] == "serve" else None
print("there", flush=True)
link = there.accept()[0] if there else socket.create_connection(("10.91.0.2", 5001), 10)
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
while not stop.is_set() or there:
    if there:
        link.sendall(link.recv(SIZE, socket.MSG_WAITALL) or sys.exit())
    else:
        link.sendall(b"x" * SIZE)
        link.recv(SIZE, socket.MSG_WAITALL)
        time.sleep(0.005)
print("quiet", flush=True)
time.sleep(60)
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
            self.wire(index, name)
        wait_for(lambda: all(map(has_carrier, self.nodes)))
        for number, node in enumerate(self.nodes):
            (work / node / "7").mkdir(parents=True)
            given = CONFIGURATION.format(self=number, host=number + 1, dir=work / node)
            (work / node / "given").write_text(given)
            stack.enter_context(self.begin(node))

    def wire(self, index: int, name: str) -> None:
        first, second = self.nodes
        sh(f"ip -n {first} link add {name} type veth peer name {name} netns {second}")
        for host, node in enumerate(self.nodes, 1):
            sh(f"ip -n {node} address add 10.9{index}.0.{host}/24 dev {name}")
            sh(f"ip -n {node} link set {name} up")
            sh(f"tc -n {node} qdisc add dev {name} clsact")

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

    def talk(self, stack: contextlib.ExitStack, size: int = 64) -> subprocess.Popen[str]:
        """A stream between both; a line to the client's standard input and it rests."""
        pipe = subprocess.PIPE
        for what, node in (("serve", self.nodes[1]), ("ask", self.nodes[0])):
            argv = ["ip", "netns", "exec", node, sys.executable, "-c", TALK, what, str(size)]
            started = subprocess.Popen(argv, text=True, stdin=pipe, stdout=pipe)
            talker = stack.enter_context(started)
            stack.callback(talker.kill)
            assert talker.stdout is not None
            assert talker.stdout.readline() == "there\n"
        return talker

    def active(self) -> list[str]:
        """Peers that either end probes often. Asked from an address in the file system: that is the
        same in all network namespaces."""
        found = []
        for node in self.nodes:
            mine = self.work / "asks"
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
                link.bind(str(mine))
                link.settimeout(WAIT_S)
                link.connect(str(self.work / node / "7" / "control"))
                link.send(fields.encode({"do": "show"}).encode())
                summary = link.recv(65_536).decode().splitlines()[0]
            mine.unlink()
            found.append(fields.decode(summary, ";")["active"])
        return found

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
    # What makes TCP's recovery short is on our routes, every one of them.
    shown = routes(pair.nodes[0])
    assert [line.count("rto_min lock 4ms congctl reno") for line in shown] == [1] * 6


def routes(node: str) -> list[str]:
    argv = ["ip", "-n", node, "route", "show", "table", "0x46000000"]
    shown = subprocess.run(argv, check=True, timeout=30, capture_output=True, text=True).stdout
    return shown.splitlines()


def test_routes_ask_for_acknowledgements_at_once_while_messages_are_long(pair: Pair) -> None:
    wait_for(lambda: all(pair.events("met")))

    def asked() -> set[bool]:
        return {"quickack 1" in line for node in pair.nodes for line in routes(node)}

    assert asked() == {False}
    for size, expected in ((65_536, True), (64, False)):
        with contextlib.ExitStack() as stack:
            pair.talk(stack, size)
            wait_for(lambda expected=expected: asked() == {expected})  # type: ignore[misc]
    assert not any(pair.events("trouble"))


def test_a_nexthop_that_went_with_its_port_costs_the_routes_nothing_else(pair: Pair) -> None:
    """A route by it is refused like one with a congestion control that the kernel lacks."""
    wait_for(lambda: all(pair.events("met")))
    node = pair.nodes[0]
    shown = subprocess.run(
        ["ip", "-n", node, "-j", "nexthop", "show", "dev", "r1"],
        check=True, timeout=30, capture_output=True, text=True,
    ).stdout  # fmt: skip
    sh(f"ip -n {node} nexthop del id {json.loads(shown)[0]['id']}")
    for size, asked in ((65_536, True), (64, False)):
        with contextlib.ExitStack() as stack:
            pair.talk(stack, size)
            wait_for(lambda asked=asked: ("quickack 1" in routes(node)[0]) == asked)  # type: ignore[misc]
    assert {"congctl reno" in line for line in routes(node)} == {True}


def left(node: str) -> int:
    """Packets that left by rail 0."""
    argv = ["ip", "-n", node, "-s", "-j", "link", "show", "dev", "r0"]
    shown = subprocess.run(argv, check=True, timeout=30, capture_output=True, text=True).stdout
    return int(json.loads(shown)[0]["stats64"]["tx"]["packets"])


def test_a_silent_rails_neighbours_are_asked_for_many_times_a_second(pair: Pair) -> None:
    """The kernel asks once a second: a cable that is back would wait for that."""
    wait_for(lambda: all(pair.events("met")))
    with contextlib.ExitStack() as stack:
        pair.talk(stack)
        wait_for(lambda: pair.active() == ["1", "1"])
        for node in pair.nodes:
            sh(f"tc -n {node} filter add", *SILENT)
        wait_for(lambda: pair.both("0", "dead"))
        for node in pair.nodes:
            sh(f"ip -n {node} neighbour flush dev r0")
        # From now on nothing but questions leave: those of half a minute, if one has to wait.
        begin_s, before = time.monotonic(), [left(node) for node in pair.nodes]
        wait_for(lambda: all(left(n) - b >= 30 for n, b in zip(pair.nodes, before, strict=True)))
        assert time.monotonic() - begin_s < 10


def test_a_rail_whose_port_was_made_anew_is_used_again(pair: Pair) -> None:
    """As a driver that is loaded again makes it: the same name and address, another device."""
    wait_for(lambda: all(pair.events("met")))
    with contextlib.ExitStack() as stack:
        talker = pair.talk(stack)
        sh(f"ip -n {pair.nodes[0]} link del r0")
        wait_for(lambda: pair.both("0", "dead"))
        pair.wire(1, "r0")
        wait_for(lambda: pair.both("0", "good"))
        assert talker.poll() is None
    for node in pair.nodes:
        argv = ["ip", "-n", node, "nexthop", "show", "dev", "r0"]
        shown = subprocess.run(argv, check=True, timeout=30, capture_output=True, text=True).stdout
        assert len(shown.splitlines()) == 1


def test_peers_are_probed_often_while_their_streams_carry_something(pair: Pair) -> None:
    wait_for(lambda: all(pair.events("met")))
    assert pair.active() == ["0", "0"]
    with contextlib.ExitStack() as stack:
        client = pair.talk(stack)
        wait_for(lambda: pair.active() == ["1", "1"])
        assert client.stdin is not None and client.stdout is not None
        client.stdin.write("\n")
        client.stdin.flush()
        assert client.stdout.readline() == "quiet\n"
        wait_for(lambda: pair.active() == ["0", "0"])
        assert client.poll() is None
