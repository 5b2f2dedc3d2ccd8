"""What a keeper answers to other keepers of its job."""

import json
from collections.abc import Mapping

from fabricctl import wire
from fabricctl.errors import DataError
from fabricctl.state.ckpt.erasure import MEMBERS_MOST
from fabricctl.state.ckpt.holding import Holding, key_of, name_of
from fabricctl.state.ckpt.link import Link


class Remote:
    """Answers from what is held here; ``port``: on which it is called."""

    def __init__(self, node: str, port: int, holding: Holding) -> None:
        self._node = node
        self._port = port
        self._holding = holding
        self._kinds = {
            "hello": self._hello,
            "list": self._list,
            "clear": self._clear,
            "give": self._give,
            "hold": self._hold,
            "fold": self._fold,
            "known": self._known,
            "row": self._row,
            "piece": self._piece,
        }

    def do(self, link: Link, message: dict[str, str]) -> None:
        """One message; raises :class:`DataError`."""
        kind = message.get("kind", "")
        if kind not in self._kinds:
            raise DataError(f"keeper: {kind[:24]!r} is not known")
        self._kinds[kind](link, message)

    def _hello(self, link: Link, message: Mapping[str, str]) -> None:
        if message.get("to") != self._node:
            raise DataError("keeper: another node is meant")
        link.send({"kind": "hello", "node": self._node, "port": str(self._port)})

    def _list(self, link: Link, message: Mapping[str, str]) -> None:
        text = json.dumps(self._holding.listed(name_of(message))).encode()
        link.send({"kind": "list"}, memoryview(text))

    def _clear(self, link: Link, message: Mapping[str, str]) -> None:
        self._holding.clear(name_of(message))
        link.send({"kind": "cleared"})

    def _give(self, link: Link, message: Mapping[str, str]) -> None:
        part = self._holding.part(*key_of(message))
        if not part.described:
            raise DataError(f"keeper: rank {part.rank}, step {part.step} is damaged")
        head = {"kind": "part", "ranks": str(part.ranks), "size": str(part.used)}
        link.send(head, memoryview(part.manifest))
        # With the checksum of the first copy: what was damaged here since then is found there.
        link.send({"kind": "state"}, part.view, part.crc)

    def _hold(self, link: Link, message: Mapping[str, str]) -> None:
        """A copy of a rank of another node; the two newest steps before it stay."""
        name, rank, step = key_of(message)
        manifest = link.small(message)
        ranks, size = wire.number(message, "ranks"), wire.number(message, "size")
        parts = self._holding.parts
        held = sorted(p.step for p in parts.whole() if (p.name, p.rank) == (name, rank))
        keep = {int(word) for word in message.get("keep", "").split(",") if word.isdecimal()}
        part = parts.room((name, rank, step), ranks, size, keep | set(held[-2:]))
        part.used = size
        part.describe(manifest)
        state = link.told()
        link.payload(state, part.view)
        part.crc = wire.number(state, "crc")
        part.whole = True
        link.send({"kind": "held"})

    def _fold(self, link: Link, message: Mapping[str, str]) -> None:
        self._holding.parities.add(link, message)
        link.send({"kind": "added"})

    def _known(self, link: Link, message: Mapping[str, str]) -> None:
        held = self._holding.parities.get(_set_key(message), wire.number(message, "index"))
        known = held.known.get(wire.number(message, "member"))
        if known is None or not known.good:
            raise DataError("keeper: that member is not known")
        head = {"kind": "known", "used": str(known.used), "state_crc": str(known.crc)}
        link.send(head, memoryview(known.manifest.encode()))

    def _row(self, link: Link, message: Mapping[str, str]) -> None:
        index, stripe = wire.number(message, "index"), wire.number(message, "stripe")
        view, crc = self._holding.parities.row(_set_key(message), index, stripe)
        link.send({"kind": "row"}, view, crc)

    def _piece(self, link: Link, message: Mapping[str, str]) -> None:
        """One piece of a part of this node, for a rebuild of another."""
        part = self._holding.part(*key_of(message))
        self._holding.check(part)
        pieces, at = wire.number(message, "of"), wire.number(message, "index")
        if not at < pieces <= MEMBERS_MOST:
            raise DataError("keeper: a piece of no part")
        size = -(-part.used // pieces)
        link.send({"kind": "piece"}, part.view[min(at * size, part.used) : (at + 1) * size])


def _set_key(message: Mapping[str, str]) -> tuple[str, int, int]:
    return name_of(message), wire.number(message, "first"), wire.number(message, "step")
