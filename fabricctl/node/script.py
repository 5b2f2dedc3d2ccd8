"""What becomes of a job whose script died with its node (docs/checkpoints.md).

With ``--no-kill`` Slurm leaves such a job as it is: nobody is left to start anything, its ranks
wait for each other. So each node looks at the one before it in the job's list. Where that one is
silent, all before it are asked; who finds the first, the job script's node, dead and nobody alive
in between asks Slurm, and has the job requeued, or ended where it may not be.

It is believed for dead when its agent is silent and no address of it takes or refuses a connection
to its keeper, for ``state.script_lost_s``, and Slurm does not reach it either; or when Slurm has
taken it out of the job and nothing of ours speaks there: it was started again, or stands still.
"""

import contextlib
import os
import random
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NoReturn

from fabricctl import hostlist, layout
from fabricctl.agent.ask import Asker
from fabricctl.agent.knock import Knocking, rails_told
from fabricctl.agent.log import NodeLog
from fabricctl.config import Config
from fabricctl.errors import FabricError
from fabricctl.membership import Member
from fabricctl.node.orphans import SLURM_PATHS, find_program
from fabricctl.records import JobStart
from fabricctl.slurm.run import Answer, Runner, failure, run
from fabricctl.state.ckpt import link
from fabricctl.store.schema import LaunchEvent, Severity

LOOK_S = 5.0
ANSWER_S = 0.5
KNOCK_S = 1.0
AGAIN_S = 15.0  # between questions to Slurm
DONE_S = 120.0  # for Slurm to end what it was asked to end
# No word in these is chosen by a user.
_FIELDS = ("JobID:12", "State:24", "ArrayJobID:12", "ArrayTaskID:64", "BatchFlag:8", "Requeue:8",
           "HetJobID:16", "BatchHost:256", "NodeList:50000")  # fmt: skip
_JOB = ("squeue", "--all", "--noheader", "--states=all", f"--Format={','.join(_FIELDS)}")
_NODE = ("sinfo", "--all", "--noheader", "--Node", "--format=%T")
_STEPS = ("scontrol", "--oneliner", "show", "step")
_STEP = re.compile(r"^StepId=(\S+) .*? SrunHost:Pid=(\S+):\d+", re.MULTILINE)
_OF_SLURM = (".batch", ".extern", ".interactive")


class Door(Enum):
    """What a machine does with connections to its keeper's ports."""

    SILENT = 0
    MUTE = 1  # it is there, and nothing of ours speaks
    OURS = 2


@dataclass(frozen=True)
class Lost:
    """The job script's node, silent for so long that Slurm is to be asked."""

    host: str
    silent_s: float
    mute: bool  # the machine answers, but nothing of ours


@dataclass
class ScriptWatch:
    """One node's. ``ask`` gives the rails' addresses of those of the nodes that answered;
    ``knock`` tries a node by its name and these addresses."""

    after_s: float
    ask: Callable[[Collection[str]], Mapping[str, Sequence[str]]]
    knock: Callable[[str, Sequence[str]], Door]
    _rails: dict[str, Sequence[str]] = field(default_factory=dict)
    _silent_s: float | None = None
    _looked_s: float = 0.0

    def look(self, nodes: Sequence[str], own: str, now_s: float) -> Lost | None:
        """Called every :data:`LOOK_S`; ``nodes``: the job's, the script's first."""
        since_s, self._looked_s = now_s - self._looked_s, now_s
        before = list(nodes[: nodes.index(own)]) if own in nodes else []
        if not before:
            return None
        host = before[0]
        # Its rails' addresses are learnt while it answers: once by each node.
        answers = dict(self.ask({before[-1]} if host in self._rails else {host, before[-1]}))
        if before[-1] not in answers:
            answers |= self.ask(set(before) - answers.keys())
        if host in answers:
            self._rails[host] = answers[host]
        # One that never answered has no agent, maybe no protection at all.
        if answers or host not in self._rails:
            self._silent_s = None
            return None
        door = self.knock(host, self._rails[host])
        if door == Door.OURS:
            self._silent_s = None
            return None
        if self._silent_s is None:
            self._silent_s = 0.0
        else:
            self._silent_s += min(since_s, 2 * LOOK_S)  # not while this process stood still
        if self._silent_s < self.after_s:
            return None
        return Lost(host, self._silent_s, door == Door.MUTE)


@dataclass(frozen=True)
class Verdict:
    """``argv``: what Slurm is to be asked for; empty: nothing yet, ``why``."""

    argv: tuple[str, ...]
    why: str


def judge(lost: Lost, job: int, run: Runner) -> Verdict:
    """By what Slurm says of it. Raises :class:`~fabricctl.errors.SlurmError`, DataError."""
    lines = [line.split() for line in _said(run, _JOB, f"--jobs={job}").splitlines()]
    words = next((line for line in lines if line and line[0] == str(job)), ["", "not shown"])
    if len(words) < 8 or words[1] != "RUNNING":
        return Verdict((), f"the job is {words[1]}")
    _, _, array, task, batch, requeue, het, host, *nodes = words
    # An array's number means all of its tasks to Slurm's commands, and is one task's, too.
    target = f"{array}_{task}" if task.isdecimal() else str(job)
    if batch != "1" or host != lost.host or het.isdecimal():
        return Verdict((), f"{lost.host} has no job script, or a heterogeneous job's")
    if lost.host in hostlist.expand(nodes[0] if nodes else lost.host):
        if lost.mute:
            return Verdict((), f"{lost.host} answers")
        state = _said(run, _NODE, f"--nodes={lost.host}").split()
        if not state or not (state[0].endswith("*") or state[0].startswith("down")):
            return Verdict((), f"Slurm says that {host} is {' '.join(state[:1]) or 'hidden'}")
    for step, launcher in _STEP.findall(_said(run, _STEPS, target)):
        if not step.endswith(_OF_SLURM) and _short(launcher) != _short(host):
            return Verdict((), f"step {step} was started on {launcher}")
    if requeue == "1":
        return Verdict(("scontrol", "requeue", target), "to requeue the job")
    return Verdict(("scancel", target), "to end the job")


def _short(host: str) -> str:
    return host.partition(".")[0]


def _said(run: Runner, argv: Sequence[str], *more: str) -> str:
    argv = [*argv, *more]
    answer = run(argv)
    if answer.status:
        raise failure(argv, answer)
    return answer.stdout


@dataclass
class Script:
    """The watch of one node, with all that it needs of the node."""

    files: layout.NodeFiles
    start: JobStart
    config: Config
    log: NodeLog
    _asker: Asker = field(init=False)
    _said_last: str = ""

    def watch(self, here: Callable[[], bool]) -> NoReturn:
        """For ever, by a thread of its own; only while the job is ``here``."""
        state = self.config.state
        while True:
            time.sleep(random.uniform(0, LOOK_S))  # noqa: S311 - not all nodes at once
            if not here():
                continue
            try:
                member = Member.here(self.files, self.start.job)
                with contextlib.closing(Asker(member, self.config)) as self._asker:
                    self._watch(ScriptWatch(state.script_lost_s, self._ask, self._knock), here)
            except (OSError, FabricError) as error:
                self._say(str(error))

    def _watch(self, made: ScriptWatch, here: Callable[[], bool]) -> None:
        """Until the job is over here: after a requeue it may be on other nodes."""
        ask_s = 0.0
        while here():
            member = Member.here(self.files, self.start.job)
            now_s = time.monotonic()
            lost = made.look(member.nodes, member.node, now_s)
            if lost is not None and now_s >= ask_s:
                ask_s = now_s + (DONE_S if self._act(lost, member.node) else AGAIN_S)
            time.sleep(LOOK_S)

    def _act(self, lost: Lost, own: str) -> bool:
        """Whether Slurm was asked to do something."""
        try:
            return self._asked(lost, own, judge(lost, self.start.job, _run))
        except (OSError, FabricError) as error:  # slurmctld is away
            self._say(str(error))
            return False

    def _asked(self, lost: Lost, own: str, verdict: Verdict) -> bool:
        what = f"{lost.host}, the script's node, is silent for {lost.silent_s:.0f} s"
        if not verdict.argv:
            self._say(f"{lost.host}, the script's node, is silent, nothing is done: {verdict.why}")
            return False
        text = f"{what}: {own} asked Slurm {verdict.why}"
        event = str(int(LaunchEvent.SCRIPT_LOST))
        told = {"event": event, "launch": "0", "at": lost.host[:47], "text": text[:119]}
        for _ in self._asker.ask([own], ANSWER_S, "event", told):
            pass
        self._say(text)
        _said(_run, verdict.argv)
        return True

    def _say(self, text: str) -> None:
        """Once, however often it is the same."""
        if text != self._said_last:
            self._said_last = text
            self.log.write(f"keeper job={self.start.job}", text, Severity.WARNING)

    def _ask(self, nodes: Collection[str]) -> dict[str, Sequence[str]]:
        answers = self._asker.ask(nodes, ANSWER_S, "alive")
        return {node: rails_told(message.get("rails", "")) for node, message in answers}

    def _knock(self, node: str, rails: Sequence[str]) -> Door:
        """At all ports that its keeper may have."""
        state = self.config.state
        hosts = [self._asker.address(node), *rails]
        ports = link.ports(self.start.job, state.port_first, state.port_count)
        knocking = [Knocking(hosts, [port]) for port in ports]
        end_s = time.monotonic() + KNOCK_S
        there = ours = False
        while time.monotonic() < end_s and not ours:
            time.sleep(0.1)
            for one in knocking:
                there |= one.answered()
                ours |= one.speaks()
        for one in knocking:
            one.close()
        return Door.OURS if ours else Door.MUTE if there else Door.SILENT


def _run(argv: Sequence[str]) -> Answer:
    program = find_program(argv[0], os.environ.get("PATH", "") + ":" + SLURM_PATHS)
    return run([program, *argv[1:]])
