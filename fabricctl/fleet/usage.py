"""Who used the cluster, and how much of it faults took: from the accounting and the traces.

Pure. An attempt counts for the part of it that lies in the period, as ``sacct --truncate`` and
sreport count it, so that days add up to months.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fabricctl.config import LOSS_CAUSES
from fabricctl.slurm.model import Usage

# How Slurm says that an attempt ended through no fault of its user (slurm.conf(5), sacct(1)).
LOST_STATES: Mapping[str, str] = {"NODE_FAIL": "node_fail", "BOOT_FAIL": "boot_fail",
                                  "PREEMPTED": "preempted"}  # fmt: skip
CAUSES = LOSS_CAUSES
GROUPS: Mapping[str, Callable[[Usage], str]] = {
    "job": lambda use: str(use.job),
    "user": lambda use: use.user or "-",
    "account": lambda use: use.account or "-",
    "partition": lambda use: use.partition or "-",
    "name": lambda use: use.name,
    "state": lambda use: use.state,
}

Period = tuple[float, float]  # begin and end, seconds since 1970


@dataclass(frozen=True)
class Price:
    """Of an hour, in the site's currency."""

    node_hour: float = 0.0
    cpu_hour: float = 0.0
    gpu_hour: float = 0.0


@dataclass
class Sum:
    """Of all attempts of one group. Lost time is part of the time used."""

    group: tuple[str, ...]
    attempts: int = 0
    jobs: set[int] = field(default_factory=set)
    wall_s: float = 0.0
    node_s: float = 0.0
    cpu_s: float = 0.0
    gpu_s: float = 0.0
    lost_node_s: dict[str, float] = field(default_factory=dict)  # cause -> node seconds
    credited_node_s: float = 0.0
    charge: float = 0.0  # after credits
    credit: float = 0.0
    traced: int = 0  # attempts of which a trace was read
    energy_j: float = 0.0  # of those of which it is known
    metered: int = 0  # how many those are

    @property
    def lost_s(self) -> float:
        return sum(self.lost_node_s.values())


@dataclass(frozen=True)
class Spans:
    """When a link of an attempt's nodes was down, begin and end in seconds since 1970."""

    job: int
    begin_real_s: float
    end_real_s: float
    down: tuple[tuple[float, float], ...]


def seconds_within(use: Usage, begin_s: float, end_s: float) -> float:
    """Time that the attempt ran within the period; time suspended is spread over its length."""
    if use.start_real_s is None:
        return 0.0
    # A running one ends for us where its elapsed time has come to (later, if it was suspended).
    ended_s = use.end_real_s if use.end_real_s is not None else use.start_real_s + use.elapsed_s
    whole = ended_s - use.start_real_s
    inside = min(ended_s, end_s) - max(use.start_real_s, begin_s)
    if whole <= 0 or inside <= 0:
        return 0.0
    return inside * min(1.0, use.elapsed_s / whole)


def summed(
    usages: Iterable[Usage],
    begin_s: float,
    end_s: float,
    by: Sequence[str],
    *,
    prices: Callable[[str | None], Price] = lambda _: Price(),
    credited: Sequence[str] = (),
    links: Mapping[int, Sequence[Spans]] | None = None,
) -> list[Sum]:
    """One sum a group, the largest first. ``by``: keys of :data:`GROUPS`, none: one sum of all.

    ``links`` has, by job, when links were down in each traced attempt; ``credited`` are
    the :data:`CAUSES` that are not charged for.
    """
    period = (begin_s, end_s)
    sums: dict[tuple[str, ...], Sum] = {}
    for use in usages:
        if use.start_real_s is None or use.start_real_s >= end_s:
            continue
        group = tuple(GROUPS[key](use) for key in by)
        total = sums.setdefault(group, Sum(group))
        ran_s = seconds_within(use, *period)
        mine = _of_attempt(use, (links or {}).get(use.job, ()))
        lost_s = _lost(use, ran_s, mine, period)
        free_s = min(ran_s, sum(lost_s.get(cause, 0.0) for cause in credited))
        total.attempts += 1
        total.traced += mine is not None
        total.jobs.add(use.job)
        total.wall_s += ran_s
        total.node_s += ran_s * use.node_count
        total.cpu_s += ran_s * use.cpus
        total.gpu_s += ran_s * use.gpus
        if use.energy_j is not None and use.elapsed_s > 0:
            # Spread evenly over the attempt, as a period may cut it.
            total.energy_j += use.energy_j * min(1.0, ran_s / use.elapsed_s)
            total.metered += 1
        for cause, seconds in lost_s.items():
            before = total.lost_node_s.get(cause, 0.0)
            total.lost_node_s[cause] = before + seconds * use.node_count
        total.credited_node_s += free_s * use.node_count
        hourly = _hourly(use, prices(use.partition))
        total.charge += (ran_s - free_s) / 3600 * hourly
        total.credit += free_s / 3600 * hourly
    return sorted(sums.values(), key=lambda each: (-each.node_s, each.group))


def _lost(use: Usage, ran_s: float, mine: Spans | None, period: Period) -> dict[str, float]:
    """Cause -> seconds of this attempt. One that was lost whole loses nothing twice."""
    if use.state in LOST_STATES:
        return {LOST_STATES[use.state]: ran_s}
    down_s = union_s(mine.down, *period) if mine is not None else 0.0
    return {"link_down": min(down_s, ran_s)} if down_s > 0 else {}


def _hourly(use: Usage, price: Price) -> float:
    return price.node_hour * use.node_count + price.cpu_hour * use.cpus + price.gpu_hour * use.gpus


def _of_attempt(use: Usage, traced: Sequence[Spans]) -> Spans | None:
    """The trace of this attempt: the one that shares the most time with it."""
    if use.start_real_s is None:
        return None
    end_s = use.end_real_s if use.end_real_s is not None else use.start_real_s + use.elapsed_s

    def shared_s(spans: Spans) -> float:
        return min(end_s, spans.end_real_s) - max(use.start_real_s or 0, spans.begin_real_s)

    best = max(traced, key=shared_s, default=None)
    return best if best is not None and shared_s(best) > 0 else None


def union_s(spans: Iterable[tuple[float, float]], begin_s: float, end_s: float) -> float:
    """Seconds of the period that lie in at least one of the spans."""
    total, last = 0.0, begin_s
    for span in sorted(spans):
        first, until = max(span[0], last), min(span[1], end_s)
        if until > first:
            total += until - first
            last = until
    return total
