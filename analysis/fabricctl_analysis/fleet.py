"""Many jobs' reports together: each trace read to a small digest.

Each trace is read on its own (in parallel, each in a child with limits); sums
(:mod:`fabricctl_analysis.fleet_sums`) are made of digests alone.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fabricctl.errors import FabricError
from fabricctl_analysis.build import report_of
from fabricctl_analysis.guard import Limits, Texts, guarded
from fabricctl_analysis.model import Report
from fabricctl_analysis.recovery import failures, recoveries

# Causes that lie in one node or its links, not in the program or the file system all share.
_OWN = ("link_down", "host_stopped", "host_memory", "host_cpu", "steal", "rank_slow", "rail_slow",
        "gpu", "path", "queueing")  # fmt: skip
_HOUR_NS = 3.6e12


@dataclass(frozen=True)
class Lost:
    """One verdict, in node-hours; ``error`` is half of its interval of 95 %. ``nodes`` and ``rail``
    are there when it lies in these nodes or their links."""

    cause: str
    hours: float
    error: float
    nodes: tuple[str, ...] = ()
    rail: int | None = None
    interface: str | None = None  # of that rail


@dataclass(frozen=True)
class Digest:
    """One job: amounts in node-hours."""

    path: str
    job: int
    requeue: int
    user: str
    begin_ns: int
    end_ns: int
    nodes: tuple[str, ...]
    elapsed: float
    ideal: float
    no_step: float
    not_known: float
    lost: tuple[Lost, ...]
    downs: dict[str, int]  # by "node rN": losses of link
    # Of programs by `fabricctl run`: what they took, how much of it counted (docs/report.md, ETTR),
    # and what was computed twice.
    ran: float = 0.0
    productive: float = 0.0
    repeated: float = 0.0
    failures: dict[str, int] | None = None  # by LaunchEvent in lower case
    error: str = ""

    @property
    def hours(self) -> float:
        """Of each of its nodes."""
        return (self.end_ns - self.begin_ns) / _HOUR_NS


def digest(report: Report, path: Path) -> Digest:
    """One report in a few numbers."""
    accounts = report.accounts
    interfaces = {(rail.node, rail.index): rail.interface for rail in report.rails}
    lost = []
    for one in accounts.verdicts if accounts else ():
        own = one.cause in _OWN and one.nodes and len(one.nodes) < max(2, len(report.nodes))
        error = (one.high_ns - one.low_ns) / 2 / _HOUR_NS
        made = Lost(one.cause, one.loss_ns / _HOUR_NS, error)
        if own:
            interface = interfaces.get((one.nodes[0], one.rail)) if one.rail is not None else None
            made = replace(made, nodes=one.nodes, rail=one.rail, interface=interface)
        lost.append(made)
    downs = {f"{r.node} r{r.index}": len(r.link.downs) for r in report.rails if r.link.downs}
    states = [node.state for node in report.nodes]
    count = len(report.nodes) / _HOUR_NS
    runs = [run for run in recoveries(states, report.whole.end_ns) if run.ettr is not None]
    wholes = [(run.end_ns - run.begin_ns) * count for run in runs]
    elapsed = report.whole.length_ns * count
    return Digest(
        path=str(path),
        job=report.job.job,
        requeue=report.job.requeue,
        user=report.job.user or "?",
        begin_ns=report.whole.begin_ns,
        end_ns=report.whole.end_ns,
        nodes=tuple(node.name for node in report.nodes),
        elapsed=elapsed,
        ideal=accounts.ideal_ns / _HOUR_NS if accounts else 0.0,
        no_step=accounts.no_step_ns / _HOUR_NS if accounts else 0.0,
        not_known=accounts.unknown_pace_ns / _HOUR_NS if accounts else elapsed,
        lost=tuple(lost),
        downs=downs,
        ran=sum(wholes),
        productive=sum((run.ettr or 0.0) * whole for run, whole in zip(runs, wholes, strict=True)),
        repeated=sum(loss.repeated_ns for run in runs for loss in run.losses) * count,
        failures=dict(Counter(event.name.lower() for event in failures(states))),
    )


def digest_of(path: Path) -> Digest:
    """One trace's; what is wrong with it in ``error``. To be run in many processes."""

    def work() -> Texts:
        return {"digest": json.dumps(asdict(digest(report_of(path), path)))}

    try:
        told = json.loads(guarded(path, work, Limits.of(path))["digest"])
    except (FabricError, OSError) as error:
        return Digest(str(path), 0, 0, "?", 0, 0, (), 0, 0, 0, 0, (), {}, error=str(error))
    lost = tuple(Lost(**{**one, "nodes": tuple(one["nodes"])}) for one in told["lost"])
    return Digest(**{**told, "nodes": tuple(told["nodes"]), "lost": lost})


def traces(trace_dir: Path, since_ns: int) -> list[Path]:
    """All traces of all users that were written since; links of arrays lead to the same files."""
    found: list[tuple[int, Path]] = []
    for path in trace_dir.glob("*/job-*.h5"):
        if path.is_symlink() or not path.is_file():
            continue
        written_ns = path.stat().st_mtime_ns
        if written_ns >= since_ns:
            found.append((written_ns, path))
    return [path for _, path in sorted(found)]
