"""What the head knows: the newest report of every node, and Slurm's view. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fabricctl import wire
from fabricctl.errors import DataError
from fabricctl.fleet.head.message import NAME, NodeReport, decode

STALE = 3.0  # intervals without a report: nothing is known of the node any more
MAX_NODES = 100_000  # more are not believed: only who has the key could send them


@dataclass(slots=True)
class Row:
    """Of one node."""

    report: NodeReport
    at_s: float  # monotonic, of the head
    interval_s: float  # that it was told then


@dataclass
class Table:
    """All nodes."""

    interval_s: float
    max_per_s: int
    rows: dict[str, Row] = field(default_factory=dict)
    fresh: wire.Freshness = field(default_factory=wire.Freshness)
    taken: int = 0
    refused: int = 0

    def take(self, given: Mapping[str, str], now_s: float) -> tuple[str, int]:
        """One report: ``(node, seq)`` to answer. Raises :class:`DataError`."""
        node = given.get("node", "")
        if given.get("kind") != "report" or not NAME.fullmatch(node):
            raise DataError("report: not one")
        if node not in self.rows and len(self.rows) >= MAX_NODES:
            raise DataError("report: too many nodes")
        report = decode(given)
        seq = wire.number(given, "seq")
        if not self.fresh.accepts(node, wire.number(given, "life"), seq):
            raise DataError(f"report: of {node}, an old one")
        self.rows[node] = Row(report, now_s, self.wanted_s())
        self.taken += 1
        return node, seq

    def wanted_s(self) -> float:
        """How often each node is to report, so that all together do not exceed what we can take."""
        return max(self.interval_s, len(self.rows) / self.max_per_s)

    def age_s(self, node: str, now_s: float) -> float | None:
        row = self.rows.get(node)
        return None if row is None else now_s - row.at_s

    def is_stale(self, row: Row, now_s: float) -> bool:
        return now_s - row.at_s > STALE * max(row.interval_s, self.interval_s) + 1.0

    def forget(self, known: frozenset[str], now_s: float, after_s: float = 3600.0) -> None:
        """Nodes that Slurm does not know and that have been silent for long."""
        for node in [n for n, row in self.rows.items()
                     if n not in known and now_s - row.at_s > after_s]:  # fmt: skip
            del self.rows[node]
