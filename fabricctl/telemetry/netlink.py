"""The little of rtnetlink that rails need: links and addresses, asked for and told.

Formats: rtnetlink(7), linux/if_link.h. Parsing is pure; what breaks the format raises
:class:`~fabricctl.errors.DataError`.
"""

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from fabricctl.errors import DataError

NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_GETADDR = 20, 22
IFA_ADDRESS, IFA_LOCAL = 1, 2
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
RTMGRP_LINK = 1
IFF_UP = 1
IFF_LOOPBACK = 8
IFF_LOWER_UP = 1 << 16
IFLA_IFNAME, IFLA_STATS64, IFLA_EXT_MASK = 3, 23, 29
IFLA_CARRIER, IFLA_CARRIER_CHANGES = 33, 35
RTEXT_FILTER_SKIP_STATS = 8  # leaves out per-family statistics, not IFLA_STATS64
RECEIVE_BYTES = 65_536  # NLMSG_GOODSIZE is at most 32 KiB

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
HEADER_BYTES = _HEADER.size
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change mask
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_ATTRIBUTE = struct.Struct("=HH")  # length, type
COUNTERS = struct.Struct("=8Q")  # rtnl_link_stats64, the first eight
_U32 = struct.Struct("=I")
_ERRNO = struct.Struct("=i")


@dataclass(frozen=True, slots=True)
class Link:
    """An interface as one message describes it; None: the message did not say."""

    family: int  # AF_UNSPEC; a bridge tells of its ports with AF_BRIDGE
    index: int
    flags: int
    name: str | None
    carrier: int | None
    carrier_changes: int | None
    # rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped
    counters: tuple[int, ...] | None


def open_socket(groups: int = 0) -> socket.socket:
    """A route socket; ``groups`` 0 for requests alone."""
    made = socket.socket(
        socket.AF_NETLINK,
        socket.SOCK_RAW | socket.SOCK_CLOEXEC,
        0,  # 0: NETLINK_ROUTE
    )
    made.bind((0, groups))
    return made


def request(index: int = 0, name: str = "", dump: bool = False) -> bytes:
    """RTM_GETLINK for one interface, by index or by name, or for all."""
    body = _LINK.pack(0, 0, index, 0, 0)
    body += _ATTRIBUTE.pack(8, IFLA_EXT_MASK) + _U32.pack(RTEXT_FILTER_SKIP_STATS)
    if name:
        text = name.encode() + b"\0"
        padding = b"\0" * (-len(text) % 4)
        body += _ATTRIBUTE.pack(4 + len(text), IFLA_IFNAME) + text + padding
    flags = NLM_F_REQUEST | (NLM_F_DUMP if dump else 0)
    return _HEADER.pack(_HEADER.size + len(body), RTM_GETLINK, flags, 1, 0) + body


def messages(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """``(type, body)`` of each message of one datagram."""
    while len(data) >= _HEADER.size:
        length, kind, _flags, _sequence, _port = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data):
            raise DataError(f"rtnetlink: message of {length} bytes in {len(data)}")
        yield kind, data[_HEADER.size : length]
        data = data[(length + 3) & ~3 :]


def error_number(body: memoryview) -> int:
    """The errno of an NLMSG_ERROR (0: acknowledged)."""
    if len(body) < _ERRNO.size:
        raise DataError("rtnetlink: error message too short")
    code: int = _ERRNO.unpack_from(body)[0]
    return -code


def offsets(body: memoryview, begin: int = _LINK.size) -> dict[int, tuple[int, int]]:
    """Attribute type -> (offset of its value, length of it) in a message's body, from ``begin``."""
    found: dict[int, tuple[int, int]] = {}
    at, end = begin, len(body)
    while at + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size or at + length > end:
            raise DataError(f"rtnetlink: attribute of {length} bytes at {at} of {end}")
        found[kind & 0x3FFF] = (at + _ATTRIBUTE.size, length - _ATTRIBUTE.size)
        at += (length + 3) & ~3
    return found


def link(body: memoryview, at: dict[int, tuple[int, int]] | None = None) -> Link:
    """The link of an RTM_NEWLINK's or RTM_DELLINK's body.

    ``at``: the result of :func:`offsets` when the caller has it already.
    """
    if len(body) < _LINK.size:
        raise DataError("rtnetlink: link message too short")
    family, _type, index, flags, _change = _LINK.unpack_from(body)
    at = offsets(body) if at is None else at
    return Link(
        family=family,
        index=index,
        flags=flags,
        name=_name(body, at),
        carrier=_number(body, at, IFLA_CARRIER, 1),
        carrier_changes=_number(body, at, IFLA_CARRIER_CHANGES, 4),
        counters=_counters(body, at),
    )


def _name(body: memoryview, at: dict[int, tuple[int, int]]) -> str | None:
    if IFLA_IFNAME not in at:
        return None
    begin, length = at[IFLA_IFNAME]
    return bytes(body[begin : begin + length]).rstrip(b"\0").decode(errors="replace")


def _number(body: memoryview, at: dict[int, tuple[int, int]], kind: int, size: int) -> int | None:
    begin, length = at.get(kind, (0, 0))
    if length != size:
        return None
    return int.from_bytes(body[begin : begin + size], "little" if _LITTLE else "big")


def _counters(body: memoryview, at: dict[int, tuple[int, int]]) -> tuple[int, ...] | None:
    begin, length = at.get(IFLA_STATS64, (0, 0))
    return COUNTERS.unpack_from(body, begin) if length >= COUNTERS.size else None


_LITTLE = struct.pack("=H", 1) == b"\1\0"


def dump() -> list[Link]:
    """All interfaces of this network namespace. Raises OSError or DataError."""
    asked = request(dump=True)
    return [link(body) for kind, body in _dump(asked) if kind == RTM_NEWLINK]


def addresses() -> list[tuple[int, str]]:
    """``(interface index, address)`` of every address of this network namespace."""
    asked = _HEADER.pack(
        _HEADER.size + _ADDRESS.size, RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, 1, 0
    )
    found: list[tuple[int, str]] = []
    for kind, body in _dump(asked + _ADDRESS.pack(0, 0, 0, 0, 0)):
        if kind != RTM_NEWADDR or len(body) < _ADDRESS.size:
            continue
        family, _prefix, _flags, _scope, index = _ADDRESS.unpack_from(body)
        at = offsets(body, _ADDRESS.size)
        begin, length = at.get(IFA_LOCAL, at.get(IFA_ADDRESS, (0, 0)))
        if family in (socket.AF_INET, socket.AF_INET6) and length in (4, 16):
            found.append((index, socket.inet_ntop(family, body[begin : begin + length])))
    return found


def _dump(asked: bytes) -> Iterator[tuple[int, memoryview]]:
    with open_socket() as opened:
        opened.settimeout(2)
        opened.send(asked)
        while True:
            for kind, body in messages(memoryview(opened.recv(RECEIVE_BYTES))):
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    raise OSError(error_number(body), os.strerror(error_number(body)))
                yield kind, body
