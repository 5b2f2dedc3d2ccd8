"""Clocks of the node that follow job time: the program that does it, and what it tells.

``fabric-steer`` (``steer/``, docs/clock.md) is started by the node service for a job with
``--fabric-clock=ptp`` or ``system``; its state is a file that everybody may read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fabricctl import fields
from fabricctl.errors import DataError

NAME = "fabric-steer"
REFUSED, LEFT = 69, 75  # exit statuses of steer/steer.h: not to be started again
STATES = ("waiting", "slewing", "steady", "holding", "refused", "left", "ended")
_MAX_BYTES = 4096


@dataclass(frozen=True)
class Steered:
    """One clock. ``off_ns`` > 0: it is ahead of job time; ``found_ppb`` was set before."""

    name: str
    off_ns: float
    freq_ppb: float
    found_ppb: float


@dataclass(frozen=True)
class State:
    """What ``fabric-steer`` of a job says; ``why`` where it refused or gave up."""

    job: int
    clock: str
    state: str  # one of STATES
    why: str
    clocks: tuple[Steered, ...] = ()


@dataclass(frozen=True)
class Setting:
    """What ``fabric-steer run`` is told (``struct conf`` of steer/steer.h)."""

    job: int
    clock: str
    page: Path
    leases: Path
    state: Path
    watch: Path  # the job is over when this is gone
    uid: int
    gid: int
    rails: Sequence[str] = ()
    lab: Path | None = None

    def text(self) -> str:
        given = {
            "job": self.job,
            "clock": self.clock,
            "page": self.page,
            "leases": self.leases,
            "state": self.state,
            "watch": self.watch,
            "uid": self.uid,
            "gid": self.gid,
        }
        lines = [f"{key}={value}" for key, value in given.items()]
        lines += [f"rail={name}" for name in self.rails]
        lines += [f"lab={self.lab}"] if self.lab is not None else []
        return "\n".join(lines) + "\n"


def read_state(path: Path) -> State | None:
    """None while there is none; raises :class:`DataError` for what is not a state."""
    try:
        with path.open("rb") as stream:
            text = stream.read(_MAX_BYTES).decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from None
    if not text:
        return None  # just made
    given = fields.decode(text)
    try:
        if given["v"] != "1" or given["state"] not in STATES:
            raise DataError(f"{path}: not a state of this version")
        return State(
            int(given["job"]),
            given["clock"],
            given["state"],
            given["why"],
            tuple(_clocks(given)),
        )
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: {error}") from None


def _clocks(given: dict[str, str]) -> list[Steered]:
    count = sum(1 for key in given if key.startswith("name"))
    return [
        Steered(
            given[f"name{i}"],
            float(given[f"off_ns{i}"]),
            float(given[f"freq_ppb{i}"]),
            float(given[f"found_ppb{i}"]),
        )
        for i in range(count)
    ]


def write_refused(path: Path, job: int, clock: str, why: str) -> None:
    """A state that says why there is no ``fabric-steer``; raises OSError."""
    given = {"v": "1", "job": str(job), "clock": clock, "state": "refused", "why": why}
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(fields.encode(given) + "\n")
    fresh.chmod(0o644)
    fresh.replace(path)
