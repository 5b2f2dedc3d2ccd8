"""Where each node stands, on disk before anything is done about it.

One line of fields a change, flushed to the disk. A controller that is killed at any point is
followed by one that reads the journal, looks at Slurm, and goes on.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fabricctl import fields
from fabricctl.errors import FieldsError, NotFoundError, SystemRefusedError, UsageError
from fabricctl.fleet.maintenance.plan import Plan

State = Literal[
    "waiting",  # not begun
    "begun",  # to be drained: Slurm may not have been told yet
    "draining",  # Slurm has our drain; jobs on it run to their end
    "working",  # the command runs
    "verifying",  # it ended well; the node is looked at
    "returning",  # fit: to be undrained
    "done",
    "failed",  # stays drained, with the reason
    "skipped",  # was out for another's reason the whole time, or somebody returned it
    "taken",  # somebody else put a reason of their own on it: theirs now
    "aborted",  # not begun, or undone, when the maintenance was aborted
]
STATES: tuple[State, ...] = ("waiting", "begun", "draining", "working", "verifying", "returning",
                             "done", "failed", "skipped", "taken", "aborted")  # fmt: skip
ACTIVE = frozenset({"begun", "draining", "working", "verifying", "returning"})
ENDED = frozenset({"done", "failed", "skipped", "taken", "aborted"})


@dataclass(frozen=True)
class Standing:
    """Of one node."""

    state: State = "waiting"
    since_real_s: float = 0.0
    text: str = ""
    runs: int = 0  # how often its command was started
    begun_real_s: float = 0.0  # when the command was first started, of this try


class Files:
    """Names below the directory of all maintenances."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory / name
        self.plan = self.directory / "plan.json"
        self.journal = self.directory / "journal"
        self.control = self.directory / "control"  # run, pause or abort
        self.work = self.directory / "work"
        self.lock = directory / "lock"  # held by the controller at work, of all maintenances

    def create(self, plan: Plan) -> None:
        """Writes the plan; raises :class:`UsageError` when the name is taken."""
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            self.directory.mkdir(mode=0o755)
            self.work.mkdir(mode=0o700)
            new = self.directory / ".plan.json.new"
            new.write_text(plan.to_json())
            new.rename(self.plan)
        except FileExistsError:
            raise UsageError(
                f"maintenance {plan.name}: there is one of that name in {self.directory}"
            ) from None
        except OSError as error:
            raise SystemRefusedError(f"maintenance {plan.name}: {error}") from None

    def read_plan(self) -> Plan:
        try:
            return Plan.from_json(self.plan.read_text())
        except FileNotFoundError:
            raise NotFoundError(
                f"maintenance {self.directory.name}: there is none in {self.directory.parent}"
            ) from None
        except OSError as error:
            raise SystemRefusedError(f"{self.plan}: {error.strerror}") from None

    def wish(self) -> str:
        """What was asked for last: ``run``, ``pause`` or ``abort``."""
        try:
            word = self.control.read_text().strip()
        except OSError:
            return "run"
        return word if word in ("pause", "abort") else "run"

    def ask_for(self, word: str) -> None:
        """Takes effect at the controller's next look; ``abort`` is for good."""
        if self.wish() == "abort" and word != "abort":
            raise UsageError(f"maintenance {self.directory.name}: was aborted: plan a new one")
        try:
            new = self.control.with_name(".control.new")
            new.write_text(word)
            new.replace(self.control)
        except OSError as error:
            raise SystemRefusedError(f"{self.control}: {error.strerror}") from None

    def take_lock(self) -> int | None:
        """A descriptor that holds it; None: a controller is at work."""
        try:
            fd = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise SystemRefusedError(f"{self.lock}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
            os.write(fd, self.directory.name.encode())
        return fd

    def holder(self) -> str:
        """The maintenance whose controller holds the lock, or held it last."""
        try:
            return self.lock.read_text(errors="replace")[:40]
        except OSError:
            return ""


def standings(plan: Plan, text: str) -> dict[str, Standing]:
    """Where each node of the plan stands after the lines of a journal; a torn last one is none."""
    found = {node: Standing() for node in plan.nodes}
    for line in _whole_lines(text):
        node, state = line.get("node", ""), line.get("state", "")
        if node not in found or state not in STATES:
            continue
        known = STATES[STATES.index(state)]
        at_s = int(line.get("at_real_ms", "0")) / 1000
        found[node] = _after(found[node], known, at_s, line.get("text", ""))
    return found


def _after(before: Standing, state: State, at_s: float, text: str) -> Standing:
    starts = state == "working"
    # Tried again (--retry) it has to boot again, too.
    begun_s = 0.0 if state == "begun" else before.begun_real_s
    return Standing(state, at_s, text, before.runs + starts, begun_s or (at_s if starts else 0.0))


def _whole_lines(text: str) -> Iterator[Mapping[str, str]]:
    for line in text.split("\n")[:-1]:
        try:
            given = fields.decode(line, ";")
        except FieldsError:
            continue  # torn by a crash, and gone on behind
        if given.get("at_real_ms", "0").isdecimal():
            yield given


class Journal:
    """The journal open for writing; only who holds the lock does."""

    def __init__(self, files: Files, plan: Plan) -> None:
        self._path = files.journal
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(self._path, flags, 0o644)
            text = self._path.read_text(errors="replace")
            if text and not text.endswith("\n"):
                os.write(self._fd, b"\n")  # what a crash tore stays a line of its own
        except OSError as error:
            raise SystemRefusedError(f"{self._path}: {error.strerror}") from None
        self.standings = standings(plan, text)

    def write(self, node: str, state: State, text: str = "") -> None:
        """On the disk when this returns. Raises :class:`SystemRefusedError`: then nothing may be
        done."""
        harmless = "".join(c if c.isprintable() and c != ";" else "," for c in text)[:400]
        now_s = time.time()
        line = {"at_real_ms": str(int(now_s * 1000)), "node": node, "state": state}
        try:
            encoded = fields.encode({**line, "text": harmless}, ";") + "\n"
            if os.write(self._fd, encoded.encode()) != len(encoded.encode()):
                raise OSError(28, "the disk is full")
            os.fsync(self._fd)
        except OSError as error:
            raise SystemRefusedError(f"{self._path}: {error.strerror}: nothing was done") from None
        self.standings[node] = _after(self.standings[node], state, now_s, harmless)

    def close(self) -> None:
        os.close(self._fd)
