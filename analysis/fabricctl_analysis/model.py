"""The report as data: what every rendering (terminal, HTML, JSON) is made from.

Times are CLOCK_REALTIME of the node that they come from, in ns since 1970. None is "not
measured": it is never rendered as zero or as fine.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fabricctl_analysis.align import ClockStep
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.job_clock import ClockSummary
from fabricctl_analysis.job_state import JobState
from fabricctl_analysis.links import LinkHistory
from fabricctl_analysis.moves import Moves
from fabricctl_analysis.series import Series
from fabricctl_analysis.shared_model import SharedRails

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Figure:
    """A measured value: ``value`` None when not one reading gave it.

    ``at_least``: a counter was reset in between, so that the value is a lower bound.
    ``readings`` it rests on, ``not_measured`` readings that held no value.
    """

    value: float | None
    unit: str
    readings: int
    not_measured: int = 0
    at_least: bool = False


@dataclass(frozen=True)
class JobFacts:
    """What the trace says about the job; None is "not in the trace"."""

    job: int
    array: str | None  # "12_3" for an array task
    het: str | None  # "12+1" for a component of a heterogeneous job
    requeue: int  # which run: how many requeues came before, by the file's name
    user: str | None
    cluster: str | None
    mode: str | None
    spares: int | None
    nodes: tuple[str, ...]  # of the allocation
    source: str  # the file read
    schema_version: int

    @property
    def title(self) -> str:
        """``4711``, ``12_3 (job 15)``, ``4711 (requeue 1)``."""
        other = self.array or self.het
        more = [f"job {self.job}"] if other else []
        more += [f"requeue {self.requeue}"] if self.requeue else []
        return (other or str(self.job)) + (f" ({', '.join(more)})" if more else "")


@dataclass(frozen=True)
class Unmeasured:
    """Something that the report cannot say: ``span`` None means the whole job."""

    nodes: tuple[str, ...]
    what: str
    why: str
    span: Span | None = None
    damaged: bool = False  # the file should hold it


@dataclass(frozen=True)
class RailSummary:
    """One rail of one node over the job; counters are differences, first to last sample.

    ``counters`` by column of the ``rail`` table, ``peaks`` (highest mean over one interval
    between samples, B/s) and ``series`` (B/s) by "rx" and "tx".
    """

    node: str
    index: int
    interface: str
    measured_end_ns: int
    link: LinkHistory
    counters: dict[str, Figure]
    peaks: dict[str, Figure]
    series: dict[str, Series] = field(repr=False)

    @property
    def down_ns(self) -> int:
        """Time without use; an interval that is still open counts to the end of measurement."""
        return sum(
            (self.measured_end_ns if down.end_ns is None else down.end_ns) - down.begin_ns
            for down in self.link.downs
        )


@dataclass(frozen=True)
class NodeSummary:
    """One node of the allocation; empty figures when it is missing from the trace."""

    name: str
    measured: tuple[Span, ...] = ()
    period_ns: int | None = None
    agent_lives: int = 0
    clock_error_ns: int | None = None
    figures: dict[str, Figure] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict, repr=False)
    clock: ClockSummary | None = None  # None: no job time on this node
    state: JobState | None = None  # None: a node without a trace
    own_cores: float | None = None  # what the agent itself took
    own_bytes: int | None = None

    @property
    def measured_ns(self) -> int:
        return sum(span.length_ns for span in self.measured)


@dataclass(frozen=True)
class Attempt:
    """One attempt of the job by Slurm's accounting; a job that is requeued has several."""

    state: str
    waited_s: int | None  # in the queue: since the submission, or the end of the attempt before
    begin_s: int
    end_s: int | None
    elapsed_s: int  # without the time it was suspended
    suspended_s: int
    nodes: int
    account: str | None
    partition: str | None


@dataclass(frozen=True)
class LinkMark:
    """One link event, for the time line."""

    node: str
    rail: int
    at_ns: int
    event: str  # schema.LinkEvent in lower case


@dataclass(frozen=True)
class PathMark:
    """What link failover reported of one path; times of 0: none."""

    node: str
    peer: str
    rail: int
    at_ns: int
    event: str  # schema.PathEvent in lower case
    level: str  # schema.PathLevel in lower case
    reason: str
    begin_ns: int
    moved_ns: int
    recovered_ns: int
    text: str


Cause = Literal[
    "restart", "suspended", "gpu",
    "link_down", "path", "queueing", "host_stopped", "host_memory", "storage", "host_cpu",
    "steal", "rank_slow", "rail_slow", "checkpoint", "phase", "start_end", "unknown",
]  # fmt: skip


@dataclass(frozen=True)
class Other:
    """Another cause that was there at the same time, and its place."""

    cause: Cause
    nodes: tuple[str, ...]
    rail: int | None


@dataclass(frozen=True)
class Verdict:
    """Time that was lost to one cause: in nanoseconds of all nodes together (node-ns).

    ``low_ns`` to ``high_ns`` holds the true loss in 95 of 100 such verdicts. ``also``: evidence
    of other causes at the same time, which ``others`` places. ``coverage``: share of the nodes'
    time that was measured.
    """

    cause: Cause
    nodes: tuple[str, ...]
    rail: int | None
    begin_ns: int
    end_ns: int
    loss_ns: int
    low_ns: int
    high_ns: int
    certainty: Literal["sure", "likely", "none"]
    evidence: tuple[str, ...]
    also: tuple[str, ...]
    coverage: float
    others: tuple[Other, ...] = ()
    windows: tuple[int, ...] = field(repr=False, default=())

    @property
    def length_s(self) -> float:
        return (self.end_ns - self.begin_ns) / 1e9


@dataclass(frozen=True)
class Heat:
    """Each node's own pace in equal parts of the job: ``levels[node, part]`` in percent of its
    usual, 255 where it is not known."""

    nodes: tuple[str, ...]
    levels: NDArray[np.uint8]


@dataclass(frozen=True)
class Strip:
    """``levels[row, part]``; what a level means is the name's own affair, 255 is not measured.

    ``of``: how many rows there were.
    """

    name: str  # `delay`, `waiting`, `gpu`
    rows: tuple[str, ...]
    levels: NDArray[np.uint8] = field(repr=False)
    of: int


@dataclass(frozen=True)
class Accounts:
    """Where the allocation's time went, in node-ns: ``elapsed_ns`` is the sum of ``no_step_ns``
    (no step ran), ``unknown_pace_ns`` (not measured), ``ideal_ns`` (what the work takes at the
    usual pace), the verdicts' losses and ``variation_ns`` (small ups and downs, may be below 0).
    """

    signal: Literal["iterations", "traffic", "mpi", "cpu", "none"]  # what the pace was taken from
    window_ns: int
    iteration_s: float | None  # found in the pattern of the work
    deviation: float | None  # of one window's pace from the usual
    usual_per_s: float | None  # of all nodes: bytes a second by traffic, cores by CPU
    nodes: int
    ranks: int | None  # of the program, None: they are not tracked
    elapsed_ns: int
    no_step_ns: int
    unknown_pace_ns: int
    ideal_ns: int
    variation_ns: int
    verdicts: tuple[Verdict, ...]
    harmless: tuple[Verdict, ...]  # troubles of links and paths that cost nothing to speak of
    pace: tuple[float, ...] = field(repr=False, default=())
    heat: "Heat | None" = field(repr=False, default=None)

    @property
    def lost_ns(self) -> int:
        return sum(one.loss_ns for one in self.verdicts)

    def rank_s(self, node_ns: int) -> float | None:
        """Rank-seconds of an amount of node-ns: all nodes hold as many ranks."""
        return node_ns / 1e9 * self.ranks / self.nodes if self.ranks and self.nodes else None


@dataclass(frozen=True)
class StepSummary:
    """A job step: first begin and last end over the nodes that saw it."""

    step: str
    nodes: tuple[str, ...]
    begin_ns: int | None
    end_ns: int | None


@dataclass(frozen=True)
class Remark:
    """A note of a node."""

    node: str
    at_ns: int
    severity: Severity
    source: str
    text: str


@dataclass(frozen=True)
class Finding:
    """One sentence worth reading first; ``begin_ns`` places it on the time line."""

    severity: Severity
    kind: str
    nodes: tuple[str, ...]
    rail: int | None
    begin_ns: int | None
    end_ns: int | None
    text: str


@dataclass(frozen=True)
class Report:
    """Everything that is said about one job."""

    job: JobFacts
    whole: Span  # the allocation as far as the trace knows it
    nodes: tuple[NodeSummary, ...]
    rails: tuple[RailSummary, ...]
    marks: tuple[LinkMark, ...]
    steps: tuple[StepSummary, ...]
    remarks: tuple[Remark, ...]
    unmeasured: tuple[Unmeasured, ...]
    clock_steps: tuple[tuple[str, ClockStep], ...]
    paths: tuple[PathMark, ...] = ()
    accounts: Accounts | None = None  # None: the trace does not say when the job began and ended
    moves: Moves = field(default_factory=Moves)
    shared: SharedRails = field(default_factory=SharedRails)
    strips: tuple[Strip, ...] = ()
    attempts: tuple[Attempt, ...] = ()  # empty: the accounting was not asked

    @property
    def coverage(self) -> float:
        """Share of the nodes' time in the job that was measured, 0 to 1."""
        whole = self.whole.length_ns * max(1, len(self.nodes))
        return min(1.0, sum(node.measured_ns for node in self.nodes) / whole) if whole else 0.0

    @property
    def clock_error_ns(self) -> int | None:
        """The worst error of any node's own conversion; None when one has none."""
        errors = [node.clock_error_ns for node in self.nodes if node.measured]
        known = [error for error in errors if error is not None]
        return max(known) if known and len(known) == len(errors) else None
