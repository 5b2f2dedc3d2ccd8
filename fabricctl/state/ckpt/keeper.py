"""The keeper: holds checkpoints of one job on one node, outside of the job's processes.

It runs as the job's user, out of its control group, and answers the job's ranks on a socket of
the node and other keepers over TCP, under the job's key. The node service starts and ends it
(fabricctl/node/keepers.py).
"""

import contextlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from fabricctl import wire
from fabricctl.errors import DataError, FabricError
from fabricctl.state.ckpt import bytes as raw
from fabricctl.state.ckpt import parity, partfile
from fabricctl.state.ckpt.assignment import Assignment
from fabricctl.state.ckpt.holding import Holding, head_of, key_of, name_of
from fabricctl.state.ckpt.link import Link, is_socket, listen, ports
from fabricctl.state.ckpt.others import Others
from fabricctl.state.ckpt.parts import Key, Part, Wanted
from fabricctl.state.ckpt.remote import Remote

TRANSFER_S = 300.0
FIND_S = 5.0  # for a node to say what it holds
FIRST_S = 5.0  # for a caller to show that it has the job's key
UNKNOWN_MOST = 64  # callers at once that have not shown it yet
CLEAR_TRIES = 3  # of CALL_S or WORD_S each
FROM_SET = "=set"  # in the place of a node's name: the part can be made from the rest of its set
_UCRED = struct.Struct("=3i")


class Keeper:
    """All of one keeper; :meth:`serve` returns when :meth:`end` was called."""

    def __init__(self, given: Assignment) -> None:
        """Raises OSError when no socket can be had."""
        self._given = given
        self._holding = Holding(given.quota_bytes, given.disk)
        self._parts = self._holding.parts
        candidates = ports(given.job, given.port_first, given.port_count)
        self._others = Others(given, candidates)
        # Who restores waits for no copy, neither for an answer nor for what was saved last.
        self._checkers = ThreadPoolExecutor(4, "checks")
        self._askers = ThreadPoolExecutor(8, "asks")
        self._workers = ThreadPoolExecutor(4, "copies")
        self._files = ThreadPoolExecutor(1, "files")  # one after the other: older steps first
        self._sets: dict[tuple[str, int, int], parity.Sources] = {}  # of what was found last
        port = listen(candidates)
        self._remote = Remote(given.node, port.getsockname()[1], self._holding)
        self._listeners = (
            (_local_socket(given.socket), self._talk_local),
            (port, self._talk_remote),
        )
        self._getting: dict[Key, threading.Lock] = {}
        self._unknown = threading.Semaphore(UNKNOWN_MOST)
        self._inode = given.socket.stat().st_ino
        self._ended = threading.Event()

    @property
    def empty(self) -> bool:
        """Whether there is nothing worth holding."""
        return self._holding.empty

    def serve(self) -> None:
        """Accepts until the end; each connection has a thread."""
        for listener, talk in self._listeners:
            thread = threading.Thread(target=self._accept, args=(listener, talk), daemon=True)
            thread.start()
        self._ended.wait()

    def end(self) -> None:
        self._ended.set()
        for listener, _ in self._listeners:
            listener.close()
        with contextlib.suppress(OSError):
            if self._given.socket.stat().st_ino == self._inode:  # not another keeper's by now
                self._given.socket.unlink()
        self._files.shutdown(wait=True)  # what was promised to the shared file system
        self._holding.wipe()

    def _accept(self, listener: socket.socket, talk: Callable[[socket.socket], None]) -> None:
        while not self._ended.is_set():
            try:
                made, _ = listener.accept()
            except OSError:
                time.sleep(0.1)
                continue
            if talk == self._talk_remote:
                self._unknown.acquire()
            threading.Thread(target=talk, args=(made,), daemon=True).start()

    def _talk(
        self,
        link: Link,
        do: Callable[[Link, dict[str, str]], None],
        first: dict[str, str] | None = None,
    ) -> None:
        try:
            while True:
                message, first = first or link.receive(), None
                try:
                    do(link, message)
                except FabricError as error:
                    link.send({"kind": "error", "why": " ".join(str(error).split())[:400]})
        except (OSError, FabricError, ValueError, LookupError, TypeError):
            pass  # it went away, or said what no program of ours says
        finally:
            link.close()

    def _talk_remote(self, made: socket.socket) -> None:
        try:
            made.settimeout(FIRST_S)
            link = Link.answer(made, self._given.key)
            first = link.receive(FIRST_S)
        except (OSError, FabricError):
            made.close()
            return
        finally:
            self._unknown.release()
        made.settimeout(TRANSFER_S)
        self._talk(link, self._remote.do, first)

    # Ranks of this node

    def _talk_local(self, made: socket.socket) -> None:
        peer = made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        if _UCRED.unpack(peer)[1] not in (self._given.uid, 0):
            made.close()
            return
        self._talk(Link.local(made), self._do_local)

    def _do_local(self, link: Link, message: dict[str, str]) -> None:
        kind = message.get("kind")
        if kind in ("who", "find"):
            self._look_again()
        if kind == "room":
            self._room(link, message)
        elif kind == "filled":
            self._filled(link, message)
        elif kind == "safe":
            self._wait_safe(link, message)
        elif kind == "who":
            groups = self._given.groups.get(self._given.node, {})
            payload = {"node": self._given.node, "groups": dict(groups)}
            link.send({"kind": "me"}, memoryview(json.dumps(payload).encode()))
        elif kind == "find":
            dead = set(message.get("dead", "").split(","))
            self._others.lose(dead)
            found = self._find(name_of(message), dead)
            link.send({"kind": "found"}, memoryview(json.dumps(found).encode()))
        elif kind == "get":
            self._get(link, message)
        elif kind == "drop":
            self._parts.drop(key_of(message))
            link.send({"kind": "dropped"})
        elif kind == "done":
            self._holding.clear(name_of(message))
            if message.get("everywhere") == "1":  # also where no rank is, but copies are
                tell = lambda node: self._clear(node, name_of(message))  # noqa: E731
                list(self._askers.map(tell, self._others.partners()))
            link.send({"kind": "cleared"})
        else:
            raise DataError(f"keeper: {str(kind)[:24]!r} is not known")

    def _look_again(self) -> None:
        """A program begins: its job may have been requeued onto other nodes."""
        given = self._given
        nodes: Sequence[str] = ()
        if given.nodes_now is not None:
            with contextlib.suppress(FabricError):
                nodes = given.nodes_now()
        if given.node in nodes and tuple(nodes) != given.nodes:
            self._given = replace(given, nodes=tuple(nodes), groups=given.groups_of(nodes))
            self._others.move(self._given)

    def _clear(self, node: str, name: str) -> None:
        """A busy node may take its time; one that was not reached before is asked once."""
        for _ in range(1 if self._others.avoided(node) else CLEAR_TRIES):
            with (
                contextlib.suppress(OSError, FabricError),
                contextlib.closing(self._others.call(node)) as link,
            ):
                link.ask({"kind": "clear", "name": name})
                return

    def _room(self, link: Link, message: Mapping[str, str]) -> None:
        keep = {int(word) for word in message.get("keep", "").split(",") if word.isdecimal()}
        ranks, size = wire.number(message, "ranks"), wire.number(message, "size")
        part = self._parts.room(key_of(message), ranks, size, keep)
        link.send({"kind": "room", "size": str(len(part.memory))})
        socket.send_fds(link.socket, [b"F"], [part.fd])

    def _filled(self, link: Link, message: Mapping[str, str]) -> None:
        """The rank has copied: its checksum is of what it read, so this is the first check."""
        given = json.loads(link.small(message))
        name, rank, step = key_of(message)
        part = self._parts.get(name, rank, step, whole=False)
        if part is None:
            raise DataError(f"keeper: no room was asked for rank {rank}, step {step}")
        part.used = wire.number(message, "used")
        if part.used > len(part.memory):
            raise DataError("keeper: more bytes than room")
        part.describe(json.dumps(given["manifest"]).encode())
        part.wanted = _wanted(given)
        if part.wanted.of is not None:
            part.wanted.of.index(rank)
        link.send({"kind": "taken"})
        self._checkers.submit(self._check, part)

    def _check(self, part: Part) -> None:
        """What was written; then it can be restored from."""
        try:
            for _, _, begin, count, crc, *_ in json.loads(part.manifest):
                if raw.crc(part.view[begin : begin + count]) != crc:
                    part.problem = "what was copied is not what was read"
                    return
            part.crc = raw.crc(part.view)
            part.whole = True
            self._workers.submit(self._secure, part)
        except Exception as error:  # a thread's end would be silent
            part.problem = repr(error)

    def _secure(self, part: Part) -> None:
        """Makes it as safe as was asked for."""
        try:
            self._copy(part)
            if part.wanted.shared is not None:  # also where a set or the disk cannot have it
                self._files.submit(self._share, part, part.wanted.shared)
            if part.wanted.of is not None:
                self._fold(part, part.wanted.of)
            if part.wanted.disk:
                self._holding.put_on_disk(part, part.wanted.keep)
            part.done = not part.problem
        except (OSError, FabricError) as error:
            part.problem = str(error)
        except Exception as error:  # a thread's end would be silent
            part.problem = repr(error)

    def _copy(self, part: Part) -> None:
        """To other nodes, the next one where one cannot be reached."""
        copies, why = 0, "there is no other node"
        for node in self._others.partners():
            if copies >= part.wanted.copies:
                return
            try:
                self._copy_to(node, part)
                copies += 1
            except (OSError, FabricError) as error:
                why = f"{node}: {error}"
                if self._parts.get(part.name, part.rank, part.step, whole=False) is not part:
                    return  # its memory is another's by now, and no node is to blame
                if isinstance(error, OSError):
                    self._others.avoid(node)
        if copies < part.wanted.copies:
            part.problem = why

    def _copy_to(self, node: str, part: Part) -> None:
        with contextlib.closing(self._others.call(node)) as link:
            head = {
                "kind": "hold",
                "name": part.name,
                "rank": str(part.rank),
                "ranks": str(part.ranks),
                "step": str(part.step),
                "size": str(part.used),
                "keep": ",".join(map(str, sorted(part.wanted.keep))),
            }
            link.socket.settimeout(TRANSFER_S)
            link.send(head, memoryview(part.manifest))
            link.send({"kind": "state"}, part.view, part.crc)
            link.told()

    def _fold(self, part: Part, of: parity.Set) -> None:
        """Its pieces to those that hold the parity of their stripes."""
        what = {"used": part.used, "crc": part.crc, "manifest": part.manifest.decode()}
        told = {**of.told(), "part": what, "keep": sorted(part.wanted.keep)}
        text = memoryview(json.dumps(told).encode())
        links: dict[str, Link] = {}
        try:
            for node, where, piece in parity.pieces_for(part, of):
                if node not in links:
                    links[node] = self._others.call(node)
                    links[node].socket.settimeout(TRANSFER_S)
                links[node].send({"kind": "fold", **where}, text)
                links[node].send({"kind": "state"}, piece)
                links[node].told()
        finally:
            for link in links.values():
                link.close()
        if raw.crc(part.view) != part.crc:
            raise DataError("the part changed while its parity was made")

    def _share(self, part: Part, root: Path) -> None:
        """To the shared file system, as the job's user; a later step may not wait for it."""
        try:
            self._holding.check(part)
            partfile.write(root, head_of(part), [part.view])
            part.shared = True
        except (OSError, FabricError) as error:
            part.problem = f"{root}: {error}"

    def _wait_safe(self, link: Link, message: Mapping[str, str]) -> None:
        """Answers when a part is as safe as it will be; ``shared=1``: also on the shared file
        system."""
        name, rank, step = key_of(message)
        shared = message.get("shared") == "1"
        end_s = time.monotonic() + min(wire.number(message, "wait_ms") / 1000, 600)
        while True:
            part = self._parts.get(name, rank, step, whole=False)
            state = "no" if not part or part.problem else "safe" if part.safe(shared) else "wait"
            if state != "wait" or time.monotonic() >= end_s:
                why = " ".join((part.problem if part else "it is not here").split())[:300]
                link.send({"kind": "safe", "state": state, "why": why})
                return
            time.sleep(0.002)

    # Looking for what can be restored

    def _find(self, name: str, dead: set[str]) -> list[list[object]]:
        """``[node, rank, ranks, step]`` of every part that some living keeper holds or that can be
        made; this node comes last."""
        others = [node for node in self._others.partners() if node not in dead]
        lists = self._askers.map(lambda node: self._inventory(node, name), others)
        told: dict[str, dict[str, Any]] = dict(zip(others, lists, strict=True))
        told[self._given.node] = self._holding.listed(name)
        sets = parity.sources(
            {node: each["parts"] for node, each in told.items()},
            {node: each["parity"] for node, each in told.items()},
        )
        # Of an earlier save of the step there may be another that serves nobody.
        self._sets = {
            (name, rank, s.of.step): s for s in sets for rank, _ in s.of.members if s.serves(rank)
        }
        made: list[list[object]] = [
            [FROM_SET, rank, s.of.ranks, step] for (_, rank, step), s in self._sets.items()
        ]
        return made + [[node, *part] for node, each in told.items() for part in each["parts"]]

    def _inventory(self, node: str, name: str) -> dict[str, Any]:
        """What a node says that it holds. One that is not known to be gone is asked again: what is
        missed here may cost a step, or all of them."""
        end_s = time.monotonic() + FIND_S
        while True:
            try:
                with contextlib.closing(self._others.call(node)) as link:
                    answer = link.ask({"kind": "list", "name": name})
                    given = json.loads(link.small(answer))
                    parts = [[int(x) for x in part] for part in given["parts"] if len(part) == 3]
                    return {"parts": parts, "parity": list(given["parity"])}
            except TimeoutError:
                if time.monotonic() < end_s and not self._others.lost(node):
                    continue
            except (OSError, FabricError, ValueError, TypeError, LookupError):
                pass
            return {"parts": [], "parity": []}

    def _get(self, link: Link, message: Mapping[str, str]) -> None:
        """A part for a rank of this node, from here, from another keeper or from its set."""
        key = key_of(message)
        source = message.get("node", "")
        with self._getting.setdefault(key, threading.Lock()):
            here = None if source == self._given.node else self._parts.get(*key)
            if here is not None and here.good:
                part = here  # another rank has got it meanwhile, and may be reading it
            elif source == self._given.node:
                part = self._holding.part(*key)
            elif source == FROM_SET:
                part = self._rebuild(*key)
            else:
                part = self._fetch(source, *key)
            if not part.good:
                self._parts.drop(key)
                raise DataError(f"keeper: the checksum of rank {key[1]}, step {key[2]} is wrong")
        head = {"kind": "part", "used": str(part.used), "state_crc": str(part.crc)}
        link.send({**head, "size": str(len(part.memory))}, memoryview(part.manifest))
        socket.send_fds(link.socket, [b"F"], [part.fd])

    def _fetch(self, node: str, name: str, rank: int, step: int) -> Part:
        with contextlib.closing(self._others.call(node)) as link:
            link.socket.settimeout(TRANSFER_S)
            head = link.ask({"kind": "give", "name": name, "rank": str(rank), "step": str(step)})
            manifest = link.small(head)
            ranks, size = wire.number(head, "ranks"), wire.number(head, "size")
            part = self._room_beside(name, rank, step, ranks, size)
            part.used = size
            part.describe(manifest)
            state = link.told()
            link.payload(state, part.view)
            part.crc = wire.number(state, "crc")
            part.whole = True
            return part

    def _rebuild(self, name: str, rank: int, step: int) -> Part:
        found = self._sets.get((name, rank, step))
        if found is None:
            raise DataError(f"keeper: no set has rank {rank}, step {step}")
        with contextlib.closing(parity.Rebuild(found, rank, self._call_any)) as rebuild:
            known = rebuild.known()
            part = self._room_beside(name, rank, step, found.of.ranks, known.used)
            part.used, part.crc = known.used, known.crc
            part.describe(known.manifest.encode())
            rebuild.into(part.view)
            if not part.good:
                self._parts.drop((name, rank, step))
                raise DataError(f"keeper: rank {rank}, step {step} came out wrong from its set")
            part.whole = True
            return part

    def _call_any(self, node: str) -> Link:
        """Also this node: its own share in a set is asked for by the same road."""
        link = self._others.call(node)
        link.socket.settimeout(TRANSFER_S)
        return link

    def _room_beside(self, name: str, rank: int, step: int, ranks: int, size: int) -> Part:
        keep = {part.step for part in self._parts.whole() if part.rank == rank}
        return self._parts.room((name, rank, step), ranks, size, keep)


def _wanted(given: Mapping[str, Any]) -> Wanted:
    """What a rank asks for; raises :class:`DataError`."""
    shared = str(given.get("shared") or "")
    if shared and not Path(shared).is_absolute():
        raise DataError("keeper: the shared directory's path is not absolute")
    return Wanted(
        copies=int(given.get("copies", 0)),
        of=parity.set_of(given["set"]) if given.get("set") else None,
        keep=frozenset(int(step) for step in given.get("keep", ())),
        disk=bool(given.get("disk")),
        shared=Path(shared) if shared else None,
    )


def _local_socket(path: Path) -> socket.socket:
    if is_socket(path):
        path.unlink()
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    made.bind(str(path))
    path.chmod(0o600)
    made.listen(512)
    return made


def memory_total() -> int:
    """Of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
