"""Carries decisions out: written down first, looked at again right before, bounded."""

import fcntl
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabricctl.errors import FabricError, SystemRefusedError, UsageError
from fabricctl.fleet.changes import ChangeLog
from fabricctl.fleet.health.policy import (
    Decision,
    Record,
    bounded,
    decide,
    is_note,
    is_ours,
    taken,
)
from fabricctl.fleet.health.store import HealthStore
from fabricctl.sections import HealthConfig
from fabricctl.slurm.model import Slurm

RAIL_TIMEOUT_S = 60.0
# Runs a command of ours on a node: (node, words) -> what went wrong; empty: nothing.
OnNode = Callable[[str, Sequence[str]], str]


@dataclass(frozen=True)
class Outcome:
    """Of one decision."""

    decision: Decision
    word: str  # done, would be done, refused, failed
    why: str = ""

    def __str__(self) -> str:
        return f"{self.word}: {self.why}" if self.why else self.word


@contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Raises :class:`UsageError` while another acts."""
    path = directory / "health.lock"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise SystemRefusedError(f"{path}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UsageError("health: another one is at work: try again when it has ended") from None
    finally:
        os.close(fd)


def check_report(
    report: Mapping[str, Any], cluster: str, policy: HealthConfig, now_s: float
) -> None:  # fmt: skip
    """Raises :class:`UsageError` for a report that must not be acted upon."""
    if report["cluster"] != cluster:
        raise UsageError(f"health: the report is of cluster {report['cluster']!r}, not {cluster!r}")
    age_s = now_s - report["end_real_s"]
    if age_s > policy.max_age_s:
        raise UsageError(f"health: the report is {age_s:.0f} s old, more than health.max_age_s")
    if age_s < -60:
        raise UsageError("health: the report is from the future: compare the hosts' clocks")


class Health:
    """One look's consequences; made with :func:`only_one` held."""

    def __init__(
        self, policy: HealthConfig, slurm: Slurm, store: HealthStore, log: ChangeLog,
        on_node: OnNode, *, dry: bool = False,
    ) -> None:  # fmt: skip
        self._policy = policy
        self._slurm = slurm
        self._store = store
        self._log = log
        self._on_node = on_node
        self._dry = dry

    def look(self, names: Sequence[str], evidence: str) -> list[Outcome]:
        """Decides about the nodes that were looked at, and acts where the site lets it."""
        nodes = {node.name: node for node in self._slurm.nodes()}
        records = self._store.records(names)
        decisions = decide(self._policy, records, nodes, self._slurm.partitions(), evidence)
        return [self._carry_out(each) for each in decisions if each.action != "none"]

    def give_back(self, names: Sequence[str]) -> list[Outcome]:
        """Returns nodes, and rails, that we took out and nobody else has touched since."""
        nodes = {node.name: node for node in self._slurm.nodes()}
        found = []
        records = self._store.records(names)
        for name in names:
            known, record = nodes.get(name), records.get(name, Record())
            if known is not None and is_ours(known, record.our_reason):
                found.append(self._carry_out(Decision(name, "return", "asked for"), asked=True))
            elif known is not None and "DRAIN" in known.flags:
                why = f"not drained by fabricctl health: {known.reason or 'no reason given'}"
                found.append(Outcome(Decision(name, "return", "asked for"), "refused", why))
            for rail in sorted(record.excluded):
                decision = Decision(name, "return", "asked for", rail)
                found.append(self._carry_out(decision, asked=True))
        return found

    def _carry_out(self, decision: Decision, *, asked: bool = False) -> Outcome:
        outcome = self._outcome(decision, asked)
        if not self._dry:
            self._store.write(int(time.time()), decision, str(outcome))
        return outcome

    def _outcome(self, decision: Decision, asked: bool) -> Outcome:
        if decision.refused:
            return Outcome(decision, "refused", decision.refused)
        if decision.action == "note":
            return Outcome(decision, "done")
        if self._dry or (self._policy.mode != "on" and not asked):
            return Outcome(decision, "would be done")
        try:
            why = self._rail(decision) if decision.rail else self._node(decision)
        except FabricError as error:
            return Outcome(decision, "failed", str(error))
        return Outcome(decision, "refused", why) if why else Outcome(decision, "done")

    def _node(self, decision: Decision) -> str:
        """Why not, or empty. Slurm is asked once more right before: people act meanwhile."""
        name, record = decision.node, self._store.records([decision.node])[decision.node]
        nodes = {each.name: each for each in self._slurm.nodes()}
        now = nodes.get(name)
        if now is None:
            return "Slurm does not know it any more"
        ours = is_ours(now, record.our_reason)
        if decision.action == "return":
            if is_note(now, record.our_reason):
                self._take_note_away(name)
                return ""
            if not ours:
                return f"somebody else has it now: {now.reason or 'no reason given'}"
            with self._log.change("return", name, decision.text):
                self._slurm.set_node_state([name], "resume")
            self._store.set_reason(name, "")
            return ""
        if not ours and (changed := taken(now, record, decision.action)):
            return changed
        if decision.action == "drain":
            # Rails took time, and others drain too: the bounds hold for what is out by now.
            (again,) = bounded(self._policy, [decision], nodes, self._slurm.partitions())
            if again.refused:
                return again.refused
            if is_note(now, record.our_reason):  # the reason says it from now on
                self._take_note_away(name)
        self._store.set_reason(name, decision.text)
        with self._log.change(decision.action, name, decision.text):
            if decision.action == "drain":
                self._slurm.set_node_state([name], "drain", decision.text)
            else:
                self._slurm.set_node_comment([name], decision.text)
        return ""

    def _take_note_away(self, name: str) -> None:
        with self._log.change("comment", name, "taken away"):
            self._slurm.set_node_comment([name], "")
        self._store.set_reason(name, "")

    def _rail(self, decision: Decision) -> str:
        name, rail = decision.node, decision.rail
        if decision.action == "return":
            with self._log.change("rail in", f"{name} {rail}", decision.text):
                self._ask_node(name, ["rail-in", rail])
            self._store.set_excluded(name, rail, None, int(time.time()))
            return ""
        with self._log.change("rail out", f"{name} {rail}", decision.text):
            self._ask_node(name, ["rail-out", rail, decision.text])
        self._store.set_excluded(name, rail, decision.text, int(time.time()))
        return ""

    def _ask_node(self, node: str, words: Sequence[str]) -> None:
        trouble = self._on_node(node, words)
        if trouble:
            raise SystemRefusedError(f"{node}: {trouble}")


def by_way(way: str, program: str) -> OnNode:
    """``way``: words before ours, ``ssh {node}``; empty: a Slurm job."""

    def ask(node: str, words: Sequence[str]) -> str:
        if way:
            # A remote shell reads the words again.
            before = [word.replace("{node}", node) for word in shlex.split(way)]
            argv = [*before, "fabricctl", "node", *map(shlex.quote, words)]
        else:
            argv = ["srun", "--quiet", f"--nodelist={node}", "--nodes=1", "--ntasks=1",
                    "--immediate=30", "--time=1", "--export=NONE", "--mem=256M",
                    "--job-name=fabric-health", program, "node", *words]  # fmt: skip
        try:
            done = subprocess.run(argv, capture_output=True, text=True, errors="replace",
                                  stdin=subprocess.DEVNULL, timeout=RAIL_TIMEOUT_S,
                                  check=False)  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"no answer within {RAIL_TIMEOUT_S:g} s"
        except OSError as error:
            return f"{argv[0]}: {error.strerror}"
        said = (done.stderr or done.stdout).strip().splitlines()
        return "" if not done.returncode else (said[-1] if said else f"status {done.returncode}")

    return ask
