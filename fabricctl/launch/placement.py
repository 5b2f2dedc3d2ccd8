"""Which rank runs on which node, now and after a node was lost."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from fabricctl.errors import UsageError


@dataclass(frozen=True)
class Placement:
    """``hosts[rank]`` is the rank's node; ``spares`` wait, the next one first."""

    hosts: tuple[str, ...]
    spares: tuple[str, ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        """Nodes with ranks, in rank order."""
        return tuple(dict.fromkeys(self.hosts))

    def prefer(self, spare: str) -> "Placement":
        """That spare is the next one."""
        if spare not in self.spares:
            return self
        return replace(self, spares=(spare, *(one for one in self.spares if one != spare)))

    def without(self, dead: Collection[str], least: int = 0) -> "Placement | None":
        """Spares in the places of dead nodes; ranks of the others stay where they are, and with
        them their checkpoints. With too few spares ranks are given up, as long as ``least`` nodes
        (not 0) are left. None: there are not enough."""
        spares = [node for node in self.spares if node not in dead]
        lost = [node for node in self.nodes if node in dead]
        short = len(lost) - len(spares)
        if short > 0 and not 0 < least <= len(self.nodes) - short:
            return None
        instead = dict(zip(lost, spares, strict=False))
        placed = (instead.get(node, node) for node in self.hosts)
        hosts = tuple(node for node in placed if node not in dead)
        return replace(self, hosts=hosts, spares=tuple(spares[len(lost) :]))


def first(
    given: Sequence[str],
    here: str,
    spares: int,
    tasks: int | None,
    exclude: Collection[str] = (),
) -> Placement:
    """At the start: the last nodes are spares, but never the one that this runs on.

    Ranks are placed in blocks, as many on each node. Raises :class:`UsageError`.
    """
    nodes = [node for node in given if node not in exclude]
    if spares >= len(nodes):
        raise UsageError(f"run: {spares} spares of {len(nodes)} nodes leave none to run on")
    ordered = [here, *(node for node in nodes if node != here)] if here in nodes else list(nodes)
    kept = set(ordered[: len(nodes) - spares])
    active = [node for node in nodes if node in kept]
    waiting = tuple(node for node in nodes if node not in kept)
    count = tasks or len(active)
    if count < len(active):
        active, waiting = active[:count], (*active[count:], *waiting)
    share, more = divmod(count, len(active))
    hosts = [node for at, node in enumerate(active) for _ in range(share + (1 if at < more else 0))]
    return Placement(tuple(hosts), waiting)
