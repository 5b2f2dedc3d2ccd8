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
from fabricctl.agent.knock import Knocking, rails_told
from fabricctl.agent.orders import TOLD_MOST
from fabricctl.config import Config
from fabricctl.errors import DataError, FabricError
from fabricctl.launch.heartbeat import Heartbeat, Witness
from fabricctl.launch.live import LiveStep
from fabricctl.launch.orders import Orders
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
LAST_S = 10.0  # for ranks that were told to end, when one of them has failed
FIRST_S = 0.5  # for all nodes to say what ran before
GONE_S = 10.0  # for the ranks before to be gone from the living nodes
UNUSED = "it ended well, but never called state.live, which --live is for"
BACK_S = 10.0  # for the network of a node that answers over its rails alone
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
    _order: str = ""  # of `job halt` and `job migrate`, not looked at yet
    _dead: list[str] = field(default_factory=list)
    _left: set[str] = field(default_factory=set)  # nodes that live, but hold the ranks up
    _emptied: set[str] = field(default_factory=set)  # of `job migrate`: their keepers still serve
    _hung: Stall | None = None
    _rails: dict[str, list[str]] = field(default_factory=dict)  # addresses, as agents told them

    def run(self) -> int:
        """The program's exit status, as a shell would have it."""
        self._asker = Asker(self.member, self.config)
        self._hangs = HangWatch(self.policy, time.monotonic)
        self._orders = Orders(self.policy.halt_at_s)
        self.launch = self._first = self._launches()
        state = self.config.state
        self._candidates = ports(self.member.job, state.port_first, state.port_count)
        self._hearts = Heartbeat(
            self.member.nodes,
            self._alive,
            self._witness,
            state.silence_s,
            time.monotonic,
            own=self.member.node,
        )
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._take)
        try:
            while (status := self._one()) is None:
                pass
            return status
        finally:
            self._tell_end()
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
        self._orders.take_signal(number)

    def _one(self) -> int | None:
        """One start to its end; None: start again."""
        begin_s = time.monotonic()
        nodes = hostlist.fold(self.placement.nodes)
        self._tell(LaunchEvent.START, nodes, f"{len(self.placement.hosts)} ranks")
        step = self._start()
        if self._orders.ends:
            self._orders.send("TERM")
        try:
            status, dead = self._watch(step)
            nodes = hostlist.fold(self.placement.nodes)
            leaving, to = self._orders.leaving
            if (
                leaving
                and status == 0
                and not dead & set(self.placement.nodes)
                and not self._is_done()
            ):
                self._tell(LaunchEvent.END, nodes, f"saved, to leave {leaving}")
                self._go(leaving, to)
                return None
            if step.finished and status is not None:
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
            if self._orders.halts:
                sys.stderr.write("fabric: run: ended by `fabricctl job halt`\n")
                return status or 0
            if self._orders.ends and not dead:
                return status if status is not None else 128 + self._orders.ends
            unused = step.unused and not dead
            if not unused:
                self._leave_unreachable()
            refusal = UNUSED if unused else self._next(status, dead, begin_s)
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
        ended_s = 0.0
        status: int | None = None
        while True:
            found = self._hearts.look()
            died |= found
            step.lost(found)
            self.placement, self.launch = step.placement, step.launch
            self._obey(step)
            if (name := self._orders.is_due(time.monotonic())) and step.cancel(name):
                self._orders.sent()
            self._hung = None if step.finished else self._hangs.expired()
            if self._hung is not None and status is None and self._acts_on(self._hung):
                return None, died
            if died & set(self.placement.nodes) and not step.carries:
                return step.poll(), died
            if status is None:
                status = step.poll(early=True)
                ended_s = time.monotonic()
            elif self._orders.ends or self._orders.given:  # the others may still save
                whole = step.poll()
                if whole is not None or time.monotonic() - ended_s > LAST_S:
                    return whole or status, died
            elif status == 0 or self._no_node(ended_s):
                return status, died

    def _no_node(self, ended_s: float) -> bool:
        """Whether it was no node's death by which the program ended then: that is seen a little
        later, unless all have answered since."""
        nodes = self.placement.nodes
        return time.monotonic() - ended_s > GRACE_S or self._hearts.live_since(nodes, ended_s)

    def _acts_on(self, stall: Stall) -> bool:
        """A host or link at fault may come back: without a spare that is waited for."""
        away = _nodes(stall)
        if self.policy.hang_s is not None or not away:
            return True
        return self._without(away) is not None

    def _obey(self, step: Step | LiveStep) -> None:
        """Ranks that are told to save end by themselves, or go on in a new group."""
        order, self._order = self._order, ""
        if order:
            for _ in self._asker.ask(self._living, 1.0, "halt", {"how": ""}):
                pass
            self._order = ""  # it was asked for once more meanwhile
        at_s = self._orders.halt_at_s
        if at_s is not None and time.time() >= at_s:
            self._orders.halt_at_s, order = None, order if order == "now" else "checkpoint"
        before = self._orders.given
        if self._orders.take(order, time.monotonic()) and self._orders.halts:
            self._orders.send("KILL" if order == "now" else "USR1")
        elif order.startswith("from:") and before:
            node = order.removeprefix("from:").partition(":")[0]
            sys.stderr.write(f"fabric: run: not now: ranks do not leave {node}\n")
        elif self._orders.leaving[0] and (order or self.policy.live):
            self._leave(step, *self._orders.leaving)

    def _leave(self, step: Step | LiveStep, node: str, to: str) -> None:
        """Ranks leave a node for a spare after a save; without one nothing is done."""
        if node not in self.placement.nodes:
            self._emptied.add(node)
            step.leave(node, "")
            self._orders.left()
            sys.stderr.write(f"fabric: run: no rank is on {node}; it is no spare any more\n")
        elif (to and to not in self._spares) or self._without({node}, to) is None:
            self._orders.left()
            sys.stderr.write(f"fabric: run: no spare to take the place of {node}\n")
        elif step.leave(node, to):
            self._emptied.add(node)
            self._orders.left()
        elif not self.policy.live:
            self._orders.send("USR1")
        elif self._orders.is_old(time.monotonic()):  # no group is there, or nobody waits yet
            self._orders.left()
            sys.stderr.write(f"fabric: run: no process of a spare was ready to leave {node} for\n")

    @property
    def _spares(self) -> list[str]:
        return [node for node in self.placement.spares if node not in self._emptied]

    @property
    def _living(self) -> list[str]:
        return [node for node in self.member.nodes if node not in self._hearts.dead]

    def _without(
        self, nodes: Collection[str] = (), to: str = "", least: int = 0
    ) -> Placement | None:
        """Where ranks would be without these nodes, beside those that are not used any more."""
        away = self._hearts.dead | self._left | self._emptied | set(nodes)
        return self.placement.prefer(to).without(away, least)

    def _go(self, leaving: str, to: str) -> None:
        """All have saved and ended, to begin again elsewhere."""
        placed = self._without({leaving}, to)
        if placed is None:
            sys.stderr.write(f"fabric: run: no spare is left: the ranks stay on {leaving}\n")
        else:
            self.placement = placed
            self._emptied.add(leaving)
        self._orders.left()
        self.launch += 1

    def _is_done(self) -> bool:
        """Whether the program ended well, just when it was to leave a node: then it would begin
        anew, because it has given its checkpoints back."""
        answers = self._asker.ask(self._living, FIRST_S)
        return any(message.get("done") == str(self.launch) for _, message in answers)

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

    def _leave_unreachable(self) -> None:
        """A node that lives by its rails alone goes on, but nothing can be started there."""
        knocking = {
            node: Knocking([self._asker.address(node)], self._candidates)
            for node in self._hearts.silent() & set(self.placement.nodes) - self._left
        }
        end_s = time.monotonic() + BACK_S
        while knocking:
            for node in [node for node, one in knocking.items() if one.answered()]:
                knocking.pop(node).close()
            if time.monotonic() >= end_s:
                break
            time.sleep(0.05)
        for node, one in knocking.items():
            one.close()
            self._left.add(node)
            sys.stderr.write(f"fabric: run: {node} answers over its rails alone: left\n")

    def _next(self, status: int | None, dead: set[str], begin_s: float) -> str:
        """Chooses the next placement; why there is none, or "" ."""
        if self._hung is not None:
            self._left |= _nodes(self._hung) & set(self.placement.nodes)
        leaving, to = self._orders.leaving  # it ended before it had saved: it leaves all the same
        self._orders.left()
        mute = set(self.placement.spares) - self._hearts.heard  # what ranks saved is not had there
        placement = self._without({leaving, *mute}, to) or self._without({leaving}, to)
        if leaving and placement is not None:
            self._emptied.add(leaving)
        least = self.policy.min_nodes
        placement = placement or self._without(mute) or self._without(least=least)
        away = (self._left | self._emptied) - self._hearts.dead
        if placement is None and away:  # better there than nowhere
            self._left &= self._hearts.dead
            self._emptied &= self._hearts.dead
            placement = self._without(least=least)
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
        for node, message in self._asker.ask(nodes, wait_s, "alive", self._told):
            found.add(node)
            self._hangs.hear(message, self.launch)
            self._rails[node] = rails_told(message.get("rails", ""))
            if node == self.member.node:
                self._order = message.get("halt", "")
        time.sleep(max(0.0, end_s - time.monotonic()))  # all answered: the pace stays
        return found

    def _told(self, node: str) -> Mapping[str, str]:
        """What this node's agent is told of us, for those who order something."""
        if node != self.member.node:
            return {}
        places = {"on": self.placement.nodes, "spares": self._spares}
        folded = {name: hostlist.fold(nodes) for name, nodes in places.items()}
        return {"run": "1", **{k: text for k, text in folded.items() if len(text) < TOLD_MOST}}

    def _tell_end(self) -> None:
        """Orders that come from now on are for nobody."""
        for _ in self._asker.ask([self.member.node], FIRST_S, "alive", {"run": "0"}):
            return

    def _witness(self, node: str) -> Witness:
        return Knocking([self._asker.address(node), *self._rails.get(node, ())], self._candidates)

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
