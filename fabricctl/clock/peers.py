"""Who probes whom: a sparse random graph per rail, the same on every node without a word.

Each of ``peers / 2`` rings orders the nodes by a hash of job, rail, ring and node; a node probes
the next and the last of each ring. Such a union of random rings is connected by its first ring
and, like other random regular graphs, has a diameter of about log(nodes) / log(peers - 1). When a
node dies the ring closes over the gap, and nothing else moves; when it returns it gets its old
neighbours back.
"""

import hashlib
from collections.abc import Collection, Sequence

PEERS = 10  # Huygens section 4.3: the error shrinks with one over the root of the peers


def edges(
    job: int, rail: int, nodes: Sequence[str], dead: Collection[str] = (), peers: int = PEERS
) -> list[tuple[str, str]]:
    """All probed pairs among the living, each once, sorted; all pairs when there are few nodes.

    ``nodes`` are the allocation's (their order does not matter), ``dead`` those to leave out.
    """
    alive = sorted(set(nodes) - set(dead))
    if len(alive) <= peers + 1:
        return [(a, b) for i, a in enumerate(alive) for b in alive[i + 1 :]]
    pairs: set[tuple[str, str]] = set()
    for ring in range(peers // 2):
        order = sorted(alive, key=lambda node: _place(job, rail, ring, node))
        pairs.update(
            (min(a, b), max(a, b)) for a, b in zip(order, order[1:] + order[:1], strict=True)
        )
    return sorted(pairs)


def neighbours(pairs: Sequence[tuple[str, str]], node: str) -> list[str]:
    """The nodes that ``node`` shares a pair with, sorted."""
    return sorted({b if a == node else a for a, b in pairs if node in (a, b)})


def _place(job: int, rail: int, ring: int, node: str) -> bytes:
    text = f"fabric clock peers {job} {rail} {ring} {node}"
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
