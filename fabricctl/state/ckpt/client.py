"""A rank's side of its node's keeper."""

import contextlib
import json
import mmap
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabricctl.errors import DataError, FabricError, SystemRefusedError
from fabricctl.state.ckpt import bytes as raw
from fabricctl.state.ckpt.items import Item
from fabricctl.state.ckpt.link import Link, RefusedError

ALIGN = 64  # where each item begins in the keeper's memory: the copy is quicker
KEEPER_S = 5.0  # a keeper begins half a second after its job
WAIT_SAFE_S = 120.0
MAPS_MOST = 4  # of the keeper's memory: three are used in turn
LOOK_S = 0.2  # of that at a time: who gives up is not held for longer

# Name, kind, begin, bytes, CRC-32C, where it belongs in the whole, of which save it is.
Manifest = list[list[Any]]


@dataclass(frozen=True)
class Found:
    """A part that can be had: from a node's keeper, or made from its set."""

    node: str
    rank: int
    ranks: int
    step: int


class Client:
    """Raises OSError and :class:`DataError`; use by one thread."""

    def __init__(self, link: Link, name: str, rank: int, ranks: int) -> None:
        self.link = link
        self._head = {"name": name, "rank": str(rank), "ranks": str(ranks)}
        self._maps: dict[int, mmap.mmap] = {}  # by inode, the one used last is last
        self.given_up = False  # set by another thread: nothing is waited for any more

    def ask(self, kind: str, **more: object) -> dict[str, str]:
        """One question, one answer."""
        return self.link.ask(self._message(kind, more))

    def _message(self, kind: str, more: Mapping[str, object]) -> dict[str, str]:
        said = {name: str(value) for name, value in more.items()}
        return {**self._head, "kind": kind, **said}

    def who(self) -> tuple[str, dict[str, str]]:
        """The keeper's node, and what that falls with."""
        given = json.loads(self.link.small(self.ask("who")))
        groups = {str(level): str(group) for level, group in given["groups"].items()}
        # Of topology/tree: the switches from the top to the node, joined by dots.
        switches = os.environ.get("SLURM_TOPOLOGY_ADDR", "").split(".")
        if os.environ.get("SLURM_TOPOLOGY_ADDR_PATTERN", "").startswith("switch"):
            groups.setdefault("switch", switches[-2] if len(switches) > 1 else "")
        return str(given["node"]), groups

    def fill(self, step: int, items: Mapping[str, Item], wanted: Mapping[str, Any]) -> int:
        """One copy of everything into the keeper's memory; how many bytes. Raises
        :class:`SystemRefusedError` when there is no room, or something cannot be saved."""
        try:
            views = {name: item.save() for name, item in items.items()}
        except (
            OSError,
            DataError,
        ) as error:  # of the program's files and arrays, not of the keeper
            raise SystemRefusedError(f"checkpoint: {error}") from error
        size = sum(view.nbytes + ALIGN for view in views.values())
        keep = ",".join(map(str, wanted["keep"]))
        try:
            answer = self.ask("room", step=step, size=size, keep=keep)
        except RefusedError as error:
            raise SystemRefusedError(str(error)) from None
        into, at = memoryview(self._map(int(answer["size"]))), 0
        manifest: Manifest = []
        for name, view in views.items():
            end = at + view.nbytes
            crc = raw.copy_crc(into[at:end], view)
            what = items[name].of_whole, wanted["serial"]
            manifest.append([name, items[name].kind, at, view.nbytes, crc, *what])
            at = end + -end % ALIGN
        text = json.dumps({**wanted, "manifest": manifest}).encode()
        self.link.send(self._message("filled", {"step": step, "used": at}), memoryview(text))
        self.link.told()
        return size

    def safe(self, step: int, *, shared: bool = False) -> tuple[bool, str]:
        """Waits until a step of this rank is as safe as it will be; why it is not."""
        end_s = time.monotonic() + WAIT_SAFE_S
        while True:
            try:
                answer = self.ask("safe", step=step, wait_ms=int(LOOK_S * 1e3), shared=int(shared))
            except (OSError, FabricError) as error:
                return False, str(error)
            state, why = answer.get("state"), answer.get("why", "")
            if state != "wait":
                return state == "safe", why
            if self.given_up or time.monotonic() >= end_s:
                return False, why or "its copies are still under way"

    def find(self, dead: str) -> list[Found]:
        """Every part of this checkpoint; this node's come last."""
        self.link.send(self._message("find", {"dead": dead}))
        found = json.loads(self.link.small(self.link.told()))
        return [Found(str(node), int(r), int(of), int(step)) for node, r, of, step in found]

    def get(self, rank: int, step: int, node: str) -> tuple[Manifest, memoryview]:
        """A part, mapped; its checksums are still to be looked at."""
        answer = self.ask("get", rank=rank, step=step, node=node)
        manifest = json.loads(self.link.small(answer))
        return manifest, memoryview(self._map(int(answer["size"])))

    def _map(self, size: int) -> mmap.mmap:
        """The memory whose descriptor comes next; mapped once, it is used again and again. What was
        not used for long the keeper has given up: our map would hold it, whole, for ever."""
        _, fds, _, _ = socket.recv_fds(self.link.socket, 1, 1)
        if len(fds) != 1:
            raise DataError("checkpoint: the keeper gave no memory")
        try:
            inode = os.fstat(fds[0]).st_ino
            known = self._maps.pop(inode, None)
            if known is None:
                known = mmap.mmap(fds[0], size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
            self._maps[inode] = known
            while len(self._maps) > MAPS_MOST:
                del self._maps[next(iter(self._maps))]  # it goes with the last view of it
            return known
        finally:
            os.close(fds[0])

    def drop(self, step: int) -> None:
        """A step that cannot be restored must not be offered again."""
        with contextlib.suppress(OSError, FabricError):
            self.ask("drop", step=step)


def keeper_socket() -> Path | None:
    """Of this node; None outside of a protected job."""
    given = os.environ.get("FABRIC_KEEPER")
    if given:
        return Path(given)
    job_dir = os.environ.get("FABRIC_JOB_DIR")
    if not job_dir:
        return None
    return Path(job_dir).parents[1] / "track" / Path(job_dir).name / "keeper"


def of_this_node(name: str, rank: int, ranks: int) -> Client | None:
    """None, and a word, where there is no keeper."""
    place = keeper_socket()
    link = None if place is None else connect(place)
    return None if link is None else Client(link, name, rank, ranks)


def connect(given: Path) -> Link | None:
    """To the keeper of this node; None, and a word, where there is none."""
    end_s = time.monotonic() + (KEEPER_S if given.parent.is_dir() else 0.0)
    while True:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            made.connect(str(given))
            return Link.local(made)
        except OSError as error:
            made.close()
            if time.monotonic() >= end_s:
                warn(f"no keeper on this node: {given}: {error.strerror}")
                return None
        time.sleep(0.05)


def warn(words: str) -> None:
    """To who runs the program."""
    sys.stderr.write(f"fabric: checkpoint: {words}\n")


def check(manifest: Sequence[Sequence[Any]], view: memoryview) -> None:
    """Raises :class:`DataError` when an item is not what was saved."""
    for name, _, begin, count, crc, *_ in manifest:
        if not 0 <= begin <= begin + count <= view.nbytes:
            raise DataError(f"restore {name!r}: its part is too short")
        if raw.crc(view[begin : begin + count]) != crc:
            raise DataError(f"restore {name!r}: its checksum is wrong")
