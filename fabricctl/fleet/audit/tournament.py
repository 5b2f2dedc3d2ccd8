"""Who measures with whom, round by round, so that no node is in two pairs at once. Pure.

The circle method of round-robin tournaments, an edge colouring of the complete graph (Kirkman
1847): of n nodes n - 1 rounds, or n when n is odd, and in each every node has one partner at most.
"""

from collections.abc import Sequence

MAX_ROUNDS = 15  # of more nodes each meets fifteen others, spread over all of them


def partners(node: str, nodes: Sequence[str], most: int = MAX_ROUNDS) -> list[str | None]:
    """``node``'s partner in each round; None: it sits out."""
    ring: list[str | None] = sorted(nodes)  # type: ignore[assignment]
    if len(ring) % 2:
        ring.append(None)
    count = len(ring)
    if count < 2:
        return []
    at = ring.index(node)
    return [ring[other] if (other := _other(at, each, count)) is not None else None
            for each in chosen_rounds(count - 1, most)]  # fmt: skip


def chosen_rounds(rounds: int, most: int) -> list[int]:
    """All, or so many of them, evenly apart."""
    if rounds <= most:
        return list(range(rounds))
    return [each * rounds // most for each in range(most)]


def _other(at: int, turn: int, count: int) -> int | None:
    """The place of the partner: place ``count - 1`` stands still, the others go around."""
    last = count - 1
    if at == last:
        return turn % last
    other = (2 * turn - at) % last
    return last if other == at else other
