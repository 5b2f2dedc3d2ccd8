"""Who is alive: agents are asked several times a second, and a silent one has a second witness.

An agent that does not answer may itself have died while its node lives. So before a node is called
dead, its keeper's ports are tried: a machine that refuses a connection is alive. A whole network
that is silent is this node's own trouble, and nobody is called dead for it.
"""

import socket
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

ASK_S = 0.2
WITNESS_S = 0.35  # for a connection, or its refusal


@dataclass
class Heartbeat:
    """``ask`` gives those of the nodes that answered within a time; ``witness`` says whether a
    machine is there. Times are of ``clock``."""

    nodes: Sequence[str]
    ask: Callable[[Collection[str], float], set[str]]
    witness: Callable[[str], bool]
    silence_s: float = 0.6
    clock: Callable[[], float] = time.monotonic
    dead: set[str] = field(default_factory=set)
    _heard_s: dict[str, float] = field(default_factory=dict)
    _looked_s: float = 0.0

    def look(self) -> set[str]:
        """Nodes found dead by this look; takes :data:`ASK_S`, and longer when one is silent."""
        now_s = self.clock()
        if now_s - self._looked_s > 3 * ASK_S:  # we were not running: nobody is silent for that
            self._heard_s = dict.fromkeys(self.nodes, now_s)
        living = [node for node in self.nodes if node not in self.dead]
        answered = self.ask(living, ASK_S)
        self._looked_s = now_s = self.clock()
        self._heard_s.update(dict.fromkeys(answered, now_s))
        silent = [
            node for node in living if now_s - self._heard_s.get(node, now_s) > self.silence_s
        ]
        if not silent or (len(silent) == len(living) and len(living) > 1):
            return set()
        found = {node for node in silent if not self.witness(node)}
        for node in set(silent) - found:
            self._heard_s[node] = self.clock()
        self.dead |= found
        self._looked_s = self.clock()
        return found


def answers(host: str, ports: Sequence[int]) -> bool:
    """Whether a machine is there: it takes or refuses a connection."""
    try:
        socket.create_connection((host, ports[0]), WITNESS_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True
