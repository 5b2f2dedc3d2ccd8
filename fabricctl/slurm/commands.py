"""The backend on Slurm's commands: JSON from 24.11 on, text before.

Partitions, reservations and the configuration are read as text on every version: there JSON v0.0.42
lacks the default partition, and ``show config`` prints text with status 0 before 26.05.
"""

import datetime
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence

from fabricctl import hostlist
from fabricctl.errors import NotFoundError, SlurmError, UsageError
from fabricctl.slurm import json_shapes, text
from fabricctl.slurm.model import (
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
from fabricctl.slurm.run import Runner, failure, run

JSON_SINCE = (24, 11)  # the first with scontrol --json=v0.0.42


def fresh_mark() -> str:
    """Of the separators of one question: a user who knew it could name a job so that the name
    reads as records of others."""
    return secrets.token_hex(8)


class CommandSlurm:
    """Slurm by its commands; ``execute`` runs them, so that tests can play recorded answers."""

    backend = "commands"

    def __init__(
        self, execute: Runner = run, reason: str = "asked for",
        mark: Callable[[], str] = fresh_mark,
    ) -> None:  # fmt: skip
        self._execute = execute
        self._mark = mark
        self.reason = reason
        self.version = parse_version(self._ask(["scontrol", "--version"]))
        self._json = self.version.series >= JSON_SINCE

    def jobs(self) -> tuple[Job, ...]:
        """See :class:`~fabricctl.slurm.model.Slurm`, as for all below."""
        if self._json:
            argv = ["squeue", "--all", "--states=all", json_shapes.OPTION]
            found = json_shapes.records(self._ask(argv), "jobs", "squeue")
            return _by_id(json_shapes.converted(found, json_shapes.job, "squeue"))
        return _by_id(self._squeue([]))

    def job(self, job: int) -> Job:
        if self._json:
            argv = ["scontrol", "--all", json_shapes.OPTION, "show", "job", str(job)]
            found = json_shapes.records(self._ask(argv), "jobs", "scontrol show job")
            jobs = _by_id(json_shapes.converted(found, json_shapes.job, "scontrol show job"))
        else:
            try:
                jobs = _by_id(self._squeue([f"--jobs={job}"]))
            except SlurmError as error:
                if "Invalid job id" not in str(error):
                    raise
                jobs = ()
        for each in jobs:
            if each.id == job:
                return each
        raise NotFoundError(
            f"job {job}: the controller does not know it (any more): see sacct -j {job}"
        )

    def steps(self, job: int) -> tuple[Step, ...]:
        owner = self.job(job)
        if owner.finished:
            return ()
        if self._json:
            argv = ["scontrol", "--all", json_shapes.OPTION, "show", "step", str(job)]
            found = json_shapes.records(self._ask(argv), "steps", "scontrol show step")
            every = json_shapes.converted(found, json_shapes.step, "scontrol show step")
            mine = [each for each in every if each.job == job and each.step not in ("TBD", "")]
        else:
            mark = self._mark()
            argv = ["squeue", "--all", "--noheader", "--steps", f"--jobs={job}",
                    f"--format={text.record(text.STEP, mark)}"]  # fmt: skip
            mine = list(text.steps(self._ask(argv), owner, mark))
        return tuple(sorted(mine, key=step_order))

    def nodes(self) -> tuple[Node, ...]:
        shape = json_shapes.OPTION if self._json else "--oneliner"
        output = self._ask(["scontrol", "--all", shape, "show", "node"])
        if self._json:
            found = json_shapes.records(output, "nodes", "scontrol show node")
            nodes = json_shapes.converted(found, json_shapes.node, "scontrol show node")
        else:
            nodes = text.nodes(output)
        return tuple(sorted(nodes, key=lambda node: node.name))

    def partitions(self) -> tuple[Partition, ...]:
        output = self._ask(["scontrol", "--all", "--oneliner", "show", "partition"])
        return tuple(sorted(text.partitions(output), key=lambda each: each.name))

    def reservations(self) -> tuple[Reservation, ...]:
        output = self._ask(["scontrol", "--all", "--oneliner", "show", "reservation"])
        return tuple(sorted(text.reservations(output), key=lambda each: each.name))

    def set_node_state(self, nodes: Iterable[str], action: NodeAction, reason: str = "") -> None:
        names = host_list(nodes)
        check_node_change(names, action, reason)
        more = [f"Reason={reason}"] if reason else []
        self._update_nodes(names, [f"State={action.upper()}", *more])

    def set_node_comment(self, nodes: Iterable[str], comment: str) -> None:
        names = host_list(nodes)
        check_words(f"comment {names}", comment)
        if not names:
            raise UsageError("comment: no node is named")
        self._update_nodes(names, [f"Comment={comment}"])

    def _update_nodes(self, names: str, changes: Sequence[str]) -> None:
        try:
            self._ask(["scontrol", "update", f"NodeName={names}", *changes])
        except SlurmError as error:
            if "nvalid node name" in str(error):
                raise NotFoundError(f"nodes {names}: {error}") from None
            raise

    def requeue(self, job: int, hold: bool = False) -> None:
        target = _one_record(self.job(job))
        self._ask(["scontrol", "requeuehold" if hold else "requeue", target])

    def cancel(self, job: int, signal: int | None = None) -> None:
        # scancel says nothing of a job that is not there, and ends with 0.
        known = self.job(job)
        if known.finished:
            return
        only = ["--state=PENDING"] if _is_rest_of_array(known) else []
        how = [] if signal is None else [f"--signal={signal}"]
        self._ask(["scancel", *how, *only, _one_record(known)])

    def release_node(self, job: int, node: str) -> None:
        known = self.job(job)
        rest = [name for name in known.nodes if name != node]
        if node not in known.nodes or not rest:
            raise UsageError(f"job {job}: {node} is not one of its nodes, or the only one")
        self._ask(["scontrol", "update", f"JobId={job}", f"NodeList={host_list(rest)}"])

    def usage(
        self, begin_real_s: int, end_real_s: int, job: int | None = None
    ) -> tuple[Usage, ...]:
        if begin_real_s >= end_real_s:
            raise UsageError(f"usage: {begin_real_s} to {end_real_s}: ends before it begins")
        # sacct takes the second 0 for "not given", which is today's midnight.
        begin_real_s = max(begin_real_s, 1)
        begin, end = (
            datetime.datetime.fromtimestamp(each, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
            for each in (begin_real_s, end_real_s)
        )
        argv = ["sacct", "--allusers", "--duplicates", "--allocations", f"--starttime={begin}",
                f"--endtime={end}", *([] if job is None else [f"--jobs={job}"])]  # fmt: skip
        if self._json:
            found = json_shapes.records(self._ask([*argv, json_shapes.OPTION]), "jobs", "sacct")
            began = [each for each in found if each.get("time", {}).get("start")]
            every = json_shapes.converted(began, json_shapes.usage, "sacct")
        else:
            mark = self._mark()
            shape = ["--noheader", "--parsable2", f"--delimiter={text.FIELD}{mark}"]
            every = text.usage(self._ask([*argv, *shape, f"--format={text.USAGE_FORMAT}"]), mark)
        return tuple(sorted(every, key=lambda each: (each.job, each.start_real_s or 0)))

    def rights(self) -> Mapping[str, Rights]:
        argv = ["sacctmgr", "--noheader", "--parsable2", "--readonly", "show", "user",
                "withcoordinator", "format=User,AdminLevel,Coordinators"]  # fmt: skip
        return text.rights(self._ask(argv))

    def configuration(self) -> Mapping[str, str]:
        return text.configuration(self._ask(["scontrol", "show", "config"]))

    def _squeue(self, which: Sequence[str]) -> Iterable[Job]:
        argv = ["squeue", "--all", "--noheader", "--states=all", *which]
        mark = self._mark()
        rows = self._ask([*argv, f"--format={text.record(text.JOB, mark)}"])
        numbers = self._ask([*argv, f"--Format={text.NUMBERS_FORMAT}"])
        return text.jobs(rows, numbers, mark)

    def _ask(self, argv: Sequence[str]) -> str:
        answer = self._execute(argv)
        if answer.status:
            raise failure(argv, answer)
        return answer.stdout


def parse_version(output: str) -> Version:
    """From ``scontrol --version``: ``slurm 24.11.5``, ``slurm-wlm 22.05.8``."""
    match = re.search(r"(\d{2})\.(\d{2})\.\S+", output)
    if match is None:
        raise SlurmError(f"scontrol --version: {output.strip()!r} has no version in it")
    return Version(int(match.group(1)), int(match.group(2)), match.group(0))


def host_list(nodes: Iterable[str]) -> str:
    """Names as Slurm of any version reads them: 22.05 does not read ``n[1-2]-ib``."""
    folded = hostlist.fold(nodes)
    return ",".join(hostlist.expand(folded)) if re.search(r"\][^,\[]", folded) else folded


def check_node_change(names: str, action: NodeAction, reason: str) -> None:
    """Raises :class:`UsageError` for a change that Slurm would take in a wrong way."""
    if not names:
        raise UsageError(f"{action}: no node is named")
    if action != "resume" and not reason.strip():
        raise UsageError(f"{action} {names}: a reason is needed: say why")
    check_words(f"{action} {names}", reason)


def check_words(what: str, words: str) -> None:
    """Raises :class:`UsageError` for a reason or comment that Slurm would take in a wrong way."""
    if any(ord(char) < 32 for char in words):
        raise UsageError(f"{what}: the reason has a control character in it")


def step_order(step: Step) -> tuple[bool, int, str]:
    """Numbered steps first, by number."""
    named = not step.step.isdecimal()
    return named, 0 if named else int(step.step), step.step


def _is_rest_of_array(job: Job) -> bool:
    return job.array_job is not None and job.array_task is None


def _one_record(job: Job) -> str:
    """The job to Slurm's commands: an array's number means all of its tasks to them, and it is also
    the number of the task that was split off last."""
    return str(job.id) if job.array_task is None else f"{job.array_job}_{job.array_task}"


def _by_id(jobs: Iterable[Job]) -> tuple[Job, ...]:
    return tuple(sorted(jobs, key=lambda each: each.id))
