"""What link failover did: rails that were left, by how much streams waited, and the way back.

Each end of each pair of nodes writes what it saw (the trace's ``path_event``). Here those of one
rail that belong to one fault become one incident. Where every node concerned has the job clock,
times of several nodes are compared on it; else on their CLOCK_REALTIME.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fabricctl.store.schema import PathEvent, PathLevel, PathReason
from fabricctl.units import format_duration
from fabricctl_analysis.align import MAX_TIME_NS, Ns
from fabricctl_analysis.rows import NodeRows, clean

# Ends that find a fault out this close together, or while it lasts, saw the same one: peers
# without traffic are probed ten times a second.
TOGETHER_NS = 500_000_000
ONE_MOVE_NS = 10_000_000  # between the change of routes and the line that tells of it
_FAR_NS = 30 * 86_400 * 1_000_000_000  # an event that lies so far back is forged
_REASONS = {int(reason): reason.name.lower() for reason in PathReason}

CAUSES = {
    "own_port": "its own port",
    "peers_port": "the other node's port",
    "one_of_two_ports": "the port of one of the two",
    "switch": "the switch",
    "path": "something between the nodes",
}


@dataclass(frozen=True)
class PathRow:
    """One event of one end; ``None``: not said. ``ahead_ns``: the job clock minus the node's."""

    node: str
    event: int
    peer: str
    rail: int
    level: int
    reason: str
    at_ns: int
    begin_ns: int | None
    moved_ns: int | None
    recovered_ns: int | None
    streams: int
    waiting_bytes: int
    text: str
    ahead_ns: int | None = None


@dataclass
class _Failure:
    """A rail between two nodes as one end saw it, from bad to good again."""

    first: PathRow
    reasons: list[str]
    moved_ns: int | None
    end_ns: int | None = None
    recovered: list[PathRow] = field(default_factory=list)

    @property
    def begin_ns(self) -> int:
        return self.first.begin_ns or self.first.at_ns

    def moved(self, recovered: PathRow) -> bool:
        """Whether the streams had waited for this, not for the way back (a move too)."""
        moved_ns = recovered.moved_ns or recovered.at_ns
        return self.end_ns is None or moved_ns < self.end_ns - ONE_MOVE_NS


@dataclass(frozen=True)
class Incident:
    """One fault of one rail and what was done about it.

    ``begin_ns`` is the earliest instant at which an end places its begin. ``moved_ns``: from then
    to the first and the last change of routes; ``waited_ns``: to the moment when the last stream
    that had waited ran again; None when no stream waited (or none was seen to run again).
    ``end_ns``: the last end used the rail again; None: not before the job ended.
    """

    rail: int
    nodes: tuple[str, ...]
    pairs: int
    reasons: tuple[str, ...]
    cause: str | None  # a key of CAUSES
    cause_nodes: tuple[str, ...]  # where it is, as far as that was found out
    begin_ns: int
    told_ns: int
    moved_ns: tuple[int, int] | None
    waited_ns: int | None
    streams: int
    waiting_bytes: int
    end_ns: int | None

    @property
    def detected_ns(self) -> int:
        """From its begin to the first end that knew."""
        return max(0, (self.moved_ns[0] if self.moved_ns else self.told_ns - self.begin_ns))


@dataclass(frozen=True)
class Moves:
    """All of one job. ``measured``: link failover ran on some node."""

    measured: bool = False
    on_job_clock: bool = False  # else on each node's CLOCK_REALTIME
    incidents: tuple[Incident, ...] = ()
    requests: tuple[PathRow, ...] = ()
    off: tuple[PathRow, ...] = ()
    stalls: tuple[tuple[str, int, int | None], ...] = ()  # peer, begin and end


def path_rows(rows: NodeRows) -> tuple[PathRow, ...]:
    """One node's events, oldest first, each once (an agent that restarts repeats them)."""
    found: dict[bytes, PathRow] = {}
    table, times = rows.tables["path_event"], rows.real_ns["path_event"]
    ahead = _ahead_ns(rows, times)
    for nth, row in enumerate(table):
        found.setdefault(row.tobytes(), _row(rows.name, row, int(times[nth]), ahead[nth]))
    return tuple(sorted(found.values(), key=lambda one: one.at_ns))


def _row(node: str, row: np.void, at_ns: int, ahead_ns: int | None) -> PathRow:
    def placed(name: str) -> int | None:
        before_ns = int(row["time_mono_ns"]) - int(row[name])
        return at_ns - before_ns if row[name] > 0 and abs(before_ns) < _FAR_NS else None

    return PathRow(
        node=node,
        event=int(row["event"]),
        peer=clean(row["peer"]),
        rail=int(row["rail"]),
        level=int(row["level"]),
        reason=_REASONS.get(int(row["reason"]), ""),
        at_ns=at_ns,
        begin_ns=placed("begin_mono_ns"),
        moved_ns=placed("moved_mono_ns"),
        recovered_ns=placed("recovered_mono_ns"),
        streams=_count(row["streams"]),
        waiting_bytes=_count(row["waiting_bytes"]),
        text=clean(row["text"]),
        ahead_ns=ahead_ns,
    )


def _count(value: np.generic) -> int:
    """0 for a forged or absent count."""
    number = int(value)
    return number if number < 1 << 62 and number != 0xFFFF_FFFF else 0


def _ahead_ns(rows: NodeRows, at_ns: Ns) -> list[int | None]:
    clock, real = rows.tables["job_clock"], rows.real_ns["job_clock"]
    good = (clock["job_ns"] >= 0) & (clock["job_ns"] < MAX_TIME_NS)
    if not good.any():
        return [None] * len(at_ns)
    ahead = clock["job_ns"][good].astype(np.int64) - real[good]
    moved = np.interp(at_ns, real[good], (ahead - ahead[0]).astype(np.float64))
    return [int(ahead[0]) + round(value) for value in moved.tolist()]


def _on_one_clock(rows: Iterable[PathRow]) -> list[PathRow]:
    """Shifted by what the nodes' clocks are apart, where that is known of all."""
    rows = list(rows)
    ahead = [row.ahead_ns for row in rows]
    known = [value for value in ahead if value is not None]
    if len(known) < len(rows) or not rows:
        return sorted(rows, key=lambda one: one.at_ns)

    def shifted(row: PathRow) -> PathRow:
        by = (row.ahead_ns or 0) - known[0]

        def later(value: int | None) -> int | None:
            return None if value is None else value + by

        return replace(
            row,
            at_ns=row.at_ns + by,
            begin_ns=later(row.begin_ns),
            moved_ns=later(row.moved_ns),
            recovered_ns=later(row.recovered_ns),
        )

    return sorted(map(shifted, rows), key=lambda one: one.at_ns)


def moves_of(rows: Iterable[PathRow]) -> Moves:
    """All nodes' events to what happened."""
    rows = _on_one_clock(rows)
    groups = _together(sorted(_failures(rows), key=lambda one: one.begin_ns))
    causes = [one for one in rows if one.event == PathEvent.CAUSE]
    return Moves(
        measured=any(one.event == PathEvent.READY for one in rows),
        on_job_clock=bool(rows) and all(one.ahead_ns is not None for one in rows),
        incidents=tuple(_incident(group, causes) for group in groups),
        requests=tuple(one for one in rows if one.event == PathEvent.REQUEST),
        off=tuple(one for one in rows if one.event == PathEvent.OFF),
        stalls=tuple(_stalls(rows)),
    )


def _failures(rows: Sequence[PathRow]) -> list[_Failure]:
    open_now: dict[tuple[str, str, int], _Failure] = {}
    found: list[_Failure] = []
    for one in rows:
        key = (one.node, one.peer, one.rail)
        failure = open_now.get(key)
        if one.event == PathEvent.RECOVERED and failure is not None and failure.moved(one):
            failure.recovered.append(one)
        if one.event != PathEvent.PATH:
            continue
        if one.level == PathLevel.GOOD:
            if failure is not None and failure.end_ns is None:
                failure.end_ns = one.at_ns
        elif failure is None or failure.end_ns is not None:
            open_now[key] = _Failure(one, [one.reason], one.moved_ns)
            found.append(open_now[key])
        else:
            failure.reasons.append(one.reason)
            failure.moved_ns = failure.moved_ns or one.moved_ns
    return found


def _together(failures: Sequence[_Failure]) -> list[list[_Failure]]:
    """Of one rail: what begins near another's begin, or what the pair's other end has already."""
    groups: list[list[_Failure]] = []
    for one in failures:
        for group in reversed(groups):
            first = group[0]
            if first.first.rail == one.first.rail and (
                one.begin_ns - first.begin_ns <= TOGETHER_NS
                or any(_other_end(other, one) for other in group)
            ):
                group.append(one)
                break
        else:
            groups.append([one])
    return groups


def _other_end(known: _Failure, new: _Failure) -> bool:
    a, b = known.first, new.first
    return (a.node, a.peer) == (b.peer, b.node) and (
        known.end_ns is None or new.begin_ns < known.end_ns
    )


def _incident(group: Sequence[_Failure], causes: Sequence[PathRow]) -> Incident:
    begin = min(one.begin_ns for one in group)
    moved = [one.moved_ns for one in group if one.moved_ns is not None]
    after = [row for one in group for row in one.recovered if row.streams]
    recovered = [row.recovered_ns for row in after if row.recovered_ns is not None]
    ends = [one.end_ns for one in group]
    known = [end for end in ends if end is not None]
    end = max(known) if len(known) == len(ends) else None
    rail = group[0].first.rail
    nodes = dict.fromkeys(name for one in group for name in (one.first.node, one.first.peer))
    pairs = {frozenset((one.first.node, one.first.peer)) for one in group}
    reasons = [reason for one in group for reason in one.reasons]
    cause, where = _cause(
        [one for one in causes
         if one.rail == rail and one.node in nodes and begin <= one.at_ns
         and (end is None or one.at_ns <= end)], pairs,
    )  # fmt: skip
    return Incident(
        rail=rail,
        nodes=tuple(sorted(nodes)),
        pairs=len(pairs),
        reasons=_reasons(reasons),
        cause=cause,
        cause_nodes=where,
        begin_ns=begin,
        told_ns=min(one.first.at_ns for one in group),
        moved_ns=(max(0, min(moved) - begin), max(0, max(moved) - begin)) if moved else None,
        waited_ns=max(0, max(recovered) - begin) if recovered else None,
        streams=sum(row.streams for row in after),
        waiting_bytes=sum(row.waiting_bytes for row in after),
        end_ns=end,
    )


def _reasons(said: Sequence[str]) -> tuple[str, ...]:
    """Each once; what follows from another is left out."""
    own = tuple(dict.fromkeys(one for one in said if one not in ("", "none", "told")))
    if "carrier" in own:  # whoever is at the other end of the cable hears nothing
        own = tuple(one for one in own if one != "silent")
    return own or ("told",)


def _cause(
    told: Sequence[PathRow], pairs: set[frozenset[str]]
) -> tuple[str | None, tuple[str, ...]]:
    """What the nodes concluded, each one's last word: who can tell more is believed."""
    last = {one.node: one.text.split(":")[0] for one in told}
    if "switch" in last.values():
        return "switch", ()
    own = tuple(sorted(node for node, what in last.items() if what == "own_port"))
    if own:
        return "own_port", own
    for what in ("peers_port", "path", "one_of_two_ports"):
        if what in last.values():
            common = set.intersection(*map(set, pairs)) if len(pairs) > 1 else set()
            return what, tuple(sorted(common)) if what == "peers_port" else ()
    return None, ()


def _stalls(rows: Sequence[PathRow]) -> Iterator[tuple[str, int, int | None]]:
    """Each peer that was silent everywhere, seen by however many."""
    seen: dict[str, list[list[int | None]]] = defaultdict(list)
    for one in rows:
        spans = seen[one.peer]
        if one.event == PathEvent.STALLED:
            begin = one.begin_ns or one.at_ns
            if spans and (spans[-1][1] is None or begin <= spans[-1][1] + TOGETHER_NS):
                spans[-1][1] = None
            else:
                spans.append([begin, None])
        elif one.event == PathEvent.BACK and spans:
            spans[-1][1] = one.at_ns
    for peer, spans in sorted(seen.items()):
        yield from ((peer, begin or 0, end) for begin, end in spans)


def what_words(one: Incident) -> str:
    """What happened to the rail: ``lost 5 % of packets`` is not known, ``lost packets`` is."""
    words = {
        "carrier": "lost its carrier",
        "silent": "fell silent",
        "loss": "lost packets",
        "size": "lost large packets",
        "slow": "was slow",
        "drained": "was taken out by hand",
        "told": "was left by the other end",
    }
    return " and ".join(words.get(reason, reason) for reason in one.reasons)


def where_words(one: Incident) -> str:
    """``the port of n2``, ``the switch``; "" when it is not known."""
    if one.cause in ("own_port", "peers_port") and len(one.cause_nodes) == 1:
        return f"the port of {one.cause_nodes[0]}"
    if one.cause in (None, "own_port"):
        return ""
    return CAUSES[one.cause]


def moved_words(one: Incident) -> str:
    """How long until routes were changed, and until streams ran again."""
    if one.moved_ns is None:
        return "nothing had to move"
    text = f"moved after {format_duration(one.moved_ns[1] / 1e9)}"
    if one.waited_ns is not None:
        streams = f"{one.streams} stream{'s' if one.streams != 1 else ''}"
        text += f", {streams} ran again after {format_duration(one.waited_ns / 1e9)}"
    return text
