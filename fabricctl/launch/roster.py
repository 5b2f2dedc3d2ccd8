"""Who holds which rank of a program whose dead are replaced while the others run on.

Nothing here waits, reads or writes: each call says what happened and returns what is to be done.
A *generation* is a group of processes, one a rank, that run together. When one of them is gone, all
others are told that it is broken; when each has come out and each rank has a process, the next one
is formed. Rank 0 of it opens a store first, by which the others find each other.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from fabricctl import hostlist
from fabricctl.store.schema import LaunchEvent

REFORM_S = 120.0  # for all to come out of what they do, and for a new process to begin
LIVE = "live"  # how the report knows a new group from a start of all
WAITERS_MOST = 5  # that died waiting and are begun anew: a spare is no use without a process
FAILED_S = 2.0  # an error of a program may be the first that is seen of a death elsewhere


@dataclass(frozen=True)
class Send:
    """A message to a process."""

    to: int
    message: dict[str, str]


@dataclass(frozen=True)
class Start:
    """One more process is wanted on this node."""

    node: str


@dataclass(frozen=True)
class Tell:
    """For the job's trace."""

    event: LaunchEvent
    node: str
    text: str


@dataclass(frozen=True)
class End:
    """It is over for all processes: it ended well, or it cannot go on so."""

    status: int
    why: str = ""


Action = Send | Start | Tell | End


@dataclass
class _Process:
    node: str
    rank: int | None = None  # None: it waits
    inside: bool = False  # in a generation: not waiting for one
    done: bool = False


@dataclass
class Roster:
    """``hosts[rank]``: the rank's node; ``spares``: nodes with processes that wait, the first ones
    first; ``started``: how many processes were started on each node. Times are of ``clock``."""

    hosts: list[str]
    spares: Sequence[str]
    started: dict[str, int]
    generation: int
    deaths_most: int
    clock: Callable[[], float]
    over: bool = False
    forming: bool = True  # no generation is there
    _processes: dict[int, _Process] = field(default_factory=dict)
    _dead: set[str] = field(default_factory=set)
    _deaths: int = 0
    _waiters_lost: int = 0
    _first: bool = True
    _well: bool = False
    _since_s: float = 0.0
    _failed: tuple[float, int, str] | None = None
    _left: set[str] = field(default_factory=set)  # nodes that live and are to be left
    _planned: bool = False  # the processes come out by themselves, after a save

    # What happened

    def join(self, who: int, node: str, local: int) -> list[Action]:
        """A process has begun and waits; ``local``: the how-many-eth of its node it is."""
        self._processes[who] = _Process(node)
        self.started[node] = max(0, self.started.get(node, 0) - 1)
        if self.over:
            return [Send(who, {"kind": "end" if self._well else "leave"})]
        if self._first:
            mine = [rank for rank, host in enumerate(self.hosts) if host == node]
            free = [rank for rank in mine if rank in self._vacant]
            wanted = mine[local] if local < len(mine) and mine[local] in free else None
            if free:
                self._processes[who].rank = free[0] if wanted is None else wanted
        return self._go_on()

    def ready(self, who: int) -> list[Action]:
        """It came out of a generation that is broken."""
        process = self._processes.get(who)
        if process is None or self.over or not (self.forming or self._left):
            return []
        if not self.forming:
            self._planned = True
            self._begin_forming()
        process.inside = process.done = False
        if process.node in self._left:
            process.rank = None
            return [Send(who, {"kind": "end"}), *self._go_on()]
        return self._go_on()

    def leave(self, node: str, to: str = "") -> list[Action] | None:
        """Ranks are to leave a node, after a save, for one that waits on ``to`` or any spare; None:
        it cannot be done now. Nobody is asked to end: programs go on from what they saved."""
        there = [who for who, _ in self._holders if self._processes[who].node == node]
        free = [
            one.node
            for one in self._processes.values()
            if one.rank is None and one.node not in (*self._left, node)
        ]
        if self.over or self.forming or len(free) < len(there) or (to and to not in free):
            return None
        self._left.add(node)
        self.spares = [to, *(spare for spare in self.spares if spare != to)] if to else self.spares
        waiting = [who for who, one in self._processes.items() if one.node == node]
        ended = [Send(who, {"kind": "end"}) for who in waiting if who not in there]
        moved = [Send(who, {"kind": "move"}) for who, _ in self._holders if there]
        return [*ended, *moved]

    def opened(self, who: int, port: int) -> list[Action]:
        """Rank 0 has opened the store of its generation: the others are called."""
        process = self._processes.get(who)
        if self.forming or process is None or process.rank != 0:
            return []
        return [
            Send(other, self._form(rank, port))
            for other, rank in self._holders
            if rank != 0
        ]  # fmt: skip

    def done(self, who: int) -> list[Action]:
        """Its program has ended well."""
        process = self._processes.get(who)
        if process is None or self.forming:
            return []
        process.done = True
        if not all(self._processes[other].done for other, _ in self._holders):
            return []
        self.over = self._well = True
        return [*(Send(other, {"kind": "end"}) for other in self._processes), End(0)]

    def failed(self, who: int, why: str) -> list[Action]:
        """Its program raised an error: by itself, or for a death that is not known yet."""
        if not self.forming and self._failed is None and who in self._processes:
            self._failed = (self.clock(), who, why)
        return []

    def exits(self, who: int, status: int) -> list[Action]:
        """Its program wants to end with this status."""
        process = self._processes.get(who)
        rank = None if process is None else process.rank
        return self._end(status, f"rank {rank} ended with status {status}")

    def gone(self, who: int) -> list[Action]:
        """Its connection has ended: it died."""
        process = self._processes.pop(who, None)
        if process is None or self.over:
            return []
        if process.rank is None:
            self._waiters_lost += 1
            again = self._start_on(process.node) if self._waiters_lost <= WAITERS_MOST else []
            return [*again, *self._go_on()]
        told = Tell(LaunchEvent.RANKS_DEAD, process.node, f"rank {process.rank} died")
        return [told, *self._broken(), *self._start_on(process.node), *self._go_on()]

    def _start_on(self, node: str) -> list[Action]:
        """Another one, that waits there for the next death."""
        if node in self._dead | self._left:
            return []
        self.started[node] = self.started.get(node, 0) + 1
        return [Start(node)]

    def lost(self, nodes: Collection[str]) -> list[Action]:
        """These nodes are dead."""
        fresh = set(nodes) - self._dead
        self._dead |= fresh
        for node in fresh:
            self.started[node] = 0
        held = [who for who, _ in self._holders if self._processes[who].node in fresh]
        for who in [who for who, one in self._processes.items() if one.node in fresh]:
            del self._processes[who]
        if self.over:
            return []
        if not held:
            return self._go_on()
        why = "its agent is silent, its ports are, too"
        told = [Tell(LaunchEvent.NODE_DEAD, node, why) for node in sorted(fresh)]
        return [*told, *self._broken(), *self._go_on()]

    def has_rank(self, node: str) -> bool:
        """Whether a process with a rank is connected from there."""
        return any(self._processes[who].node == node for who, _ in self._holders)

    def ended(self, node: str, count: int) -> list[Action]:
        """So many processes that were started there ended before they joined."""
        self.started[node] = max(0, self.started.get(node, 0) - count)
        return [] if self.over else self._go_on()

    def tick(self) -> list[Action]:
        """Time has passed."""
        if self.over:
            return []
        if self._failed is not None and self.clock() - self._failed[0] > FAILED_S:
            _, who, why = self._failed
            process = self._processes.get(who)
            rank = None if process is None else process.rank
            said = [Send(who, {"kind": "raise"}) for who, _ in self._holders]
            return [*said, *self._end(1, f"rank {rank} failed: {why}")]
        if self.forming and not self._first and self.clock() - self._since_s > REFORM_S:
            late = [str(rank) for who, rank in self._holders if self._processes[who].inside]
            words = f"rank {', '.join(late[:8])} did not come out" if late else "no process came"
            return self._end(1, f"{words} within {REFORM_S:g} s")
        return []

    # What follows

    @property
    def _holders(self) -> list[tuple[int, int]]:
        """Processes with their ranks."""
        found = [(who, one.rank) for who, one in self._processes.items() if one.rank is not None]
        return sorted(found, key=lambda pair: pair[1])

    @property
    def _vacant(self) -> list[int]:
        held = {rank for _, rank in self._holders}
        return [rank for rank in range(len(self.hosts)) if rank not in held]

    def _broken(self) -> list[Action]:
        """The generation is over; the next one is the group's that follows."""
        self._deaths += 1
        self._failed = None
        if self.forming and not self._planned:
            return []
        self._planned = False
        if not self.forming:
            self._begin_forming()
        return [
            Send(who, {"kind": "broken"})
            for who, _ in self._holders
            if self._processes[who].inside
        ]  # fmt: skip

    def _begin_forming(self) -> None:
        self.forming = True
        self._since_s = self.clock()
        self.generation += 1

    def _go_on(self) -> list[Action]:
        """Gives vacant ranks to those who wait, and forms a generation when all are there."""
        if not self.forming or self.over:
            return []
        if self._deaths > self.deaths_most:
            return self._end(1, f"{self._deaths} deaths (--max-restarts)")
        for rank in self._vacant:
            host = self.hosts[rank]
            if self._first and self.started.get(host, 0):
                continue  # its own process is on its way
            who = self._waiting(host)
            if who is not None:
                self._processes[who].rank = rank
                self.hosts[rank] = self._processes[who].node
            elif not any(self.started.values()):
                why = "it ended before state.live" if self._first else "no process is left for it"
                return self._end(1, f"rank {rank}: {why}")
        if self._vacant or any(self._processes[who].inside for who, _ in self._holders):
            return []
        first, self.forming, self._first, self._planned = self._first, False, False, False
        for who, _ in self._holders:
            self._processes[who].inside, self._processes[who].done = True, False
        nodes = hostlist.fold(dict.fromkeys(self.hosts))
        begun = Tell(LaunchEvent.START, nodes, f"{len(self.hosts)} ranks, {LIVE}")
        called = Send(self._holders[0][0], self._form(0, 0))
        return [called] if first else [begun, called]  # the first start is told by who starts it

    def _waiting(self, host: str) -> int | None:
        """Who takes a rank that was there: on the same node, else on the first spare."""
        free = [
            (who, one.node)
            for who, one in self._processes.items()
            if one.rank is None and one.node not in self._left
        ]
        order = [host, *self.spares]
        place = {node: nth for nth, node in reversed(list(enumerate(order)))}
        return min(free, key=lambda one: place.get(one[1], len(order)), default=(None, ""))[0]

    def _form(self, rank: int, port: int) -> dict[str, str]:
        return {
            "kind": "form",
            "generation": str(self.generation),
            "rank": str(rank),
            "ranks": str(len(self.hosts)),
            "host": self.hosts[0],
            "port": str(port),
            "dead": ",".join(sorted(self._dead)),
        }

    def _end(self, status: int, why: str) -> list[Action]:
        """The processes are ended from outside; those that wait leave by themselves."""
        self.over = True
        return [*(Send(who, {"kind": "leave"}) for who in self._processes), End(status, why)]
