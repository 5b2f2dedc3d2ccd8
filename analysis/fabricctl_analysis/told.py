"""Evidence that others have found already, while the job ran: starts of the program anew, the
tracker's verdicts on ranks that wait without end in sight, and checkpoints.
"""

from collections.abc import Iterator

from fabricctl import hostlist
from fabricctl.errors import DataError
from fabricctl.store.schema import LaunchEvent, RankState, StallKind
from fabricctl_analysis.align import MAX_TIME_NS
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.evidence import Evidence
from fabricctl_analysis.model import Cause
from fabricctl_analysis.program import checkpoints, phases
from fabricctl_analysis.rows import NodeRows, clean
from fabricctl_analysis.windows import Grid

# A node was silent for a while before it was given up (docs/checkpoints.md).
SILENT_NS = 3_000_000_000
# A verdict, or a dead program, that nothing ends: as long as that at least.
OPEN_NS = 5_000_000_000
LOOKED_NS = 1_000_000_000  # ranks are looked at once a second (fabricctl/state/track/ranks.py)
NO_CARRIER = "without carrier"  # so the tracker's verdict says that a link is down
DIED = ("ended without MPI_Finalize", " died: ")  # so it says that a rank's process is gone
_DEAD = {LaunchEvent.RANKS_DEAD: "its ranks died", LaunchEvent.NODE_DEAD: "a node died"}
_STALLS: dict[int, Cause] = {
    StallKind.RANK: "host_stopped",
    StallKind.HOST: "host_stopped",
    StallKind.LINK: "path",
}


def told(rows: NodeRows, shift_ns: int, grid: Grid) -> tuple[Evidence, ...]:
    """From one node's tables, on the time that all nodes share."""
    return (
        *_restarts(rows, shift_ns),
        *_stalls(rows, shift_ns),
        *_stopped(rows, shift_ns),
        *checkpoints(rows, shift_ns),
        *phases(rows, shift_ns, grid),
    )


def _restarts(rows: NodeRows, shift_ns: int) -> Iterator[Evidence]:
    died: tuple[int, tuple[str, ...], str] | None = None
    for at, row in zip(rows.real_ns["launch"] + shift_ns, rows.tables["launch"], strict=True):
        event = int(row["event"])
        if event in _DEAD and died is None:
            died = int(at), _hosts(clean(row["node"])), _DEAD[LaunchEvent(event)]
        elif event == LaunchEvent.START and died is not None:
            yield _restart(*died, int(at))
            died = None
    if died is not None:
        yield _restart(*died, died[0] + OPEN_NS)


def _restart(begin_ns: int, nodes: tuple[str, ...], why: str, end_ns: int) -> Evidence:
    text = f"the program was started anew: {why}" + (f" ({', '.join(nodes[:4])})" if nodes else "")
    return Evidence("restart", nodes, None, Span(begin_ns - SILENT_NS, end_ns), 1.0, text)


def _stalls(rows: NodeRows, shift_ns: int) -> Iterator[Evidence]:
    found: tuple[Cause, int, tuple[str, ...], str] | None = None
    for at, row in zip(rows.real_ns["stall"] + shift_ns, rows.tables["stall"], strict=True):
        if found is not None:
            yield Evidence(found[0], found[2], None, Span(found[1], int(at)), 1.0, found[3])
            found = None
        cause = _STALLS.get(int(row["kind"]))
        if any(words in clean(row["text"]) for words in DIED):
            cause = "restart"
        if cause == "path" and NO_CARRIER in clean(row["text"]):
            cause = "link_down"
        if cause is not None:
            waited = int(row["time_mono_ns"]) - int(row["since_mono_ns"])
            waited = waited if 0 <= waited < MAX_TIME_NS // 4 else 0
            nodes = _hosts(clean(row["node"]))
            found = cause, int(at) - waited, nodes, clean(row["text"])
    if found is not None:
        yield Evidence(found[0], found[2], None, Span(found[1], found[1] + OPEN_NS), 1.0, found[3])


def _stopped(rows: NodeRows, shift_ns: int) -> Iterator[Evidence]:
    """Ranks that were found stopped by a signal, which the tracker's verdict needs a while to say:
    from the look before until they were found otherwise."""
    times, table = rows.real_ns["rank"] + shift_ns, rows.tables["rank"]
    end_ns = int(rows.real_ns["host"][-1]) + shift_ns if len(rows.real_ns["host"]) else 0
    since: dict[int, int] = {}
    for at, row in zip(times.tolist(), table, strict=True):
        rank = int(row["rank"])
        if int(row["state"]) == RankState.STOPPED:
            since.setdefault(rank, at - LOOKED_NS)
        elif rank in since:
            yield _stop(rows.name, rank, since.pop(rank), at)
    for rank, begin_ns in since.items():
        yield _stop(rows.name, rank, begin_ns, max(end_ns, begin_ns + LOOKED_NS))


def _stop(node: str, rank: int, begin_ns: int, end_ns: int) -> Evidence:
    text = f"rank {rank} on {node} was stopped by a signal"
    return Evidence("host_stopped", (node,), None, Span(begin_ns, end_ns), 1.0, text)


def _hosts(text: str) -> tuple[str, ...]:
    try:
        return tuple(hostlist.expand(text)) if text else ()
    except DataError:
        return ()
