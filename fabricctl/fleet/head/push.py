"""A node's side: looks at itself and reports to the head service, which says how often.

Runs as the agents' user, without privileges. Nothing waits for it; while the head is away it asks
more and more seldom, with jitter, so that a head that comes back is not met by all nodes at once.
"""

import os
import random
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fabricctl import fields, layout, wire
from fabricctl.config import Config
from fabricctl.errors import DataError, FabricError, SystemRefusedError
from fabricctl.fleet.head.message import JobReport, NodeReport, RailReport, encode
from fabricctl.telemetry import interfaces, netlink
from fabricctl.telemetry.rails import choose

JITTER = 0.2  # share of the interval, both ways
AWAY_MAX_S = 60.0  # between tries while nobody answers
KEY_LEAST = 32  # bytes


def read_key(path: Path) -> bytes:
    """Raises :class:`SystemRefusedError` for one that others could read, or that is too short."""
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            data = stream.read(4096)
    except OSError as error:
        raise SystemRefusedError(
            f"{path}: {error.strerror}: make it with `fabricctl head key`"
        ) from None
    if mode & 0o007:
        raise SystemRefusedError(f"{path}: others can read it: chmod 640 {path}")
    if len(data.strip()) < KEY_LEAST:
        raise SystemRefusedError(f"{path}: shorter than {KEY_LEAST} bytes")
    return data.strip()


@dataclass
class Looker:
    """Looks at this host; keeps counters to make rates of them."""

    config: Config
    sysfs: Path = Path("/sys/class/net")
    proc: Path = Path("/proc")

    def __post_init__(self) -> None:
        self._before: dict[str, tuple[int, int, int]] = {}
        self._before_s = 0.0
        self._rails: list[str] = []

    def look(self, now_s: float) -> NodeReport:
        """Raises OSError where /proc cannot be read."""
        load = float((self.proc / "loadavg").read_text().split()[0])
        memory = {}
        for line in (self.proc / "meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                memory[name] = int(rest.split()[0]) >> 10
        rails = self._look_at_rails(now_s)
        return NodeReport(load, os.cpu_count() or 0, memory.get("MemTotal", 0),
                          memory.get("MemAvailable", 0), rails, self._jobs())  # fmt: skip

    def _names(self) -> list[str]:
        own = interfaces.own_interface(os.uname().nodename.partition(".")[0], 2.0)
        found = choose(self.config.rails.interfaces, netlink.dump(), own)
        # One that was there and is gone, or is down, is told as such.
        self._rails += [name for name in found if name not in self._rails]
        return self._rails

    def _look_at_rails(self, now_s: float) -> tuple[RailReport, ...]:
        took_s = max(1e-3, now_s - self._before_s)
        found, counters = [], {}
        for name in self._names():
            state, now = _rail_state(self.sysfs / name), _rail_counters(self.sysfs / name)
            counters[name] = now
            old = self._before.get(name, now)
            rx, tx, errors = (max(0, b - a) for a, b in zip(old, now, strict=True))
            found.append(RailReport(name, state, int(rx / took_s), int(tx / took_s), errors))
        self._before, self._before_s = counters, now_s
        return tuple(found)

    def _jobs(self) -> tuple[JobReport, ...]:
        files = layout.NodeFiles(self.config.node.run_dir)
        numbers = set()
        for directory in (files.steps_dir, files.paths):
            try:
                numbers |= {int(path.name) for path in directory.iterdir()
                            if path.name.isascii() and path.name.isdecimal()}  # fmt: skip
            except OSError:
                continue
        found = []
        for job in sorted(numbers):
            try:
                given = fields.decode(files.status(job).read_text()[: fields.MAX_BYTES])
                found.append(JobReport(job, given["state"], int(given["nodes"]),
                                       int(given["protected"])))  # fmt: skip
            except (OSError, ValueError, KeyError, FabricError):
                continue  # it has just ended, or has no agent here
        return tuple(found)


def _rail_state(path: Path) -> str:
    try:
        return "up" if (path / "carrier").read_text().strip() == "1" else "no carrier"
    except FileNotFoundError:
        return "gone"
    except OSError:
        return "off"  # EINVAL: switched off


def _rail_counters(path: Path) -> tuple[int, int, int]:
    found = []
    for names in (("rx_bytes",), ("tx_bytes",), ("rx_errors", "tx_errors")):
        total = 0
        for name in names:
            try:
                total += int((path / "statistics" / name).read_text())
            except (OSError, ValueError):
                continue
        found.append(total)
    return found[0], found[1], found[2]


class Pace:
    """When to report next. Pure."""

    def __init__(self, interval_s: float, chance: Callable[[], float] = random.random) -> None:
        self._interval_s = interval_s
        self._asked_s = interval_s
        self._silent = 0
        self._chance = chance

    def answered(self, interval_s: float) -> None:
        """The head is there and wants a report so often."""
        self._silent = 0
        self._asked_s = max(0.05, interval_s)

    def sent(self) -> None:
        self._silent += 1

    def next_s(self) -> float:
        """How long to wait: longer and longer while nobody answers (the first loss is nothing)."""
        base_s = self._asked_s
        if self._silent > 2:
            base_s = min(max(AWAY_MAX_S, base_s), base_s * 2 ** min(self._silent - 2, 10))
        return base_s * (1 + JITTER * (2 * self._chance() - 1))


class Pusher:
    """One node's reports; :meth:`turn` does one."""

    def __init__(self, config: Config, node: str, key: bytes) -> None:
        head = config.head
        self._looker = Looker(config)
        self._key = key
        self._node = node
        self._life = time.time_ns()
        self._seq = 0
        self.pace = Pace(head.interval_s)
        try:
            found = socket.getaddrinfo(head.address, head.port, type=socket.SOCK_DGRAM)[0]
        except OSError as error:
            raise SystemRefusedError(f"head.address {head.address}: {error}") from None
        self._to = found[4]
        self._socket = socket.socket(found[0], socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def close(self) -> None:
        self._socket.close()

    def turn(self) -> None:
        """Sends one report and takes the answers of before."""
        self._take()
        report = encode(self._looker.look(time.monotonic()))
        self._seq += 1
        head = {"kind": "report", "node": self._node, "life": str(self._life),
                "seq": str(self._seq)}  # fmt: skip
        try:
            self._socket.sendto(wire.seal({**head, **report}, self._key), self._to)
        except OSError:
            pass  # the network is away: as if nobody answered
        self.pace.sent()

    def wait(self, wait_s: float) -> None:
        """Until it is time again; the answer is taken as it comes."""
        end_s = time.monotonic() + wait_s
        while (left_s := end_s - time.monotonic()) > 0:
            self._socket.settimeout(left_s)
            try:
                self._answer(self._socket.recv(wire.MAX_BYTES))
            except OSError:
                time.sleep(min(0.2, max(0.0, end_s - time.monotonic())))

    def _take(self) -> None:
        self._socket.setblocking(False)
        try:
            while True:
                self._answer(self._socket.recv(wire.MAX_BYTES))
        except OSError:
            return

    def _answer(self, datagram: bytes) -> None:
        try:
            given: Mapping[str, str] = wire.open_sealed(datagram, self._key)
            mine = given.get("kind") == "ack" and given.get("node") == self._node
            # An answer to another life, or of long ago, says nothing about now.
            if mine and wire.number(given, "to") in (self._seq, self._seq - 1):
                self.pace.answered(wire.number(given, "interval_ms") / 1000)
        except DataError:
            return
