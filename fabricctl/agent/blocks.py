"""Which nodes have an agent, in jobs of many nodes: blocks, and a council of all blocks.

Were everybody to ask the same three nodes, these would pay for all, and the time until a loss is
known would grow with the job. Here each agent finds the others of its block as in a small job. The
block's coordinators tell the council, which is the coordinators of the first block, how it stands
with their block, hear how it stands with all, and say so in every answer to their block. When the
council does not answer, the next block's coordinators are asked. Blocks are as large as the council
is busy: both grow with the root of the number of nodes.

========== =====================================================================================
``hello``  as in a small job; one from another block, of an older agent, is answered as ever
``answer`` how it stands with the block, and as ``all_...`` with the whole job
``block``  a coordinator's word on its block, to the council
``whole``  the council's answer: how it stands with the whole job
========== =====================================================================================
"""

import functools
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from fabricctl.agent.peers import (
    GROUP,
    STEADY_MESSAGES_PER_S,
    Peers,
    Say,
    Send,
    Teller,
    View,
    view_fields,
)
from fabricctl.errors import DataError

FLAT_MAX = 256  # nodes that are one block: a loss is known in 20 s, for less than 1 % of a core
# A node may be of the council and coordinate its block: both cost together what one costs else.
BLOCK_MESSAGES_PER_S = STEADY_MESSAGES_PER_S / 2
MEMO_S = 0.5  # answers repeat what was found out up to this long ago
_ALL = "all_"
_NOTHING = View(0, frozenset(), frozenset(), False)


def find_others(
    nodes: tuple[str, ...], own: str, begin_s: float, say: Say, rng: random.Random
) -> "Peers | Blocks":
    """One agent's side, in a job of whatever size."""
    made = Peers if len(nodes) <= FLAT_MAX else Blocks
    return made(nodes, own, begin_s, say, rng)


@dataclass(frozen=True)
class Plan:
    """Blocks of neighbours, with about as many nodes in each as coordinators in all."""

    blocks: tuple[tuple[str, ...], ...]
    members: tuple[frozenset[str], ...]  # of each block
    block_of: Mapping[str, int]
    known: frozenset[str]
    first: tuple[str, ...]  # who coordinates at first, block by block


@functools.lru_cache(maxsize=1)
def plan(nodes: tuple[str, ...]) -> Plan:
    """The same on every node."""
    size = math.ceil(math.sqrt(GROUP * len(nodes)))
    blocks = tuple(nodes[at : at + size] for at in range(0, len(nodes), size))
    return Plan(
        blocks=blocks,
        members=tuple(map(frozenset, blocks)),
        block_of={node: at // size for at, node in enumerate(nodes)},
        known=frozenset(nodes),
        first=tuple(node for block in blocks for node in block[:GROUP]),
    )


@dataclass
class Council(Peers):
    """A coordinator among those of all blocks; ``nodes`` are those that coordinate at first.

    Others take their place when these die: whoever speaks for a block is heard.
    """

    plan: Plan = field(default_factory=lambda: plan(()))
    mine: View = _NOTHING  # how it stands with our own block
    _said: list[dict[str, View]] = field(default_factory=list)  # of each block, by who spoke

    def __post_init__(self) -> None:
        super().__post_init__()
        self.known = self.plan.known
        self.total = len(self.known)
        self._memo_s = MEMO_S
        self._said = [{} for _ in self.plan.blocks]

    def begin(self, now_s: float) -> None:
        """This node speaks for its block from now on."""
        self._group, self._group_since_s = 0, now_s

    def take(self, message: Mapping[str, str], now_s: float) -> list[Send]:
        """A ``block`` or ``whole`` of a node of the job; raises :class:`DataError`."""
        sender, said = message["node"], message["kind"]
        if said == "whole":
            return self.receive({**message, "kind": "answer"}, now_s)
        told, number = self.parse(message), self.plan.block_of[sender]
        if not told.missing | told.unplugged <= self.plan.members[number]:
            raise DataError("message: speaks for another block")
        self._said[number][sender] = told
        return self.receive({**message, "kind": "hello"}, now_s)

    def _answer(self, now_s: float) -> dict[str, str]:
        return {**super()._answer(now_s), "kind": "whole"}

    def _hello(self, kind: str) -> dict[str, str]:
        return {"kind": "block", **view_fields(self.mine)} if kind == "hello" else {"kind": kind}

    def _direct(self, now_s: float) -> View:
        """For who is of the council what all blocks said; others know whom they asked in vain."""
        if not self.coordinates:
            return super()._direct(now_s)
        late = now_s - self.begin_s >= self.settle_s
        views = [self._of_block(number, now_s, late) for number in range(len(self.plan.blocks))]
        missing = frozenset[str]().union(*(view.missing for view in views))
        return View(
            protected=min(sum(view.protected for view in views), self.total),
            missing=missing,
            unplugged=frozenset[str]().union(*(view.unplugged for view in views)),
            settled=late or all(view.settled for view in views),
        )

    def _of_block(self, number: int, now_s: float, late: bool) -> View:
        told = [v for node, v in self._said[number].items() if self._hears(node, now_s)]
        told += [self.mine] if number == self.plan.block_of[self.own] else []
        sure = [view for view in told if view.settled]
        block = self.plan.members[number]
        if sure:
            missing = frozenset.intersection(*(view.missing for view in sure))
        else:  # nobody speaks for it, or nobody knows yet
            missing = block if late and not told else frozenset()
        there = frozenset(node for node in missing if self._hears(node, now_s))
        protected = max((view.protected for view in told), default=0)
        complete = any(view.protected + len(view.missing) >= len(block) for view in sure)
        missing -= there
        return View(
            protected=len(block) - len(missing) if complete else protected,
            missing=missing,
            unplugged=frozenset[str]().union(*(view.unplugged for view in told)),
            settled=bool(sure),
        )

    def _hears(self, node: str, now_s: float) -> bool:
        heard = self._heard.get(node)
        return heard is not None and self._is_there(heard, now_s)


class Blocks(Teller):
    """One agent's side; used as :class:`Peers` is."""

    def __init__(
        self, nodes: tuple[str, ...], own: str, begin_s: float, say: Say, rng: random.Random
    ) -> None:
        self.nodes, self.own, self.begin_s, self.say = nodes, own, begin_s, say
        self.total = len(nodes)
        made = plan(nodes)
        self.known = made.known
        mine, speakers = made.blocks[made.block_of[own]], made.first
        self._inner = Peers(mine, own, begin_s, say, rng, steady_per_s=BLOCK_MESSAGES_PER_S)
        self._outer = Council(
            speakers if own in mine[:GROUP] else (*speakers, own), own, begin_s, say, rng,
            steady_per_s=BLOCK_MESSAGES_PER_S, plan=made,
        )  # fmt: skip
        self.interval_s = max(self._inner.interval_s, self._outer.interval_s)
        self._told: View | None = None
        self._speaks = self._inner.coordinates
        self._whole: dict[str, tuple[float, View]] = {}  # as the block's coordinators say
        self._memo: tuple[float, Mapping[str, str]] = (float("-inf"), {})
        self._mine_s = float("-inf")  # when the council was told last how it stands here

    @property
    def unplugged(self) -> bool:
        """Set by the agent: a step ran here without the plugin."""
        return self._inner.unplugged

    @unplugged.setter
    def unplugged(self, given: bool) -> None:
        self._inner.unplugged = given

    # What comes in

    def receive(self, message: Mapping[str, str], now_s: float) -> list[Send]:
        """As :meth:`Peers.receive`."""
        sender, kind = message.get("node", ""), message.get("kind", "")
        if sender not in self.known or sender == self.own:
            raise DataError(f"message: {sender[:60]!r} is not another node of the job")
        if kind in ("block", "whole"):
            self._refresh(now_s)
            return self._outer.take(message, now_s)
        if sender not in self._inner.known:
            return self._receive_foreign(message, now_s)
        if kind == "answer" and f"{_ALL}protected" in message:
            self._whole[sender] = (now_s, self._outer.parse(_without(_ALL, message)))
        elif kind == "bye":
            self._whole.pop(sender, None)
            self._outer.receive(message, now_s)
        answers = self._inner.receive(message, now_s)
        return [Send(a.node, a.port, {**a.fields, **self._fields(now_s)}) for a in answers]

    def _receive_foreign(self, message: Mapping[str, str], now_s: float) -> list[Send]:
        """Of another block: the end of a coordinator, or an agent that knows of no blocks."""
        if message.get("kind") not in ("bye", "hello"):
            raise DataError("message: of another block")
        answers = self._outer.receive(message, now_s)
        view = _without(_ALL, self._fields(now_s))
        return [Send(a.node, a.port, {"kind": "answer", **view}) for a in answers]

    def _fields(self, now_s: float) -> Mapping[str, str]:
        at_s, known = self._memo
        if now_s - at_s >= MEMO_S:
            known = {_ALL + key: text for key, text in view_fields(self.view(now_s)).items()}
            self._memo = (now_s, known)
        return known

    # What goes out

    def due(self, now_s: float) -> list[Send]:
        """As :meth:`Peers.due`."""
        sends = self._inner.due(now_s)
        if self._inner.coordinates != self._speaks:
            self._speaks = not self._speaks
            self._outer.begin(now_s)
        if self._speaks:
            self._refresh(now_s)
            sends += self._outer.due(now_s)
        return sends

    def _refresh(self, now_s: float) -> None:
        if now_s - self._mine_s >= MEMO_S:
            self._outer.mine, self._mine_s = self._inner.view(now_s), now_s

    def next_due_s(self) -> float:
        """As :meth:`Peers.next_due_s`."""
        inner = self._inner.next_due_s()
        return min(inner, self._outer.next_due_s()) if self._speaks else inner

    def not_sent(self, node: str, now_s: float) -> None:
        """As :meth:`Peers.not_sent`."""
        for level in (self._inner, self._outer):
            if level.contacts(node):
                level.not_sent(node, now_s)

    def bye(self) -> list[Send]:
        """As :meth:`Peers.bye`."""
        sends = {send.node: send for send in self._outer.bye() + self._inner.bye()}
        return list(sends.values())

    # What follows

    def view(self, now_s: float) -> View:
        """The best that is known."""
        mine = self._inner.view(now_s)
        if self._speaks:
            self._outer.mine = mine
            whole = [self._outer.view(now_s)]
        else:
            whole = [view for at_s, view in self._whole.values() if self._inner.recent(at_s, now_s)]
        sure = [view for view in whole if view.settled]
        unplugged = mine.unplugged.union(*(view.unplugged for view in whole))
        if not sure:
            return self._without_answers(mine, unplugged, now_s)
        missing = frozenset.intersection(*(view.missing for view in sure))
        # A node that one of them hears is there, whatever the others do not hear.
        missing -= self._inner.known - mine.missing if mine.settled else frozenset()
        missing -= {self.own}
        complete = all(view.protected + len(view.missing) >= self.total for view in sure)
        protected = max(view.protected for view in sure)
        return View(
            self.total - len(missing) if complete else protected, missing, unplugged, settled=True
        )

    def _without_answers(self, mine: View, unplugged: frozenset[str], now_s: float) -> View:
        """What was known last, and how it stands with our own block."""
        last = [view.missing for _, view in self._whole.values() if view.settled]
        settled = mine.settled and now_s - self.begin_s >= 2 * self._outer.settle_s
        missing = mine.missing.union(*last) if settled else frozenset()
        return View(mine.protected, missing, unplugged, settled)

    def tell_changes(self, now_s: float) -> View:
        """As :meth:`Peers.tell_changes`."""
        view = super().tell_changes(now_s)
        self._inner.remember(now_s)
        return view

    def hears(self, now_s: float) -> bool:
        """Whether anybody is heard."""
        return self._inner.hears(now_s) or self._outer.hears(now_s)


def _without(prefix: str, given: Mapping[str, str]) -> dict[str, str]:
    size = len(prefix)
    return {key[size:]: text for key, text in given.items() if key.startswith(prefix)}
