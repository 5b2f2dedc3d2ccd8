"""Packets between lab nodes, sent and counted from the test's own process."""

import contextlib
import socket
import time

from fabricctl.lab.cluster import Lab
from fabricctl.lab.kernel import in_netns

PORT = 4999


def udp(lab: Lab, node: str, interface: str) -> socket.socket:
    """A UDP socket on one interface of a node."""
    with in_netns(lab.paths.node_netns(node)):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    made.bind(("", PORT))
    made.setblocking(False)
    return made


def delivered(
    lab: Lab, source: str, target: str, interface: str, *, count: int = 100, size: int = 100
) -> int:
    """How many of ``count`` packets of ``size`` bytes (IP) that are sent arrive."""
    with udp(lab, source, interface) as sender, udp(lab, target, interface) as receiver:
        address = (lab.spec.address(target, interface), PORT)
        got = 0
        for _ in range(count):
            with contextlib.suppress(OSError):
                sender.sendto(bytes(size - 28), address)
            time.sleep(0.0005)
            got += _drain(receiver)
        time.sleep(0.05)
        return got + _drain(receiver)


def warm(lab: Lab, source: str, target: str, interface: str) -> None:
    """Both know the other's hardware address: no packet waits for ARP afterwards."""
    for one, other in ((source, target), (target, source)):
        for _ in range(100):
            if delivered(lab, one, other, interface, count=1):
                break
        else:
            raise AssertionError(f"{one} does not reach {other} on {interface}")


def _drain(receiver: socket.socket) -> int:
    got = 0
    with contextlib.suppress(BlockingIOError):
        while receiver.recv(65536) is not None:
            got += 1
    return got
