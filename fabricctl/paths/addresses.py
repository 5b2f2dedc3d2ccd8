"""The rails' own addresses, from which everything else follows."""

import ipaddress
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fabricctl.config import Config
from fabricctl.errors import SystemRefusedError
from fabricctl.telemetry import interfaces, netlink, rails

SYS_NET = Path("/sys/class/net")
MAX_RAILS = 8  # three bits of a fabric address hold the rail's number
NAME_WAIT_S = 5.0  # of the node's own name; nobody waits for us meanwhile
_HEADER = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_TENTATIVE = 0x40 | 0x08 | 0x20  # IFA_F_TENTATIVE, DADFAILED, DEPRECATED: not to be used


@dataclass(frozen=True)
class Address:
    """An address of one interface."""

    index: int
    ip: ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True)
class Rail:
    """One rail of this node; ``ip4`` carries the subnet's prefix length."""

    name: str
    ip4: ipaddress.IPv4Interface | None
    ip6: ipaddress.IPv6Address | None


def dump() -> list[Address]:
    """All usable addresses of this node; raises OSError or DataError."""
    request = struct.pack("=IHHII", 24, netlink.RTM_GETADDR, 0x301, 1, 0) + _HEADER.pack(
        0, 0, 0, 0, 0
    )
    found: list[Address] = []
    with netlink.open_socket() as route:
        route.settimeout(2)
        route.send(request)
        while True:
            data = memoryview(route.recv(netlink.RECEIVE_BYTES))
            for kind, body in netlink.messages(data):
                if kind == netlink.NLMSG_DONE:
                    return found
                if kind == netlink.RTM_NEWADDR:
                    found += parse(body)


def parse(body: memoryview) -> list[Address]:
    """The address of one RTM_NEWADDR, none when it must not be used."""
    if len(body) < _HEADER.size:
        return []
    family, bits, flags, _scope, index = _HEADER.unpack_from(body)
    at = netlink.offsets(body, _HEADER.size)
    begin, length = at.get(netlink.IFA_LOCAL) or at.get(netlink.IFA_ADDRESS) or (0, 0)
    sizes = {socket.AF_INET: 4, socket.AF_INET6: 16}
    if flags & _TENTATIVE or length != sizes.get(family):
        return []
    raw = bytes(body[begin : begin + length])
    return [Address(index, ipaddress.ip_interface((raw, bits)))]


def of_rails(names: Sequence[str], found: Iterable[Address]) -> list[Rail]:
    """The rails that have an address, in rail order. IPv6: one of the site's before a
    link-local one."""
    known = list(found)
    made: list[Rail] = []
    for name in names:
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            continue
        mine = [item.ip for item in known if item.index == index]
        ip4 = next((ip for ip in mine if isinstance(ip, ipaddress.IPv4Interface)), None)
        ip6s = [ip.ip for ip in mine if isinstance(ip, ipaddress.IPv6Interface)]
        ip6 = min(ip6s, key=lambda ip: ip.is_link_local, default=None)
        if ip4 or ip6:
            made.append(Rail(name, ip4, ip6))
    return made


def is_port(name: str) -> bool:
    """Whether an interface that nobody named is one of the fabric's: a device of its own or a bond,
    and not a bridge of containers or virtual machines, which has the same address on every node."""
    interface = SYS_NET / name
    return (interface / "device").exists() or (interface / "bonding").exists()


def rate_mbit(name: str) -> int:
    """What the driver says a port carries each way; 0: it does not say."""
    try:
        speed = int((SYS_NET / name / "speed").read_text())
    except (OSError, ValueError):  # EINVAL while the port is down
        return 0
    return max(speed, 0)


def find(config: Config, node: str) -> list[Rail]:
    """This node's rails; raises :class:`SystemRefusedError` when that cannot be told."""
    try:
        patterns = config.rails.interfaces
        own = None if patterns else interfaces.own_interface(node, NAME_WAIT_S)
        prefix = config.paths.device_prefix
        links = [
            link for link in netlink.dump() if not (link.name or "").startswith(prefix)
        ]  # what earlier jobs put there is no rail
        names = rails.choose(patterns, links, own)
        if not patterns:
            names = [name for name in names if is_port(name)]
        return of_rails(names[:MAX_RAILS], dump())
    except OSError as error:
        raise SystemRefusedError(f"paths: addresses cannot be listed: {error}") from None
