"""The keeper: holds checkpoints of one job on one node, outside of the job's processes.

It runs as the job's user, out of its control group, and answers the job's ranks on a socket of
the node and other keepers over TCP, under the job's key. The node service starts and ends it
(fabricctl/node/keepers.py).
"""

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fabricctl import wire
from fabricctl.errors import DataError, FabricError
from fabricctl.state.ckpt import bytes as raw
from fabricctl.state.ckpt.link import Link, is_socket, ports
from fabricctl.state.ckpt.parts import Part, Parts

CALL_S = 1.0  # a node that is gone without a word is given up after that
TRANSFER_S = 300.0
AVOID_S = 60.0
_UCRED = struct.Struct("=3i")
_NAME_MAX = 40


@dataclass(frozen=True)
class Assignment:
    """What a keeper is to know."""

    job: int
    uid: int
    key: bytes
    node: str
    nodes: tuple[str, ...]
    socket: Path
    quota_bytes: int
    port_first: int
    port_count: int
    resolve: Callable[[str], Sequence[str]]


class Keeper:
    """All of one keeper; :meth:`serve` returns when :meth:`end` was called."""

    def __init__(self, given: Assignment) -> None:
        """Raises OSError when no socket can be had."""
        self._given = given
        self._parts = Parts(given.quota_bytes)
        self._ports = ports(given.job, given.port_first, given.port_count)
        self._lock = threading.Lock()
        self._workers = ThreadPoolExecutor(4, "copies")
        self._addresses: dict[str, str] = {}
        self._avoid_until_s: dict[str, float] = {}
        self._local = _local_socket(given.socket)
        self._remote = _remote_socket(self._ports)
        self._ended = threading.Event()

    @property
    def empty(self) -> bool:
        """Whether there is nothing worth holding."""
        return not self._parts.whole()

    def serve(self) -> None:
        """Accepts until the end; each connection has a thread."""
        for listener, talk in ((self._local, self._talk_local), (self._remote, self._talk_remote)):
            thread = threading.Thread(target=self._accept, args=(listener, talk), daemon=True)
            thread.start()
        self._ended.wait()

    def end(self) -> None:
        self._ended.set()
        self._given.socket.unlink(missing_ok=True)

    def _accept(self, listener: socket.socket, talk: Callable[[socket.socket], None]) -> None:
        while not self._ended.is_set():
            try:
                made, _ = listener.accept()
            except OSError:
                time.sleep(0.1)
                continue
            threading.Thread(target=talk, args=(made,), daemon=True).start()

    # Ranks of this node

    def _talk_local(self, made: socket.socket) -> None:
        peer = made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        if _UCRED.unpack(peer)[1] not in (self._given.uid, 0):
            made.close()
            return
        self._talk(Link.local(made), self._do_local)

    def _talk(self, link: Link, do: Callable[[Link, dict[str, str]], None]) -> None:
        try:
            while True:
                message = link.receive()
                try:
                    do(link, message)
                except FabricError as error:
                    link.send({"kind": "error", "why": " ".join(str(error).split())[:400]})
        except (OSError, FabricError, ValueError):
            pass  # it went away, or said what no program of ours says
        finally:
            link.close()

    def _do_local(self, link: Link, message: dict[str, str]) -> None:
        kind = message.get("kind")
        if kind == "room":
            self._room(link, message)
        elif kind == "filled":
            self._filled(link, message)
        elif kind == "safe":
            self._wait_safe(link, message)
        elif kind == "find":
            found = self._find(_name(message), set(message.get("dead", "").split(",")))
            link.send({"kind": "found"}, memoryview(json.dumps(found).encode()))
        elif kind == "get":
            self._get(link, message)
        elif kind == "drop":
            rank, step = wire.number(message, "rank"), wire.number(message, "step")
            self._parts.drop((_name(message), rank, step))
            link.send({"kind": "dropped"})
        elif kind == "done":
            self._parts.clear(_name(message))
            link.send({"kind": "cleared"})
        else:
            raise DataError(f"keeper: {str(kind)[:24]!r} is not known")

    def _room(self, link: Link, message: Mapping[str, str]) -> None:
        keep = {int(word) for word in message.get("keep", "").split(",") if word.isdecimal()}
        rank, ranks = wire.number(message, "rank"), wire.number(message, "ranks")
        step, size = wire.number(message, "step"), wire.number(message, "size")
        part = self._parts.room((_name(message), rank, step), ranks, size, keep)
        link.send({"kind": "room", "size": str(len(part.memory))})
        socket.send_fds(link.socket, [b"F"], [part.fd])

    def _filled(self, link: Link, message: Mapping[str, str]) -> None:
        """The rank has copied: its checksum is of what it read, so this is the first check."""
        manifest = link.small(message)
        name, rank, step = _key(message)
        part = self._parts.get(name, rank, step, whole=False)
        if part is None:
            raise DataError(f"keeper: no room was asked for rank {rank}, step {step}")
        part.used = wire.number(message, "used")
        if part.used > len(part.memory):
            raise DataError("keeper: more bytes than room")
        part.manifest, part.wanted = manifest, wire.number(message, "copies")
        link.send({"kind": "taken"})
        self._workers.submit(self._secure, part)

    def _secure(self, part: Part) -> None:
        """Checks what was written and brings copies to other nodes."""
        try:
            for _, _, begin, count, crc in json.loads(part.manifest):
                if raw.crc(part.view[begin : begin + count]) != crc:
                    part.problem = "what was copied is not what was read"
                    return
            part.crc = raw.crc(part.view)
            part.whole = True
            why = "there is no other node"
            for node in self._partners():
                if part.copies >= part.wanted:
                    break
                try:
                    self._copy_to(node, part)
                    part.copies += 1
                except (OSError, FabricError) as error:
                    why = f"{node}: {error}"
                    self._avoid_until_s[node] = time.monotonic() + AVOID_S
            if part.copies < part.wanted:
                part.problem = why
        except Exception as error:  # a thread's end would be silent
            part.problem = repr(error)

    def _partners(self) -> list[str]:
        """The other nodes, the next one in the job's list first."""
        nodes = self._given.nodes
        own = nodes.index(self._given.node)
        now_s = time.monotonic()
        others = [*nodes[own + 1 :], *nodes[:own]]
        # Those that were not reached come last, for a while.
        return sorted(others, key=lambda node: self._avoid_until_s.get(node, 0.0) > now_s)

    def _copy_to(self, node: str, part: Part) -> None:
        link = self._call(node)
        try:
            head = {
                "kind": "hold",
                "name": part.name,
                "rank": str(part.rank),
                "ranks": str(part.ranks),
                "step": str(part.step),
                "size": str(part.used),
            }
            link.socket.settimeout(TRANSFER_S)
            link.send(head, memoryview(part.manifest))
            link.send({"kind": "state"}, part.view, part.crc)
            link.told()
        finally:
            link.close()

    def _call(self, node: str) -> Link:
        """Raises OSError."""
        if node not in self._addresses:
            found = self._given.resolve(node)
            if not found:
                raise OSError(0, f"{node}: its name cannot be resolved")
            self._addresses[node] = found[0]
        failure = OSError(0, "no port")
        for port in self._ports:
            try:
                link = Link.call((self._addresses[node], port), self._given.key, CALL_S)
                link.ask({"kind": "hello", "job": str(self._given.job), "to": node})
                return link
            except TimeoutError:
                raise
            except (OSError, FabricError) as error:
                failure = error if isinstance(error, OSError) else OSError(0, str(error))
        raise failure

    def _wait_safe(self, link: Link, message: Mapping[str, str]) -> None:
        """Answers when a part is as safe as it will be."""
        name, rank, step = _key(message)
        end_s = time.monotonic() + min(wire.number(message, "wait_ms") / 1000, 600)
        while True:
            part = self._parts.get(name, rank, step, whole=False)
            state = "safe" if part and part.safe else "no" if not part or part.problem else "wait"
            if state != "wait" or time.monotonic() >= end_s:
                why = " ".join((part.problem if part else "it is not here").split())[:300]
                link.send({"kind": "safe", "state": state, "why": why})
                return
            time.sleep(0.002)

    # Looking for what can be restored

    def _find(self, name: str, dead: set[str]) -> list[list[object]]:
        """``[node, rank, ranks, step]`` of every part that some living keeper holds."""
        found: list[list[object]] = []
        others = [node for node in self._partners() if node not in dead]
        for node, parts in zip(
            others, self._workers.map(lambda node: self._inventory(node, name), others), strict=True
        ):
            found += [[node, *part] for part in parts]
        mine = [part for part in self._parts.whole() if part.name == name]
        return found + [[self._given.node, p.rank, p.ranks, p.step] for p in mine]

    def _inventory(self, node: str, name: str) -> list[list[int]]:
        try:
            link = self._call(node)
        except (OSError, FabricError):
            return []
        try:
            answer = link.ask({"kind": "list", "name": name})
            given = json.loads(link.small(answer))
            return [[int(x) for x in part] for part in given if len(part) == 3]
        except (OSError, FabricError, ValueError, TypeError):
            return []
        finally:
            link.close()

    def _get(self, link: Link, message: Mapping[str, str]) -> None:
        """A part for a rank of this node, from here or from another keeper."""
        name, rank, step = _key(message)
        part = self._parts.get(name, rank, step)
        source = message.get("node", "")
        if source != self._given.node:
            part = self._fetch(source, name, rank, step)
        if part is None:
            raise DataError(f"keeper: rank {rank}, step {step} is not here")
        if raw.crc(part.view) != part.crc:
            self._parts.drop((name, rank, step))
            raise DataError(f"keeper: the checksum of rank {rank}, step {step} is wrong")
        head = {"kind": "part", "used": str(part.used), "state_crc": str(part.crc)}
        link.send({**head, "size": str(len(part.memory))}, memoryview(part.manifest))
        socket.send_fds(link.socket, [b"F"], [part.fd])

    def _fetch(self, node: str, name: str, rank: int, step: int) -> Part:
        if node not in self._given.nodes:
            raise DataError(f"keeper: {node[:60]!r} is not a node of the job")
        link = self._call(node)
        try:
            link.socket.settimeout(TRANSFER_S)
            head = link.ask({"kind": "give", "name": name, "rank": str(rank), "step": str(step)})
            manifest = link.small(head)
            ranks, size = wire.number(head, "ranks"), wire.number(head, "size")
            keep = {part.step for part in self._parts.whole() if part.rank == rank}
            part = self._parts.room((name, rank, step), ranks, size, keep)
            part.used, part.manifest = size, manifest
            state = link.told()
            link.payload(state, part.view)
            part.crc = wire.number(state, "crc")
            part.whole = True
            return part
        finally:
            link.close()

    # Other keepers

    def _talk_remote(self, made: socket.socket) -> None:
        try:
            made.settimeout(TRANSFER_S)
            link = Link.answer(made, self._given.key)
        except OSError:
            made.close()
            return
        self._talk(link, self._do_remote)

    def _do_remote(self, link: Link, message: dict[str, str]) -> None:
        kind = message.get("kind")
        if kind == "hello":
            if message.get("to") != self._given.node:
                raise DataError("keeper: another node is meant")
            link.send({"kind": "hello", "node": self._given.node})
        elif kind == "list":
            name = _name(message)
            mine = [[p.rank, p.ranks, p.step] for p in self._parts.whole() if p.name == name]
            link.send({"kind": "list"}, memoryview(json.dumps(mine).encode()))
        elif kind == "give":
            self._give(link, message)
        elif kind == "hold":
            self._hold(link, message)
        else:
            raise DataError(f"keeper: {str(kind)[:24]!r} is not known")

    def _give(self, link: Link, message: Mapping[str, str]) -> None:
        rank, step = wire.number(message, "rank"), wire.number(message, "step")
        part = self._parts.get(_name(message), rank, step)
        if part is None:
            raise DataError(f"keeper: rank {rank}, step {step} is not here")
        head = {"kind": "part", "ranks": str(part.ranks), "size": str(part.used)}
        link.send(head, memoryview(part.manifest))
        # With the checksum of the first copy: what was damaged here since then is found there.
        link.send({"kind": "state"}, part.view, part.crc)

    def _hold(self, link: Link, message: Mapping[str, str]) -> None:
        """A copy of a rank of another node; the two newest steps before it stay."""
        name, rank, step = _key(message)
        manifest = link.small(message)
        ranks, size = wire.number(message, "ranks"), wire.number(message, "size")
        held = sorted(p.step for p in self._parts.whole() if (p.name, p.rank) == (name, rank))
        part = self._parts.room((name, rank, step), ranks, size, set(held[-2:]))
        part.used, part.manifest = size, manifest
        state = link.told()
        link.payload(state, part.view)
        part.crc = wire.number(state, "crc")
        part.whole = True
        link.send({"kind": "held"})


def _key(message: Mapping[str, str]) -> tuple[str, int, int]:
    return _name(message), wire.number(message, "rank"), wire.number(message, "step")


def _name(message: Mapping[str, str]) -> str:
    name = message.get("name", "")
    if not 0 < len(name) <= _NAME_MAX or not name.replace("-", "").replace("_", "").isalnum():
        raise DataError(f"keeper: {name[:_NAME_MAX]!r} is no name of a checkpoint")
    return name


def _local_socket(path: Path) -> socket.socket:
    if is_socket(path):
        path.unlink()
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    made.bind(str(path))
    path.chmod(0o600)
    made.listen(512)
    return made


def _remote_socket(candidates: Sequence[int]) -> socket.socket:
    failure = OSError("no port to bind")
    for port in candidates:
        try:
            return socket.create_server(("", port), backlog=512)
        except OSError as error:
            failure = error
    raise failure


def memory_total() -> int:
    """Of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
