"""What a job had of its rails beside others: its share, when it slowed down, ways round a queue.

fabric-pathd tells these as events of the trace's ``path_event`` (docs/shares.md).
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from fabricctl.store.schema import PathEvent
from fabricctl.units import format_duration
from fabricctl_analysis.model import Finding, Report, Severity
from fabricctl_analysis.moves import PathRow
from fabricctl_analysis.names import folded
from fabricctl_analysis.shared_model import Paced, Rerouted, Share, SharedRails
from fabricctl_analysis.when import When, iso

_WAITED = re.compile(r"packets wait ([0-9]{1,9}) us$")
_REFUSED = "no share of "
_MAX_SENTENCES = 4  # of one kind; the JSON has all

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


def shared_rails(rows: Iterable[PathRow]) -> SharedRails:
    """All nodes' events to what happened."""
    ordered = sorted(rows, key=lambda one: one.at_ns)
    last = {row.node: row for row in ordered if row.event == PathEvent.SHARE}
    return SharedRails(
        shares=tuple(Share(node, last[node].text) for node in sorted(last)),
        refused=tuple(
            Share(row.node, row.text)
            for row in ordered
            if row.event == PathEvent.TROUBLE and row.text.startswith(_REFUSED)
        ),
        paced=tuple(_paced(ordered)),
        rerouted=tuple(_rerouted(ordered)),
    )


def _waited_ns(row: PathRow) -> int:
    found = _WAITED.search(row.text)
    return int(found[1]) * 1000 if found else 0


def _paced(rows: Sequence[PathRow]) -> Iterator[Paced]:
    found: dict[tuple[str, int], list[PathRow]] = {}
    for row in rows:
        if row.event == PathEvent.PACED:
            found.setdefault((row.node, row.rail), []).append(row)
    for (node, rail), mine in sorted(found.items()):
        worst_ns = max(map(_waited_ns, mine))
        yield Paced(node, rail, len(mine), mine[0].at_ns, mine[-1].at_ns, worst_ns)


def _rerouted(rows: Sequence[PathRow]) -> Iterator[Rerouted]:
    """From the way out to the way back; None: not before the job ended."""
    away: dict[tuple[str, str, int], PathRow] = {}
    found = []
    for row in rows:
        if row.event != PathEvent.REROUTED:
            continue
        key = (row.node, row.peer, row.rail)
        begin = away.pop(key, None)
        if begin is not None:
            found.append((begin, row.at_ns if row.text.startswith("back") else None))
        if row.text.startswith("away"):
            away[key] = row
    found += [(row, None) for row in away.values()]
    for begin, end_ns in sorted(found, key=lambda one: one[0].at_ns):
        yield Rerouted(begin.node, begin.peer, begin.rail, begin.at_ns, end_ns, _waited_ns(begin))


def findings_of_shares(report: Report, when: When) -> Iterator[Finding]:
    """What was promised and given, and what queues in the network made of it."""
    yield from _given(report.shared.shares, "info", "share")
    yield from _given(report.shared.refused, "warning", "no_share")
    for paced in report.shared.paced[:_MAX_SENTENCES]:
        times = f"{paced.times} times " if paced.times > 1 else ""
        until = f" to {when.clock(paced.last_ns)}" if paced.times > 1 else ""
        text = (
            f"{paced.node} slowed down on rail r{paced.rail} {times}"
            f"({when.clock(paced.first_ns)}{until}): its packets waited up to "
            f"{format_duration(paced.worst_ns / 1e9)} in the network."
        )
        yield Finding("info", "paced", (paced.node,), paced.rail, paced.first_ns, None, text)
    for one in report.shared.rerouted[:_MAX_SENTENCES]:
        took = (
            "to the end"
            if one.end_ns is None
            else f"for {format_duration((one.end_ns - one.begin_ns) / 1e9)}"
        )
        text = (
            f"Streams of {one.node} to {one.peer} left rail r{one.rail} at "
            f"{when.clock(one.begin_ns)} {took}, round a queue in which packets waited "
            f"{format_duration(one.waited_ns / 1e9)}."
        )
        yield Finding(
            "info", "rerouted", (one.node, one.peer), one.rail, one.begin_ns, one.end_ns, text
        )


def _given(shares: Sequence[Share], severity: Severity, kind: str) -> Iterator[Finding]:
    """What nodes were told alike is one sentence."""
    nodes: dict[str, list[str]] = {}
    for one in shares:
        nodes.setdefault(one.text, []).append(one.node)
    for text, names in list(nodes.items())[:_MAX_SENTENCES]:
        who = tuple(dict.fromkeys(names))
        said = f"On {folded(who)} the job had {text}."
        yield Finding(severity, kind, who, None, None, None, said)


def document(report: Report, begin_ns: int) -> dict[str, Json]:
    """Its part of the ``paths`` object of docs/report-json.md."""

    def at(name: str, value_ns: int | None) -> dict[str, Json]:
        if value_ns is None:
            return {name: None, f"{name}_s": None}
        return {name: iso(value_ns), f"{name}_s": (value_ns - begin_ns) / 1e9}

    shared = report.shared
    return {
        "shares": [{"node": one.node, "text": one.text} for one in shared.shares],
        "refused_shares": [{"node": one.node, "why": one.text} for one in shared.refused],
        "paced": [
            {
                "node": one.node, "rail": one.rail, "times": one.times,
                **at("first", one.first_ns), **at("last", one.last_ns),
                "waited_s": one.worst_ns / 1e9,
            }
            for one in shared.paced
        ],
        "rerouted": [
            {
                "node": one.node, "peer": one.peer, "rail": one.rail,
                **at("begin", one.begin_ns), **at("end", one.end_ns),
                "waited_s": one.waited_ns / 1e9,
            }
            for one in shared.rerouted
        ],
    }  # fmt: skip
