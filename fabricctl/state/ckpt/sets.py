"""Which ranks stand in for each other: sets whose members share no node, switch or power feed."""

from collections.abc import Sequence
from dataclasses import dataclass

from fabricctl.errors import DataError, UsageError
from fabricctl.state.ckpt import client
from fabricctl.state.ckpt.erasure import MEMBERS_MOST

SIZE = 8  # members of a set, as SCR has it
APART = ("node", "switch", "power")  # from the narrowest to the widest


@dataclass(frozen=True)
class Scheme:
    """What is added to a part on its own node: ``copies`` elsewhere, or parity in a set of
    ``size`` ranks that survives ``losses``."""

    copies: int = 1
    losses: int = 0
    size: int = SIZE
    apart: str = "node"


def scheme(name: str, copies: int, losses: int, size: int, apart: str) -> Scheme:
    """From what a program says; raises :class:`UsageError`."""
    if apart not in APART:
        raise UsageError(f"checkpoint: apart={apart!r}: {', '.join(APART)} can be had")
    if copies < 0:
        raise UsageError(f"checkpoint: copies={copies}: 0 at least")
    if name in ("single", "partner"):
        return Scheme(copies if name == "partner" else 0, 0, size, apart)
    if name not in ("xor", "rs"):
        raise UsageError(f"checkpoint: scheme={name!r}: single, partner, xor or rs")
    if name == "xor":
        losses = 1
    if not 0 < losses < size <= MEMBERS_MOST:
        raise UsageError(
            f"checkpoint: a set of {size} that survives {losses} losses cannot be; "
            f"0 < losses < set_size <= {MEMBERS_MOST}"
        )
    return Scheme(0, losses, size, apart)


def divide(groups: Sequence[str], wanted: Scheme) -> list[list[int]]:
    """Sets of ranks, where ``groups[rank]`` is what the rank falls with; no set has two of one.

    Raises :class:`DataError` when a set would be too small to be worth anything.
    """
    buckets: dict[str, list[int]] = {}
    for rank, group in enumerate(groups):
        buckets.setdefault(group, []).append(rank)
    most = max(len(bucket) for bucket in buckets.values())
    count = max(-(-len(groups) // wanted.size), most)
    # Dealt out one group after the other: as many sets as the largest group has ranks, so that no
    # set gets two of any.
    made: list[list[int]] = [[] for _ in range(count)]
    nth = 0
    for bucket in sorted(buckets.values(), key=lambda bucket: (-len(bucket), bucket[0])):
        for rank in bucket:
            made[nth % count].append(rank)
            nth += 1
    least = min(len(each) for each in made)
    if least <= wanted.losses:
        raise DataError(
            f"checkpoint: {len(groups)} ranks fall with {len(buckets)} {wanted.apart}s: sets of "
            f"{least} do not survive {wanted.losses} losses"
        )
    return [sorted(each) for each in made]


def set_of(
    rank: int, here: list[tuple[str, dict[str, str]]], scheme: Scheme
) -> list[tuple[int, str]] | None:
    """A rank's set with its members' nodes, as far apart as can be; None: none can be made."""
    for level in APART[APART.index(scheme.apart) :: -1]:
        # What is not known to share a switch may: it counts as a group with all such.
        groups = [node if level == "node" else given.get(level, "") for node, given in here]
        try:
            made = next(each for each in divide(groups, scheme) if rank in each)
            return [(member, here[member][0]) for member in made]
        except DataError as error:
            if rank == 0:
                client.warn(f"{error} ({level})")
    return None
