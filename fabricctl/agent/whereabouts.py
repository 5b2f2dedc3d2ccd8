"""Where the job's ranks stand: recorded, told to who asks, and judged when they wait.

Every agent records its own ranks. One whose rank waits tells the first nodes of the job; these
ask all nodes, and the first of them that lives records the verdict. In jobs of many nodes both take
longer instead of costing more.
"""

import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fabricctl import wire
from fabricctl.agent import tail
from fabricctl.agent.clockwork import rail_addresses
from fabricctl.agent.orders import Orders
from fabricctl.agent.peers import GROUP, PORTS, Send
from fabricctl.agent.record import Assignment, Record, mono_ns
from fabricctl.errors import DataError
from fabricctl.paths.events import Follower
from fabricctl.state.ckpt import events as checkpoint_events
from fabricctl.state.track import position, verdict
from fabricctl.state.track.position import Position
from fabricctl.state.track.ranks import Ranks
from fabricctl.state.track.verdict import Sure, Verdict
from fabricctl.store import schema
from fabricctl.store.schema import CheckpointEvent, LaunchEvent, PathEvent, PathLevel, StallKind
from fabricctl.telemetry import processes

WATCH_S = 0.4
HINT_S = 2.0  # how long a node's word that its ranks wait is believed
# What one of the first nodes asks, and hears of who waits: 100 us each in Python.
MESSAGES_PER_S = 500
ADDRESSES_S = 10.0  # between looks at what the rails are called
SILENT_S = 1.5  # a node that was asked and did not answer for so long
_NO_RANK = 0xFFFF_FFFF
_NET = Path("/sys/class/net")


def letter_of(pid: int, start_ticks: int) -> str:
    """The state letter of one process, "" when it is gone or its number is another's now."""
    stat = processes.read_stat(pid)
    return stat.state if stat is not None and stat.start_ticks == start_ticks else ""


@dataclass(frozen=True)
class _Heard:
    """What a node said. It looked between ``asked_s`` and ``heard_s``: an answer may lie for long,
    on its way or in a busy agent's socket."""

    heard_s: float
    asked_s: float
    positions: Sequence[Position]
    links: str
    paths: str


class Whereabouts:
    """One agent's part. It sends by ``send``, which knows the other agents' addresses."""

    def __init__(
        self,
        given: Assignment,
        rails: Sequence[str],
        record: Record,
        send: Callable[[Send], bool],
        rng: random.Random | None = None,
    ) -> None:
        start = given.start
        self._nodes, self._own = start.nodes, start.node
        self._others = [node for node in start.nodes if node != start.node]
        self._rng = rng or random.Random(os.urandom(8))  # noqa: S311 - jitter
        # All are asked once in that time, a part of them at each look.
        self._round_s = max(WATCH_S, len(self._nodes) / MESSAGES_PER_S)
        self._hint_s = HINT_S + 2.5 * (self._round_s - WATCH_S)
        self._silent_s = SILENT_S + 1.5 * (self._round_s - WATCH_S)
        self._next = 0
        self._tries: dict[str, int] = {}
        self._record, self._send, self._rails = record, send, rails
        self._journal = given.journal
        self._ranks = Ranks(given.files.track_dir(start.job), letter_of)
        self._checkpoints = Follower(
            given.files.checkpoint_events(start.job), checkpoint_events.row
        )
        self._first = self._nodes[:GROUP]
        self._hinted_s = float("-inf")
        self._asked_s: dict[str, float] = {}
        self._missing: set[str] = set()  # answers, where all were asked at the last look
        self._heard: dict[str, _Heard] = {}
        self._sure = Sure()
        self._told: tuple[StallKind, int | None, str] | None = None
        self._holds: Verdict | None = None  # what was told last, while it is hard
        self._since_ns = self._launch = 0
        self._usual_s = 0.0
        self._event = self._addresses = ""
        self._addresses_s = float("-inf")  # when they are read again
        self._orders = Orders(self._nodes)
        self._done = ""  # the last start whose checkpoints were given back: it ended well
        self._levels: dict[tuple[str, int], int] = {}  # by peer and rail
        self._level_ns: dict[tuple[str, int], int] = {}  # since when

    def sample(self, *, last: bool = False) -> None:
        """Rows of the ranks here, when they are due."""
        self._ranks.take(last=last)
        tables = (schema.RANK, schema.MPI_TIME, schema.RANK_POSITION, schema.PHASE)
        for table, rows in zip(tables, self._ranks.rows(), strict=True):
            self._record.put(table, rows)
        self._follow()

    def _follow(self) -> None:
        """What programs here told of their checkpoints."""
        rows = self._checkpoints.rows()
        self._record.put(schema.CHECKPOINT, rows)
        for row in rows:
            self._done = str(row[3]) if row[2] == CheckpointEvent.DONE else ""

    def note_paths(self, rows: Sequence[Sequence[int | str]]) -> None:
        """What link failover reported (rows of ``path_event``)."""
        for row in rows:
            if row[2] == PathEvent.PATH:
                path = str(row[3]), int(row[4])
                if self._levels.get(path) != row[5]:
                    self._level_ns[path] = int(row[0])
                self._levels[path] = int(row[5])

    def receive(self, message: Mapping[str, str]) -> dict[str, str] | None:
        """``where`` is answered, ``there`` and ``waits`` are taken in; raises DataError."""
        kind, node = message.get("kind"), message.get("node", "")
        if kind == "where":
            return self._answer(message.get("at", ""))
        if kind == "journal":
            return tail.answer(self._journal, message)
        if kind == "alive":
            rails = self._own_addresses()
            return {"kind": "here", "rails": rails, **self._orders.hear(message), **self._stalled()}
        if kind == "halt":
            return self._orders.take(message.get("how", ""))
        if kind == "event":
            return self._note_event(message)
        if node not in self._nodes:
            raise DataError(f"message: {node[:60]!r} is not a node of the job")
        if kind == "waits":
            self._take_hint()
        elif kind == "there":
            found = position.decode(message.get("ranks", ""), node)
            now_s = time.monotonic()
            # An agent that does not say it back is of an older version.
            asked_s = wire.number(message, "at") / 1000 if message.get("at") else now_s
            links = message.get("links", "")[:120]
            paths = message.get("paths", "")[:2000]
            self._heard[node] = _Heard(now_s, min(asked_s, now_s), found, links, paths)
            if node in self._missing:
                self._missing.remove(node)
                if not self._missing:
                    self._judge(now_s)  # the next look would find no more
        return None

    def _own_addresses(self) -> str:
        """Of the rails: who misses this agent's answers looks there whether the node lives."""
        now_s = time.monotonic()
        if now_s >= self._addresses_s:
            self._addresses_s = now_s + ADDRESSES_S
            try:
                self._addresses = " ".join(rail_addresses(self._rails).values())
            except (OSError, DataError):
                self._addresses = ""
        return self._addresses

    def _take_hint(self) -> None:
        """Somebody waits. The first word of it is acted upon at once."""
        now_s = time.monotonic()
        first = now_s - self._hinted_s > self._hint_s
        self._hinted_s = now_s
        if first and self._own in self._first:
            self._ask(now_s)

    def _note_event(self, message: Mapping[str, str]) -> dict[str, str]:
        """What `fabricctl run` did, into the trace; each event once, however often it is said."""
        token = message.get("ask", "")
        event = wire.number(message, "event")
        if event not in list(LaunchEvent):
            raise DataError(f"message: event {event} is not known")
        if token != self._event:
            self._event = token
            launch = min(wire.number(message, "launch"), _NO_RANK)
            said = (message.get("at", "")[:47], message.get("text", "")[:119])
            self._record.put(schema.LAUNCH, [(mono_ns(), time.time_ns(), event, launch, *said)])
        return {"kind": "noted"}

    def _answer(self, at: str) -> dict[str, str]:
        """``at``: when it was asked, by the clock of who asks."""
        self._follow()
        ranks = position.encode(self._positions())
        told = {"links": self._links(), "paths": self._paths(), "done": self._done}
        return {"kind": "there", "ranks": ranks, **told, "at": at[:20]}

    def _stalled(self) -> dict[str, str]:
        """The verdict that holds, for `fabricctl run`: it acts when it holds for long."""
        found = self._holds
        if found is None:
            return {}
        since_ms = max(0, mono_ns() - self._since_ns) // 1_000_000
        return {
            "stall": str(int(found.kind)),
            "stall_launch": str(self._launch),
            "computing": str(int(found.computing)),
            "stall_node": found.node[:60],
            "stall_text": found.text[:160],
            "stall_ms": str(since_ms),
            "usual_ms": str(int(self._usual_s * 1000)),
        }

    def _positions(self) -> list[Position]:
        now_mono_ns = mono_ns()
        return [position.of(seen, self._own, now_mono_ns) for seen in self._ranks.look()]

    def _links(self) -> str:
        """What is wrong with this node's rails, as far as it keeps ranks from talking."""
        down = [rail for rail in self._rails if not _has_carrier(rail)]
        if down and (len(down) == len(self._rails) or not self._levels):
            return f"rail {', '.join(down)} without carrier"
        peers = {peer for peer, _ in self._levels}
        cut = [
            peer
            for peer in sorted(peers)
            if all(n == PathLevel.DEAD for (p, _), n in self._levels.items() if p == peer)
            and sum(p == peer for p, _ in self._levels) >= len(self._rails)
        ]
        return verdict.UNREACHED + ", ".join(cut[:6]) if cut else ""

    def _paths(self) -> str:
        """Paths to peers that are dead, though others may reach these."""
        now_ns = mono_ns()
        return verdict.tell_paths(
            (self._rails[rail], peer, (now_ns - self._level_ns[peer, rail]) // 1_000_000)
            for (peer, rail), level in self._levels.items()
            if level == PathLevel.DEAD and rail < len(self._rails)
        )

    def watch(self) -> None:
        """To be called every :data:`WATCH_S`."""
        now_s = time.monotonic()
        own = self._ranks.waiting(verdict.WAIT_S)
        if own:
            self._hinted_s = now_s
            # All ranks wait at once as a rule: one of some hundred who says so is enough.
            if self._rng.random() <= WATCH_S / self._round_s:
                for node in self._first:
                    if node != self._own:
                        self._put(node, "waits")
        if self._own not in self._first:
            return
        if now_s - self._hinted_s > self._hint_s:
            self._tell(verdict.NOBODY)
            self._heard.clear()
            self._asked_s.clear()
            return
        self._judge(now_s)
        self._ask(now_s)

    def _ask(self, now_s: float) -> None:
        # Of the same moment as what the others will answer.
        here = self._positions(), self._links(), self._paths()
        self._heard[self._own] = _Heard(now_s, now_s, *here)
        due = self._due()
        self._missing = set(due) if len(due) == len(self._others) else set()
        for node in due:
            if self._put(node, "where"):
                self._asked_s.setdefault(node, now_s)

    def _due(self) -> Sequence[str]:
        """Whom to ask at this look."""
        count = math.ceil(len(self._others) * WATCH_S / self._round_s)
        begin, self._next = self._next, (self._next + count) % max(1, len(self._others))
        return (self._others + self._others)[begin : begin + count]

    def _put(self, node: str, kind: str) -> bool:
        """To where it was heard from, else to one after the other of its ports."""
        message = {"kind": kind, "at": str(int(time.monotonic() * 1000))}
        if self._send(Send(node, None, message)):
            return True
        tries = self._tries[node] = self._tries.get(node, -1) + 1
        return self._send(Send(node, tries % PORTS, message))

    def _judge(self, now_s: float) -> None:
        asked = [node for node, at_s in self._asked_s.items() if now_s - at_s >= self._silent_s]
        silent = [node for node in asked if now_s - self._heard_s(node) >= self._silent_s]
        if any(node not in silent and node in self._asked_s for node in self._before_us()):
            self._told = self._holds = None  # another one tells; should it go, this one begins anew
            return
        old_s = now_s - 2 * self._silent_s
        fresh = {node: told for node, told in self._heard.items() if told.heard_s > old_s}
        all_of = [at for told in fresh.values() for at in told.positions]
        launch = self._launch = max((at.launch for at in all_of), default=0)
        links = {node: told.links for node, told in fresh.items() if told.links}
        newest = [at for at in all_of if at.launch == launch]
        if len(newest) < max((at.ranks for at in newest), default=0) and not silent:
            return  # not everybody has answered yet
        paths = {node: told.paths for node, told in fresh.items()}
        found = verdict.judge(newest, silent, links, self._usual_s, paths)
        behind = [fresh[node] for node in {at.node for at in newest}]
        oldest_s = min((told.asked_s for told in behind), default=now_s)
        newest_s = max((told.heard_s for told in behind), default=now_s)
        if not self._sure.holds(found, oldest_s, newest_s):
            return
        late = [at.age_ms / 1000 for at in newest if not verdict.waits(at)]
        if not found.hard:
            self._usual_s = max([self._usual_s, *late])
        self._tell(found)

    def _before_us(self) -> Sequence[str]:
        return self._first[: self._first.index(self._own)]

    def _heard_s(self, node: str) -> float:
        return self._heard[node].heard_s if node in self._heard else float("-inf")

    def _tell(self, found: Verdict) -> None:
        """A row when it differs from what was said last."""
        said = (found.kind, found.rank, found.node) if found.hard else None
        if said == self._told or (not found.hard and found.waiting and self._told):
            return
        self._told = said
        now = mono_ns()
        self._holds = found if found.hard else None
        self._since_ns = now - found.since_ms * 1_000_000
        kind = found.kind if found.hard else StallKind.NONE
        text = found.text if found.hard else "the ranks go on"
        rank = _NO_RANK if found.rank is None or not found.hard else found.rank
        since = now - found.since_ms * 1_000_000 if found.hard else 0
        node = found.node[:47] if found.hard else ""
        row = (now, time.time_ns(), int(kind), rank, node, since, found.waiting, text)
        self._record.put(schema.STALL, [row])


def _has_carrier(rail: str) -> bool:
    """True also when nobody can tell."""
    try:
        fd = os.open(_NET / rail / "carrier", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        return os.read(fd, 4).strip() != b"0"
    except OSError:
        return False  # EINVAL: the interface is down
    finally:
        os.close(fd)
