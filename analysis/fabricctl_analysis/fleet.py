"""Many jobs' reports together: where the fleet's time went, and which nodes and links are to blame.

Each trace is read on its own (in parallel, each in a child with limits) to a small digest; sums are
made of digests alone.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fabricctl.errors import FabricError
from fabricctl_analysis.build import report_of
from fabricctl_analysis.guard import Limits, Texts, guarded
from fabricctl_analysis.model import Report
from fabricctl_analysis.plan_model import Rate, poisson_cdf

# A node is a lemon when so many incidents are its own and chance gives that to less than one node
# in a thousand fleets.
LEMON_INCIDENTS, LEMON_CHANCE = 3, 1e-3
# Causes that lie in one node or its links, not in the program or the file system all share.
_OWN = ("link_down", "host_stopped", "host_memory", "host_cpu", "steal", "rank_slow", "rail_slow",
        "gpu", "path", "queueing")  # fmt: skip


@dataclass(frozen=True)
class Digest:
    """One job: amounts in node-hours."""

    path: str
    job: int
    user: str
    begin_ns: int
    end_ns: int
    nodes: tuple[str, ...]
    elapsed: float
    ideal: float
    no_step: float
    not_known: float
    lost: dict[str, float]  # by cause
    of_node: dict[str, float]  # lost to a cause at that node
    incidents: dict[str, int]  # by node: verdicts that name it
    downs: dict[str, int]  # by "node rN": losses of link
    error: str = ""


@dataclass
class Fleet:
    """Sums over digests."""

    digests: list[Digest] = field(default_factory=list)
    failed: list[Digest] = field(default_factory=list)

    @property
    def node_hours(self) -> dict[str, float]:
        """Of each node in jobs."""
        found: dict[str, float] = defaultdict(float)
        for one in self.digests:
            for node in one.nodes:
                found[node] += (one.end_ns - one.begin_ns) / 3.6e12
        return found

    def total(self, name: str) -> float:
        return float(sum(getattr(one, name) for one in self.digests))

    def by_cause(self) -> Counter[str]:
        return self._summed(one.lost for one in self.digests)

    def by_node(self) -> Counter[str]:
        return self._summed(one.of_node for one in self.digests)

    def by_user(self) -> dict[str, tuple[float, float]]:
        """Elapsed and lost."""
        found: dict[str, tuple[float, float]] = {}
        for one in self.digests:
            elapsed, lost = found.get(one.user, (0.0, 0.0))
            found[one.user] = (elapsed + one.elapsed, lost + sum(one.lost.values()))
        return found

    def incidents(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for one in self.digests:
            counts.update(one.incidents)
        return counts

    def links(self) -> Rate:
        """Losses of link in node-hours."""
        downs = sum(sum(one.downs.values()) for one in self.digests)
        return Rate("links", downs, max(1e-9, sum(self.node_hours.values())), "losses of link")

    def worst_links(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for one in self.digests:
            counts.update(one.downs)
        return counts

    def lemons(self) -> list[tuple[str, int, float]]:
        """Node, its incidents, and how many chance would give it."""
        counts, hours = self.incidents(), self.node_hours
        whole_hours, whole = sum(hours.values()), sum(counts.values())
        found = []
        for node, count in counts.items():
            # Of the others: a lemon must not set the measure that it is held against.
            rest_hours = whole_hours - hours.get(node, 0.0)
            rate = (whole - count + 1) / rest_hours if rest_hours > 0 else float("inf")
            mean = rate * hours.get(node, 0.0)
            chance = 1 - poisson_cdf(count - 1, mean)
            if count >= LEMON_INCIDENTS and chance < LEMON_CHANCE / max(1, len(hours)):
                found.append((node, count, mean))
        return sorted(found, key=lambda one: -one[1])

    @staticmethod
    def _summed(amounts: Iterable[Mapping[str, float]]) -> Counter[str]:
        found: Counter[str] = Counter()
        for one in amounts:
            for name, amount in one.items():
                found[name] += amount  # type: ignore[assignment]
        return found


def digest(report: Report, path: Path) -> Digest:
    """One report in a few numbers."""
    accounts = report.accounts
    hour = 3.6e12
    lost: dict[str, float] = defaultdict(float)
    of_node: dict[str, float] = defaultdict(float)
    incidents: Counter[str] = Counter()
    for one in accounts.verdicts if accounts else ():
        lost[one.cause] += one.loss_ns / hour
        if one.cause in _OWN and one.nodes and len(one.nodes) < max(2, len(report.nodes)):
            for node in one.nodes:
                of_node[node] += one.loss_ns / hour / len(one.nodes)
                incidents[node] += 1
    downs = {f"{r.node} r{r.index}": len(r.link.downs) for r in report.rails if r.link.downs}
    elapsed = report.whole.length_ns * len(report.nodes) / hour
    return Digest(
        path=str(path),
        job=report.job.job,
        user=report.job.user or "?",
        begin_ns=report.whole.begin_ns,
        end_ns=report.whole.end_ns,
        nodes=tuple(node.name for node in report.nodes),
        elapsed=elapsed,
        ideal=accounts.ideal_ns / hour if accounts else 0.0,
        no_step=accounts.no_step_ns / hour if accounts else 0.0,
        not_known=accounts.unknown_pace_ns / hour if accounts else elapsed,
        lost=dict(lost),
        of_node=dict(of_node),
        incidents=dict(incidents),
        downs=downs,
    )


def digest_of(path: Path) -> Digest:
    """One trace's; what is wrong with it in ``error``. To be run in many processes."""

    def work() -> Texts:
        return {"digest": json.dumps(asdict(digest(report_of(path), path)))}

    try:
        told = json.loads(guarded(path, work, Limits.of(path))["digest"])
    except (FabricError, OSError) as error:
        return Digest(str(path), 0, "?", 0, 0, (), 0, 0, 0, 0, {}, {}, {}, {}, str(error))
    return Digest(**{**told, "nodes": tuple(told["nodes"])})


def summed(digests: Iterable[Digest]) -> Fleet:
    fleet = Fleet()
    for one in digests:
        (fleet.failed if one.error else fleet.digests).append(one)
    return fleet


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


def document(fleet: Fleet) -> dict[str, object]:
    """docs/report-json.md, "Many jobs"."""
    links = fleet.links()
    low, high = links.bounds()
    return {
        "format": "fabricctl-fleet-report",
        "version": 1,
        "jobs": len(fleet.digests),
        "unreadable": [{"trace": one.path, "why": one.error} for one in fleet.failed],
        "elapsed_node_h": fleet.total("elapsed"),
        "ideal_node_h": fleet.total("ideal"),
        "no_step_node_h": fleet.total("no_step"),
        "pace_not_measured_node_h": fleet.total("not_known"),
        "lost_node_h_by_cause": dict(fleet.by_cause().most_common()),
        "lost_node_h_by_node": dict(fleet.by_node().most_common()),
        "users": {
            user: {"elapsed_node_h": elapsed, "lost_node_h": lost}
            for user, (elapsed, lost) in sorted(fleet.by_user().items())
        },
        "link_losses": links.failures,
        "link_losses_per_1000_node_h": [1000 * v for v in (links.per_node_hour, low, high)],
        "links": dict(fleet.worst_links().most_common()),
        "lemons": [
            {"node": node, "incidents": count, "expected": mean}
            for node, count, mean in fleet.lemons()
        ],
    }
