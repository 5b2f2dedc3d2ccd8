"""Reading the JSON of Slurm 24.11 and later, as ``--json=v0.0.42`` prints it.

Numbers come as ``{"set": bool, "infinite": bool, "number": n}``. What is read here has the same
shape in 24.11 and 26.05.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from fabricctl.errors import SlurmError
from fabricctl.slurm import text
from fabricctl.slurm.model import FINISHED, STATE_FLAGS, WAITING, Job, Node, Step, Usage

OPTION = "--json=v0.0.42"

_NODE_STATES = ("UNKNOWN", "DOWN", "IDLE", "ALLOCATED", "ERROR", "MIXED", "FUTURE")

Table = Mapping[str, Any]
Record = TypeVar("Record")


def records(output: str, key: str, what: str) -> list[Table]:
    """The records in an answer; raises :class:`SlurmError` for what is not one."""
    try:
        answer = json.loads(output)
        found = answer[key]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise SlurmError(
            f"{what}: answered without JSON: install Slurm's JSON serializer plugin"
        ) from None
    if not isinstance(found, list):
        raise SlurmError(f"{what}: {key} is not a list: report this, please")
    return found


def job(given: Table) -> Job:
    """From ``squeue`` or ``scontrol show job``."""
    state = state_word(given["job_state"])
    ended = state in FINISHED
    limit_min = number(given["time_limit"])
    array, het = number(given["array_job_id"]), number(given["het_job_id"])
    return Job(
        id=given["job_id"],
        name=given["name"],
        uid=given["user_id"],
        user=given["user_name"] or str(given["user_id"]),
        account=given["account"] or None,
        partitions=tuple(given["partition"].split(",")),
        state=state,
        reason=_reason(given["state_description"] or given["state_reason"]),
        nodes=() if state in WAITING else text.names(given["nodes"]),
        node_count=number(given["node_count"]) or 0,
        cpus=number(given["cpus"]) or 0,
        submit_real_s=_time(given["submit_time"]),
        start_real_s=None if state in WAITING else _time(given["start_time"]),
        end_real_s=_time(given["end_time"]) if ended else None,
        time_limit_s=None if limit_min is None else limit_min * 60,
        exit_status=(number(given["exit_code"]["return_code"]) or 0) if ended else None,
        exit_signal=number(given["exit_code"]["signal"]["id"]) if ended else None,
        array_job=array or None,
        array_task=number(given["array_task_id"]) if array else None,
        het_job=het or None,
        het_offset=number(given["het_job_offset"]) if het else None,
        restarts=given["restart_cnt"],
        reservation=given["resv_name"] or None,
    )


def step(given: Table) -> Step:
    """From ``scontrol show step``."""
    job_id, _, name = given["id"].partition(".")
    return Step(
        job=int(job_id),
        step=name,
        name=given["name"],
        nodes=text.names(given["nodes"]),
        tasks=given["number_tasks"],
        start_real_s=_time(given["time"]["start"]),
    )


def node(given: Table) -> Node:
    """From ``scontrol show node``."""
    base = next((word for word in given["state"] if word in _NODE_STATES), "UNKNOWN")
    reason = given["reason"] or None
    return Node(
        name=given["name"],
        state=base,
        flags=frozenset(given["state"]) - {base},
        reason=reason,
        reason_user=given["reason_set_by_user"] or None if reason else None,
        reason_real_s=_time(given["reason_changed_at"]) if reason else None,
        cpus=given["cpus"],
        cpus_allocated=given["alloc_cpus"],
        memory_mib=given["real_memory"],
        features=tuple(given["features"]),
        partitions=tuple(given["partitions"]),
        address=given["address"],
        version=given["version"] or None,
        boot_real_s=_time(given["boot_time"]),
        comment=given.get("comment") or None,
    )


def usage(given: Table) -> Usage:
    """From ``sacct``."""
    time = given["time"]
    tres = {(t["type"], t["name"]): t["count"] for t in given["tres"]["allocated"]}
    return Usage(
        job=given["job_id"],
        user=given["user"] or None,
        account=given["account"] or None,
        partition=given["partition"] or None,
        state=state_word(given["state"]["current"]),
        nodes=text.names(given["nodes"]),
        node_count=given["allocation_nodes"],
        cpus=tres.get(("cpu", ""), 0),
        submit_real_s=time["submission"] or None,
        start_real_s=time["start"] or None,
        end_real_s=time["end"] or None,
        elapsed_s=time["elapsed"],
        name=given["name"],
        gpus=tres.get(("gres", "gpu"), 0),
        energy_j=text.energy(
            next((count for (kind, _), count in tres.items() if kind == "energy"), None)
        ),
    )


def number(given: object) -> int | None:
    """A wrapped number; None when it is not set or infinite."""
    if isinstance(given, dict):
        return given["number"] if given["set"] and not given["infinite"] else None
    if isinstance(given, int):
        return given
    raise SlurmError(f"JSON: {given!r} is not a number: report this, please")


def state_word(words: list[str]) -> str:
    """The one word that squeue would show for a list of state and flags."""
    for flag in STATE_FLAGS:
        if flag in words:
            return flag
    return words[0]


def converted(
    found: list[Table], convert: Callable[[Table], Record], what: str
) -> Iterator[Record]:
    """The records, with a missing key turned into an error that names it."""
    for given in found:
        try:
            yield convert(given)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise SlurmError(f"{what}: JSON lacks {error}: report this, please") from None


def _time(given: object) -> int | None:
    return number(given) or None


def _reason(word: str) -> str | None:
    return None if word in ("", "None") else word
