"""rtnetlink: links, addresses, queues and filters of one network namespace.

Spoken directly, not through ip(8) and tc(8), so that a fault can be stamped within microseconds
of the kernel's doing it. Message layouts: rtnetlink(7), linux/if_link.h, linux/pkt_sched.h.
"""

import errno
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from fabricctl.errors import SystemRefusedError
from fabricctl.lab.kernel import in_netns

NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE, NLM_F_REPLACE = 1, 4, 0x200, 0x400, 0x100
_NLM_F_DUMP = 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR = 20
_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBi")
_RTA = struct.Struct("=HH")
_NLA_F_NESTED = 0x8000

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO = 1, 3, 4, 10, 18
IFLA_NET_NS_FD, IFLA_GSO_MAX_SEGS, IFLA_CARRIER = 28, 40, 33
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
IFF_UP = 1

REPLY_BYTES = 1 << 18  # a dump's parts never exceed 32 KiB; one read takes several


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _RTA.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *inner: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NLA_F_NESTED, b"".join(inner))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes of a message's tail, by kind."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        length, kind = _RTA.unpack_from(data, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


@dataclass(frozen=True)
class Link:
    """A network interface as a dump shows it; ``up`` is administrative."""

    index: int
    name: str
    up: bool
    carrier: bool
    master: int


class Rtnl:
    """A netlink socket inside one network namespace."""

    def __init__(self, netns: Path) -> None:
        with in_netns(netns):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> "Rtnl":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, kind: int, body: bytes, flags: int = 0, what: str = "rtnetlink") -> None:
        """Sends one request and waits for its acknowledgement.

        The kernel works a request off inside the send: when this returns the change is done.
        Raises :class:`SystemRefusedError`, whose ``__cause__`` is the :class:`OSError`.
        """
        number = self._send(kind, body, flags | NLM_F_REQUEST | NLM_F_ACK)
        reply = self._socket.recv(REPLY_BYTES)
        _, reply_kind, _, sequence, _ = _HEADER.unpack_from(reply)
        if reply_kind != _NLMSG_ERROR or sequence != number:
            raise SystemRefusedError(f"{what}: an answer that was not asked for")
        code = -struct.unpack_from("=i", reply, _HEADER.size)[0]
        if code:
            reason = OSError(code, os.strerror(code))
            raise SystemRefusedError(f"{what}: {reason.strerror}") from reason

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """All messages that answer a dump request, without their headers."""
        self._send(kind, body, NLM_F_REQUEST | _NLM_F_DUMP)
        messages: list[bytes] = []
        while True:
            data = self._socket.recv(REPLY_BYTES)
            at = 0
            while at + _HEADER.size <= len(data):
                length, message_kind, *_ = _HEADER.unpack_from(data, at)
                if message_kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    return messages
                messages.append(data[at + _HEADER.size : at + length])
                at += (length + 3) & ~3

    def _send(self, kind: int, body: bytes, flags: int) -> int:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0)
        self._socket.send(header + body)
        return self._sequence

    # Links -----------------------------------------------------------------------------------

    def links(self) -> dict[str, Link]:
        """Every interface here, by name."""
        found: dict[str, Link] = {}
        for message in self.dump(RTM_GETLINK, _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            _, _, index, flags, _ = _IFINFO.unpack_from(message)
            given = attributes(message[_IFINFO.size :])
            name = given[IFLA_IFNAME].rstrip(b"\0").decode()
            found[name] = Link(
                index=index,
                name=name,
                up=bool(flags & IFF_UP),
                carrier=given.get(IFLA_CARRIER, b"\0") == b"\1",
                master=struct.unpack("=I", given.get(IFLA_MASTER, bytes(4)))[0],
            )
        return found

    def add_bridge(self, name: str) -> None:
        info = nested(IFLA_LINKINFO, text(_IFLA_INFO_KIND, "bridge"))
        self._new_link(text(IFLA_IFNAME, name) + info, f"add bridge {name}")

    def add_ifb(self, name: str) -> None:
        info = nested(IFLA_LINKINFO, text(_IFLA_INFO_KIND, "ifb"))
        self._new_link(text(IFLA_IFNAME, name) + info, f"add ifb {name}")

    def add_veth(self, name: str, peer: str, peer_netns: Path, *, max_segments: int) -> None:
        """A veth pair: ``name`` here, ``peer`` in another namespace.

        ``max_segments``: how many packets may cross as one (segmentation offload), 0: as many as
        the kernel likes.
        """
        segments = u32(IFLA_GSO_MAX_SEGS, max_segments) if max_segments else b""
        there = os.open(peer_netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            other = _IFINFO.pack(0, 0, 0, 0, 0) + text(IFLA_IFNAME, peer) + segments
            other += u32(IFLA_NET_NS_FD, there)
            data = nested(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, other))
            info = nested(IFLA_LINKINFO, text(_IFLA_INFO_KIND, "veth"), data)
            self._new_link(text(IFLA_IFNAME, name) + segments + info, f"add veth {name}")
        finally:
            os.close(there)

    def _new_link(self, body: bytes, what: str) -> None:
        flags = NLM_F_CREATE | NLM_F_EXCL
        self.request(RTM_NEWLINK, _IFINFO.pack(0, 0, 0, 0, 0) + body, flags, what)

    def delete_link(self, index: int) -> None:
        self.request(RTM_DELLINK, _IFINFO.pack(0, 0, index, 0, 0), what=f"delete link {index}")

    def set_up(self, index: int, up: bool) -> None:
        """Administrative state; the other end of a veth gains or loses carrier with it."""
        body = _IFINFO.pack(0, 0, index, IFF_UP if up else 0, IFF_UP)
        self.request(RTM_NEWLINK, body, what=f"set link {index} {'up' if up else 'down'}")

    def set_master(self, index: int, bridge: int) -> None:
        """Puts a port on a bridge; 0 takes it off."""
        body = _IFINFO.pack(0, 0, index, 0, 0) + u32(IFLA_MASTER, bridge)
        self.request(RTM_NEWLINK, body, what=f"set master of link {index}")

    def add_address(self, index: int, address: str, prefix: int) -> None:
        """An IPv4 address; one that is there already is content."""
        packed = socket.inet_aton(address)
        host = (1 << (32 - prefix)) - 1
        last = struct.pack("!I", struct.unpack("!I", packed)[0] | host)
        body = _IFADDR.pack(socket.AF_INET, prefix, 0, 0, index)
        body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
        body += attribute(_IFA_BROADCAST, last)
        try:
            self.request(RTM_NEWADDR, body, NLM_F_CREATE | NLM_F_EXCL, f"add {address}")
        except SystemRefusedError as error:
            if not (isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EEXIST):
                raise
