"""The probe engine seen from Python: its samples and counters as arrays, its rails and peers."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fabricctl.errors import DataError, SystemRefusedError

try:
    from fabricctl.clock import _engine
except ImportError:  # setup.py builds it where there is a compiler
    _engine = None  # type: ignore[assignment]

# struct sample and struct flow_counters of csrc/flow.h.
SAMPLE = np.dtype(
    [
        ("peer", "<u4"),
        ("seq", "<u4"),
        ("rail", "u1"),
        ("inbound", "u1"),
        ("size_class", "u1"),
        ("sent_source", "u1"),
        ("received_source", "u1"),
        ("pad", "u1"),
        ("error_ns", "<u2"),
        ("sent_ns", "<i8"),
        ("received_ns", "<i8"),
    ]
)
SIZES = 3
COUNTERS = np.dtype(
    [
        ("peer", "<u4"),
        ("rail", "u1"),
        ("heard", "u1"),
        ("pad", "u1", 2),
        ("sent", "<u4", SIZES),
        ("arrived", "<u4", SIZES),
        ("expected", "<u4", SIZES),
        ("duplicates", "<u4"),
        ("reordered", "<u4"),
        ("peer_arrived", "<u4", SIZES),
        ("peer_duplicates", "<u4"),
        ("peer_reordered", "<u4"),
        ("refused", "<u4"),
        ("tagless", "<u8"),
    ],
    align=True,
)
SOURCES = ("none", "user", "sched", "software", "hardware")  # enum stamp_source of csrc/probe.h
HARDWARE = SOURCES.index("hardware")


@dataclass(frozen=True)
class Rail:
    """One of this node's rails: where its probes leave from.

    ``phc_fd``: the open device of its NIC's clock; -1: the NIC's stamps are not used.
    """

    interface: str
    address: str
    phc_fd: int = -1


@dataclass(frozen=True)
class Flow:
    """One peer on one rail. ``owner``: we join the stamps of both ends; else the peer does."""

    rail: int
    peer: int
    address: str
    port: int
    owner: bool


@dataclass(frozen=True)
class Anchor:
    """One instant on this node's clocks; ``node_ns`` is what the probes are stamped with."""

    raw_ns: int
    node_ns: int
    real_ns: int
    mono_ns: int
    width_ns: int


@dataclass(frozen=True)
class Virtual:
    """The lab's virtual clock of a node; fabricctl/lab/vclock.py has its formula and terms."""

    begin_mono_ns: int
    offset_ns: int
    drift_ppb: float
    waves: tuple[tuple[float, float, float], ...] = ()
    steps: tuple[tuple[float, float], ...] = ()

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> "Virtual":
        """From the lab's file; raises :class:`DataError`."""
        try:
            waves = [tuple(map(float, item.split(":"))) for item in _items(given["waves"])]
            steps = [tuple(map(float, item.split(":"))) for item in _items(given["steps"])]
            return cls(
                int(given["begin_mono_ns"]),
                int(given["offset_ns"]),
                float(given["drift_ppb"]),
                tuple((size, period, phase) for size, period, phase in waves),
                tuple((at_s, step_ns) for at_s, step_ns in steps),
            )
        except (KeyError, ValueError) as error:
            raise DataError(f"virtual clock: {error}") from None

    def error_ns(self, mono_ns: int) -> float:
        """How far the clock is ahead; the same as virtual_error_ns of csrc/stamps.c."""
        passed_s = (mono_ns - self.begin_mono_ns) * 1e-9
        waves = sum(
            size * (math.sin(2 * math.pi * passed_s / period_s + phase) - math.sin(phase))
            for size, period_s, phase in self.waves
        )
        stepped = sum(step_ns for at_s, step_ns in self.steps if passed_s >= at_s)
        return self.offset_ns + self.drift_ppb * passed_s + waves + stepped

    def rate(self, mono_ns: int) -> float:
        """How fast that grows, in seconds per second."""
        span_ns = 1_000_000
        return (self.error_ns(mono_ns + span_ns) - self.error_ns(mono_ns)) / span_ns


@dataclass(frozen=True)
class Stamps:
    """``source``: into :data:`SOURCES`, of the rail that has the least; ``error_ns``: of what a NIC
    stamps, in node time."""

    source: int
    error_ns: int


def _items(text: str) -> list[str]:
    return text.split(",") if text else []


def probe_key(job_key: bytes, job: int) -> bytes:
    """The probes' own key: what signs probes signs nothing else."""
    return hashlib.blake2b(
        f"fabric clock probes {job}".encode(), key=job_key[:64], digest_size=16
    ).digest()


class Prober:
    """Sends and receives probes until it is stopped.

    ``me`` and the flows' ``peer`` are places in the allocation's node list, ``session`` a random
    number other than 0, ``base_ns`` what is taken off CLOCK_MONOTONIC_RAW for node time. Raises
    :class:`SystemRefusedError` where the C part is missing or a rail cannot be opened.
    """

    def __init__(
        self, me: int, session: int, key: bytes, rails: Sequence[Rail], base_ns: int = 0
    ) -> None:
        if _engine is None:
            raise SystemRefusedError(
                "clock: the package was installed without its C part: install gcc and "
                "python3-dev, then install fabricctl again"
            )
        if (SAMPLE.itemsize, COUNTERS.itemsize) != (_engine.SAMPLE_BYTES, _engine.COUNTERS_BYTES):
            raise SystemRefusedError("clock: the C part is of another version: install again")
        self._engine = _engine.Engine(me, session, key, base_ns)
        self.ports = tuple(self._open(rail) for rail in rails)

    def _open(self, rail: Rail) -> int:
        try:
            return self._engine.add_rail(rail.address, 0, rail.interface, rail.phc_fd)
        except OSError as error:
            where = f"{rail.interface} ({rail.address})"
            raise SystemRefusedError(f"clock: no probes on {where}: {error.strerror}") from None

    def start(self, pairs_per_s: float) -> None:
        self.set_rate(pairs_per_s)
        self._engine.start()

    def set_rate(self, pairs_per_s: float) -> None:
        """Pairs a second to every peer on every rail."""
        self._engine.set_rate(pairs_per_s)

    def set_flows(self, flows: Sequence[Flow]) -> None:
        """Probes these from now on; a flow that was there before goes on."""
        self._engine.set_flows([(f.rail, f.peer, f.address, f.port, f.owner) for f in flows])

    def set_virtual(self, virtual: "Virtual") -> None:
        """Stamps and anchors show this clock from now on."""
        waves, steps = list(virtual.waves), list(virtual.steps)
        self._engine.set_virtual(
            virtual.begin_mono_ns, virtual.offset_ns, virtual.drift_ppb, waves, steps
        )

    def take(self) -> NDArray[np.void]:
        """Samples (:data:`SAMPLE`) since the last call."""
        return np.frombuffer(self._engine.take(), SAMPLE)

    def counters(self) -> NDArray[np.void]:
        """Counters (:data:`COUNTERS`) of every flow."""
        return np.frombuffer(self._engine.counters(), COUNTERS)

    def anchor(self) -> Anchor:
        return Anchor(*self._engine.anchor())

    def stamps(self) -> "Stamps":
        """Where this node's stamps come from now."""
        rails = self._engine.state()[3]
        errors = [error_ns for source, error_ns, _ in rails if source == HARDWARE]
        return Stamps(min((source for source, *_ in rails), default=0), max(errors, default=0))

    def stop(self) -> None:
        self._engine.stop()
