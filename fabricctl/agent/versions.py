"""Agents of several versions in one job, while a site updates its nodes one by one.

Every agent says in its hellos and answers which fabricctl it is and which messages it speaks.
Agents themselves understand each other as long as ``wire.MAGIC`` is the same: fields that one does
not know it passes over. What else is spoken between nodes is refused there when its version is
another; who hears of that here says so, once for each version, and nobody has to find it out.
"""

from collections.abc import Callable, Mapping

import fabricctl
from fabricctl.store.schema import Severity

# Beside the agents' own, by the digit that their messages begin with: fabricctl/clock/exchange.py
# and csrc/probe.h, fabricctl/paths/pathd/wire.c.
SPOKEN: Mapping[str, int] = {"clock": 3, "probes": 1, "paths": 3}
_LOST = {
    "clock": "no job clock",
    "probes": "no job clock",
    "paths": "no link failover",
}
_CARRIERS = ("hello", "answer", "block", "whole")
_MOST = 8  # versions that are told of

Tell = Callable[[str, Severity], None]


def fields() -> dict[str, str]:
    """What goes into a message of this agent."""
    spoken = ",".join(f"{name}:{number}" for name, number in SPOKEN.items())
    return {"v": fabricctl.__version__, "speaks": spoken}


class Versions:
    """One agent's knowledge of the others' versions."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._own = fields()
        self._told = {(self._own["v"], self._own["speaks"])}

    def sign(self, message: Mapping[str, str]) -> Mapping[str, str]:
        """A message with ours, where it is of the kind that carries them."""
        return {**message, **self._own} if message.get("kind") in _CARRIERS else message

    def heard(self, message: Mapping[str, str]) -> None:
        """An authentic message of another node of the job."""
        if message.get("kind") not in _CARRIERS:
            return
        said = (message.get("v", "")[:32], message.get("speaks", "")[:120])
        if said in self._told or len(self._told) > _MOST:
            return
        self._told.add(said)
        lost = sorted(
            {_LOST[name] for name, number in SPOKEN.items() if _differs(said[1], name, number)}
        )
        version = f"fabricctl {said[0]}" if said[0] else "an older fabricctl"
        who = f"{message['node']} runs {version}, this node {self._own['v']}"
        if lost:
            text = f"{who}: {' and '.join(lost)} between such nodes; update those that differ"
            self._tell(text, Severity.WARNING)
        else:
            self._tell(f"{who}: they work together", Severity.INFO)


def _differs(speaks: str, name: str, number: int) -> bool:
    """An agent that names none is of the time before these numbers were told: they were these."""
    named = dict(word.partition(":")[::2] for word in speaks.split(","))
    return named.get(name, str(number)) != str(number)
