"""What could have slowed the job, as intervals with a place: from links, paths, hosts and ranks.

Evidence says that something was wrong somewhere for a while. Whether time was lost meanwhile is
for :mod:`fabricctl_analysis.attribute` to say.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fabricctl.units import format_duration
from fabricctl_analysis.activity import Activity
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.model import Cause, PathMark, RailSummary, Remark
from fabricctl_analysis.noise import Bools
from fabricctl_analysis.series import Floats
from fabricctl_analysis.windows import Grid

# What explains a slow window best when several were there: the more specific first.
ORDER: tuple[Cause, ...] = (
    "restart", "suspended", "link_down", "gpu", "path", "host_stopped", "checkpoint",
    "host_memory", "storage", "steal", "host_cpu", "rank_slow", "queueing", "rail_slow", "phase",
)  # fmt: skip

# A share of time in which tasks stalled that is this far above the node's own usual one.
STALLED = 0.25
# Cores that others than the job took, above their usual, as a share of what the job uses; of a job
# that uses next to nothing (its GPUs work), at least so many.
CROWDED, LEAST_CORES = 0.3, 0.2
# By so much less of its time than any other node's ranks is one in MPI that the others wait for.
AWAITED = 0.2
# Segments sent again above the usual: a healthy fabric has one in a thousand.
RESENT = 0.005
# A node that moves less than this share of its traffic over its interfaces has no use for them.
LEAST_BY_RAILS = 0.1
# An XID ends what ran on the GPU; how long the job then stands still is its own affair.
XID_NS = 10_000_000_000
# A node whose processes got this much less CPU than usual while the others' went on as ever.
STARVED = 0.3
# With less than this of its usual CPU a node's processes do not run at all.
STOPPED = 0.1


@dataclass(frozen=True)
class Evidence:
    """One thing that was wrong: ``strength`` 0 to 1 says how far from usual it was."""

    cause: Cause
    nodes: tuple[str, ...]
    rail: int | None
    span: Span
    strength: float
    text: str


def gather(
    acts: Sequence[Activity],
    rails: Sequence[RailSummary],
    paths: Sequence[PathMark],
    remarks: Sequence[Remark],
    *,
    grid: Grid,
    running: Bools,
) -> list[Evidence]:
    """All of it, in the order of time."""
    found = [
        *_links(rails),
        *_paths(paths),
        *_gpus(remarks),
        *_hosts(acts, grid, running),
        *_rail_shares(acts, grid, running),
    ]
    return sorted(found, key=lambda one: one.span.begin_ns)


def _downs(rail: RailSummary) -> Iterator[Span]:
    for down in rail.link.downs:
        end_ns = rail.measured_end_ns if down.end_ns is None else down.end_ns
        yield Span(down.begin_ns - down.begin_error_ns, max(end_ns, down.begin_ns))


def without_carrier(rails: Sequence[RailSummary], grid: Grid) -> dict[tuple[str, int], Bools]:
    """By node and rail, the windows in which a link was down."""
    found: dict[tuple[str, int], Bools] = {}
    for rail in rails:
        for span in _downs(rail):
            mine = found.setdefault((rail.node, rail.index), np.zeros(grid.count, dtype=bool))
            mine[grid.touched(span.begin_ns, span.end_ns)] = True
    return found


def _links(rails: Sequence[RailSummary]) -> Iterator[Evidence]:
    for rail in rails:
        for span in _downs(rail):
            took = format_duration(span.length_ns / 1e9)
            text = f"rail r{rail.index} of {rail.node} had no carrier for {took}"
            yield Evidence("link_down", (rail.node,), rail.index, span, 1.0, text)


def _paths(paths: Sequence[PathMark]) -> Iterator[Evidence]:
    """A path that was bad from its begin to the mark that it is good again."""
    begun: dict[tuple[str, str, int], PathMark] = {}
    for mark in sorted(paths, key=lambda one: one.at_ns):
        key = (mark.node, mark.peer, mark.rail)
        if mark.level != "good":
            begun.setdefault(key, mark)
        elif key in begun:
            yield _path(begun.pop(key), mark.at_ns)
    for mark in begun.values():
        yield _path(mark, mark.at_ns + 1_000_000_000)


def _path(mark: PathMark, end_ns: int) -> Evidence:
    begin_ns = mark.begin_ns if mark.begin_ns else mark.at_ns
    text = (
        f"the path of rail r{mark.rail} between {mark.node} and {mark.peer or 'all'} was "
        f"{mark.level} ({mark.reason})"
    )
    span = Span(min(begin_ns, mark.at_ns), max(end_ns, mark.at_ns))
    strength = 0.9 if mark.level == "dead" else 0.6
    nodes = tuple(name for name in (mark.node, mark.peer) if name)
    return Evidence("path", nodes, mark.rail, span, strength, text)


def _gpus(remarks: Sequence[Remark]) -> Iterator[Evidence]:
    for one in remarks:
        if one.source == "gpu" and one.text.startswith("XID"):
            span = Span(one.at_ns - 1_000_000_000, one.at_ns + XID_NS)
            yield Evidence("gpu", (one.node,), None, span, 1.0, f"{one.node}: {one.text}")


def _hosts(acts: Sequence[Activity], grid: Grid, running: Bools) -> Iterator[Evidence]:
    """Each node against its own usual windows, and against the other nodes at the time."""
    if not acts:
        return
    cpu = np.array([act.job_cpu for act in acts])
    usual = np.array([_usual(row, running) for row in cpu])
    shares = np.where(usual[:, None] > 0.1, cpu / np.maximum(usual[:, None], 0.1), np.nan)
    lowest = _lowest_of_others(shares)
    for nth, act in enumerate(acts):
        cores = max(CROWDED * usual[nth], LEAST_CORES)
        kinds: tuple[tuple[Cause, Floats, float, str], ...] = (
            ("host_memory", act.pressure["memory"], STALLED, "tasks waited for memory"),
            ("storage", act.pressure["io"], STALLED, "tasks waited for files"),
            ("gpu", act.throttled, STALLED, "heat or power held the clock of its GPUs down"),
            ("queueing", act.resent, RESENT, "TCP segments were sent again"),
            ("steal", act.steal, cores, "the hypervisor took its CPU"),
            ("host_cpu", act.other_cpu, cores, "others used its CPU"),
        )
        for cause, values, least, words in kinds:
            yield from _as_evidence(_over(values, running, least), act, cause, words, grid)
        yield from _starved(shares[nth], lowest[nth], act, grid, running)
    yield from _silent(acts, grid, running)
    yield from _awaited(acts, grid, running)


def _awaited(acts: Sequence[Activity], grid: Grid, running: Bools) -> Iterator[Evidence]:
    """A node with a rank that computes on while the others, more than usual, wait in MPI for it."""
    share = np.array([act.mpi for act in acts])
    if len(acts) < 2 or np.isnan(share).all():
        return
    lowest = _lowest_of_others(np.where(running, share, np.nan))
    usual = np.array([_usual(row, running) for row in share])
    for nth, act in enumerate(acts):
        with np.errstate(invalid="ignore"):
            others = lowest[nth] - float(np.median(np.delete(usual, nth)))
            behind = np.where((lowest[nth] - act.mpi > AWAITED) & (others > AWAITED / 2),
                              lowest[nth] - act.mpi, 0.0)  # fmt: skip
        for one in _as_evidence(np.nan_to_num(behind), act, "rank_slow", "", grid):
            touched = grid.touched(one.span.begin_ns, one.span.end_ns)
            ranks = act.mpi_rank[touched]
            rank = int(np.bincount(ranks[ranks >= 0]).argmax()) if (ranks >= 0).any() else -1
            yield replace(one, text=f"the other ranks waited in MPI for rank {rank} on {act.node}")


def _lowest_of_others(shares: Floats) -> Floats:
    """For each node, in each window, the least of all the other nodes; NaN without any."""
    known = np.where(np.isnan(shares), np.inf, shares)
    if len(known) < 2:
        return np.full(shares.shape, np.nan)
    order = np.partition(known, 1, axis=0)
    lowest = np.where(known == order[0], order[1], order[0])
    return np.where(np.isinf(lowest), np.nan, lowest)


def _starved(
    share: Floats, others: Floats, act: Activity, grid: Grid, running: Bools
) -> Iterator[Evidence]:
    """The job's processes there ran less than usual, while those of other nodes did not."""
    known = share[running & ~np.isnan(share)]
    noise = 1.4826 * float(np.median(np.abs(known - np.median(known)))) if len(known) else 0.0
    usually = 1 - max(STARVED, min(5 * noise, 1 - STOPPED))
    less = running & (share < usually) & (share < others - STARVED / 2)
    for one in _as_evidence(np.where(less, 1 - share, 0.0), act, "rank_slow", "", grid):
        touched = grid.touched(one.span.begin_ns, one.span.end_ns)
        # The windows in which a stop begins and ends show part of it.
        inner = share[touched][1:-1] if touched.stop - touched.start > 2 else share[touched]
        if np.nanmedian(inner) < STOPPED:
            yield replace(one, cause="host_stopped", text=f"{act.node}: its processes did not run")
        else:
            words = "its processes got less CPU than usual, unlike the others'"
            yield replace(one, text=f"{act.node}: {words}")


def suspended(acts: Sequence[Activity], grid: Grid, running: Bools) -> Iterator[Evidence]:
    """Windows in which no process of the job ran on any node. Only where the accounting says that
    the job was suspended: programs may all wait for one thing as well."""
    cpu = np.array([act.job_cpu for act in acts])
    if not len(cpu):
        return
    usual = np.array([_usual(row, running) for row in cpu])
    working = usual > LEAST_CORES
    if not working.any():
        return
    share = cpu[working] / usual[working, None]
    still = running & ~np.isnan(share).all(axis=0) & (np.nan_to_num(share) < STOPPED).all(axis=0)
    for one in _as_evidence(np.where(still, 1.0, 0.0), acts[0], "suspended", "", grid):
        words = "Slurm suspended the job: no process of it ran on any node"
        yield replace(one, nodes=(), text=words)


def silent(act: Activity) -> Bools:
    """Windows of which the node measured nothing, and two on each side: probes to an agent that has
    ended, as all do when the job does, are lost too, and are counted once a second."""
    gone = act.measured < 0.5
    around = np.convolve(gone, np.ones(5))[2 : 2 + len(gone)] > 0
    return np.asarray(around & (np.cumsum(act.measured > 0.5) > 0))


def _silent(acts: Sequence[Activity], grid: Grid, running: Bools) -> Iterator[Evidence]:
    """A node that took no samples while the others did was stopped itself."""
    if len(acts) < 2:
        return
    usual = np.median([act.measured for act in acts], axis=0)
    words = "it took no samples while others did"
    for act in acts:
        silent = running & (act.measured < 0.5) & (usual > 0.5)
        silent &= np.cumsum(act.measured > 0.5) > 0
        yield from _as_evidence(np.where(silent, 0.8, 0.0), act, "host_stopped", words, grid)


def _rail_shares(acts: Sequence[Activity], grid: Grid, running: Bools) -> Iterator[Evidence]:
    """A rail that carried much less of its node's traffic than usual, without being down."""
    for act in acts:
        if len(act.rails) < 2:
            continue
        # Of what went over interfaces: RDMA does not, and is in ``act.bytes``.
        whole = np.sum(list(act.rails.values()), axis=0)
        if np.nansum(whole) < LEAST_BY_RAILS * np.nansum(act.bytes):
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            for rail, moved in act.rails.items():
                share = moved / whole
                usual = _usual(share, running)
                if usual > 0.1:
                    less = np.where(running & (share < usual / 2), 1 - share / usual, 0.0)
                    words = f"rail r{rail} carried less than half of its usual share"
                    for one in _as_evidence(less, act, "rail_slow", words, grid):
                        yield replace(one, rail=rail)


def _usual(values: Floats, running: Bools) -> float:
    known = values[running & ~np.isnan(values)]
    return float(np.median(known)) if len(known) else 0.0


def _over(values: Floats, running: Bools, least: float) -> Floats:
    """By how much each window is above the usual, where that is a lot; else 0."""
    known = values[running & ~np.isnan(values)]
    if len(known) < 4:
        return np.zeros(len(values))
    usual = float(np.median(known))
    spread = 1.4826 * float(np.median(np.abs(known - usual)))
    over = np.nan_to_num(values - usual)
    return np.where(running & (over > max(least, 5 * spread)), over, 0.0)


def _as_evidence(
    over: Floats, act: Activity, cause: Cause, words: str, grid: Grid
) -> Iterator[Evidence]:
    """Neighbouring windows are one piece."""
    at = np.flatnonzero(over > 0)
    if not len(at):
        return
    for group in np.split(at, np.flatnonzero(np.diff(at) > 2) + 1):
        span = grid.span(int(group[0]), int(group[-1]))
        strength = float(min(1.0, over[group].mean()))
        yield Evidence(cause, (act.node,), None, span, strength, f"{act.node}: {words}")
