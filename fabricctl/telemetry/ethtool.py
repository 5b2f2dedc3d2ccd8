"""What the drivers of the rails count: ETHTOOL_GSTATS (linux/ethtool.h), as `ethtool -S` shows it.

Names are each driver's own. Those that tell of errors, drops, pauses and congestion are kept;
a driver's counters of single queues and of traffic are not.
"""

import array
import fcntl
import re
import socket
import struct
from collections.abc import Iterator, Sequence

from fabricctl.telemetry.slow import Reading

_SIOCETHTOOL = 0x8946
_GET_STRINGS, _GET_STATS, _GET_SET_INFO = 0x1B, 0x1D, 0x37
_STATS_SET = 1  # ETH_SS_STATS
_NAME_BYTES = 32  # ETH_GSTRING_LEN
MAX_STATS = 8192
WANTED = re.compile(
    r"err|drop|discard|pause|pfc|ecn|cnp|crc|symbol|timeout|reset|overrun|missed|fault|out_of_buffer"
    r"|congest|link_down|corrected|fec|wait"
)
_QUEUE = re.compile(r"(queue|ring|ch|chan|[rt]xq?|q)[_-]?\d+[_.]|^\[?\d+\]?[:_]|_\d+$")


class EthtoolReader:
    """Statistics of the rails; names are asked for once."""

    name, period_s = "ethtool", 10.0

    def __init__(self, rails: Sequence[str]) -> None:
        self._rails = rails
        self._names: dict[str, list[str]] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def read(self) -> Iterator[Reading]:
        problem: OSError | None = None
        for rail in self._rails:
            try:
                yield from self._of(rail)
            except OSError as error:
                problem = OSError(error.errno, f"{rail}: {error.strerror}")
                self._names.pop(rail, None)
        if problem is not None:
            raise problem

    def _of(self, rail: str) -> Iterator[Reading]:
        if rail not in self._names:
            self._names[rail] = self._ask_names(rail)
        names = self._names[rail]
        buffer = bytearray(struct.pack("=II", _GET_STATS, len(names)) + bytes(8 * len(names)))
        self._ioctl(rail, buffer)
        count = min(struct.unpack_from("=I", buffer, 4)[0], len(names))
        values = struct.unpack_from(f"={count}Q", buffer, 8)
        for name, value in zip(names, values, strict=False):
            if WANTED.search(name) and not _QUEUE.search(name):
                yield rail, name, value

    def _ask_names(self, rail: str) -> list[str]:
        asked = bytearray(struct.pack("=IIQI", _GET_SET_INFO, 0, 1 << _STATS_SET, 0) + bytes(4))
        self._ioctl(rail, asked)
        mask, count = struct.unpack_from("=QI", asked, 8)
        count = min(count if mask else 0, MAX_STATS)
        buffer = bytearray(struct.pack("=III", _GET_STRINGS, _STATS_SET, count))
        buffer += bytes(_NAME_BYTES * count)
        self._ioctl(rail, buffer)
        raw = (buffer[12 + _NAME_BYTES * n : 12 + _NAME_BYTES * (n + 1)] for n in range(count))
        return [text.split(b"\0", 1)[0].decode("ascii", "replace").strip() for text in raw]

    def _ioctl(self, rail: str, buffer: bytearray) -> None:
        data = array.array("B", buffer)
        address, _ = data.buffer_info()
        request = struct.pack("16sP16x", rail.encode()[:15], address)
        fcntl.ioctl(self._socket, _SIOCETHTOOL, request)
        buffer[:] = data.tobytes()

    def close(self) -> None:
        self._socket.close()
