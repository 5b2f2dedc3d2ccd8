"""Who is alive: agents are asked ten times a second, and a silent one has a second witness.

An agent that does not answer may itself have died while its node lives. So before a node is called
dead, its keeper's ports are tried, at its name and over its rails: a machine that refuses a
connection is alive. A whole network that is silent is this node's own trouble, and nobody is called
dead for it.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

ASK_S = 0.1
ASKED_PER_S = 5000.0  # a question is sealed for each node, some 20 us: more nodes, fewer questions
WITNESS_S = 0.15  # at least, for a connection, or its refusal
UNHEARD_S = 5.0  # of whom no agent was heard yet, rails are not known: one network is one witness
CUT_OFF_S = 30.0  # all others silent: this node's own network, as long as a switch takes to start


class Witness(Protocol):
    """Whether a machine is there, asked without waiting for it."""

    def answered(self) -> bool:
        """True when it has; else it is asked once more."""

    def close(self) -> None: ...


@dataclass
class Heartbeat:
    """``ask`` gives those of the nodes that answered within a time; ``witness`` begins to ask a
    machine itself; ``own``: this node, whose agent is heard whatever the network does. Times are of
    ``clock``."""

    nodes: Sequence[str]
    ask: Callable[[Collection[str], float], set[str]]
    witness: Callable[[str], Witness]
    silence_s: float = 0.4
    clock: Callable[[], float] = time.monotonic
    dead: set[str] = field(default_factory=set)
    own: str = ""
    heard: set[str] = field(default_factory=set)  # ever: the others have no agent, maybe no keeper
    _heard_s: dict[str, float] = field(default_factory=dict)
    _asked: dict[str, tuple[float, Witness]] = field(default_factory=dict)
    _looked_s: float = 0.0
    _answered_s: dict[str, float] = field(default_factory=dict)  # agents, not kernels alone
    _cut_off_s: float | None = None  # since when no other node was heard

    def look(self) -> set[str]:
        """Nodes found dead by this look; takes a tenth of a second."""
        begin_s = self.clock()
        pace_s = max(ASK_S, len(self.nodes) / ASKED_PER_S)
        if begin_s - self._looked_s > 3 * pace_s:  # we were not running: nobody is silent for that
            self._hear(self.nodes, begin_s)
        living = [node for node in self.nodes if node not in self.dead]
        answered = self.ask(living, pace_s)
        self._hear(answered, begin_s)
        self.heard |= answered
        self._answered_s.update(dict.fromkeys(answered, begin_s))
        self._looked_s = now_s = self.clock()
        silent = [node for node in living if node not in answered]
        if self._is_cut_off(living, silent, now_s):
            return set()
        found = {node for node in silent if self._is_dead(node, now_s)}
        for node in found:
            self._asked.pop(node)[1].close()
        self.dead |= found
        return found

    def live_since(self, nodes: Collection[str], since_s: float) -> bool:
        """Whether each has answered a question that was put later."""
        return all(self._answered_s.get(node, float("-inf")) >= since_s for node in nodes)

    def _is_cut_off(self, living: Sequence[str], silent: Sequence[str], now_s: float) -> bool:
        """Whether all the others are silent at once; those that come back do not do so at once."""
        others = [node for node in living if node != self.own]
        if len(others) > 1 and set(others) <= set(silent):
            self._cut_off_s = now_s if self._cut_off_s is None else self._cut_off_s
            return now_s - self._cut_off_s < CUT_OFF_S
        if self._cut_off_s is not None:
            self._cut_off_s = None
            self._hear(others, now_s)
        return False

    def silent(self) -> set[str]:
        """Living nodes whose agents do not answer now, and did."""
        least_s = self.clock() - self.silence_s
        return {node for node, at_s in self._answered_s.items() if at_s < least_s} - self.dead

    def _hear(self, nodes: Collection[str], now_s: float) -> None:
        for node in nodes:
            self._heard_s[node] = now_s
            if node in self._asked:
                self._asked.pop(node)[1].close()

    def _is_dead(self, node: str, now_s: float) -> bool:
        """Of one whose agent did not answer now."""
        silence_s = now_s - self._heard_s[node]
        if silence_s < self.silence_s / 2:
            return False
        if node not in self._asked:
            self._asked[node] = now_s, self.witness(node)
        begun_s, witness = self._asked[node]
        if witness.answered():
            self._hear([node], now_s)
            return False
        least_s = self.silence_s if node in self.heard else max(self.silence_s, UNHEARD_S)
        return silence_s >= least_s and now_s - begun_s >= WITNESS_S
