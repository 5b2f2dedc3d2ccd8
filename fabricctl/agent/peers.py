"""Which nodes of the allocation have an agent: what is said to whom, and what follows from it.

Every agent sends hellos to the first three nodes of the allocation, the coordinators; whoever
gets a hello answers with what it knows of all. Agents that hear no coordinator move on to the
next three nodes. Nothing here touches a socket or a clock. Jobs of many nodes do this in blocks
(:mod:`fabricctl.agent.blocks`).

What is claimed is only what was heard: a node is "not heard", which says nothing about whether
it lives, and one that hears nobody adds that it may itself be cut off.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fabricctl import hostlist, wire
from fabricctl.agent.status import short_list
from fabricctl.errors import DataError
from fabricctl.store.schema import Severity

GROUP = 3  # coordinators at a time
# What one coordinator may receive, whatever the number of nodes: to find each other at first,
# and later, when a message in and its answer (100 us in Python) must not cost 1 % of a core.
FIRST_MESSAGES_PER_S = 200
STEADY_MESSAGES_PER_S = 80
INTERVAL_MIN_S = 2.0
RETRY_MIN_S = 0.25  # until the first answer
RESOLVE_POLL_S = 0.02  # at first, while a name is being looked up
QUICK_TRIES = 12  # at the pace above: three rounds over the candidate ports
SETTLE_MIN_S = 8.0  # prologs of one job start up to seconds apart
SILENCE_MIN_S = 15.0
PORTS = 4  # candidates that an agent may have bound

Say = Callable[[Severity, str], None]


@dataclass(frozen=True)
class Send:
    """One message to put on the wire; ``port``: which candidate to try, None: where it was
    heard from."""

    node: str
    port: int | None
    fields: Mapping[str, str]


@dataclass(frozen=True)
class View:
    """What this node knows of all."""

    protected: int
    missing: frozenset[str]
    unplugged: frozenset[str]
    settled: bool


def view_fields(view: View) -> dict[str, str]:
    """As messages have it."""
    return {
        "protected": str(view.protected),
        "missing": short_list(view.missing),
        "unplugged": short_list(view.unplugged),
        "settled": str(int(view.settled)),
    }


@dataclass
class _Heard:
    last_s: float
    ended: bool = False
    unplugged: bool = False


@dataclass
class _Contact:
    """A coordinator, from the side of the one who asks it."""

    due_s: float
    tries: int = 0
    unsent: int = 0  # times that its address was not known


class Teller(ABC):
    """Says what changes in :meth:`view`."""

    total: int  # nodes of the job
    say: Say
    _told: View | None

    @abstractmethod
    def view(self, now_s: float) -> View:
        """The best that is known."""

    @abstractmethod
    def hears(self, now_s: float) -> bool:
        """Whether anybody is heard."""

    def tell_changes(self, now_s: float) -> View:
        """The view, after saying what changed in it since the last call."""
        view, told = self.view(now_s), self._told
        if not view.settled:
            return view
        before = told or View(0, frozenset(), frozenset(), False)
        if told is None and not view.missing:
            self.say(Severity.INFO, f"agents of all {self.total} nodes were heard")
        if lost := view.missing - before.missing:
            alone = not self.hears(now_s)
            hint = "; this node hears nobody and may be cut off itself" if alone else ""
            self.say(Severity.WARNING, f"no agent heard from {short_list(lost, 120)}{hint}")
        if found := before.missing - view.missing:
            self.say(Severity.INFO, f"agent heard from {short_list(found, 160)}")
        if bare := view.unplugged - before.unplugged:
            self.say(Severity.WARNING, f"steps ran without the plugin on {short_list(bare, 120)}")
        self._told = view
        return view


@dataclass
class Peers(Teller):
    """One agent's side. Every ``now_s`` is of the same monotonic clock, in any epoch."""

    nodes: tuple[str, ...]
    own: str
    begin_s: float
    say: Say
    rng: random.Random
    unplugged: bool = False  # set by the agent: a step ran here without the plugin
    steady_per_s: float = STEADY_MESSAGES_PER_S
    _heard: dict[str, _Heard] = field(default_factory=dict)
    _answers: dict[str, tuple[float, View]] = field(default_factory=dict)
    _contacts: dict[str, _Contact] = field(default_factory=dict)
    _group: int = 0
    _group_since_s: float = 0.0
    _tried: set[str] = field(default_factory=set)
    _told: View | None = None
    _memo: tuple[float, View] = (float("-inf"), View(0, frozenset(), frozenset(), False))

    def __post_init__(self) -> None:
        self.known = frozenset(self.nodes)
        self.total = len(self.nodes)
        self._place = {node: place for place, node in enumerate(self.nodes)}
        self._group_since_s = self.begin_s
        # With everybody asking every coordinator, the pace follows from the number of nodes.
        self._spread_s = len(self.nodes) / FIRST_MESSAGES_PER_S
        self.interval_s = max(INTERVAL_MIN_S, len(self.nodes) / self.steady_per_s)
        self.silence_s = max(SILENCE_MIN_S, 3.5 * self.interval_s)
        self.settle_s = max(SETTLE_MIN_S, 3 * self._spread_s)
        # Answers to thousands of nodes repeat what was found out up to this long ago.
        self._memo_s = len(self.nodes) / 2000

    @property
    def coordinators(self) -> tuple[str, ...]:
        """The first nodes of which one answers, as far as is known here."""
        begin = self._group * GROUP
        return self.nodes[begin : begin + GROUP]

    def _addressees(self) -> tuple[str, ...]:
        """Who gets hellos: the coordinators, and those before them, who may have come back."""
        return tuple(node for node in self.nodes[: (self._group + 1) * GROUP] if node != self.own)

    # What comes in

    def receive(self, message: Mapping[str, str], now_s: float) -> list[Send]:
        """Takes in an authentic, fresh message; gives what to answer.

        Raises :class:`DataError` for one that no agent of this job writes.
        """
        sender, kind = message.get("node", ""), message.get("kind")
        if sender not in self.known or sender == self.own:
            raise DataError(f"message: {sender[:60]!r} is not another node of the job")
        if kind not in ("hello", "answer", "bye"):
            raise DataError(f"message: kind {str(kind)[:24]!r} is not known")
        if kind == "answer":
            self._answers[sender] = (now_s, self.parse(message))
            self._group_since_s = now_s
            self._group = min(self._group, self._place.get(sender, self._group * GROUP) // GROUP)
        heard = self._heard.setdefault(sender, _Heard(now_s))
        heard.last_s, heard.ended = now_s, kind == "bye"
        heard.unplugged |= message.get("unplugged") == "1"
        if kind == "bye":
            self._answers.pop(sender, None)
        return [Send(sender, None, self._answer(now_s))] if kind == "hello" else []

    def parse(self, message: Mapping[str, str]) -> View:
        """A view from its fields; raises :class:`DataError`."""
        missing = frozenset(hostlist.expand(message.get("missing", "")))
        unplugged = frozenset(hostlist.expand(message.get("unplugged", "")))
        if not missing | unplugged <= self.known:
            raise DataError("message: names a node that is not of the job")
        protected = wire.number(message, "protected")
        return View(min(protected, self.total), missing, unplugged, message.get("settled") == "1")

    def _answer(self, now_s: float) -> dict[str, str]:
        # A coordinator says what it heard itself: were it to repeat what others said, a dead
        # node could be kept alive by two of them telling each other.
        at_s, view = self._memo
        if now_s - at_s >= self._memo_s:
            view = self._direct(now_s) if self.coordinates else self.view(now_s)
            self._memo = (now_s, view)
        return {"kind": "answer", **view_fields(view)}

    # What goes out

    def due(self, now_s: float) -> list[Send]:
        """Hellos whose time has come; call it at least at :meth:`next_due_s`."""
        self._move_on(now_s)
        sends = []
        for node in self._addressees():
            contact = self._contact(node)
            if now_s < contact.due_s:
                continue
            answered = node in self._answers and self.recent(self._answers[node][0], now_s)
            port = None if answered else contact.tries % PORTS
            contact.tries = 0 if answered else contact.tries + 1
            quick = not answered and contact.tries < QUICK_TRIES
            pace_s = max(RETRY_MIN_S, self._spread_s) if quick else self.interval_s
            contact.due_s = now_s + pace_s * self.rng.uniform(0.9, 1.1)
            self._tried.add(node)
            sends.append(Send(node, port, self._hello("hello")))
        return sends

    def not_sent(self, node: str, now_s: float) -> None:
        """The node's address is not known yet: the attempt does not count."""
        contact = self._contact(node)
        contact.tries = max(0, contact.tries - 1)
        contact.due_s = now_s + RESOLVE_POLL_S * 2 ** min(contact.unsent, 8)
        contact.unsent += 1

    def next_due_s(self) -> float:
        """When :meth:`due` has something next."""
        others = self._addressees()
        return min(
            (self._contact(node).due_s for node in others),
            default=self._group_since_s + self.settle_s,
        )

    def bye(self) -> list[Send]:
        """To everybody who would miss this agent."""
        return [
            Send(node, None, self._hello("bye"))
            for node, heard in sorted(self._heard.items())
            if not heard.ended
        ]

    def contacts(self, node: str) -> bool:
        """Whether the node is one of those that this one asks."""
        return node in self._contacts

    def _hello(self, kind: str) -> dict[str, str]:
        return {"kind": kind, "unplugged": str(int(self.unplugged))}

    def _contact(self, node: str) -> _Contact:
        if node not in self._contacts:
            # Thousands of agents start at once: the first hellos are spread, too.
            due_s = self._group_since_s + self.rng.uniform(0, self._spread_s)
            self._contacts[node] = _Contact(due_s)
        return self._contacts[node]

    def _move_on(self, now_s: float) -> None:
        """To the next coordinators when none of these answers and nobody takes us for one."""
        groups = -(-len(self.nodes) // GROUP)
        if groups == 1 or now_s - self._group_since_s <= self.settle_s:
            return
        asked = self.own in self.coordinators and any(
            self.recent(heard.last_s, now_s) for heard in self._heard.values()
        )
        ending = any(heard.ended for heard in self._heard.values())
        if not asked and not ending:
            self._group = (self._group + 1) % groups
            self._group_since_s = now_s

    # What follows

    def view(self, now_s: float) -> View:
        """The best that is known: what was heard here, and what coordinators answered."""
        direct = self._direct(now_s)
        opinions = [view for at_s, view in self._answers.values() if self.recent(at_s, now_s)]
        opinions = [view for view in opinions if view.settled]
        if self.coordinates:
            opinions.append(direct)
        elif not opinions:
            return self._without_answers(direct)
        # A node that one of them hears is there, whatever the others do not hear.
        missing = frozenset.intersection(*(view.missing for view in opinions))
        missing -= {node for node, heard in self._heard.items() if self._is_there(heard, now_s)}
        missing -= {self.own}
        complete = all(v.protected + len(v.missing) >= self.total for v in opinions)
        protected = max(view.protected for view in opinions)
        return View(
            protected=self.total - len(missing) if complete else protected,
            missing=missing,
            unplugged=direct.unplugged.union(*(view.unplugged for view in opinions)),
            settled=any(view.settled for view in opinions),
        )

    def _without_answers(self, direct: View) -> View:
        """What was known last, and those who do not answer any more."""
        last = [view for _, view in self._answers.values() if view.settled]
        missing = direct.missing.union(*(view.missing for view in last))
        if any(heard.ended for heard in self._heard.values()) and self._told is not None:
            missing = self._told.missing  # the job is ending: coordinators may go before us
        protected = max(
            [direct.protected, *(view.protected - len(direct.missing) for view in last)]
        )
        return View(protected, missing, direct.unplugged, direct.settled)

    def _direct(self, now_s: float) -> View:
        """What this node heard itself. Only who coordinates has everybody's hellos; for others
        the coordinators alone can be missing."""
        there = {node for node, heard in self._heard.items() if self._is_there(heard, now_s)}
        there.add(self.own)
        expected = self.known if self.coordinates else self._tried | set(self._answers)
        everyone = len(there) == len(self.nodes)
        settled = everyone or now_s - self.begin_s >= self.settle_s
        unplugged = {node for node, heard in self._heard.items() if heard.unplugged}
        unplugged |= {self.own} if self.unplugged else set()
        missing = frozenset(expected - there) if settled else frozenset()
        return View(len(there), missing, frozenset(unplugged), settled)

    @property
    def coordinates(self) -> bool:
        """Whether this node is one of those that others ask."""
        return self.own in self.coordinators

    def _is_there(self, heard: _Heard, now_s: float) -> bool:
        return heard.ended or self.recent(heard.last_s, now_s)

    def recent(self, at_s: float, now_s: float) -> bool:
        """Whether that is not yet too long ago to be believed."""
        return now_s - at_s < self.silence_s

    def hears(self, now_s: float) -> bool:
        """Whether anybody is heard."""
        return any(self.recent(heard.last_s, now_s) for heard in self._heard.values())

    def remember(self, now_s: float) -> None:
        """For the end, when coordinators go before us: how it stands now."""
        view = self.view(now_s)
        self._told = view if view.settled else self._told
