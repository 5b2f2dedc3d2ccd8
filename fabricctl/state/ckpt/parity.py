"""What a keeper holds for sets of ranks (erasure.py): parity, and how a lost part follows from it.

A keeper that has a new part sends each piece of it to those members' keepers that hold the piece's
stripe; they add it up. Nothing is read back, and no keeper waits for another.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fabricctl import wire
from fabricctl.errors import DataError, FabricError
from fabricctl.state.ckpt import bytes as raw
from fabricctl.state.ckpt.erasure import MEMBERS_MOST, Code
from fabricctl.state.ckpt.link import Link
from fabricctl.state.ckpt.parts import Part, Parts

KEEP = 2  # complete steps beside the newest
Member = tuple[int, str]  # rank, node of its keeper


@dataclass(frozen=True)
class Set:
    """The ranks that stand in for each other at one step; ``members`` in the code's order."""

    name: str
    step: int
    ranks: int
    losses: int
    members: tuple[Member, ...]
    serial: str = ""  # of the save, the same on all ranks: a step that is done again is another

    @property
    def code(self) -> Code:
        return Code(len(self.members), self.losses)

    @property
    def key(self) -> tuple[str, int, int]:
        """The first member's rank names the set at its step."""
        return self.name, self.members[0][0], self.step

    def index(self, rank: int) -> int:
        """Raises :class:`DataError`."""
        for at, (member, _) in enumerate(self.members):
            if member == rank:
                return at
        raise DataError(f"keeper: rank {rank} is not of this set")

    def told(self) -> dict[str, Any]:
        """For another keeper."""
        given = {"name": self.name, "step": self.step, "ranks": self.ranks}
        return {**given, "losses": self.losses, "members": self.members, "serial": self.serial}


def set_of(given: Any) -> Set:
    """From another program; raises :class:`DataError`."""
    try:
        members = tuple((int(rank), str(node)[:255]) for rank, node in given["members"])
        made = Set(
            name=str(given["name"])[:40],
            step=int(given["step"]),
            ranks=int(given["ranks"]),
            losses=int(given["losses"]),
            members=members,
            serial=str(given["serial"])[:40],
        )
    except (TypeError, ValueError, KeyError):
        raise DataError("keeper: a set of ranks that is none") from None
    many = len(members)
    if not 0 < made.losses < many <= MEMBERS_MOST or len({rank for rank, _ in members}) != many:
        raise DataError("keeper: a set of ranks that cannot be")
    return made


@dataclass(frozen=True)
class Known:
    """What a lost part was: enough to say that it is whole again."""

    used: int
    crc: int
    manifest: str
    seal: int = 0  # of the rest

    @classmethod
    def of(cls, used: int, crc: int, manifest: str) -> "Known":
        return cls(used, crc, manifest, _seal(used, crc, manifest))

    @property
    def good(self) -> bool:
        """Whether it is what it was."""
        return self.seal == _seal(self.used, self.crc, self.manifest)


def _seal(used: int, crc: int, manifest: str) -> int:
    return raw.crc(memoryview(f"{used} {crc} {manifest}".encode()))


@dataclass
class Held:
    """One member's parity at one step."""

    of: Set
    index: int
    rows: dict[int, bytearray] = field(default_factory=dict)  # by stripe
    crcs: dict[int, int] = field(default_factory=dict)
    added: dict[int, set[int]] = field(default_factory=dict)  # stripe -> members
    known: dict[int, Known] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def complete(self) -> bool:
        """Whether every piece has come."""
        code = self.of.code
        return len(self.added) == code.losses and all(
            len(members) == code.pieces for members in self.added.values()
        )

    @property
    def taken(self) -> int:
        return sum(len(row) for row in self.rows.values())


class Parities:
    """All of a keeper, within the quota of its parts."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._held: dict[tuple[str, int, int, int], Held] = {}
        self._lock = threading.RLock()

    def add(self, link: Link, message: Mapping[str, str]) -> None:
        """One piece comes; raises :class:`DataError` and :class:`SystemRefusedError`."""
        given = json.loads(link.small(message))
        of, index = set_of(given), wire.number(message, "index")
        member, stripe = wire.number(message, "member"), wire.number(message, "stripe")
        size = wire.number(message, "size")
        code = of.code
        state = link.told()
        if not (index < code.members and member < code.members and stripe < code.members):
            raise DataError("keeper: a piece of no set")
        row = code.row_of(index, stripe)
        fits = size <= self._parts.quota_bytes
        if row is None or code.piece_of(member, stripe) < 0 or not fits:
            raise DataError("keeper: a piece that does not belong here")
        piece = bytearray(size)
        link.payload(state, memoryview(piece))  # checked before it is added
        held = self._room(of, index, {int(step) for step in given.get("keep", ())})
        with held.lock:
            if member in held.added.setdefault(stripe, set()):
                raise DataError("keeper: a piece came twice")
            into = held.rows.setdefault(stripe, bytearray())
            if len(into) < size:
                self._parts.claim(size - len(into))
                into.extend(bytes(size - len(into)))
            elif raw.crc(memoryview(into)) != held.crcs.get(stripe, 0):
                raise DataError("keeper: the checksum of a parity is wrong")
            raw.add(memoryview(into), memoryview(piece), code.factor(row, member))
            held.crcs[stripe] = raw.crc(memoryview(into))
            held.added[stripe].add(member)
            what = given["part"]
            numbers = int(what["used"]), int(what["crc"])
            held.known[member] = Known.of(*numbers, str(what["manifest"]))

    def _room(self, of: Set, index: int, keep: set[int]) -> Held:
        name, first, _ = of.key
        with self._lock:
            key = (*of.key, index)
            held = self._held.get(key)
            if held is None or held.of != of:
                self._forget(key)
                mine = [k for k in self._held if (k[0], k[1], k[3]) == (name, first, index)]
                whole = sorted(k[2] for k in mine if self._held[k].complete)
                for old in mine:
                    if old[2] not in keep and old[2] not in whole[-KEEP:]:
                        self._forget(old)
                held = self._held[key] = Held(of, index)
            return held

    def _forget(self, key: tuple[str, int, int, int]) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self._parts.claim(-held.taken)

    def clear(self, name: str) -> None:
        """Forgets all of a checkpoint."""
        with self._lock:
            for key in [key for key in self._held if key[0] == name]:
                self._forget(key)

    def listed(self, name: str) -> list[dict[str, Any]]:
        """Complete ones, for :func:`sources`."""
        with self._lock:
            found = [held for held in self._held.values() if held.of.name == name and held.complete]
        return [{**held.of.told(), "index": held.index} for held in found]

    def get(self, key: tuple[str, int, int], index: int) -> Held:
        """Raises :class:`DataError`."""
        with self._lock:
            held = self._held.get((*key, index))
        if held is None or not held.complete:
            raise DataError("keeper: that parity is not here")
        return held

    def row(self, key: tuple[str, int, int], index: int, stripe: int) -> tuple[memoryview, int]:
        """A stripe's parity with its checksum; raises :class:`DataError`."""
        held = self.get(key, index)
        if stripe not in held.rows:
            raise DataError("keeper: that parity is not here")
        row, crc = memoryview(held.rows[stripe]), held.crcs[stripe]
        if raw.crc(row) != crc:
            raise DataError("keeper: the checksum of a parity is wrong")
        return row, crc


def pieces_for(part: Part, of: Set) -> Iterator[tuple[str, dict[str, str], memoryview]]:
    """``(node, fields, piece)`` of everything that a part's set must hear, node by node."""
    code, index = of.code, of.index(part.rank)
    size = code.piece_bytes(part.used)
    for holder, (_, node) in enumerate(of.members):
        for piece in range(code.pieces):
            stripe = code.stripe_of(index, piece)
            if code.row_of(holder, stripe) is not None:
                view = part.view[min(piece * size, part.used) : (piece + 1) * size]
                where = {"index": str(holder), "member": str(index), "stripe": str(stripe)}
                yield node, {**where, "size": str(view.nbytes)}, view


@dataclass(frozen=True)
class Sources:
    """Where what is left of a set lies: member -> node."""

    of: Set
    parts: Mapping[int, str]
    parity: Mapping[int, str]

    def serves(self, rank: int) -> bool:
        """Whether the rank's part can be made from it, without the part itself."""
        index = self.of.index(rank)
        left = [member for member in self.parts if member != index]
        return self.of.code.recoverable(index, left, list(self.parity))


def sources(
    parts: Mapping[str, Sequence[Sequence[int]]], parity: Mapping[str, Sequence[Any]]
) -> list[Sources]:
    """From what each node's keeper lists: ``[rank, ranks, step]`` of parts, and sets."""
    by_rank: dict[tuple[int, int, int], str] = {}
    for node, mine in parts.items():
        for rank, ranks, step in mine:
            by_rank[rank, ranks, step] = node
    holders: dict[Set, dict[int, str]] = {}
    for node, told in parity.items():
        for one in told:
            of, index = set_of(one), int(one["index"])
            if index < len(of.members):
                holders.setdefault(of, {})[index] = node
    found = []
    for of, where in holders.items():
        here = {}
        for at, (rank, own) in enumerate(of.members):
            part = rank, of.ranks, of.step
            if part in by_rank:  # others may hold one of another save of the step
                here[at] = own if list(part) in map(list, parts.get(own, ())) else by_rank[part]
        found.append(Sources(of, here, where))
    return found


class Rebuild:
    """Makes one rank's part from the rest of its set; use once, with :meth:`close`."""

    def __init__(self, found: Sources, rank: int, call: Callable[[str], Link]) -> None:
        self._found = found
        self._index = found.of.index(rank)
        self._call = call
        self._links: dict[str, Link] = {}
        self._bad: set[tuple[bool, int]] = set()  # sources that did not hold

    def known(self) -> Known:
        """What the part was; raises :class:`DataError`."""
        for holder, node in self._found.parity.items():
            try:
                answer = self._ask(node, "known", holder, {"member": str(self._index)})
                link = self._link(node)
                manifest = link.small(answer).decode()
                return Known(
                    wire.number(answer, "used"), wire.number(answer, "state_crc"), manifest
                )
            except (OSError, FabricError):
                self._drop(node)
        raise DataError("keeper: nobody knows what the lost part was")

    def into(self, view: memoryview) -> None:
        """Fills the part; raises :class:`DataError` when too much is damaged or gone."""
        code = self._found.of.code
        size = code.piece_bytes(view.nbytes)
        for piece in range(code.pieces):
            target = view[min(piece * size, view.nbytes) : (piece + 1) * size]
            while not self._piece(code.stripe_of(self._index, piece), target):
                pass

    def _piece(self, stripe: int, target: memoryview) -> bool:
        """False: a source was damaged; the next try does without it."""
        parts = [m for m in self._found.parts if m != self._index and (False, m) not in self._bad]
        parity = [m for m in self._found.parity if (True, m) not in self._bad]
        recipe = self._found.of.code.recipe(self._index, stripe, parts, parity)
        if recipe is None:
            raise DataError("keeper: too much of the set is lost")
        target[:] = bytes(target.nbytes)
        for (of_parity, member), factor in recipe.items():
            try:
                data = self._fetch(of_parity, member, stripe)
            except (OSError, FabricError):
                self._bad.add((of_parity, member))
                return False
            raw.add(target, data[: target.nbytes], factor)
        return True

    def _fetch(self, of_parity: bool, member: int, stripe: int) -> memoryview:
        node = (self._found.parity if of_parity else self._found.parts)[member]
        try:
            return self._fetch_from(node, of_parity, member, stripe)
        except (OSError, FabricError):
            self._drop(node)
            raise

    def _fetch_from(self, node: str, of_parity: bool, member: int, stripe: int) -> memoryview:
        of = self._found.of
        if of_parity:
            answer = self._ask(node, "row", member, {"stripe": str(stripe)})
        else:
            piece = of.code.piece_of(member, stripe)
            rank = str(of.members[member][0])
            answer = self._ask(node, "piece", piece, {"rank": rank, "of": str(of.code.pieces)})
        size = wire.number(answer, "bytes")
        into = memoryview(bytearray(size))
        self._link(node).payload(answer, into)
        return into

    def _ask(self, node: str, kind: str, index: int, more: Mapping[str, str]) -> dict[str, str]:
        of = self._found.of
        head = {"kind": kind, "name": of.name, "step": str(of.step), "index": str(index)}
        return self._link(node).ask({**head, "first": str(of.members[0][0]), **more})

    def _link(self, node: str) -> Link:
        if node not in self._links:
            self._links[node] = self._call(node)
        return self._links[node]

    def _drop(self, node: str) -> None:
        link = self._links.pop(node, None)
        if link is not None:
            link.close()

    def close(self) -> None:
        for node in list(self._links):
            self._drop(node)
