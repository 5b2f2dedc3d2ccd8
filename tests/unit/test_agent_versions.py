"""Nodes of several versions in one job: what agents say to each other, over real sockets."""

import random
import re
import select
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

import fabricctl
from fabricctl import wire
from fabricctl.agent import versions
from fabricctl.agent.mesh import Identity, Mesh
from fabricctl.agent.peers import Peers
from fabricctl.clock import exchange
from fabricctl.store.schema import Severity
from tests.unit.test_agent_mesh import free_ports

ROOT = Path(__file__).parents[2]
KEY = bytes(range(32))
NODES = ("localhost", "127.0.0.1")  # two names that resolve everywhere, to this machine


class Node:
    """An agent's mesh; ``said``: the others' versions, as it tells its user."""

    def __init__(self, own: str, ports: list[int]) -> None:
        self.said: list[tuple[Severity, str]] = []
        self.peers = Peers(NODES, own, time.monotonic(), lambda *_: None, random.Random(1))
        identity = Identity(7, 1, KEY)
        self.mesh = Mesh(self.peers, identity, ports, self._tell)

    def _tell(self, text: str, severity: Severity) -> None:
        if "refused" not in text:  # both on one machine hear themselves, too
            self.said.append((severity, text))


def run(nodes: list[Node]) -> None:
    """Until each knows of the other and its version."""
    end_s = time.monotonic() + 60
    meshes = [node.mesh for node in nodes]
    while not all(node.said and node.peers.view(time.monotonic()).protected == 2 for node in nodes):
        assert time.monotonic() < end_s
        for mesh in select.select(meshes, [], [], 0.01)[0]:
            mesh.receive()
        for mesh in meshes:
            mesh.run_due()
    for mesh in meshes:
        mesh.close()


def pair(monkeypatch: pytest.MonkeyPatch, other: Mapping[str, str]) -> list[Node]:
    """An agent of this version and one that says ``other`` of itself, until both told theirs."""
    ports = free_ports(4)
    first = Node(NODES[0], ports)
    monkeypatch.setattr(versions, "fields", lambda: dict(other))
    made = [first, Node(NODES[1], ports)]
    run(made)
    return made


def test_another_version_that_speaks_the_same_is_said_once_and_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = fabricctl.__version__
    ours, theirs = pair(monkeypatch, {**versions.fields(), "v": "9.1.0"})
    assert ours.peers.view(time.monotonic()).protected == 2
    assert ours.said == [
        (Severity.INFO, f"127.0.0.1 runs fabricctl 9.1.0, this node {own}: they work together")
    ]
    assert theirs.said == [
        (Severity.INFO, f"localhost runs fabricctl {own}, this node 9.1.0: they work together")
    ]


def test_what_does_not_work_between_two_versions_is_said_by_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, _ = pair(monkeypatch, {"v": "9.1.0", "speaks": "clock:4,probes:1,paths:4,more:1"})
    assert ours.peers.view(time.monotonic()).protected == 2  # telemetry goes on
    ((severity, text),) = ours.said
    assert severity == Severity.WARNING
    assert text.endswith(
        ": no job clock and no link failover between such nodes; update those that differ"
    )


def test_an_agent_that_tells_no_version_is_an_older_one() -> None:
    said: list[str] = []
    found = versions.Versions(lambda text, _: said.append(text))
    for _ in range(3):
        found.heard({"node": "n3", "kind": "hello", "unplugged": "0"})
    found.heard({"node": "n3", "kind": "where"})
    own = fabricctl.__version__
    assert said == [f"n3 runs an older fabricctl, this node {own}: they work together"]


def test_a_forger_with_the_key_cannot_fill_the_record() -> None:
    said: list[str] = []
    found = versions.Versions(lambda text, _: said.append(text))
    for number in range(1000):
        found.heard(
            {"node": "n3", "kind": "hello", "v": f"{number}" * 99, "speaks": "clock:x" * 99}
        )
    assert len(said) <= 8 and max(map(len, said)) < 250


def test_messages_of_another_kind_of_envelope_are_named_once() -> None:
    (port,) = free_ports(1)
    node = Node(NODES[0], [port])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for text in (b"FBR2", b"FBR2", b"FBRx", b"abc"):
            sender.sendto(text + bytes(50), ("127.0.0.1", port))
    select.select([node.mesh], [], [], 60)
    node.mesh.receive()
    node.mesh.close()
    text = "messages FBR2 came, this agent knows FBR1: is a node of another version?"
    assert node.said == [(Severity.WARNING, text)]


def test_the_numbers_are_those_that_messages_begin_with() -> None:
    wire_c = (ROOT / "fabricctl/paths/pathd/wire.c").read_text()
    probe_h = (ROOT / "fabricctl/clock/csrc/probe.h").read_text()
    found = {
        "clock": exchange._MAGIC.decode(),
        "probes": re.findall(r'PROBE_MAGIC \w+ /\* "(\w+)" \*/', probe_h)[0],
        "paths": re.findall(r'#define MAGIC "(\w+)"', wire_c)[0],
    }
    assert {name: int(magic[-1]) for name, magic in found.items()} == dict(versions.SPOKEN)
    assert wire.MAGIC == b"FBR1"
