"""Whether a machine is there whose agent is silent: the second witness of a death
(docs/decisions/0032)."""

import contextlib
import errno
import ipaddress
import select
import socket
from collections.abc import Sequence

KNOCKS_MOST = 4  # at each of its addresses
ADDRESSES_MOST = 16


class Knocking:
    """Connections to the ports of all of a machine's addresses, begun and not waited for."""

    def __init__(self, hosts: Sequence[str], ports: Sequence[int]) -> None:
        self._hosts, self._ports = [host for host in hosts if host], ports
        self._poll = select.poll()
        self._open: list[socket.socket] = []
        self._times = 0
        self._there = not self._hosts  # what cannot be looked up is not held for dead
        self._knock()

    def answered(self) -> bool:
        """Taken or refused: either way somebody is there."""
        for fd, _ in self._poll.poll(0):
            made = next(one for one in self._open if one.fileno() == fd)
            self._there |= _is_answer(made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            self._poll.unregister(fd)
        if not self._there:
            self._knock()  # the first packet may be lost, and TCP repeats it after a second
        return self._there

    def _knock(self) -> None:
        if self._there or self._times == KNOCKS_MOST:
            return
        self._times += 1
        port = self._ports[self._times % len(self._ports)]
        for host in self._hosts:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            except OSError:  # no descriptor is left: nobody is dead for that
                self._there = True
                return
            self._open.append(made)
            self._poll.register(made, select.POLLOUT)
            self._there |= _is_answer(made.connect_ex((host, port)))

    def speaks(self) -> bool:
        """Whether somebody who took one has said something: keepers begin by that, kernels alone
        do not."""
        for made in self._open:
            with contextlib.suppress(OSError):
                if made.recv(1, socket.MSG_PEEK):
                    return True
        return False

    def close(self) -> None:
        for made in self._open:
            made.close()
        self._open.clear()


def rails_told(text: str) -> list[str]:
    """The addresses in an agent's answer, separated by spaces; what is none is left out."""
    found = []
    for word in text.split()[:ADDRESSES_MOST]:
        try:
            found.append(str(ipaddress.ip_address(word)))
        except ValueError:
            continue
    return found


def _is_answer(error: int) -> bool:
    return error in (0, errno.ECONNREFUSED, errno.ECONNRESET)
