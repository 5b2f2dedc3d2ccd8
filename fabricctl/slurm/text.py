"""Reading the text that Slurm's commands print, of any version.

Whatever a user chose (a job's name) could hold blanks, line ends, ``=`` or ``UserId=root(0)``. So
jobs and steps are read from squeue and sacct with separators that nobody can know beforehand (a
control character and a mark of the one question; a name is the last field), never from ``scontrol
show job``; what scontrol prints is read only where administrators alone choose the words.
"""

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, ParamSpec, TypeVar

from fabricctl import hostlist
from fabricctl.errors import DataError, SlurmError
from fabricctl.slurm.model import (
    FINISHED,
    WAITING,
    Job,
    Node,
    Partition,
    Reservation,
    Rights,
    Step,
    Usage,
)

RECORD, FIELD = "\x1e", "\x1f"  # ASCII's own separators; a mark follows: names hold them, too

# squeue -o: what each letter means is in squeue(1). The name comes last.
JOB = ("%A", "%F", "%K", "%u", "%U", "%a", "%P", "%T", "%r", "%N", "%D", "%C", "%V", "%S", "%e",
       "%l", "%v", "%j")  # fmt: skip
# squeue -O has what the letters lack; it pads to a width, so only numbers are asked for.
NUMBERS_FORMAT = "JobID:12,RestartCnt:12,HetJobID:12,HetJobOffset:12,exit_code:12"
STEP = ("%i", "%A", "%N", "%S", "%j")
USAGE_FORMAT = ("JobIDRaw,User,Account,Partition,State,NodeList,NNodes,AllocCPUS,Submit,Start,End,"
                "ElapsedRaw,AllocTRES,JobName")  # fmt: skip

_NOTHING = frozenset({"", "(null)", "N/A", "None", "n/a", "NONE", "Unknown", "None assigned"})
_REASON = re.compile(r" Reason=(.*?) \[([^\s\[\]@]+)@(\d+)\](?= Comment=| Extra=| *$)", re.DOTALL)
_COMMENT = re.compile(r" Comment=(.*?)(?= Extra=| *$)", re.DOTALL)

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _said_by(command: str) -> Callable[[Callable[_P, Iterator[_T]]], Callable[_P, Iterator[_T]]]:
    """A record that lacks a key, or has a word for a number, is an error that says whose it is."""

    def wrap(parse: Callable[_P, Iterator[_T]]) -> Callable[_P, Iterator[_T]]:
        @functools.wraps(parse)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> Iterator[_T]:
            try:
                yield from parse(*args, **kwargs)
            except (KeyError, ValueError, IndexError) as error:
                raise SlurmError(
                    f"{command}: a record that cannot be read ({error}): report this, please"
                ) from None

        return checked

    return wrap


def record(letters: Iterable[str], mark: str) -> str:
    """For squeue -o: a record of these with separators of the question ``mark``."""
    return RECORD + mark + f"{FIELD}{mark}".join(letters)


@_said_by("squeue")
def jobs(text: str, numbers: str, mark: str) -> Iterator[Job]:
    """From squeue with a :func:`record` of ``JOB``, and again with ``NUMBERS_FORMAT``."""
    more = {words[0]: words for words in (line.split() for line in numbers.splitlines()) if words}
    for row in _rows(text, 18, mark):
        known = more.get(row[0], [row[0], "0", "N/A", "N/A", "0"])
        if len(known) != 5:
            raise SlurmError(f"squeue: {known} is not {NUMBERS_FORMAT}: report this, please")
        yield _job(row, known)


def _job(row: list[str], numbers: list[str]) -> Job:
    state = row[7]
    status, signal = _exit(numbers[4]) if state in FINISHED else (None, None)
    task = row[2] if row[2].isdecimal() else None
    array = row[1] if row[2] not in _NOTHING else None
    return Job(
        id=int(row[0]),
        name=row[17],
        uid=int(row[4]),
        user=row[3],
        account=_word(row[5]),
        partitions=tuple(row[6].split(",")),
        state=state,
        reason=_word(row[8]),
        nodes=names(row[9]),
        node_count=int(row[10].partition("-")[0]),
        cpus=int(row[11]),
        submit_real_s=seconds(row[12]),
        start_real_s=None if state in WAITING else seconds(row[13]),
        end_real_s=seconds(row[14]) if state in FINISHED else None,
        time_limit_s=duration_s(row[15]),
        exit_status=status,
        exit_signal=signal,
        array_job=None if array is None else int(array),
        array_task=None if task is None else int(task),
        het_job=_number(numbers[2]) or None,
        het_offset=_number(numbers[3]) if _number(numbers[2]) else None,
        restarts=int(numbers[1]),
        reservation=_word(row[16]),
    )


@_said_by("squeue --steps")
def steps(text: str, job: Job, mark: str) -> Iterator[Step]:
    """From ``squeue --steps`` with ``STEP``; squeue also names tasks of the same array."""
    shown = {str(job.id)}
    if job.array_job is not None:
        shown = {f"{job.array_job}_{job.array_task}"}
    if job.het_job is not None:
        shown |= {f"{job.het_job}+{job.het_offset}"}
    for row in _rows(text, 5, mark):
        owner, _, step = row[0].rpartition(".")
        if owner in shown and step != "TBD":  # to be defined: it waits for its nodes
            yield Step(job.id, step, row[4], names(row[2]), int(row[1]), seconds(row[3]))


@_said_by("scontrol show node")
def nodes(text: str) -> Iterator[Node]:
    """From ``scontrol --oneliner show node``."""
    for line in text.splitlines():
        if not line.startswith("NodeName="):
            continue
        # Free words (Reason, Comment, Extra) come last; before them each key stands once.
        given = _pairs(line)
        state, *flags = given["State"].split("+")
        reason = _REASON.search(line)
        comment = _COMMENT.search(line, reason.end() if reason else 0)
        yield Node(
            name=given["NodeName"],
            state=state.rstrip("*~#!%$@^-"),
            flags=frozenset(flags),
            reason=reason.group(1) if reason else None,
            reason_user=reason.group(2) if reason else None,
            reason_real_s=int(reason.group(3)) if reason else None,
            cpus=int(given["CPUTot"]),
            cpus_allocated=int(given["CPUAlloc"]),
            memory_mib=int(given["RealMemory"]),
            features=_list(given["AvailableFeatures"]),
            partitions=_list(given.get("Partitions", "")),
            address=given.get("NodeAddr", given["NodeName"]),
            version=_word(given.get("Version", "")),
            boot_real_s=seconds(given.get("BootTime", "")),
            comment=comment.group(1) if comment else None,
        )


def rights(text: str) -> Mapping[str, Rights]:
    """From ``sacctmgr show user`` with User, AdminLevel and Coordinators."""
    levels: Mapping[str, Literal["user", "operator", "admin"]] = {
        "Operator": "operator", "Administrator": "admin",
    }  # fmt: skip
    found = {}
    for line in text.splitlines():
        words = line.split("|")
        if len(words) == 3 and words[0]:
            accounts = tuple(name for name in words[2].split(",") if name)
            found[words[0]] = Rights(levels.get(words[1], "user"), accounts)
    return found


@_said_by("scontrol show partition")
def partitions(text: str) -> Iterator[Partition]:
    """From ``scontrol --oneliner show partition``."""
    for line in text.splitlines():
        if line.startswith("PartitionName="):
            given = _pairs(line)
            yield Partition(
                name=given["PartitionName"],
                state=given["State"],
                default=given["Default"] == "YES",
                nodes=names(given["Nodes"]),
                max_time_s=duration_s(given["MaxTime"]),
            )


@_said_by("scontrol show reservation")
def reservations(text: str) -> Iterator[Reservation]:
    """From ``scontrol --oneliner show reservation``."""
    for line in text.splitlines():
        if line.startswith("ReservationName="):
            given = _pairs(line)
            yield Reservation(
                name=given["ReservationName"],
                nodes=names(given["Nodes"]),
                start_real_s=int(given["StartTime"]),
                end_real_s=int(given["EndTime"]),
                users=_list(given["Users"]),
                accounts=_list(given["Accounts"]),
                partition=_word(given["PartitionName"]),
                maintenance="MAINT" in given["Flags"].split(","),
            )


@_said_by("sacct")
def usage(text: str, mark: str) -> Iterator[Usage]:
    """From ``sacct --parsable2`` with ``USAGE_FORMAT``, ``FIELD`` and ``mark`` between fields."""
    pending: list[str] = []
    for line in text.removesuffix("\n").split("\n") if text else ():
        # sacct has no separator of records: a line without fields goes on with a job's name.
        if line.count(FIELD + mark) == 13 or not pending:
            pending.append(line)
        else:
            pending[-1] += "\n" + line
    for record in pending:
        row = record.split(FIELD + mark)
        if len(row) != 14:
            raise SlurmError(f"sacct: {record[:60]!r} is not {USAGE_FORMAT}: report this, please")
        if seconds(row[9]) is None:
            continue  # it never began
        yield Usage(
            job=int(row[0]),
            user=_word(row[1]),
            account=_word(row[2]),
            partition=_word(row[3]),
            state=row[4].partition(" ")[0],  # "CANCELLED by 1000"
            nodes=names(row[5]),
            node_count=int(row[6]),
            cpus=int(row[7]),
            submit_real_s=seconds(row[8]),
            start_real_s=seconds(row[9]),
            end_real_s=seconds(row[10]),
            elapsed_s=int(row[11] or 0),
            name=row[13],
            gpus=_tres(row[12]).get("gres/gpu", 0),
            energy_j=energy(_tres(row[12]).get("energy")),
        )


def configuration(text: str) -> dict[str, str]:
    """From ``scontrol show config``; what follows the table (other files, pings) is left out."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and re.fullmatch(r"\w[\w ./\[\]:-]*", key.strip()):
            found.setdefault(key.strip(), value.strip())
        elif found and not line.strip():
            break
    return found


def names(text: str) -> tuple[str, ...]:
    """The hosts of a node list as Slurm prints it."""
    if text in _NOTHING:
        return ()
    try:
        return tuple(hostlist.expand(text))
    except DataError as error:
        raise SlurmError(f"{error}: Slurm printed it: report this, please") from None


def seconds(text: str) -> int | None:
    """A point in time printed as seconds since 1970, None for Slurm's words for nothing."""
    if text in _NOTHING or text == "0":
        return None
    if not text.isdecimal():
        raise SlurmError(f"time {text!r} is not seconds since 1970: report this, please")
    return int(text)


def duration_s(text: str) -> int | None:
    """``[days-]hh:mm:ss`` or ``mm:ss``; None for UNLIMITED and for what is not yet known."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        if text in ("UNLIMITED", "INVALID", "NOT_SET", "Partition_Limit") or text in _NOTHING:
            return None
        raise SlurmError(f"duration {text!r} is not days-hh:mm:ss: report this, please")
    days, hours, minutes, last = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + last


def _rows(text: str, fields: int, mark: str) -> Iterator[list[str]]:
    for record in text.split(RECORD + mark)[1:]:
        row = record.removesuffix("\n").split(FIELD + mark, fields - 1)
        if len(row) != fields:
            raise SlurmError(f"squeue: {record[:60]!r} has {len(row)} fields, not {fields}")
        yield row


def _pairs(line: str) -> Mapping[str, str]:
    """``Key=value`` of a one-line record; the first of each key counts."""
    found: dict[str, str] = {}
    for match in re.finditer(r"(?:^| )([A-Za-z][\w:/]*)=(\S*)", line):
        found.setdefault(match.group(1), match.group(2))
    return found


def _tres(text: str) -> dict[str, int]:
    """``billing=4,cpu=4,gres/gpu=2,gres/gpu:a100=2,mem=8G``: those with a plain number."""
    pairs = (item.partition("=") for item in text.split(","))
    return {name: int(count) for name, _, count in pairs if count.isdecimal()}


def energy(joules: int | None) -> int | None:
    """0, -2 and NO_VAL64 mean to Slurm that nobody measured it."""
    return joules if joules and 0 < joules < 1 << 63 else None


def _exit(text: str) -> tuple[int | None, int | None]:
    """squeue's exit_code: ``status:signal``, on old versions what wait(2) said."""
    status, colon, signal = text.partition(":")
    if colon:
        return int(status), int(signal) or None
    wait = int(text)
    return os.WEXITSTATUS(wait), os.WTERMSIG(wait) if os.WIFSIGNALED(wait) else None


def _list(text: str) -> tuple[str, ...]:
    return () if text in _NOTHING else tuple(text.split(","))


def _word(text: str) -> str | None:
    return None if text in _NOTHING else text


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None
