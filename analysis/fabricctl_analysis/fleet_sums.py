"""Sums over digests: by user, account, node, link and switch; lemons; how often what fails.

The accounting (:class:`fabricctl.slurm.model.Usage`) adds what a trace cannot know: the account,
how long a job waited before it began, and that an attempt was ended for another job's sake.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fabricctl.slurm.model import Usage
from fabricctl_analysis.fleet import Digest, Lost
from fabricctl_analysis.plan_model import Rate, poisson_cdf

# A node is a lemon when so many incidents are its own and chance gives that to less than one node
# in a thousand fleets.
LEMON_INCIDENTS, LEMON_CHANCE = 3, 1e-3
# What ends a program: by `fabricctl run`'s word, or by the accounting's.
FAILURES = {
    "node_dead": "a node died",
    "script_lost": "a job script's node died",
    "ranks_dead": "ranks died, their nodes lived",
    "hang": "ranks hung and were ended",
    "node_fail": "Slurm: NODE_FAIL",
    "boot_fail": "Slurm: BOOT_FAIL",
}
TOLD = ("node_dead", "script_lost")  # by a trace
OF_NODES = (*TOLD, "node_fail", "boot_fail")
SwitchOf = Callable[[str, str | None], str | None]  # of a node's interface


@dataclass
class Group:
    """One user, account, node, link or switch; node-hours."""

    name: str
    jobs: set[int] = field(default_factory=set)
    elapsed: float = 0.0
    counted: float = 0.0  # at the usual pace, and not computed twice
    lost: Counter[str] = field(default_factory=Counter)
    variance: float = 0.0
    incidents: int = 0

    @property
    def lost_h(self) -> float:
        return float(sum(self.lost.values()))

    @property
    def error_h(self) -> float:
        """Half of the interval of 95 %: errors of verdicts are independent of each other."""
        return math.sqrt(self.variance)

    @property
    def goodput(self) -> float | None:
        return self.counted / self.elapsed if self.elapsed else None

    def add(self, one: Lost, share: float = 1.0) -> None:
        self.lost[one.cause] += one.hours * share  # type: ignore[assignment]
        self.variance += (one.error * share) ** 2


@dataclass
class Fleet:
    """All that was read. ``attempts`` of the accounting by job; empty when it was not asked."""

    digests: list[Digest] = field(default_factory=list)
    failed: list[Digest] = field(default_factory=list)
    attempts: Mapping[int, Sequence[Usage]] = field(default_factory=dict)
    switch_of: SwitchOf | None = None

    @property
    def node_hours(self) -> dict[str, float]:
        """Of each node in jobs."""
        found: dict[str, float] = defaultdict(float)
        for one in self.digests:
            for node in one.nodes:
                found[node] += one.hours
        return found

    def total(self, name: str) -> float:
        return float(sum(getattr(one, name) for one in self.digests))

    @property
    def whole(self) -> Group:
        """All jobs as one group."""
        found = Group("")
        for one in self.digests:
            _add_job(found, one)
        return found

    @property
    def goodput(self) -> float | None:
        """Share of the node-hours that was work at the usual pace, and counted."""
        return self.whole.goodput

    @property
    def ettr(self) -> float | None:
        """Of programs by `fabricctl run`: productive time over theirs (docs/report.md)."""
        ran = self.total("ran")
        return self.total("productive") / ran if ran else None

    # By whom and where ---------------------------------------------------------------------------

    def by_user(self) -> list[Group]:
        return self._by(lambda one: one.user)

    def by_account(self) -> list[Group]:
        """Empty without the accounting; jobs that it does not know are under ``-``."""
        if not self.attempts:
            return []
        return self._by(lambda one: next(
            (use.account for use in self.attempts.get(one.job, ()) if use.account), "-"
        ))  # fmt: skip

    def by_node(self) -> list[Group]:
        """What lies in each node; nodes without any loss too, for their hours."""
        found = {node: Group(node, elapsed=hours) for node, hours in self.node_hours.items()}
        for job, one in self._placed():
            for node in one.nodes:
                group = found.setdefault(node, Group(node))
                group.add(one, 1 / len(one.nodes))
                group.incidents += 1
                group.jobs.add(job)
        return _worst_first(found.values())

    def by_link(self) -> list[Group]:
        """Of verdicts that name a rail; ``incidents`` are losses of link."""
        found: dict[str, Group] = {}
        for job, one in self._placed():
            if one.rail is not None:
                for node in one.nodes:
                    group = found.setdefault(f"{node} r{one.rail}", Group(f"{node} r{one.rail}"))
                    group.add(one, 1 / len(one.nodes))
                    group.jobs.add(job)
        for digest in self.digests:
            for link, times in digest.downs.items():
                found.setdefault(link, Group(link)).incidents += times
        hours = self.node_hours
        for name, group in found.items():
            group.elapsed = hours.get(name.rpartition(" ")[0], 0.0)
        return _worst_first(found.values())

    def by_switch(self) -> list[Group]:
        """What the nodes and links below each switch lost; of verdicts that name several nodes of
        one switch the switch itself is suspect: those are its ``incidents``."""
        if self.switch_of is None:
            return []
        found: dict[str, Group] = {}
        for node, hours in self.node_hours.items():
            if name := self.switch_of(node, None):
                found.setdefault(name, Group(name)).elapsed += hours
        for job, one in self._placed():
            names = [self.switch_of(node, one.interface) for node in one.nodes]
            for name in names:
                if name:
                    group = found.setdefault(name, Group(name))
                    group.add(one, 1 / len(names))
                    group.jobs.add(job)
            if len(names) > 1 and len(set(names)) == 1 and names[0]:
                found[names[0]].incidents += 1
        return _worst_first(found.values())

    def _by(self, name: Callable[[Digest], str]) -> list[Group]:
        found: dict[str, Group] = {}
        for one in self.digests:
            _add_job(found.setdefault(name(one), Group(name(one))), one)
        return _worst_first(found.values())

    def _placed(self) -> Iterator[tuple[int, Lost]]:
        return ((job.job, one) for job in self.digests for one in job.lost if one.nodes)

    # How often -----------------------------------------------------------------------------------

    def lemons(self) -> list[tuple[str, int, float]]:
        """Node, its incidents, and how many chance would give it."""
        groups = self.by_node()
        whole_hours = sum(group.elapsed for group in groups)
        whole = sum(group.incidents for group in groups)
        found = []
        for group in (one for one in groups if one.incidents >= LEMON_INCIDENTS):
            # Of the others: a lemon must not set the measure that it is held against.
            rest_hours, count = whole_hours - group.elapsed, group.incidents
            rate = (whole - count + 1) / rest_hours if rest_hours > 0 else float("inf")
            mean = rate * group.elapsed
            chance = 1 - poisson_cdf(count - 1, mean)
            if chance < LEMON_CHANCE / max(1, len(groups)):
                found.append((group.name, count, mean))
        return sorted(found, key=lambda one: -one[1])

    def links(self) -> Rate:
        """Losses of link in node-hours."""
        downs = sum(sum(one.downs.values()) for one in self.digests)
        return self._rate("links", downs)

    def failures(self) -> dict[str, Rate]:
        """What ended programs, by kind, and of nodes together as ``nodes``. An attempt that Slurm
        ended for its node is not counted again when its trace tells of the node's death."""
        counts: Counter[str] = Counter()
        told = set()
        for one in self.digests:
            counts.update(one.failures or {})
            if any((one.failures or {}).get(kind) for kind in TOLD):
                told.add((one.job, one.requeue))
        for job, attempts in self.attempts.items():
            for nth, use in enumerate(attempts):
                kind = use.state.lower()
                if kind in OF_NODES and (job, nth) not in told:
                    counts[kind] += 1
        rates = {kind: self._rate(kind, counts[kind]) for kind in FAILURES if counts[kind]}
        nodes = self._rate("nodes", sum(counts[kind] for kind in OF_NODES))
        return rates | {"nodes": nodes}

    def _rate(self, name: str, count: int) -> Rate:
        return Rate(name, count, max(1e-9, sum(self.node_hours.values())), name)

    def waited(self) -> dict[str, float]:
        """Job-hours before the first start (``queue``) and between attempts (``requeue``), and the
        node-hours of attempts that Slurm ended for other jobs (``preempted_node_h``)."""
        found = {"queue_h": 0.0, "requeue_h": 0.0, "preempted_node_h": 0.0, "preempted": 0.0}
        for attempts in self.attempts.values():
            ended_s: int | None = None
            for use in attempts:
                if use.submit_real_s is not None and use.start_real_s is not None:
                    kind = "queue_h" if ended_s is None else "requeue_h"
                    since_s = use.submit_real_s if ended_s is None else ended_s
                    found[kind] += max(0, use.start_real_s - since_s) / 3600
                ended_s = use.end_real_s if use.end_real_s is not None else ended_s
                if use.state == "PREEMPTED":
                    found["preempted"] += 1
                    found["preempted_node_h"] += use.elapsed_s * use.node_count / 3600
        return found


def summed(
    digests: Iterable[Digest],
    usages: Iterable[Usage] = (),
    switch_of: SwitchOf | None = None,
) -> Fleet:
    """``usages``: of the accounting; those of jobs without a trace are left out."""
    fleet = Fleet(switch_of=switch_of)
    for one in digests:
        (fleet.failed if one.error else fleet.digests).append(one)
    jobs = {one.job for one in fleet.digests}
    attempts: dict[int, list[Usage]] = defaultdict(list)
    for use in sorted(usages, key=lambda use: use.start_real_s or 0):
        if use.job in jobs and use.start_real_s is not None:  # attempts are those that began
            attempts[use.job].append(use)
    fleet.attempts = attempts
    return fleet


def _add_job(group: Group, one: Digest) -> None:
    group.jobs.add(one.job)
    group.elapsed += one.elapsed
    group.counted += max(0.0, one.ideal - one.repeated)
    for lost in one.lost:
        group.add(lost)
        group.incidents += 1


def _worst_first(groups: Iterable[Group]) -> list[Group]:
    return sorted(groups, key=lambda group: (-group.lost_h, -group.incidents, group.name))
