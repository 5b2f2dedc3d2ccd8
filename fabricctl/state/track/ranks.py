"""The ranks of a job on this node: their blocks and their processes, as rows and as positions."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fabricctl.state.track import block
from fabricctl.state.track.block import Rank, State
from fabricctl.store.schema import RankState

Row = tuple[int | str, ...]
Rows = tuple[list[Row], list[Row], list[Row], list[Row]]
Alive = Callable[[int, int], str]  # pid, start ticks: the process's state letter, "" when gone

RANKS_PER_S = 8  # sampled a second; a node with more is sampled more seldom
PERIOD_MAX_S = 16.0
EARLY_S = 0.25  # who asks once a second comes a little early as often as late
NAMES_S = 2.0  # between looks for new ranks
MOST = 4096  # files of a user's directory
NO_PEER = 0xFFFF_FFFF


@dataclass(frozen=True)
class Seen:
    """A rank as it was found: its block and its process's state letter (proc(5)), "" for gone."""

    rank: Rank
    letter: str

    @property
    def state(self) -> RankState:
        """What both together say."""
        if self.rank.state in (State.FINALIZED, State.ABORTED):
            return RankState(int(self.rank.state))
        if not self.letter or self.letter in "ZX":
            return RankState.GONE
        return RankState.STOPPED if self.letter in "Tt" else RankState(int(self.rank.state))


class Ranks:
    """All ranks of one job on this node."""

    def __init__(self, directory: Path, alive: Alive) -> None:
        self._directory = directory
        self._alive = alive
        self._states: dict[tuple[int, int], RankState] = {}
        self._calls: dict[tuple[int, int, int], int] = {}
        self._next_s = 0.0
        self._names_s = 0.0
        self._watched: dict[Path, tuple[int, float]] = {}
        self._rows: Rows = ([], [], [], [])
        self._phases: dict[tuple[int, int, str], tuple[int, int]] = {}

    def look(self) -> list[Seen]:
        """Every rank of the newest launch that is here; older ones are left out, also of a program
        that ran before under the same number."""
        ranks = block.read_all(self._directory)
        newest = max((rank.launch for rank in ranks), default=0)
        last = {
            rank.rank: rank
            for rank in sorted(ranks, key=lambda rank: rank.start_ticks)
            if rank.launch == newest
        }
        return [
            Seen(rank, self._alive(rank.pid, rank.start_ticks))
            for rank in sorted(last.values(), key=lambda rank: rank.rank)
        ]

    def waiting(self, least_s: float) -> bool:
        """Whether some rank is in the same call for that long; cheap, for looking often."""
        now_s = time.monotonic()
        if now_s >= self._names_s:
            self._names_s = now_s + NAMES_S
            try:
                found = [path for path in self._directory.iterdir() if path.suffix == ".track"]
            except OSError:
                found = []
            self._watched = {p: self._watched.get(p, (0, now_s)) for p in found[:MOST]}
        for path, (calls, since_s) in self._watched.items():
            try:
                now = block.calls_of(path)
            except OSError:
                continue
            if now is not None and now[0] != calls:
                self._watched[path] = (now[0], now_s)
            elif now is not None and calls % 2 and now_s - since_s >= least_s:
                return True
        return False

    def take(self, *, last: bool = False) -> None:
        """A sample, where one is due; ``last``: whatever is due, and of every launch."""
        now_s = time.monotonic()
        if now_s < self._next_s - EARLY_S and not last:
            return
        seen = self.look()
        self._next_s = now_s + min(max(1.0, len(seen) / RANKS_PER_S), PERIOD_MAX_S)
        now_mono_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        states, sums, positions, phases = self._rows
        for item in seen:
            rank, who = item.rank, (item.rank.launch, item.rank.rank)
            if self._states.get(who) != item.state:
                self._states[who] = item.state
                states.append(_state_row(now_mono_ns, item))
            sums += self._sums(now_mono_ns, rank)
            positions.append(_position_row(now_mono_ns, rank))
            phases += self._in_phases(now_mono_ns, item)

    def _sums(self, now_mono_ns: int, rank: Rank) -> list[Row]:
        rows: list[Row] = []
        for item in rank.sums:
            key = (rank.launch, rank.rank, item.op)
            if self._calls.get(key) != item.calls:
                self._calls[key] = item.calls
                name = block.op_name(item.op)
                figures = (item.calls, item.ns, item.bytes, item.most_ns)
                rows.append((now_mono_ns, rank.rank, rank.launch, name, *figures))
        return rows

    def _in_phases(self, now_mono_ns: int, item: Seen) -> list[Row]:
        rank = item.rank
        rows: list[Row] = []
        for phase in rank.phases:
            took_ns = phase.ns
            if phase.name == rank.phase and item.state in (RankState.RUNNING, RankState.STOPPED):
                took_ns += max(0, now_mono_ns - rank.phase_mono_ns)
            key = (rank.launch, rank.rank, phase.name)
            known = self._phases.get(key, (0, 0))
            # The rank may have left the phase while it was read: what was told stays.
            said = (phase.entered, max(took_ns, known[1]))
            if said != known:
                self._phases[key] = said
                rows.append((now_mono_ns, rank.rank, rank.launch, phase.name, *said))
        return rows

    def rows(self) -> Rows:
        """Rows of ``rank``, ``mpi_time``, ``rank_position``, ``phase`` since the last call."""
        taken, self._rows = self._rows, ([], [], [], [])
        return taken


def _state_row(now_mono_ns: int, item: Seen) -> Row:
    rank = item.rank
    who = (now_mono_ns, rank.rank, rank.launch, rank.ranks, rank.pid)
    return (*who, rank.step, rank.library, int(item.state))


def _position_row(now_mono_ns: int, rank: Rank) -> Row:
    name = block.op_name(rank.op) if rank.calls else ""
    peer = rank.peer if rank.peer >= 0 else NO_PEER
    where = (name, rank.since_mono_ns, rank.comm, rank.coll, peer, rank.steps)
    return (now_mono_ns, rank.rank, rank.launch, rank.calls, *where)
