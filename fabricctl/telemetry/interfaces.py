"""Names of nodes and the interfaces that carry them."""

import queue
import socket
import threading

from fabricctl.errors import DataError
from fabricctl.telemetry import netlink


def lookup(name: str) -> list[str]:
    """Addresses of a node, none when it cannot be resolved. May take seconds."""
    try:
        infos = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


def own_interface(node: str, wait_s: float) -> str | None:
    """The interface that carries the node's own name; None when that is not known in time."""
    done: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
    threading.Thread(target=lambda: done.put(lookup(node)), daemon=True).start()
    try:
        carried = set(done.get(timeout=wait_s))
        for index, address in netlink.addresses():
            if address in carried:
                return socket.if_indextoname(index)
    except (queue.Empty, OSError, DataError):
        return None
    return None
