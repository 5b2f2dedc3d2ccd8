"""Carries a maintenance out: looks, writes down, acts, and looks again."""

import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from fabricctl import hostlist
from fabricctl.errors import NotFoundError, SlurmError
from fabricctl.fleet.changes import ChangeLog
from fabricctl.fleet.maintenance import commands
from fabricctl.fleet.maintenance.decide import Outcome, Step, decide, empty, finished, ours, out
from fabricctl.fleet.maintenance.journal import ACTIVE, Files, Journal
from fabricctl.fleet.maintenance.plan import Plan
from fabricctl.slurm.model import FINISHED, WAITING, Node, Slurm

LEAVE = ("fabricctl", "maintenance", "leave", "{node}")
LOOK_S = 0.2  # between looks at commands; Slurm is asked every poll_s


class Controller:
    """One at a time: made with the lock held (:meth:`Files.take_lock`)."""

    def __init__(
        self, plan: Plan, files: Files, slurm: Slurm, say: Callable[[str], None], poll_s: float
    ) -> None:
        self._plan = plan
        self._files = files
        self._slurm = slurm
        self._say = say
        self._poll_s = poll_s
        self._journal = Journal(files, plan)
        # Beside the folder of all maintenances, as FleetConfig.dir has it.
        self._log = ChangeLog(files.directory.parent.parent, f"maintenance {plan.name}")
        self._children: list[subprocess.Popen[bytes]] = []
        self._stopped = False
        self._trouble = ""
        self._blocked = ""

    @property
    def journal(self) -> Journal:
        return self._journal

    def run(self) -> str:
        """Until nothing is left to do: ``done``, ``paused``, ``aborted``, ``failed`` (nodes failed,
        or could not be done) or ``stopped`` (by a signal: start goes on from there)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        for name, standing in self._journal.standings.items():
            if standing.state == "verifying":  # nobody looked while there was no controller
                self._journal.write(name, "verifying", "looked at anew")
        while not self._stopped:
            wish = self._files.wish()
            nodes, held = self._look()
            steps: list[Step] = []
            if nodes is not None:
                outcomes = self._outcomes()
                steps = decide(self._plan, self._journal.standings, nodes, outcomes, wish=wish,
                               now_s=time.time(), held=held)  # fmt: skip
                if not steps and self._over(wish):
                    return self._word(wish)
                for step in steps:
                    self._take(step, outcomes)
            if not steps:
                self._say_what_blocks(nodes)
                self._wait(wish)
        return "stopped"

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopped = True

    def _look(self) -> tuple[Mapping[str, Node] | None, set[str]]:
        """What Slurm shows now, and nodes that jobs have: a suspended one holds no CPU, and its
        node is idle to Slurm. None while it does not answer: then nothing is done."""
        draining = any(each.state == "draining" for each in self._journal.standings.values())
        try:
            found = {node.name: node for node in self._slurm.nodes()}
            jobs = self._slurm.jobs() if draining else ()
        except SlurmError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                self._say(f"waiting for Slurm: {error}")
            return None, set()
        if self._trouble:
            self._say("Slurm answers again")
            self._trouble = ""
        over = FINISHED | WAITING | {"COMPLETING"}  # the last: nodes say so themselves
        held = (job.nodes for job in jobs if job.state not in over)
        return found, {name for names in held for name in names}

    def _outcomes(self) -> dict[str, Outcome]:
        self._children = [child for child in self._children if child.poll() is None]
        return {
            name: commands.outcome(path)
            for name in self._journal.standings
            if (path := self._place(name)) is not None
        }

    def _place(self, node: str) -> Path | None:
        """Where the node's command of now keeps its files."""
        standing = self._journal.standings[node]
        if standing.state == "draining" and self._plan.migrate:
            return self._files.work / f"{node}.leave"
        if standing.state == "working":
            return self._files.work / f"{node}.{standing.runs}"
        if standing.state == "verifying":
            return self._files.work / f"{node}.verify"
        return None

    def _over(self, wish: str) -> bool:
        """Nothing to do and nothing to come. After too many failures waiting nodes stay waiting."""
        standings = self._journal.standings
        if finished(standings, wish):
            return True
        failed = sum(each.state == "failed" for each in standings.values())
        return failed > self._plan.max_failures and finished(standings, "pause")

    def _word(self, wish: str) -> str:
        states = [each.state for each in self._journal.standings.values()]
        if wish == "abort":
            return "aborted"
        if wish == "pause" and "waiting" in states:
            return "paused"
        return (
            "done" if all(state in ("done", "skipped", "taken") for state in states) else "failed"
        )

    def _take(self, step: Step, outcomes: Mapping[str, Outcome]) -> None:
        """Writes down where the node stands from now on, then does what is to be done."""
        standing, outcome = self._journal.standings[step.node], outcomes.get(step.node)
        place = self._place(step.node)
        text = step.text
        if step.state == "failed" and place is not None:
            commands.end(place)
            text = f"{text} ({commands.last_words(place)})"
        if standing.state != step.state or (step.do == "work" and outcome == "lost"):
            self._journal.write(step.node, step.state, text)
            self._say(f"{step.node}: {step.state}" + (f": {text}" if text else ""))
        try:
            self._do(step, text)
        except (SlurmError, NotFoundError) as error:
            # The next look finds it undone and tries again.
            self._say(f"{step.node}: {error}")
            time.sleep(min(1.0, self._poll_s))

    def _now(self, name: str) -> Node | None:
        """Asked once more right before a change, so that what somebody did meanwhile stays."""
        return next((each for each in self._slurm.nodes() if each.name == name), None)

    def _do(self, step: Step, text: str) -> None:
        plan = self._plan
        if step.do == "drain":
            now = self._now(step.node)
            if now is not None and not out(now):
                left = self._files.work / f"{step.node}.leave"
                if commands.outcome(left) != "running":  # other jobs are there than the last time
                    shutil.rmtree(left, ignore_errors=True)
                with self._log.change("drain", step.node, plan.reason):
                    self._slurm.set_node_state([step.node], "drain", plan.reason)
        elif step.do == "leave":
            place = self._place(step.node)
            assert place is not None
            with self._log.change("migrate", step.node, plan.reason):
                self._children.append(commands.start(place, LEAVE, step.node))
        elif step.do in ("return", "undo"):
            now = self._now(step.node)
            if now is not None and ours(plan, now):
                with self._log.change("return", step.node, plan.reason):
                    self._slurm.set_node_state([step.node], "resume")
        elif step.do == "work":
            place = self._place(step.node)
            assert place is not None
            with self._log.change("command", step.node, shlex.join(plan.command)):
                self._children.append(commands.start(place, plan.command, step.node))
        elif step.do == "verify":
            place = self._place(step.node)
            assert place is not None
            shutil.rmtree(place, ignore_errors=True)  # of a try that a crash cut off
            self._children.append(commands.start(place, plan.verify, step.node))
        elif step.state == "failed":
            now = self._now(step.node)
            if now is not None and ours(plan, now):
                reason = f"{plan.reason}: failed: {text}"
                with self._log.change("reason", step.node, reason[:200]):
                    self._slurm.set_node_state([step.node], "drain", reason[:200])

    def _say_what_blocks(self, nodes: Mapping[str, Node] | None) -> None:
        """Once: nodes that others took out use up the budget, and nothing is under way."""
        states = {each.state for each in self._journal.standings.values()}
        if nodes is None or states & ACTIVE or "waiting" not in states:
            return
        gone = [name for name in self._plan.nodes if name in nodes and out(nodes[name])]
        said = f"waiting: {hostlist.fold(gone)} are out, at most {self._plan.budget} may be"
        if gone and said != self._blocked:
            self._blocked = said
            self._say(said)

    def _wait(self, wish: str) -> None:
        """Until it is time to ask Slurm, a command has ended, or something else is wished for."""
        deadline = time.monotonic() + self._poll_s
        before = self._outcomes()
        while time.monotonic() < deadline and not self._stopped:
            time.sleep(min(LOOK_S, max(0.0, deadline - time.monotonic())))
            if self._outcomes() != before or self._files.wish() != wish:
                return


def preview(plan: Plan, nodes: Mapping[str, Node]) -> list[tuple[str, str]]:
    """For each node what would become of it now, in one word or two: of ``--dry-run``."""
    said = []
    for name in plan.nodes:
        node = nodes.get(name)
        if node is None:
            said.append((name, "fails: Slurm does not know it"))
        elif out(node):
            said.append((name, f"skipped while it is out: {node.reason or node.state.lower()}"))
        else:
            said.append((name, "at once" if empty(node) else "when its jobs have ended"))
    return said
