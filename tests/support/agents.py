"""Agents finding each other, simulated: a clock that is stepped and a network that obeys."""

import random
from collections.abc import Callable, Iterable

from fabricctl.agent.blocks import Blocks
from fabricctl.agent.peers import Peers, Send, View
from fabricctl.store.schema import Severity

STEP_S = 0.05


class Fabric:
    """All agents of one job. ``cut`` nodes hear nothing and are not heard; ``dead`` have no
    agent; ``port`` says which candidate each has bound."""

    def __init__(
        self,
        count: int,
        dead: Iterable[str] = (),
        seed: int = 1,
        made: Callable[..., Peers | Blocks] = Peers,
    ) -> None:
        self.nodes = tuple(f"n{number}" for number in range(1, count + 1))
        self.cut: set[str] = set()
        self.port = dict.fromkeys(self.nodes, 0)
        self.now_s = 100.0
        self.said: list[tuple[float, str, str]] = []
        self.received = dict.fromkeys(self.nodes, 0)
        rng = random.Random(seed)
        self.peers: dict[str, Peers | Blocks] = {
            node: made(self.nodes, node, self.now_s, self._say(node), random.Random(rng.random()))
            for node in self.nodes
            if node not in set(dead)
        }

    def _say(self, node: str):  # type: ignore[no-untyped-def]
        def say(severity: Severity, text: str) -> None:
            self.said.append((self.now_s, node, text))

        return say

    def run(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            for node, peers in list(self.peers.items()):
                for send in peers.due(self.now_s):
                    self.deliver(node, send)
            if round(self.now_s / STEP_S) % round(1 / STEP_S) == 0:
                for peers in self.peers.values():
                    peers.tell_changes(self.now_s)
            self.now_s += STEP_S

    def deliver(self, sender: str, send: Send) -> None:
        target = self.peers.get(send.node)
        lost = sender in self.cut or send.node in self.cut or target is None
        if lost or (send.port is not None and send.port != self.port[send.node]):
            return
        assert target is not None
        self.received[send.node] += 1
        for answer in target.receive({"node": sender, **send.fields}, self.now_s):
            self.deliver(send.node, answer)

    def views(self) -> dict[str, View]:
        return {node: peers.view(self.now_s) for node, peers in self.peers.items()}

    def end(self, node: str) -> None:
        for send in self.peers.pop(node).bye():
            self.deliver(node, send)
