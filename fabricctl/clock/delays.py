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

    ``quantiles_ns``: least, median, 99th percentile, most. ``floor_ns``: the path's least one-way
    delay, half its known least round trip (None: not known yet, or another size); what exceeds it
    is queueing. ``sources``: the worst of its stamps where sent and where received (SOURCES of
    probing.py). The counters are those of this direction since the peer's session began.
    """

    rail: int
    peer: int
    inbound: bool
    size_class: int
    count: int
    quantiles_ns: tuple[int, int, int, int]
    floor_ns: int | None
    sources: tuple[int, int]
    sent: int
    arrived: int
    duplicates: int
    reordered: int


class DelayMeter:
    """Collects the delays of one second."""

    def __init__(self) -> None:
        self._parts: list[tuple[Ints, Floats, Ints]] = []

    def add(self, samples: NDArray[np.void], offset_ns: Floats) -> None:
        """``offset_ns``: theta_peer - theta_own at each sample, NaN where not known."""
        apart = (samples["received_ns"] - samples["sent_ns"]).astype(float)
        delay = np.where(samples["inbound"] == 1, apart + offset_ns, apart - offset_ns)
        known = np.isfinite(delay)
        source = samples["sent_source"].astype(np.int64) << 8 | samples["received_source"]
        key = (
            samples["rail"].astype(np.int64) << 40
            | samples["peer"].astype(np.int64) << 8
            | samples["inbound"].astype(np.int64) << 4
            | samples["size_class"]
        )
        self._parts.append((key[known], delay[known], source[known]))

    def flush(
        self, floors: dict[tuple[int, int], float], counters: NDArray[np.void]
    ) -> Sequence[DelayRow]:
        """The rows since the last call; ``floors``: margin of the smallest probes by edge,
        ``counters``: the engine's."""
        if not self._parts:
            return []
        key = np.concatenate([part[0] for part in self._parts])
        delay = np.concatenate([part[1] for part in self._parts])
        source = np.concatenate([part[2] for part in self._parts])
        self._parts = []
        order = np.lexsort((delay, key))
        key, delay, source = key[order], delay[order], source[order]
        begins = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if len(key) else np.empty(0, int)
        ends = np.r_[begins[1:], len(key)]
        worst = [
            np.minimum.reduceat(of, begins).tolist() if len(key) else []
            for of in (source >> 8, source & 0xFF)
        ]
        counted = {(int(row["rail"]), int(row["peer"])): row for row in counters}
        rows = []
        for begin, end, *sources in zip(begins.tolist(), ends.tolist(), *worst, strict=False):
            last = end - begin - 1
            at = [begin, begin + last // 2, begin + -(-last * 99 // 100), end - 1]
            quantiles = tuple(np.rint(delay[at]).astype(np.int64).tolist())
            number = int(key[begin])
            rail, peer, size = number >> 40, number >> 8 & 0xFFFF_FFFF, number & 0xF
            inbound = bool(number >> 4 & 1)
            floor = floors.get((rail, peer)) if size == 0 else None
            least = None if floor is None else round(floor)
            counts = _counts(counted.get((rail, peer)), inbound, size)
            rows.append(
                DelayRow(
                    rail,
                    peer,
                    inbound,
                    size,
                    end - begin,
                    quantiles,
                    least,
                    (sources[0], sources[1]),
                    *counts,
                )
            )
        return rows


def _counts(row: np.void | None, inbound: bool, size: int) -> tuple[int, int, int, int]:
    """Sent, arrived, duplicates, reordered in one direction; the peer counts what we send."""
    if row is None:
        return 0, 0, 0, 0
    if inbound:
        names = ("expected", "arrived", "duplicates", "reordered")
    else:
        names = ("sent", "peer_arrived", "peer_duplicates", "peer_reordered")
    sent, arrived = int(row[names[0]][size]), int(row[names[1]][size])
    return sent, arrived, int(row[names[2]]), int(row[names[3]])
