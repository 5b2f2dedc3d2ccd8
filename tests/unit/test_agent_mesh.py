"""The agents' sockets, real ones on this machine's loopback."""

import contextlib
import random
import select
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from fabricctl import wire
from fabricctl.agent.mesh import Identity, Mesh
from fabricctl.agent.peers import Peers
from fabricctl.store.schema import Severity

KEY = bytes(range(32))
NODES = ("localhost", "127.0.0.1")  # two names that resolve everywhere, to this machine


def make(own: str, ports: list[int], key: bytes = KEY, life: int = 1) -> tuple[Mesh, Peers]:
    def say(severity: Severity, text: str) -> None:
        del severity, text

    peers = Peers(NODES, own, time.monotonic(), say, random.Random(1))
    return Mesh(peers, Identity(7, life, key), ports, lambda *_: None), peers


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:  # all open at once: none is found twice
        probes = [
            stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            for _ in range(count)
        ]
        for probe in probes:
            probe.bind(("::", 0))
        return [probe.getsockname()[1] for probe in probes]


def turn(meshes: list[Mesh], done: Callable[[], bool], *, speak: bool = True) -> None:
    end_s = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end_s
        for mesh in select.select(meshes, [], [], 0.01)[0]:
            mesh.receive()
        for mesh in meshes if speak else ():
            mesh.run_due()


def protected(peers: Peers) -> tuple[bool, int]:
    view = peers.view(time.monotonic())
    return view.settled, view.protected


@pytest.fixture
def ports() -> list[int]:
    return free_ports(4)


def test_agents_find_each_other_when_the_first_port_is_taken(ports: list[int]) -> None:
    (first, one), (second, two) = make(NODES[0], ports), make(NODES[1], ports)
    turn([first, second], lambda: protected(one) == protected(two) == (True, 2))
    first.close()
    second.close()


def test_agents_of_another_key_stay_strangers(ports: list[int]) -> None:
    first, one = make(NODES[0], ports)
    second, two = make(NODES[1], ports, key=bytes(32))
    turn([first, second], lambda: first.refused > 3 and second.refused > 3)
    for mesh, peers in ((first, one), (second, two)):
        assert peers.view(time.monotonic()).protected == 1
        mesh.close()


def test_without_a_port_there_is_an_error_and_no_hang(ports: list[int]) -> None:
    taken = [make(NODES[0], [port])[0] for port in ports]
    with pytest.raises(OSError):
        make(NODES[1], ports)
    for mesh in taken:
        mesh.close()


@pytest.fixture
def heard(ports: list[int]) -> Iterator[tuple[Mesh, Peers, socket.socket]]:
    """An agent, and a socket that can reach it."""
    mesh, peers = make(NODES[0], ports)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(("127.0.0.1", ports[0]))
        sender.settimeout(60)
        yield mesh, peers, sender
    mesh.close()


def hello(seq: int, life: int = 5, **other: str) -> bytes:
    message = {"job": "7", "node": NODES[1], "life": str(life), "seq": str(seq), "kind": "hello"}
    return wire.seal({**message, **other}, KEY)


def test_a_copied_datagram_is_answered_once(heard: tuple[Mesh, Peers, socket.socket]) -> None:
    mesh, _, sender = heard
    for datagram in (hello(1), hello(1), hello(1)):
        sender.send(datagram)
    turn([mesh], lambda: mesh.refused == 2, speak=False)
    assert wire.open_sealed(sender.recv(9999), KEY)["kind"] == "answer"
    sender.settimeout(0.1)
    with pytest.raises(TimeoutError):
        sender.recv(9999)


def test_floods_and_forgeries_do_no_harm(heard: tuple[Mesh, Peers, socket.socket]) -> None:
    mesh, peers, sender = heard
    rng = random.Random(9)
    for number in range(300):
        sender.send(
            rng.choice(
                [
                    rng.randbytes(rng.randrange(1500)),
                    wire.seal({"job": "7", "node": "stranger", "life": "1", "seq": "1"}, KEY),
                    wire.seal({"job": "8", "node": NODES[1], "life": "1", "seq": "1"}, KEY),
                    wire.seal({"kind": "hello"}, KEY),
                    hello(number + 1, kind="answer", protected="-3"),
                    hello(number + 1, kind="answer", protected="9", missing="[["),
                    hello(number + 1, kind="shout"),
                ]
            )
        )
        mesh.receive()
    turn([mesh], lambda: mesh.refused > 250, speak=False)
    assert peers.view(time.monotonic()).protected == 1
