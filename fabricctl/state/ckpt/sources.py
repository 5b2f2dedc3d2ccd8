"""Where one rank gets its part of a step from: keepers, or the shared file system."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from fabricctl.errors import DataError, FabricError
from fabricctl.state.ckpt import client, shares
from fabricctl.state.ckpt.client import Client, Found, Manifest
from fabricctl.state.ckpt.comms import Gather
from fabricctl.state.ckpt.items import Fill, Item, ready
from fabricctl.state.ckpt.shared import SharedLevel

Step = tuple[int, int]  # a step, and by how many ranks it was saved
Part = Callable[[int], tuple[Manifest, memoryview]]  # of a rank
_BAD = (OSError, FabricError, ValueError, LookupError)


@dataclass
class Sources:
    """Of one rank; all ranks ask the same, for steps of another number of ranks together."""

    rank: int
    ranks: int
    gather: Gather
    items: Mapping[str, Item]
    shared: SharedLevel
    dropped: set[Step] = field(default_factory=set)  # could not be restored as a whole
    saves: set[str] = field(default_factory=set)  # of which the parts are that were loaded last

    def usable(self, found: Sequence[Found]) -> dict[Step, list[Found]]:
        """The steps among them that could be whole."""
        steps: dict[Step, list[Found]] = {}
        for one in found:
            steps.setdefault((one.step, one.ranks), []).append(one)
        return {
            step: parts
            for step, parts in steps.items()
            if self._fits(step)
            and step not in self.dropped
            # What is the same on every rank is whole with one rank's part.
            and (
                len({part.rank for part in parts}) == step[1]
                or (self._replicas and step[1] == self.ranks)
            )
        }

    def best_first(self, steps: Collection[Step]) -> list[Step]:
        """Those that can be taken here: the newest first, and then what as many ranks saved."""

        def better(step: Step) -> tuple[int, bool, int]:
            return step[0], step[1] == self.ranks, step[1]

        return sorted(filter(self._fits, steps), key=better, reverse=True)

    def _fits(self, step: Step) -> bool:
        """Whether its number of ranks is ours, or does not matter."""
        free = bool(self.items) and all(item.of_whole is not None for item in self.items.values())
        return step[1] == self.ranks or free

    @property
    def _replicas(self) -> bool:
        """Whether every rank has the same."""
        return bool(self.items) and all(item.of_whole == ("same",) for item in self.items.values())

    def load(self, keeper: Client, step: Step, found: Sequence[Found]) -> Fill | None:
        """What fills this rank's items from memory; None: its part cannot be had."""

        def part(rank: int) -> tuple[Manifest, memoryview]:
            nodes = [one.node for one in found if one.rank == rank]
            return from_keepers(keeper, rank, step[0], nodes)

        if step[1] != self.ranks:
            return self._reshape(step[1], part)
        have = sorted({one.rank for one in found}, key=lambda rank: rank != self.rank)
        for rank in have if self._replicas else [self.rank]:
            if fill := self._ready(part, rank, f"step {step[0]} of rank {rank}"):
                return fill
        return None

    def load_shared(self, step: Step) -> Fill | None:
        """As :meth:`load`, from the shared file system."""

        def part(rank: int) -> tuple[Manifest, memoryview]:
            return self.shared.part(rank, step)

        if step[1] != self.ranks:
            return self._reshape(step[1], part)
        return self._ready(part, self.rank, f"step {step[0]} in {self.shared.root}")

    def _ready(self, part: Part, rank: int, what: str) -> Fill | None:
        try:
            manifest, view = part(rank)
            self.saves = _saves(manifest)
            return ready(self.items, manifest, view)
        except _BAD as error:
            client.warn(f"rank {self.rank}, {what}: {error}")
            return None

    def _reshape(self, ranks: int, part: Part) -> Fill | None:
        """From a step of another number of ranks; each looks at its share of the old ones first."""
        here = self.rank * ranks // self.ranks
        mine = {here, *range(here, (self.rank + 1) * ranks // self.ranks)}
        views: dict[int, memoryview] = {}

        def view_of(rank: int) -> memoryview:
            if rank not in views:
                views[rank] = part(rank)[1]
            return views[rank]

        heads: dict[int, Manifest] | None = {}
        try:
            for rank in mine:
                head, views[rank] = part(rank)
                heads = {**(heads or {}), rank: head}
        except _BAD as error:
            client.warn(f"rank {self.rank}: {error}")
            heads = None
        told = self.gather(heads)
        if any(each is None for each in told):
            return None
        try:
            everything = {rank: head for each in told for rank, head in each.items()}
            self.saves = set().union(*map(_saves, everything.values()))
            return shares.refill(self.items, everything, here, view_of)
        except _BAD as error:
            client.warn(f"rank {self.rank}: {error}")
            return None


def _saves(manifest: Manifest) -> set[str]:
    return {str(entry[6:]) for entry in manifest}


def from_keepers(
    keeper: Client, rank: int, step: int, nodes: Sequence[str]
) -> tuple[Manifest, memoryview]:
    """From this node first (its keeper lists itself last), else over the network, else made from
    what is left of the rank's set. Raises :class:`DataError`."""
    failure = DataError("nobody has it")
    for node in reversed(nodes):
        try:
            manifest, view = keeper.get(rank, step, node)
            client.check(manifest, view)
            return manifest, view
        except _BAD as error:
            client.warn(f"rank {rank}, step {step} on {node}: {error}")
            failure = DataError(str(error))
    raise failure
