"""Who is alive: agents are asked ten times a second, and a silent one has a second witness.

An agent that does not answer may itself have died while its node lives. So before a node is called
dead, its keeper's ports are tried: a machine that refuses a connection is alive. A whole network
that is silent is this node's own trouble, and nobody is called dead for it.
"""

import errno
import select
import socket
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

ASK_S = 0.1
ASKED_PER_S = 5000.0  # a question is sealed for each node, some 20 us: more nodes, fewer questions
WITNESS_S = 0.15  # at least, for a connection, or its refusal
KNOCKS_MOST = 4


class Witness(Protocol):
    """Whether a machine is there, asked without waiting for it."""

    def answered(self) -> bool:
        """True when it has; else it is asked once more."""

    def close(self) -> None: ...


@dataclass
class Heartbeat:
    """``ask`` gives those of the nodes that answered within a time; ``witness`` begins to ask a
    machine itself. Times are of ``clock``."""

    nodes: Sequence[str]
    ask: Callable[[Collection[str], float], set[str]]
    witness: Callable[[str], Witness]
    silence_s: float = 0.4
    clock: Callable[[], float] = time.monotonic
    dead: set[str] = field(default_factory=set)
    heard: set[str] = field(default_factory=set)  # ever: the others have no agent, maybe no keeper
    _heard_s: dict[str, float] = field(default_factory=dict)
    _asked: dict[str, tuple[float, Witness]] = field(default_factory=dict)
    _looked_s: float = 0.0

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
        self._looked_s = now_s = self.clock()
        silent = [node for node in living if node not in answered]
        if len(silent) == len(living) > 1:
            return set()
        found = {node for node in silent if self._is_dead(node, now_s)}
        for node in found:
            self._asked.pop(node)[1].close()
        self.dead |= found
        return found

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
        return silence_s >= self.silence_s and now_s - begun_s >= WITNESS_S


class Knocking:
    """Connections to a machine's ports that are begun and not waited for."""

    def __init__(self, host: str, ports: Sequence[int]) -> None:
        self._host, self._ports = host, ports
        self._poll = select.poll()
        self._open: list[socket.socket] = []
        self._there = not host  # what cannot be looked up is not held for dead
        self._knock()

    def answered(self) -> bool:
        """Taken or refused: either way somebody is there."""
        for fd, _ in self._poll.poll(0):
            made = next(one for one in self._open if one.fileno() == fd)
            self._there |= _is_answer(made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            self._poll.unregister(fd)
        if not self._there:
            self._knock()  # the first packet may be lost, and TCP repeats it after a second
        return self._there

    def _knock(self) -> None:
        if self._there or len(self._open) == KNOCKS_MOST:
            return
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:  # no descriptor is left: nobody is dead for that
            self._there = True
            return
        self._open.append(made)
        port = self._ports[len(self._open) % len(self._ports)]
        self._poll.register(made, select.POLLOUT)
        self._there = _is_answer(made.connect_ex((self._host, port)))

    def close(self) -> None:
        for made in self._open:
            made.close()
        self._open.clear()


def _is_answer(error: int) -> bool:
    return error in (0, errno.ECONNREFUSED, errno.ECONNRESET)
