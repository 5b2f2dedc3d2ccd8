"""What a node reports, as fields. Pure; what arrives is hostile until :func:`decode` took it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fabricctl.errors import DataError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WORD = re.compile(r"[A-Za-z0-9._@-]{1,32}")
MAX_RAILS, MAX_JOBS = 32, 64
STATES = ("up", "no carrier", "off", "gone")
_CODES = {"up": "u", "no carrier": "n", "off": "o", "gone": "g"}
_WORDS = {code: word for word, code in _CODES.items()}


@dataclass(frozen=True, slots=True)
class RailReport:
    """One rail; rates since the report before."""

    name: str
    state: str  # up, no carrier, off, gone
    rx_bytes_per_s: int
    tx_bytes_per_s: int
    errors: int  # since the report before


@dataclass(frozen=True, slots=True)
class JobReport:
    """A protected job as its agent here sees it."""

    job: int
    state: str  # starting, running, ending
    nodes: int
    protected: int  # nodes whose agents are there


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node at one time."""

    load: float
    cpus: int
    memory_mib: int
    free_mib: int
    rails: tuple[RailReport, ...]
    jobs: tuple[JobReport, ...]


def encode(report: NodeReport) -> dict[str, str]:
    rails = "|".join(
        f"{r.name} {_CODES[r.state]} {r.rx_bytes_per_s} {r.tx_bytes_per_s} {r.errors}"
        for r in report.rails[:MAX_RAILS]
    )
    jobs = "|".join(f"{j.job} {j.state} {j.nodes} {j.protected}" for j in report.jobs[:MAX_JOBS])
    return {"load_m": str(round(report.load * 1000)), "cpus": str(report.cpus),
            "mem": str(report.memory_mib), "free": str(report.free_mib), "rails": rails,
            "jobs": jobs}  # fmt: skip


def decode(given: Mapping[str, str]) -> NodeReport:
    """Raises :class:`DataError`."""
    try:
        rails = tuple(map(_rail, _records(given["rails"], 5, MAX_RAILS)))
        jobs = tuple(map(_job, _records(given["jobs"], 4, MAX_JOBS)))
        numbers = [_number(given[name]) for name in ("load_m", "cpus", "mem", "free")]
    except KeyError as error:
        raise DataError(f"report: {error} is not there") from None
    return NodeReport(numbers[0] / 1000, numbers[1], numbers[2], numbers[3], rails, jobs)


def _records(text: str, width: int, most: int) -> list[list[str]]:
    found = [record.split(" ") for record in text.split("|")] if text else []
    if len(found) > most or any(len(record) != width for record in found):
        raise DataError(f"report: {text[:40]!r} is not at most {most} records of {width} words")
    return found


def _rail(words: list[str]) -> RailReport:
    if not _WORD.fullmatch(words[0]) or words[1] not in _WORDS:
        raise DataError(f"report: rail {words[0][:32]!r} {words[1][:8]!r}")
    return RailReport(words[0], _WORDS[words[1]], *map(_number, words[2:]))


def _job(words: list[str]) -> JobReport:
    if not _WORD.fullmatch(words[1]):
        raise DataError(f"report: job's state {words[1][:32]!r}")
    return JobReport(_number(words[0]), words[1], _number(words[2]), _number(words[3]))


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise DataError(f"report: {text[:24]!r} is not a number")
    return int(text)
