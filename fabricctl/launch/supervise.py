"""Runs a program to its end over deaths of ranks and nodes, inside of one allocation."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

from fabricctl import built, hostlist
from fabricctl.agent.ask import Asker
from fabricctl.config import Config
from fabricctl.errors import DataError, FabricError
from fabricctl.launch.heartbeat import Heartbeat, Knocking, Witness
from fabricctl.launch.live import LiveStep
from fabricctl.launch.placement import Placement
from fabricctl.launch.policy import PROGRESS_S, HangWatch, Policy, Stall
from fabricctl.launch.roster import Tell
from fabricctl.launch.step import Step
from fabricctl.membership import Member
from fabricctl.state.ckpt.link import ports
from fabricctl.state.track import position
from fabricctl.store.schema import LaunchEvent, RankState, StallKind
from fabricctl.telemetry.interfaces import lookup

GRACE_S = 2.0  # after a failed srun: a node's death may be seen a little later
FIRST_S = 0.5  # for all nodes to say what ran before
GONE_S = 10.0  # for the ranks before to be gone from the living nodes
PLACES_MOST = 100_000  # below MAX_ARG_STRLEN of execve(2)
MASTER_PORT, MASTER_PORTS = 22_000, 2000  # below those that the kernel gives to callers


@dataclass
class Supervisor:
    """Use :meth:`run` once."""

    member: Member
    config: Config
    placement: Placement
    argv: Sequence[str]
    policy: Policy
    launch: int = 0
    _quick: int = 0
    _best: int = 0  # the furthest iteration of any start
    _signal: int = 0
    _order: str = ""  # of `job halt` and `job migrate`
    _given: str = ""  # the order that is being carried out
    _leaving: str = ""  # the node that ranks shall leave
    _to: str = ""  # for this spare, if one was named
    _dead: list[str] = field(default_factory=list)
    _left: set[str] = field(default_factory=set)  # nodes that live, but hold the ranks up
    _hung: Stall | None = None

    def run(self) -> int:
        """The program's exit status, as a shell would have it."""
        self._asker = Asker(self.member, self.config)
        self._hangs = HangWatch(self.policy, time.monotonic)
        self._halt_at_s = self.policy.halt_at_s
        self.launch = self._first = self._launches()
        state = self.config.state
        candidates = ports(self.member.job, state.port_first, state.port_count)
        self._hearts = Heartbeat(
            self.member.nodes,
            self._alive,
            lambda node: self._witness(node, candidates),
            state.silence_s,
            time.monotonic,
        )
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._take)
        try:
            while (status := self._one()) is None:
                pass
            return status
        finally:
            self._asker.close()

    def _launches(self) -> int:
        """How many starts the job has seen, also by earlier runs: it tells ranks apart."""
        found = [-1]
        for node, message in self._asker.ask(self.member.nodes, FIRST_S):
            with contextlib.suppress(DataError):
                there = position.decode(message.get("ranks", ""), node)
                found += [at.launch for at in there]
        return max(found) + 1

    def _take(self, number: int, _frame: FrameType | None) -> None:
        self._signal = number

    def _one(self) -> int | None:
        """One start to its end; None: start again."""
        begin_s = time.monotonic()
        nodes = hostlist.fold(self.placement.nodes)
        self._tell(LaunchEvent.START, nodes, f"{len(self.placement.hosts)} ranks")
        step = self._start()
        try:
            status, dead = self._watch(step)
            nodes = hostlist.fold(self.placement.nodes)
            if self._leaving and status == 0 and not dead & set(self.placement.nodes):
                if (
                    placed := self.placement.prefer(self._to).without(
                        self._hearts.dead | self._left | {self._leaving}
                    )
                ) is None:
                    return 0
                self._tell(LaunchEvent.END, nodes, f"saved, to leave {self._leaving}")
                self.placement, self._leaving, self._given = placed, "", ""
                self.launch += 1
                return None
            if step.finished and status is not None and not self._leaving:
                # Whatever came after the last step: its checkpoints were given back.
                event = LaunchEvent.GIVE_UP if status else LaunchEvent.END
                words = f"all steps were done, it ended with status {status}"
                self._tell(event, nodes, words if status else "ended well")
                if status:
                    sys.stderr.write(f"fabric: run: {words}\n")
                return status
            if status == 0 and not dead & set(self.placement.nodes):
                self._tell(LaunchEvent.END, nodes, "ended well")
                return 0
            seen_s = time.monotonic()
            self._say_death(status, dead)
            if self._given in ("now", "checkpoint"):
                sys.stderr.write("fabric: run: ended by `fabricctl job halt`\n")
                return status or 0
            if self._signal in (signal.SIGTERM, signal.SIGINT) and not dead:
                return status if status is not None else 128 + self._signal
            refusal = self._next(status, dead, begin_s)
            if refusal:
                self._tell(LaunchEvent.GIVE_UP, "", refusal)
                sys.stderr.write(f"fabric: run: not started again: {refusal}\n")
                step.cancel()
                return status or 1
            step.cancel()
        finally:
            step.abandon()
        self._wait_gone()
        self.launch += 1
        took = f"{time.monotonic() - seen_s:.2f} s after the death was seen"
        where = hostlist.fold(self.placement.nodes)
        sys.stderr.write(f"fabric: run: start {self.launch - self._first + 1} on {where}, {took}\n")
        return None

    def _start(self) -> Step | LiveStep:
        options = (f"--mpi={self.policy.mpi}", *self.policy.options)
        what = (self.member.job, self.launch, self.placement, self.argv)
        environment = self._environment()
        if not self.policy.live:
            return Step(*what, environment=environment, options=options)
        state = self.config.state
        found = lookup(self.member.node)
        return LiveStep(
            *what,
            environment=environment,
            options=options,
            key=self.member.key,
            address=found[0] if found else self.member.node,
            # Others than the keeper's.
            ports=ports(self.member.job + (1 << 40), state.port_first, state.port_count),
            deaths_most=self.policy.max_restarts,
            tell=self._tell_live,
        )

    def _watch(self, step: Step | LiveStep) -> tuple[int | None, set[str]]:
        """Until srun ends, a node with ranks dies or the ranks hang: its status, and the nodes
        that died."""
        died: set[str] = set()
        ended_s: float | None = None
        status: int | None = None
        while True:
            found = self._hearts.look()
            died |= found
            step.lost(found)
            self.placement, self.launch = step.placement, step.launch
            if self._signal:
                # Ranks save on these; Slurm's own end follows anyway.
                name = {signal.SIGTERM: "TERM", signal.SIGINT: "TERM", signal.SIGUSR1: "USR1"}
                step.cancel(name.get(signal.Signals(self._signal), "USR2"))
                if self._signal in (signal.SIGUSR1, signal.SIGUSR2):
                    self._signal = 0
            if self._halt_at_s is not None and time.time() >= self._halt_at_s:
                self._halt_at_s, self._order = None, "checkpoint"
            if self._order:
                self._obey(step)
            self._hung = None if step.finished else self._hangs.expired()
            if self._hung is not None and status is None and self._acts_on(self._hung):
                return None, died
            if died & set(self.placement.nodes) and not step.carries:
                return step.poll(), died
            if status is None:
                status = step.poll()
                ended_s = time.monotonic()
            elif status == 0 or time.monotonic() - (ended_s or 0) > GRACE_S or self._signal:
                return status, died

    def _acts_on(self, stall: Stall) -> bool:
        """A host or link at fault may come back: without a spare that is waited for."""
        away = _nodes(stall)
        if self.policy.hang_s is not None or not away:
            return True
        return self.placement.without(self._hearts.dead | self._left | away) is not None

    def _obey(self, step: Step | LiveStep) -> None:
        """Once for each order; ranks that are told to save end by themselves."""
        order, self._order = self._order, ""
        if self._given:
            return
        if order.startswith("before:"):
            self._halt_at_s = float(order.removeprefix("before:"))
            for _ in self._asker.ask(self.member.nodes, 1.0, "halt", {"how": ""}):
                pass
            self._order = ""
            return
        self._given = order
        for _ in self._asker.ask(self.member.nodes, 1.0, "halt", {"how": ""}):
            pass
        self._order = ""
        if order.startswith("from:"):
            self._leaving, _, self._to = order.removeprefix("from:").partition(":")
            if step.leave(self._leaving, self._to):
                self._left.add(self._leaving)
                self._leaving = self._given = ""
                return
            if (self._to and self._to not in self.placement.spares) or (
                self._leaving in self.placement.nodes
                and not self.placement.without(self._hearts.dead | {self._leaving})
            ):
                sys.stderr.write(f"fabric: run: no spare to take the place of {self._leaving}\n")
                self._leaving = self._given = ""
                return
        step.cancel("KILL" if order == "now" else "USR1")

    def _say_death(self, status: int | None, dead: set[str]) -> None:
        lost = dead & set(self.placement.nodes)
        if lost and self.policy.live:
            return  # told when it was seen
        if lost:
            names = hostlist.fold(lost)
            self._tell(LaunchEvent.NODE_DEAD, names, "its agent is silent, its ports are, too")
            sys.stderr.write(f"fabric: run: node {names} is dead\n")
        elif self._hung is not None:
            self._tell(LaunchEvent.HANG, self._hung.node, self._hung.text)
            sys.stderr.write(f"fabric: run: the ranks hang: {self._hung.text}\n")
        elif status:
            self._tell(LaunchEvent.RANKS_DEAD, "", f"srun ended with status {status}")
            sys.stderr.write(f"fabric: run: the program ended with status {status}\n")

    def _next(self, status: int | None, dead: set[str], begin_s: float) -> str:
        """Chooses the next placement; why there is none, or "" ."""
        if self._hung is not None:
            self._left |= _nodes(self._hung) & set(self.placement.nodes)
        least = self.policy.min_nodes
        mute = set(self.placement.spares) - self._hearts.heard  # what ranks saved is not had there
        placement = self.placement.without(self._hearts.dead | self._left | mute)
        if placement is None:
            placement = self.placement.without(self._hearts.dead | self._left, least)
        if placement is None and self._left - self._hearts.dead:  # better there than nowhere
            self._left &= self._hearts.dead
            placement = self.placement.without(self._hearts.dead, least)
        self._dead = sorted(self._hearts.dead | self._left)
        if placement is None:
            return f"no spare left for {hostlist.fold(dead)}"
        best, self._best = self._best, max(self._best, self._iteration())
        quick = not dead and time.monotonic() - begin_s < PROGRESS_S and self._best <= best
        self._quick = self._quick + 1 if quick else 0
        if refusal := self.policy.refusal(
            self.launch - self._first, status, bool(dead), self._quick
        ):
            return refusal
        self.placement = placement
        self._hangs.forget()
        return ""

    def _iteration(self) -> int:
        """How far the ranks of this start came, as they told the tracker; 0: they told nothing."""
        living = [node for node in self.placement.nodes if node not in self._hearts.dead]
        found = [0]
        for node, message in self._asker.ask(living, FIRST_S):
            with contextlib.suppress(DataError):
                there = position.decode(message.get("ranks", ""), node)
                found += [at.step for at in there if at.launch == self.launch]
        return max(found)

    def _wait_gone(self) -> None:
        """Ranks of the start before must be gone before others take their place."""
        # One that never said a word, because it has no agent, will not tell either.
        asked = self._hearts.heard - self._hearts.dead
        living = [node for node in self.placement.nodes if node in asked]
        end_s = time.monotonic() + GONE_S
        while living and time.monotonic() < end_s:
            for node, message in self._asker.ask(living, 0.5):
                try:
                    here = position.decode(message.get("ranks", ""), node)
                except DataError:
                    here = []
                ended = (RankState.GONE, RankState.FINALIZED)
                if all(at.state in ended for at in here if at.launch == self.launch):
                    living.remove(node)
            if living:
                time.sleep(0.02)

    def _environment(self) -> Mapping[str, str]:
        given = dict(os.environ)
        given["FABRIC_LAUNCH"] = str(self.launch)
        given["FABRIC_DEAD_NODES"] = ",".join(self._dead)
        places = ",".join(self.placement.hosts)  # of the ranks, for sets of files
        if len(places) < PLACES_MOST:
            given["FABRIC_PLACES"] = places
        # Of torch.distributed; another port each time, for the last one's may still be held.
        given["MASTER_ADDR"] = self.placement.hosts[0]
        port = MASTER_PORT + (self.member.job * 64 + self.launch) % MASTER_PORTS
        given["MASTER_PORT"] = str(port)
        if self.policy.track:
            try:
                library = str(built.find("state", "libfabrictrack.so"))
                before = given.get("LD_PRELOAD", "")
                given["LD_PRELOAD"] = f"{library} {before}".strip()
                if self.policy.nccl:
                    given.setdefault("NCCL_PROFILER_PLUGIN", str(library))
            except FabricError as error:
                sys.stderr.write(f"fabric: run: ranks are not tracked: {error}\n")
        return given

    def _alive(self, nodes: Collection[str], wait_s: float) -> set[str]:
        end_s = time.monotonic() + wait_s
        found = set()
        for node, message in self._asker.ask(nodes, wait_s, "alive"):
            found.add(node)
            self._hangs.hear(message, self.launch)
            if node == self.member.node:
                self._order = message.get("halt", "")
        time.sleep(max(0.0, end_s - time.monotonic()))  # all answered: the pace stays
        return found

    def _witness(self, node: str, candidates: Sequence[int]) -> Witness:
        return Knocking(self._asker.address(node), candidates)

    def _tell(self, event: LaunchEvent, node: str, text: str) -> None:
        """To this node's agent, for the trace."""
        self._put(self._asker, event, self.launch, node, text)

    def _put(self, asker: Asker, event: LaunchEvent, launch: int, node: str, text: str) -> None:
        message = {
            "event": str(int(event)),
            "launch": str(launch),
            "at": node[:47],
            "text": text[:119],
        }
        for _ in asker.ask([self.member.node], 0.5, "event", message):
            return

    def _tell_live(self, said: Tell, launch: int) -> None:
        """What happened while the others ran on; by a thread of its own."""
        if said.event == LaunchEvent.START:
            words = f"the others ran on, now on {said.node}"
        else:
            dead = said.event == LaunchEvent.NODE_DEAD
            words = f"node {said.node} is dead" if dead else f"{said.text} on {said.node}"
        sys.stderr.write(f"fabric: run: {words}\n")
        with contextlib.closing(Asker(self.member, self.config)) as asker:
            self._put(asker, said.event, launch, said.node, said.text)


def _nodes(stall: Stall) -> set[str]:
    """Those that hold the ranks up by themselves, not by what runs on them."""
    if stall.kind not in (StallKind.HOST, StallKind.LINK):
        return set()
    try:
        return set(hostlist.expand(stall.node))
    except FabricError:
        return set()
