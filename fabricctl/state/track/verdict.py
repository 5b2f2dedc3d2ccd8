"""Why ranks wait: one verdict from where all of them stand (docs/tracker.md).

Pure: positions, silent nodes and dead links come in. A verdict is *hard* when what is known
leaves no other explanation that ends by itself; else it says what is waited for.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fabricctl import hostlist
from fabricctl.state.track import block
from fabricctl.state.track.position import Position
from fabricctl.store.schema import RankState, StallKind

WAIT_S = 0.5  # in one call: shorter waits are no stall
SOFT_S = 30.0  # outside of MPI while others wait; or five times what was usual, if that is longer
AGAIN_S = 0.3  # a rank that all others have left behind gets this time to notice
_NAMES = 6
_PATHS = 12  # told by one node
_PATH = re.compile(r"([^:,]{1,60}):([^:,]{1,60}):([0-9]{1,18})")  # rail, peer, ms
UNREACHED = "no rail reaches "  # and names, with ", " between them: what an agent says of its links


@dataclass(frozen=True)
class Verdict:
    """``rank`` None: none or several are at fault; ``node``: the node or link at fault."""

    kind: StallKind
    text: str
    rank: int | None = None
    node: str = ""
    hard: bool = True
    waiting: int = 0
    since_ms: int = 0  # how long they have waited
    computing: bool = False  # who is waited for computes: it may come yet
    compared: bool = False  # true only if its positions are of one moment


@dataclass
class Sure:
    """Nodes tell of different moments: a rank may have gone on since it was told to wait, for one
    that waits for it now. So what was compared must be found again, in positions that are all later
    than those of the first time. Which collective had which number never changes.
    """

    _text: str = ""
    _newest_s: float = 0.0

    def holds(self, found: Verdict, oldest_s: float, newest_s: float) -> bool:
        """All positions behind it are of between ``oldest_s`` and ``newest_s``."""
        if not found.hard or not found.compared:
            self._text = ""
            return True
        if found.text != self._text:
            self._text, self._newest_s = found.text, newest_s
        return oldest_s >= self._newest_s + AGAIN_S


NOBODY = Verdict(StallKind.NONE, "no rank waits", hard=False)


def judge(
    positions: Sequence[Position],
    silent: Collection[str] = (),
    links: Mapping[str, str] | None = None,
    usual_s: float = 0.0,
    paths: Mapping[str, str] | None = None,
) -> Verdict:
    """``silent``: nodes of the job whose agent is not heard; ``links``: node -> what is wrong with
    its links; ``usual_s``: how long a rank was outside of MPI before, at most; ``paths``: node ->
    :func:`tell_paths`."""
    waiting = [at for at in positions if waits(at)]
    found = _at_fault(positions, waiting, silent, _Down(links or {}, paths or {}), usual_s)
    if found is None:
        return NOBODY
    since = max((at.age_ms for at in waiting), default=0)
    return replace(found, waiting=len(waiting), since_ms=since)


def waits(at: Position) -> bool:
    """Whether a rank has been in one call for long."""
    if at.state not in (RankState.RUNNING,) or not at.inside:
        return False
    return at.age_ms >= WAIT_S * 1000


@dataclass(frozen=True)
class _Down:
    """Of the network, by node, as :func:`judge` has them."""

    links: Mapping[str, str]
    paths: Mapping[str, str]


def _at_fault(
    positions: Sequence[Position],
    waiting: Sequence[Position],
    silent: Collection[str],
    down: _Down,
    usual_s: float,
) -> Verdict | None:
    gone = [at for at in positions if at.state == RankState.GONE]
    if gone and len(gone) < len(positions):  # all at once: the job was ended
        return _ranks(StallKind.RANK, gone, _died(gone[0]))
    if not waiting:
        return None
    stopped = [at for at in positions if at.state == RankState.STOPPED]
    if stopped:
        return _ranks(StallKind.RANK, stopped, "is stopped by a signal")
    total = max(at.ranks for at in positions)
    if len(positions) < total and silent:
        names = hostlist.fold(silent)
        one = next(iter(silent)) if len(silent) == 1 else names
        return Verdict(StallKind.HOST, f"node {names} is not heard", node=one[:47])
    return (
        _mismatch(positions)
        or _link(positions, waiting, down.links)
        or _left(positions, waiting)
        or _deadlock(positions, waiting, down.paths)
        or _late(positions, waiting, usual_s)
    )


def _died(at: Position) -> str:
    """Of one whose process is gone."""
    return "ended without MPI_Finalize" if at.of_mpi else "died: killed, or by an error"


def _ranks(kind: StallKind, at_fault: Sequence[Position], what: str, hard: bool = True) -> Verdict:
    first = at_fault[0]
    if len(at_fault) == 1:
        text = f"rank {first.rank} on {first.node} {what}"
        return Verdict(kind, text, first.rank, first.node, hard)
    nodes = {at.node for at in at_fault}
    node = first.node if len(nodes) == 1 else ""
    return Verdict(kind, f"ranks {name_ranks(at_fault)}: each {what}", None, node, hard)


def name_ranks(some: Sequence[Position]) -> str:
    """``0-3,7``, of very many the first."""
    numbers = hostlist.fold([f"r{at.rank}" for at in some]).removeprefix("r").strip("[]")
    return numbers if len(numbers) < 60 else numbers[:57] + "..."


def _mismatch(positions: Sequence[Position]) -> Verdict | None:
    """Ranks that are in the same collective of a communicator by number, not by what it is."""
    meetings: dict[tuple[int, int], list[Position]] = {}
    for at in positions:
        if at.comm and at.coll and waits(at):
            meetings.setdefault((at.comm, at.coll), []).append(at)
    for (_, coll), there in meetings.items():
        ops = Counter((at.op, at.peer) for at in there)
        if len(ops) < 2:
            continue
        (usual_op, usual_root), _ = ops.most_common(1)[0]
        odd = [at for at in there if (at.op, at.peer) != (usual_op, usual_root)]
        call = block.op_name(usual_op) + (f" of root {usual_root}" if usual_root >= 0 else "")
        theirs = odd[0].op_name + (f" of root {odd[0].peer}" if odd[0].peer >= 0 else "")
        what = f"is in {theirs}, the others in {call} (collective {coll} of {comm_name(odd[0])})"
        return _ranks(StallKind.APPLICATION, odd, what)
    return _passed(positions)


def _passed(positions: Sequence[Position]) -> Verdict | None:
    """Ranks in a collective, while others of the communicator are past it, who did something else
    under its number. Without that they are no proof, even where nobody leaves before all have come:
    who has all that it needs goes on, while what it sent last is still under way to another."""
    for at in positions:
        if not (at.coll and waits(at)):
            continue
        members = [other for other in positions if at.comm in other.comms]
        here = [other for other in members if other.comms[at.comm].colls == at.coll]
        past = [
            other
            for other in members
            if other.inside  # else it may be about to enter one, with half of that in its block
            and other.comms[at.comm].colls > at.coll
            and other.comms[at.comm].op_of(at.coll) not in (at.op, None)
        ]
        if not past:
            continue
        where = f"{at.op_name} (collective {at.coll} of {comm_name(at)})"
        theirs = block.op_name(past[0].comms[at.comm].op_of(at.coll) or 0)
        if len(here) <= len(past):
            what = f"is in {where}, the others called {theirs}"
            return _ranks(StallKind.APPLICATION, here, what)
        return _ranks(StallKind.APPLICATION, past, f"called {theirs} instead of {where}")
    return None


def comm_name(at: Position) -> str:
    """The communicator of the call that it is in, for people."""
    if at.comm == block.WORLD and not at.of_mpi:
        return "the default group"
    return {
        0: "an unknown communicator",
        block.WORLD: "MPI_COMM_WORLD",
        block.SELF: "MPI_COMM_SELF",
    }.get(at.comm, f"communicator {at.comm & 0xFFFF:04x}")


def _link(
    positions: Sequence[Position], waiting: Sequence[Position], links: Mapping[str, str]
) -> Verdict | None:
    """The node that is at an end of the most dead links: each of the others does not reach it.
    Only nodes with ranks are: nobody waits for a spare."""
    nodes = {at.node for at in positions}
    named: Counter[str] = Counter()
    for node in sorted(links.keys() & nodes):
        text = links[node]
        if not text.startswith(UNREACHED):
            named[node] += 1
        elif there := nodes.intersection(text.removeprefix(UNREACHED).split(", ")):
            named.update([node, *sorted(there)])
    if not named:
        return None
    node, _ = named.most_common(1)[0]
    text = f"{node}: {links.get(node, 'no rail reaches it')}, and {len(waiting)} ranks wait"
    return Verdict(StallKind.LINK, text, node=node)


def _absent(positions: Sequence[Position], at: Position) -> list[Position]:
    """Who has not come to the collective that a rank is in."""
    return [
        other
        for other in positions
        if at.comm in other.comms and other.comms[at.comm].colls < at.coll
    ]


def _left(positions: Sequence[Position], waiting: Sequence[Position]) -> Verdict | None:
    """Ranks that ended, or are ending, while others wait for them."""
    for at in waiting:
        absent = _absent(positions, at) if at.coll else _peers(positions, at)
        ended = [
            other
            for other in absent
            if other.state == RankState.FINALIZED
            or (other.inside and other.op_name == "MPI_Finalize")
        ]
        if ended:
            went = "went to MPI_Finalize" if ended[0].of_mpi else "ended"
            what = f"{went} and never came to {at.op_name} of rank {at.rank}"
            return replace(_ranks(StallKind.APPLICATION, ended, what), compared=True)
    return None


def _peers(positions: Sequence[Position], at: Position) -> list[Position]:
    """The rank that a point-to-point call waits for, where it is known."""
    if at.peer < 0 or at.comm not in at.comms:
        return []
    return [
        other
        for other in positions
        if at.comm in other.comms and other.comms[at.comm].rank == at.peer and other is not at
    ]


def _deadlock(
    positions: Sequence[Position], waiting: Sequence[Position], paths: Mapping[str, str]
) -> Verdict | None:
    """A circle of ranks each of which waits for the next. Two that send to each other may be
    moving data, so calls that send are no part of one. Where a path between two of them is dead,
    what one waits for was sent, maybe, and lies there."""
    by_rank = {at.rank: at for at in waiting}

    def next_of(at: Position) -> list[Position]:
        if at.coll:
            found = _absent(positions, at)
        elif at.op_name in ("MPI_Recv", "MPI_Mprobe", "MPI_Probe"):
            found = _peers(positions, at)
        else:
            return []
        return [by_rank[other.rank] for other in found if other.rank in by_rank]

    for start in waiting:
        path, at = [start], start
        while (onward := next_of(at)) and len(path) <= len(waiting):
            at = onward[0]
            if at in path:
                circle = path[path.index(at) :]
                text = _circle_text(circle)
                return _dead_path(circle, paths) or Verdict(
                    StallKind.APPLICATION, f"deadlock: {text}", compared=True
                )
            path.append(at)
    return None


def _circle_text(circle: Sequence[Position]) -> str:
    parts = [f"rank {at.rank} in {at.op_name}" for at in circle[:_NAMES]]
    more = f" and {len(circle) - _NAMES} more" if len(circle) > _NAMES else ""
    return f"{', '.join(parts)}{more}, each waits for the next"


def tell_paths(dead: Iterable[tuple[str, str, int]]) -> str:
    """Rail, peer and age in ms of paths that are dead, though another may still reach that peer:
    what an agent says of them. The youngest, if there are many."""
    young = sorted(dead, key=lambda one: one[2])[:_PATHS]
    return ",".join(f"{rail}:{peer}:{max(0, age_ms)}" for rail, peer, age_ms in young)


def _dead_path(circle: Sequence[Position], paths: Mapping[str, str]) -> Verdict | None:
    """A path that died while one of them waits for a message of the next, or not long before it: of
    one that was dead already ranks had no need. Of its two ends that of more dead paths is named.
    """
    dead = [
        (node, rail, peer, int(age_ms))
        for node in sorted(paths)
        for rail, peer, age_ms in _PATH.findall(paths[node])
    ]
    for at, onward in zip(circle, [*circle[1:], circle[0]], strict=True):
        if at.coll:
            continue  # it waits for that rank to come, not for what that one sent
        for node, rail, peer, age_ms in dead:
            ends = {node, peer} == {at.node, onward.node}
            if ends and age_ms < at.age_ms + SOFT_S * 1000:
                of_rail = Counter(end for a, r, b, _ in dead if r == rail for end in (a, b))
                here, there = sorted((node, peer), key=lambda end: (-of_rail[end], end))
                text = f"{here}: rail {rail} does not reach {there}; {_circle_text(circle)}"
                return Verdict(StallKind.LINK, text, node=here, compared=True)
    return None


def _late(
    positions: Sequence[Position], waiting: Sequence[Position], usual_s: float
) -> Verdict | None:
    """Ranks that compute while others wait for them: slow, or just longer than the others."""
    late: dict[int, Position] = {}
    for at in waiting:
        absent = _absent(positions, at) if at.coll else _peers(positions, at)
        late.update({other.rank: other for other in absent if not waits(other)})
    if not late:
        text = f"all ranks are in their calls: {waiting[0].op_name} takes long"
        return Verdict(StallKind.NONE, text, hard=False)
    slow = sorted(late.values(), key=lambda at: at.rank)
    age_s = max(at.age_ms for at in slow) / 1000
    hard = age_s > max(SOFT_S, 5 * usual_s)
    what = f"has been outside of MPI for {age_s:.1f} s ({_doing(slow[0].letter)})"
    return replace(_ranks(StallKind.RANK, slow, what, hard), computing=True)


def _doing(letter: str) -> str:
    return {"R": "computing", "S": "asleep", "D": "waiting for a device or file"}.get(
        letter, f"process state {letter}"
    )
