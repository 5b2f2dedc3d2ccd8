"""One-way delays of every probed path, second by second, on the job clock."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class DelayRow:
    """One second of one path: an edge, a direction, a size of probes.

    ``floor_ns``: the path's least one-way delay, half its known least round trip (None: not known
    yet, or another size); what exceeds it is queueing.
    """

    rail: int
    peer: int
    inbound: bool
    size_class: int
    count: int
    min_ns: int
    p50_ns: int
    p99_ns: int
    max_ns: int
    floor_ns: int | None


class DelayMeter:
    """Collects the delays of one second."""

    def __init__(self) -> None:
        self._parts: list[tuple[Ints, Floats]] = []

    def add(self, samples: NDArray[np.void], offset_ns: Floats) -> None:
        """``offset_ns``: theta_peer - theta_own at each sample, NaN where not known."""
        apart = (samples["received_ns"] - samples["sent_ns"]).astype(float)
        delay = np.where(samples["inbound"] == 1, apart + offset_ns, apart - offset_ns)
        known = np.isfinite(delay)
        key = (
            samples["rail"].astype(np.int64) << 40
            | samples["peer"].astype(np.int64) << 8
            | samples["inbound"].astype(np.int64) << 4
            | samples["size_class"]
        )
        self._parts.append((key[known], delay[known]))

    def flush(self, floors: dict[tuple[int, int], float]) -> Sequence[DelayRow]:
        """The rows since the last call; ``floors``: margin of the smallest probes by edge."""
        if not self._parts:
            return []
        key = np.concatenate([part[0] for part in self._parts])
        delay = np.concatenate([part[1] for part in self._parts])
        self._parts = []
        order = np.lexsort((delay, key))
        key, delay = key[order], delay[order]
        begins = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if len(key) else np.empty(0, int)
        ends = np.r_[begins[1:], len(key)]
        rows = []
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=False):
            last = end - begin - 1
            at = [begin, begin + last // 2, begin + -(-last * 99 // 100), end - 1]
            low, middle, high, top = np.rint(delay[at]).astype(np.int64).tolist()
            number = int(key[begin])
            rail, peer, size = number >> 40, number >> 8 & 0xFFFF_FFFF, number & 0xF
            floor = floors.get((rail, peer)) if size == 0 else None
            inbound, least = bool(number >> 4 & 1), None if floor is None else round(floor)
            count = end - begin
            rows.append(DelayRow(rail, peer, inbound, size, count, low, middle, high, top, least))
        return rows
