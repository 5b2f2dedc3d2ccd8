"""Where a rank stands, as one node tells another: text in one field of a message."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fabricctl.errors import DataError
from fabricctl.state.track import block
from fabricctl.state.track.ranks import Seen
from fabricctl.store.schema import RankState

_COMMS = 12  # told of one rank: more make a message too long; the first are the oldest
_RANK = re.compile(r"(-?[0-9]{1,20}(?:\.-?[0-9]{1,20}){12})\.([A-Z]?)((?:~[0-9.-]{1,80})*)")


@dataclass(frozen=True)
class CommSeen:
    """One communicator of a rank: its own rank there, and the collectives that it began."""

    rank: int
    size: int
    colls: int
    recent: int  # ops of the last eight, a byte each, the last one lowest

    def op_of(self, coll: int) -> int | None:
        """What it called as that collective; None when that is not known (any more)."""
        back = self.colls - coll
        op = self.recent >> 8 * back & 0xFF if 0 <= back < 8 else 0
        return op or None


@dataclass(frozen=True)
class Position:
    """One rank. Ages are of the moment that its node looked."""

    rank: int
    ranks: int
    launch: int
    node: str
    pid: int
    state: RankState
    letter: str
    calls: int
    op: int
    peer: int
    comm: int
    coll: int
    age_ms: int  # in the call that it is in, or since the last one
    step: int
    step_age_ms: int
    comms: Mapping[int, CommSeen] = field(default_factory=dict)

    @property
    def inside(self) -> bool:
        """Whether it is in a call."""
        return self.calls % 2 == 1

    @property
    def of_mpi(self) -> bool:
        """Whether its program called MPI_Init: then it has MPI_COMM_SELF, which no other has."""
        return block.SELF in self.comms

    @property
    def op_name(self) -> str:
        """Of the call that it is in, or was in last."""
        return block.op_name(self.op)


def of(seen: Seen, node: str, now_mono_ns: int) -> Position:
    """What was found on this node."""
    rank = seen.rank
    age_ns = now_mono_ns - rank.since_mono_ns if rank.calls else 0
    step_ns = now_mono_ns - rank.step_mono_ns if rank.step_mono_ns else 0
    return Position(
        rank=rank.rank,
        ranks=rank.ranks,
        launch=rank.launch,
        node=node,
        pid=rank.pid,
        state=seen.state,
        letter=seen.letter if seen.letter.isupper() else "",
        calls=rank.calls,
        op=rank.op,
        peer=rank.peer,
        comm=rank.comm,
        coll=rank.coll,
        age_ms=max(0, age_ns // 1_000_000),
        step=rank.steps,
        step_age_ms=max(0, step_ns // 1_000_000),
        comms={
            comm.id: CommSeen(comm.rank, comm.size, comm.colls, comm.recent)
            for comm in rank.comms[:_COMMS]
        },
    )


def encode(positions: Iterable[Position]) -> str:
    """Of one node, for a field of a message."""
    return ",".join(map(_encode_one, positions))


def _encode_one(at: Position) -> str:
    who = (at.rank, at.ranks, at.launch, at.pid, int(at.state))
    call = (at.calls, at.op, at.peer, at.comm, at.coll, at.age_ms, at.step, at.step_age_ms)
    numbers = (*who, *call)
    comms = "".join(f"~{k}.{c.rank}.{c.size}.{c.colls}.{c.recent}" for k, c in at.comms.items())
    return ".".join(map(str, numbers)) + f".{at.letter}{comms}"


def decode(text: str, node: str) -> list[Position]:
    """Raises :class:`DataError` for what no agent writes."""
    return [_decode_one(part, node) for part in text.split(",") if part]


def _decode_one(text: str, node: str) -> Position:
    match = _RANK.fullmatch(text)
    if match is None:
        raise DataError(f"positions: {text[:40]!r} is no rank")
    given = [int(word) for word in match.group(1).split(".")]
    rank, ranks, launch, pid, state, calls, op, peer, comm, coll, age, step, step_age = given
    comms = {}
    try:
        for part in match.group(3).split("~")[1:]:
            name, own, size, colls, recent = map(int, part.split("."))
            comms[name] = CommSeen(own, size, colls, recent)
        return Position(
            rank, ranks, launch, node, pid, RankState(state), match.group(2), calls, op, peer,
            comm, coll, age, step, step_age, comms,
        )  # fmt: skip
    except ValueError:
        raise DataError(f"positions: {text[:40]!r} is no rank") from None
