"""What failures will do to a job: how many, how often to checkpoint, what it costs.

Failures come at random at a constant rate for each node (a Poisson process), which published
records of large clusters bear out once nodes that fail again and again are out. Expected time and
the best interval are Daly's (J. T. Daly, "A higher order estimate of the optimum checkpoint
interval for restart dumps", Future Generation Computer Systems 22, 2006, equations 20 and 37).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

# Of the interval that every figure is given with, and of "enough spares".
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Rate:
    """``failures`` seen in ``node_hours``; what is counted says ``source``."""

    name: str
    failures: int
    node_hours: float
    source: str

    @property
    def per_node_hour(self) -> float:
        return self.failures / self.node_hours

    def bounds(self) -> tuple[float, float]:
        """Exact interval of a Poisson rate (Garwood 1936)."""
        tail = (1 - CONFIDENCE) / 2
        low = 0.0
        if self.failures:
            low = _solve(lambda mean: 1 - poisson_cdf(self.failures - 1, mean), tail, self.failures)
        high = _solve(lambda mean: -poisson_cdf(self.failures, mean), -tail, self.failures)
        return low / self.node_hours, high / self.node_hours


@dataclass(frozen=True)
class Job:
    """``work_s`` without any failure; ``checkpoint_s`` that the job stands still for one;
    ``restart_s`` from a failure to the first step repeated."""

    nodes: int
    work_s: float
    checkpoint_s: float
    restart_s: float


@dataclass(frozen=True)
class Expected:
    """What to expect of a job at one rate of failures."""

    mtbf_s: float  # of the whole job
    failures: float  # until it is done
    interval_s: float  # best time of work between two checkpoints
    wall_s: float
    spares: int  # that suffice in 95 of 100 such jobs

    def goodput(self, job: Job) -> float:
        """Share of the time that goes into the work (ETTR of RSC's terms)."""
        return job.work_s / self.wall_s if math.isfinite(self.wall_s) else 0.0


def expected(job: Job, per_node_hour: float, interval_s: float | None = None) -> Expected:
    """At a rate of failures; ``interval_s`` None: the best."""
    if per_node_hour <= 0:
        interval = job.work_s if interval_s is None else interval_s
        wall = job.work_s + job.checkpoint_s * max(0.0, job.work_s / interval - 1)
        return Expected(math.inf, 0.0, interval, wall, 0)
    mtbf_s = 3600 / (per_node_hour * job.nodes)
    best = best_interval_s(job.checkpoint_s, mtbf_s) if interval_s is None else interval_s
    interval = min(max(best, 1e-3), job.work_s)
    wall_s = wall_time_s(job, mtbf_s, interval)
    failures = wall_s / mtbf_s
    spares = poisson_quantile(CONFIDENCE, failures) if math.isfinite(failures) else job.nodes
    return Expected(mtbf_s, failures, interval, wall_s, spares)


def best_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Daly's equation 37; work between the end of one checkpoint and the begin of the next."""
    if checkpoint_s <= 0:
        return 1.0
    if checkpoint_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = checkpoint_s / (2 * mtbf_s)
    root = math.sqrt(2 * checkpoint_s * mtbf_s)
    return root * (1 + math.sqrt(ratio) / 3 + ratio / 9) - checkpoint_s


def wall_time_s(job: Job, mtbf_s: float, interval_s: float) -> float:
    """Daly's equation 20: failures may strike in work, checkpoint and restart alike."""
    try:
        again = math.expm1((interval_s + job.checkpoint_s) / mtbf_s)
        return mtbf_s * math.exp(job.restart_s / mtbf_s) * again * job.work_s / interval_s
    except OverflowError:
        return math.inf


def poisson_cdf(count: int, mean: float) -> float:
    """P(X <= count)."""
    if mean <= 0:
        return 1.0
    terms = [nth * math.log(mean) - mean - math.lgamma(nth + 1) for nth in range(count + 1)]
    top = max(terms)
    return min(1.0, math.exp(top) * math.fsum(math.exp(term - top) for term in terms))


def poisson_quantile(share: float, mean: float) -> int:
    """The least count that is not exceeded with that probability."""
    high = int(mean + 10 * math.sqrt(mean) + 10)
    low = 0
    while low < high:
        middle = (low + high) // 2
        if poisson_cdf(middle, mean) >= share:
            high = middle
        else:
            low = middle + 1
    return low


def _solve(rising: Callable[[float], float], wanted: float, around: int) -> float:
    """The mean at which a rising function of it has a value."""
    low, high = 0.0, around + 10 * math.sqrt(around + 1) + 10
    for _ in range(100):
        middle = (low + high) / 2
        if rising(middle) < wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2


# Interruptions that were not planned, of 16,384 GPUs in servers of 8, over 54 days.
PUBLISHED = (
    Rate(
        "llama3", 419, 16_384 / 8 * 54 * 24,
        "The Llama 3 Herd of Models, table 5: 419 unexpected interruptions in 54 days",
    ),
    Rate(
        "llama3-hardware", 328, 16_384 / 8 * 54 * 24,
        "The same, the 78 % of them that were confirmed or suspected hardware",
    ),
)  # fmt: skip
