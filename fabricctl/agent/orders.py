"""What a job's user orders, kept for the job's `fabricctl run`, and what that says of itself."""

import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from fabricctl.errors import DataError

# `fabricctl run` asks ten times a second, but not while it ends one start and begins the next.
RUN_S = 15.0
TOLD_MOST = 4000  # names of nodes
_HOW = re.compile(r"now|checkpoint|before:[0-9]{1,12}|")


@dataclass
class Orders:
    """One agent's; ``nodes`` of the job."""

    nodes: Collection[str]
    _how: str = ""
    _run: dict[str, str] = field(default_factory=dict)
    _run_s: float = float("-inf")

    def hear(self, message: Mapping[str, str]) -> dict[str, str]:
        """A question whether this node lives. `fabricctl run` of this node tells with it where its
        ranks and its spares are (``run``: 1; 0: it ends); all others are told what it said."""
        if "run" in message:
            self._run = {name: message.get(name, "")[:TOLD_MOST] for name in ("on", "spares")}
            self._run_s = time.monotonic() if message["run"] == "1" else float("-inf")
        return {"halt": self._how, **self._told()}

    def _told(self) -> dict[str, str]:
        """Always with ``run``: agents that say nothing of it are of an older version."""
        if time.monotonic() - self._run_s > RUN_S:
            return {"run": "0"}
        return {"run": "1", **self._run}

    def take(self, how: str) -> dict[str, str]:
        """``now``, ``checkpoint``, ``before:<Unix time>`` or ``from:<node>[:<node>]``; "" takes it
        back. Raises :class:`DataError`."""
        nodes = how.removeprefix("from:").split(":", 1) if how.startswith("from:") else [""]
        if _HOW.fullmatch(how) is None and not set(nodes) <= set(self.nodes):
            raise DataError(f"message: halt {how[:24]!r} is not known")
        self._how = how
        return {"kind": "noted"}
