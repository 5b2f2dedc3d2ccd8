"""What Slurm knows, as records, and the one interface to ask it.

Times are whole seconds of CLOCK_REALTIME, as Slurm keeps them. None means that Slurm has no value.
Both backends fill these records alike; ``tests/support/slurm_contract.py`` holds them to it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

# Slurm's job states (src/common/slurm_protocol_defs.c, job_state_string): the base states, and the
# flags that are shown instead of the base state, the first that is set.
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT",
                     "RESV_DEL_HOLD", "REVOKED"})  # fmt: skip
FINISHED = frozenset({"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED",
                      "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY"})  # fmt: skip
STATE_FLAGS = ("COMPLETING", "STAGE_OUT", "CONFIGURING", "RESIZING", "REQUEUED", "REQUEUE_FED",
               "REQUEUE_HOLD", "SPECIAL_EXIT", "STOPPED", "REVOKED", "RESV_DEL_HOLD",
               "SIGNALING")  # fmt: skip

NodeAction = Literal["drain", "down", "resume"]


@dataclass(frozen=True)
class Job:
    """One record of the controller: a job, an array's task or what is left of the array, or a
    component of a heterogeneous job."""

    id: int
    name: str
    uid: int
    user: str  # the uid's digits where it has no name
    account: str | None
    partitions: tuple[str, ...]  # more than one only while it waits
    state: str  # as squeue shows it: PENDING, RUNNING, COMPLETING, ...
    reason: str | None
    nodes: tuple[str, ...]
    node_count: int
    cpus: int
    submit_real_s: int | None
    start_real_s: int | None  # None while it waits
    end_real_s: int | None  # None until it has ended
    time_limit_s: int | None  # None: unlimited, or not yet known
    exit_status: int | None  # None until it has ended
    exit_signal: int | None
    array_job: int | None
    array_task: int | None  # None for the tasks of an array that Slurm has not yet split off
    het_job: int | None
    het_offset: int | None
    restarts: int
    reservation: str | None

    @property
    def finished(self) -> bool:
        """It will not run again by itself, and its processes are gone."""
        return self.state in FINISHED


@dataclass(frozen=True)
class Step:
    """A step that is there now."""

    job: int
    step: str  # its number, or batch, extern, interactive
    name: str
    nodes: tuple[str, ...]
    tasks: int
    start_real_s: int | None


@dataclass(frozen=True)
class Node:
    """A node as the controller sees it."""

    name: str
    state: str  # the base state: IDLE, MIXED, ALLOCATED, DOWN, UNKNOWN, ...
    flags: frozenset[str]  # DRAIN, NOT_RESPONDING, COMPLETING, MAINTENANCE, RESERVED, ...
    reason: str | None
    reason_user: str | None
    reason_real_s: int | None
    cpus: int
    cpus_allocated: int
    memory_mib: int
    features: tuple[str, ...]
    partitions: tuple[str, ...]
    address: str
    version: str | None  # None until its slurmd has registered
    boot_real_s: int | None
    comment: str | None = None

    @property
    def usable(self) -> bool:
        """New jobs can start on it."""
        out = {"DRAIN", "NOT_RESPONDING", "FAIL", "POWERED_DOWN", "POWERING_DOWN", "INVALID_REG"}
        return self.state in ("IDLE", "MIXED", "ALLOCATED") and not out & self.flags


@dataclass(frozen=True)
class Partition:
    """A partition and its nodes."""

    name: str
    state: str  # UP, DOWN, DRAIN, INACTIVE
    default: bool
    nodes: tuple[str, ...]
    max_time_s: int | None  # None: unlimited


@dataclass(frozen=True)
class Reservation:
    """Nodes kept for somebody, or for maintenance, for a while."""

    name: str
    nodes: tuple[str, ...]
    start_real_s: int
    end_real_s: int
    users: tuple[str, ...]
    accounts: tuple[str, ...]
    partition: str | None
    maintenance: bool


@dataclass(frozen=True)
class Usage:
    """One attempt of a job, from the accounting: a job that was requeued has several."""

    job: int
    user: str | None
    account: str | None
    partition: str | None
    state: str
    nodes: tuple[str, ...]
    node_count: int
    cpus: int
    submit_real_s: int | None
    start_real_s: int | None
    end_real_s: int | None
    elapsed_s: int  # without the time it was suspended
    name: str
    gpus: int = 0  # of AllocTRES gres/gpu
    energy_j: int | None = None  # None: no AcctGatherEnergy plugin measured it


@dataclass(frozen=True)
class Rights:
    """What Slurm's accounting lets a user do."""

    level: Literal["user", "operator", "admin"]
    coordinates: tuple[str, ...] = ()  # accounts


@dataclass(frozen=True)
class Version:
    """Slurm's version; 22.05 is ``Version(22, 5, ...)``."""

    major: int
    minor: int
    text: str

    @property
    def series(self) -> tuple[int, int]:
        """What plugins must have been built for."""
        return self.major, self.minor


class Slurm(Protocol):
    """Everything that this project asks of Slurm. Each call raises
    :class:`~fabricctl.errors.SlurmError` when Slurm does not answer or says no, and
    :class:`~fabricctl.errors.NotFoundError` when there is no such job or node."""

    @property
    def backend(self) -> str:
        """``commands`` or ``pyslurm``."""

    @property
    def reason(self) -> str:
        """Why this backend."""

    @property
    def version(self) -> Version: ...

    def jobs(self) -> tuple[Job, ...]:
        """All that the controller remembers, by id: also those that ended within MinJobAge."""

    def job(self, job: int) -> Job: ...

    def steps(self, job: int) -> tuple[Step, ...]:
        """The job's steps that are there now, numbered ones first."""

    def nodes(self) -> tuple[Node, ...]:
        """By name."""

    def partitions(self) -> tuple[Partition, ...]: ...

    def reservations(self) -> tuple[Reservation, ...]: ...

    def set_node_state(self, nodes: Iterable[str], action: NodeAction, reason: str = "") -> None:
        """``drain`` lets jobs end, ``down`` kills them; both want a reason."""

    def set_node_comment(self, nodes: Iterable[str], comment: str) -> None:
        """An empty one takes it away. (Slurm keeps a reason only where a node is out.)"""

    def requeue(self, job: int, hold: bool = False) -> None: ...

    def cancel(self, job: int, signal: int | None = None) -> None:
        """Ends the job, or only sends a signal to its steps. A job that has ended is left alone.

        Of an array this is the one record with that id: a task, or all that is not yet split off.
        """

    def release_node(self, job: int, node: str) -> None:
        """Takes a node out of a running job; no step of it may be left there."""

    def usage(
        self, begin_real_s: int, end_real_s: int, job: int | None = None
    ) -> tuple[Usage, ...]:
        """Attempts of all users, or of one job, that were there between the two times; needs
        slurmdbd."""

    def rights(self) -> Mapping[str, Rights]:
        """By user, of those that the accounting knows; needs slurmdbd."""

    def configuration(self) -> Mapping[str, str]:
        """slurm.conf as the controller has it, every key."""
