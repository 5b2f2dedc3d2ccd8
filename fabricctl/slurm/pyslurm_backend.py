"""The backend on pyslurm: no process is started to ask Slurm.

Written for pyslurm 25.11. Where pyslurm loses something, the commands are asked instead; each such
place says what is lost. Never imported before :mod:`fabricctl.slurm.probe` has tried it in a
process of its own: a pyslurm built for another Slurm, or no slurm.conf, ends the process.
"""

import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from fabricctl import hostlist
from fabricctl.errors import NotFoundError, SlurmError
from fabricctl.slurm import text
from fabricctl.slurm.commands import CommandSlurm, check_node_change, step_order
from fabricctl.slurm.model import (
    FINISHED,
    WAITING,
    Job,
    Node,
    NodeAction,
    Partition,
    Reservation,
    Rights,
    Step,
    Usage,
    Version,
)


def load() -> Any:
    """pyslurm, connected to Slurm; its import changes dlopen's flags for good, so put them back."""
    flags = sys.getdlopenflags()
    before = os.environ.get("PYSLURM_DISABLE_AUTO_INIT")
    os.environ["PYSLURM_DISABLE_AUTO_INIT"] = "1"  # or its import ends us without a slurm.conf
    try:
        # Not an import statement: type checkers must do with and without pyslurm.
        pyslurm = importlib.import_module("pyslurm")
    finally:
        sys.setdlopenflags(flags)
        if before is None:
            del os.environ["PYSLURM_DISABLE_AUTO_INIT"]
        else:
            os.environ["PYSLURM_DISABLE_AUTO_INIT"] = before
    pyslurm.slurm_init()
    return pyslurm


class PyslurmSlurm:
    """Slurm by its library; ``commands`` answers what the library cannot."""

    backend = "pyslurm"

    def __init__(self, commands: CommandSlurm, reason: str) -> None:
        self._pyslurm = load()
        self._commands = commands
        self.reason = reason

    @property
    def version(self) -> Version:
        return self._commands.version

    def jobs(self) -> tuple[Job, ...]:
        """See :class:`~fabricctl.slurm.model.Slurm`, as for all below."""
        with self._errors("jobs"):
            found = sorted((_job(each) for each in _values(self._pyslurm.Jobs.load())), key=_id)
        if any(map(_status_is_lost, found)):
            exits = {each.id: each for each in self._commands.jobs()}
            found = [_with_status(each, exits.get(each.id)) for each in found]
        return tuple(found)

    def job(self, job: int) -> Job:
        try:
            with self._errors(f"job {job}", missing=("Invalid job id",)):
                found = _job(self._pyslurm.Job.load(job))
        except KeyError:
            # The library also loads the steps, and trips over those of an array's other tasks.
            return self._commands.job(job)
        if found.id != job:
            # Of an array or a heterogeneous job the library loads all parts and keeps the first.
            return self._commands.job(job)
        return _with_status(found, self._commands.job(job)) if _status_is_lost(found) else found

    def steps(self, job: int) -> tuple[Step, ...]:
        owner = self.job(job)
        if owner.finished or owner.state in WAITING:
            return ()
        if owner.array_job is not None or owner.het_job is not None:
            # The library looks for an array's task under the array's id, and fails.
            return self._commands.steps(job)
        with self._errors(f"steps of job {job}"):
            found = _values(self._pyslurm.JobSteps.load(job))
            steps = [_step(each) for each in found if str(each.id) != "pending"]
        return tuple(sorted(steps, key=step_order))

    def nodes(self) -> tuple[Node, ...]:
        with self._errors("nodes"):
            found = [_node(each) for each in _values(self._pyslurm.Nodes.load())]
        return tuple(sorted(found, key=lambda each: each.name))

    def partitions(self) -> tuple[Partition, ...]:
        with self._errors("partitions"):
            found = [_partition(each) for each in _values(self._pyslurm.Partitions.load())]
        return tuple(sorted(found, key=lambda each: each.name))

    def reservations(self) -> tuple[Reservation, ...]:
        with self._errors("reservations"):
            flag = self._pyslurm.ReservationFlags.MAINTENANCE
            every = _values(self._pyslurm.Reservations.load())
            found = [_reservation(each, flag in each.flags) for each in every]
        return tuple(sorted(found, key=lambda each: each.name))

    def set_node_state(self, nodes: Iterable[str], action: NodeAction, reason: str = "") -> None:
        wanted = hostlist.expand(hostlist.fold(nodes))
        names = hostlist.fold(wanted)
        check_node_change(names, action, reason)
        changes = {"state": action.upper(), **({"reason": reason} if reason else {})}
        with self._errors(f"{action} {names}", missing=("Invalid node name",)):
            targets = self._pyslurm.Nodes(wanted)
            targets.modify(self._pyslurm.Node(**changes))

    def set_node_comment(self, nodes: Iterable[str], comment: str) -> None:
        # The library leaves an empty comment out of what it sends.
        self._commands.set_node_comment(nodes, comment)

    def requeue(self, job: int, hold: bool = False) -> None:
        with self._errors(f"requeue of job {job}", missing=("Invalid job id",)):
            self._pyslurm.Job(job).requeue(hold=hold)

    def cancel(self, job: int, signal: int | None = None) -> None:
        known = self.job(job)
        if known.finished:
            return
        if known.array_job is not None:
            # To the library an array's number, which is also one task's, means all of its tasks.
            self._commands.cancel(job, signal)
            return
        with self._errors(f"cancel of job {job}"):
            if signal is None:
                self._pyslurm.Job(job).cancel()
            else:
                self._pyslurm.Job(job).send_signal(signal)

    def release_node(self, job: int, node: str) -> None:
        # The library cannot make a job smaller.
        self._commands.release_node(job, node)

    def usage(
        self, begin_real_s: int, end_real_s: int, job: int | None = None
    ) -> tuple[Usage, ...]:
        # The library keeps one record a job id: attempts before a requeue are lost.
        return self._commands.usage(begin_real_s, end_real_s, job)

    def rights(self) -> Mapping[str, Rights]:
        # The library's users have no admin level.
        return self._commands.rights()

    def configuration(self) -> Mapping[str, str]:
        # The library has its own names and types for what it knows of slurm.conf.
        return self._commands.configuration()

    def _errors(self, what: str, missing: tuple[str, ...] = ()) -> "_Errors":
        return _Errors(self._pyslurm.PyslurmError, what, missing)


class _Errors:
    """Turns pyslurm's exceptions into ours."""

    def __init__(self, kind: type[Exception], what: str, missing: tuple[str, ...]) -> None:
        self._kind, self._what, self._missing = kind, what, missing

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, self._kind):
            return
        if any(word in str(error) for word in self._missing):
            raise NotFoundError(f"{self._what}: {error}") from None
        raise SlurmError(f"{self._what}: {error}: see slurmctld's log") from None


def _values(collection: Any) -> list[Any]:
    return list(collection.values())


def _id(job: Job) -> int:
    return job.id


def _status_is_lost(job: Job) -> bool:
    """pyslurm takes 128 off an exit status of 128 and more."""
    return bool(job.exit_status)


def _with_status(job: Job, known: Job | None) -> Job:
    return job if known is None else replace(job, exit_status=known.exit_status)


def _job(given: Any) -> Job:
    state: str = given.state
    ended = state in FINISHED
    array, het = given.array_id, given.heterogeneous_id
    task = given.array_task_id
    if array is not None and task is None and not given.array_tasks_waiting:
        task = 0  # pyslurm takes task 0 for none; only what is not split off has waiting tasks
    limit_min = given.time_limit
    return Job(
        id=given.id,
        name=given.name or "",
        uid=given.user_id,
        user=given.user_name,
        account=given.account,
        partitions=tuple((given.partition or "").split(",")),
        state=state,
        reason=None if given.state_reason in (None, "None") else given.state_reason,
        nodes=() if state in WAITING else text.names(given.allocated_nodes or ""),
        node_count=given.num_nodes or 0,
        cpus=given.cpus,
        submit_real_s=given.submit_time,
        start_real_s=None if state in WAITING else given.start_time,
        end_real_s=given.end_time if ended else None,
        time_limit_s=limit_min * 60 if isinstance(limit_min, int) else None,
        exit_status=given.exit_code if ended else None,
        exit_signal=(given.exit_code_signal or None) if ended else None,
        array_job=array,
        array_task=task if array is not None else None,
        het_job=het,
        het_offset=(given.heterogeneous_offset or 0) if het is not None else None,
        restarts=given.requeue_count,
        reservation=given.reservation,
    )


def _step(given: Any) -> Step:
    nodes = given.allocated_nodes  # a list that was cut at the commas
    return Step(
        job=given.job_id,
        step=str(given.id),
        name=given.name or "",
        nodes=text.names(",".join(nodes) if isinstance(nodes, list) else nodes or ""),
        tasks=given.ntasks,
        start_real_s=given.start_time,
    )


def _node(given: Any) -> Node:
    state, *flags = given.state.split("+")
    reason = given.reason or None
    return Node(
        name=given.name,
        state=state.rstrip("*~#!%$@^-"),
        flags=frozenset(flags),
        reason=reason,
        reason_user=given.reason_user if reason else None,
        reason_real_s=given.reason_time if reason else None,
        cpus=given.total_cpus,
        cpus_allocated=given.allocated_cpus or 0,
        memory_mib=given.real_memory or 0,
        features=tuple(given.available_features or ()),
        partitions=tuple(given.partitions or ()),
        address=given.address or given.name,
        version=given.slurm_version,
        boot_real_s=given.boot_time,
        comment=given.comment or None,
    )


def _partition(given: Any) -> Partition:
    limit_min = given.max_time
    return Partition(
        name=given.name,
        state=given.state,
        default=bool(given.is_default),
        nodes=text.names(given.nodes or ""),
        max_time_s=limit_min * 60 if isinstance(limit_min, int) else None,
    )


def _reservation(given: Any, maintenance: bool) -> Reservation:
    return Reservation(
        name=given.name,
        nodes=text.names(given.nodes or ""),
        start_real_s=given.start_time,
        end_real_s=given.end_time,
        users=tuple(given.users or ()),
        accounts=tuple(given.accounts or ()),
        partition=given.partition,
        maintenance=maintenance,
    )
