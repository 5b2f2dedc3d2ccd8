"""The job's other nodes, as a keeper sees them: how to reach them, and which to prefer."""

import contextlib
import socket
import threading
import time
import weakref
from collections.abc import Collection, Sequence

from fabricctl.errors import DataError, FabricError
from fabricctl.state.ckpt.assignment import Assignment
from fabricctl.state.ckpt.link import Link

CALL_S = 1.0  # a node that is gone without a word is given up after that
WORD_S = 5.0  # a busy one may take its time to say something
AVOID_S = 60.0


class Others:
    """``candidates``: ports that their keepers may have bound."""

    def __init__(self, given: Assignment, candidates: Sequence[int]) -> None:
        self._given = given
        self._ports = candidates
        self._addresses: dict[str, str] = {}
        self._avoid_until_s: dict[str, float] = {}
        self._lost: set[str] = set()
        self._port: dict[str, int] = {}  # that it answered on
        self._open: dict[str, weakref.WeakSet[Link]] = {}
        self._lock = threading.Lock()

    def move(self, given: Assignment) -> None:
        """The job has other nodes now."""
        self._given = given
        self._avoid_until_s, self._lost = {}, set()

    def partners(self) -> list[str]:
        """The other nodes: first those that share neither switch nor power with this one, each in
        the job's order from this node on; those that were not reached come last, for a while."""
        own = self._given.nodes.index(self._given.node)
        others = [*self._given.nodes[own + 1 :], *self._given.nodes[:own]]

        def rank(node: str) -> tuple[bool, int]:
            return self.avoided(node), self._shared(node)

        return sorted(others, key=rank)

    def _shared(self, node: str) -> int:
        groups = self._given.groups
        mine, theirs = groups.get(self._given.node, {}), groups.get(node, {})
        return sum(1 for level, group in mine.items() if theirs.get(level) == group)

    def avoid(self, node: str) -> None:
        """It was not reached."""
        self._avoid_until_s[node] = time.monotonic() + AVOID_S

    def avoided(self, node: str) -> bool:
        """Whether it was not reached a while ago."""
        return self._avoid_until_s.get(node, 0.0) > time.monotonic()

    def lose(self, dead: Collection[str]) -> None:
        """These nodes are gone: what is under way to them ends now, not when TCP gives up."""
        for node in set(dead) & set(self._given.nodes) - {self._given.node}:
            self.avoid(node)
            self._lost.add(node)
            with self._lock:
                links = list(self._open.get(node, ()))
            for link in links:
                with contextlib.suppress(OSError):  # it is closed
                    link.socket.shutdown(socket.SHUT_RDWR)

    def lost(self, node: str) -> bool:
        """Whether it is known to be gone."""
        return node in self._lost

    def call(self, node: str) -> Link:
        """Raises OSError, of them TimeoutError where nobody takes or refuses a connection."""
        if node not in self._given.nodes:
            raise OSError(0, f"{node[:60]!r} is not a node of the job")
        if node not in self._addresses:
            found = self._given.resolve(node)
            if not found:
                raise OSError(0, f"{node}: its name cannot be resolved")
            self._addresses[node] = found[0]
        failure = OSError(0, "no port")
        known = [self._port[node]] if node in self._port else []
        for port in dict.fromkeys([*known, *self._ports]):
            link: Link | None = None
            try:
                link = Link.call((self._addresses[node], port), self._given.key, CALL_S, WORD_S)
                told = link.ask({"kind": "hello", "job": str(self._given.job), "to": node})
                # A stranger who has bound it could say our own words again, or the keeper's.
                if told.get("port") != str(port):
                    raise DataError(f"{node}: port {port} is not its keeper's")
                self._port[node] = port
                with self._lock:
                    self._open.setdefault(node, weakref.WeakSet()).add(link)
                return link
            except (OSError, FabricError) as error:
                if link is not None:
                    link.close()
                elif isinstance(error, TimeoutError):
                    raise  # the node is gone
                # Who listens there may be anybody: another user's program, which says nothing.
                failure = error if isinstance(error, OSError) else OSError(0, str(error))
        raise failure
