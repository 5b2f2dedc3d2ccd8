"""Questions of a job's own user to its agents: where ranks stand, who is alive.

The user has the job's key (docs/envelope.md), so what is asked and answered is sealed with it.
"""

import os
import secrets
import select
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping

from fabricctl import layout, wire
from fabricctl.agent import mesh
from fabricctl.config import Config
from fabricctl.errors import DataError, NotFoundError
from fabricctl.membership import Member
from fabricctl.telemetry.interfaces import lookup

AGAIN_S = 0.3  # a datagram may be lost


class Asker:
    """One socket to all agents of a job; close it."""

    def __init__(self, member: Member, config: Config) -> None:
        self._member = member
        agent = config.agent
        self._ports = mesh.ports(member.job, agent.port_first, agent.port_count)
        self._sockets = {
            family: socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            for family in (socket.AF_INET, socket.AF_INET6)
        }
        self._known: dict[str, tuple[str, int]] = {}
        self._names: dict[str, str] = {}
        self._seq = 0

    def ask(
        self,
        nodes: Collection[str],
        wait_s: float,
        kind: str = "where",
        more: Mapping[str, str] | Callable[[str], Mapping[str, str]] | None = None,
        *,
        token: str = "",
        good: Callable[[str, Mapping[str, str]], bool] = lambda *_: True,
    ) -> Iterator[tuple[str, Mapping[str, str]]]:
        """``(node, answer)`` as they come, each node once; ends when all came or time is up.

        ``more``: of the question, the same for all or by node. ``token``: of earlier questions
        too, whose late answers come as well; those that are not ``good`` are passed over."""
        token = token or secrets.token_hex(8)
        missing = set(nodes)
        end_s = time.monotonic() + wait_s
        again_s = 0.0
        while missing and (now_s := time.monotonic()) < end_s:
            if now_s >= again_s:
                again_s = now_s + AGAIN_S
                for node in missing:
                    given = more(node) if callable(more) else more or {}
                    self._put(node, {"kind": kind, "ask": token, **given})
            for node, message in self._receive(min(again_s, end_s) - time.monotonic(), token):
                if node in missing and good(node, message):
                    missing.remove(node)
                    yield node, message

    def address(self, node: str) -> str:
        """Looked up once; "" when that failed."""
        if not self._names.get(node) and (found := lookup(node)):
            self._names[node] = found[0]
        return self._names.get(node, "")

    def _put(self, node: str, message: Mapping[str, str]) -> None:
        host = self.address(node)
        if not host:
            return
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._seq += 1
        head = {"job": str(self._member.job), "node": mesh.ASKER, "seq": str(self._seq)}
        datagram = wire.seal({**head, **message}, self._member.key)
        ports = [self._known[node][1]] if node in self._known else self._ports
        for port in dict.fromkeys(ports):
            try:
                self._sockets[family].sendto(datagram, (host, port))
            except OSError:
                continue

    def _receive(self, wait_s: float, token: str) -> Iterator[tuple[str, Mapping[str, str]]]:
        ready, _, _ = select.select(list(self._sockets.values()), [], [], max(0.0, wait_s))
        for made in ready:
            try:
                datagram, address = made.recvfrom(wire.MAX_BYTES + 1)
                message = wire.open_sealed(datagram, self._member.key)
            except (OSError, DataError):
                continue
            node = message.get("node", "")
            if message.get("to") == token and node in self._member.nodes:
                self._known[node] = (address[0], address[1])
                yield node, message

    def close(self) -> None:
        for made in self._sockets.values():
            made.close()


def job_here(given: str | None) -> int:
    """The job that is meant: as named, or the one that this runs in.

    Raises :class:`~fabricctl.errors.UsageError` or :class:`NotFoundError`.
    """
    text = given or os.environ.get("SLURM_JOB_ID")
    if not text:
        raise NotFoundError("no job: name one, or run this inside of a job")
    return layout.job_number(text)
