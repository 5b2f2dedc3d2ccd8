"""What to do next. Pure: the plan, where each node stands and what Slurm shows go in."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from fabricctl.fleet.maintenance.journal import ACTIVE, ENDED, Standing, State
from fabricctl.fleet.maintenance.plan import Plan
from fabricctl.slurm.model import Node

Doing = Literal["drain", "leave", "work", "verify", "return", "undo", "none"]
# Of a command; absent: it was never started; lost: it was, and left no result.
Outcome = Literal["absent", "running", "ok", "failed", "lost"]

_ABSENT = frozenset({"NOT_RESPONDING", "POWERED_DOWN", "POWERING_DOWN", "POWERING_UP",
                     "REBOOT_ISSUED", "REBOOT_REQUESTED"})  # fmt: skip
MAX_RUNS = 2  # a command that was lost (the machine rebooted) is started once more


@dataclass(frozen=True)
class Step:
    """One thing to do: the state to write down first, then what to do."""

    node: str
    state: State
    do: Doing
    text: str = ""


def out(node: Node) -> bool:
    """No new job can start on it."""
    return not node.usable


def ours(plan: Plan, node: Node) -> bool:
    """We drained it, and nobody has put another reason there since."""
    reason = node.reason or ""
    return reason == plan.reason or reason.startswith(f"{plan.reason}:")


def empty(node: Node) -> bool:
    """No job is on it, not even one that ends; but for suspended ones, which hold no CPU."""
    busy = node.state in ("ALLOCATED", "MIXED") or "COMPLETING" in node.flags
    return not node.cpus_allocated and not busy


def finished(standings: Mapping[str, Standing], wish: str) -> bool:
    """Nothing is left to do, or, paused, nothing is under way."""
    if wish == "pause":
        return not any(each.state in ACTIVE for each in standings.values())
    return all(each.state in ENDED for each in standings.values())


def decide(
    plan: Plan,
    standings: Mapping[str, Standing],
    nodes: Mapping[str, Node],
    outcomes: Mapping[str, Outcome],
    *,
    wish: str,
    now_s: float,
    held: Collection[str] = (),
) -> list[Step]:
    """Steps in the order in which to take them. ``held``: nodes that jobs have.

    ``outcomes``: of the command (while working) or the verification (while verifying) of each node
    that has one. ``wish``: ``run``, ``pause`` or ``abort``.
    """
    steps: list[Step] = []
    for name, standing in standings.items():
        node = nodes.get(name)
        unbegun = standing.state in ("waiting", "aborted")
        if unbegun and node is not None and "DRAIN" in node.flags and ours(plan, node):
            steps.append(Step(name, standing.state, "undo"))  # a crash came in between
        if standing.state not in ACTIVE:
            continue
        if node is None:
            steps.append(Step(name, "failed", "none", "Slurm does not know it (any more)"))
            continue
        outcome, has_job = outcomes.get(name), name in held
        step = _Look(plan, name, standing, node, outcome, wish, now_s, has_job).next()
        if step is not None:
            steps.append(step)
    if wish == "abort":
        steps += [
            Step(name, "aborted", "none")
            for name, standing in standings.items()
            if standing.state == "waiting"
        ]
    elif wish == "run":
        failing = sum(step.state == "failed" for step in steps)
        steps += _begin(plan, standings, nodes, failing)
    return steps


@dataclass(frozen=True)
class _Look:
    """One node under way, and all that its next step hangs on."""

    plan: Plan
    name: str
    standing: Standing
    node: Node
    outcome: Outcome | None
    wish: str
    now_s: float
    held: bool  # by a job

    def next(self) -> Step | None:
        """None: to be waited for."""
        state, node = self.standing.state, self.node
        drained = "DRAIN" in node.flags
        if state == "returning":
            if not drained and node.state != "DOWN":
                return self._to("done")
            return self._to("returning", "return") if ours(self.plan, node) else self._taken()
        if drained and not ours(self.plan, node):
            # A command is let run to its end; what becomes of the node is not ours any more.
            return None if self.outcome == "running" else self._taken()
        if state == "begun":
            return self._to("draining") if drained else self._begun()
        if not drained:
            if self.outcome == "running":
                return None
            return self._to("skipped", text="somebody returned it before it was done")
        if state == "draining":
            return self._drained()
        return self._worked() if state == "working" else self._verified()

    @property
    def _since_s(self) -> float:
        return self.now_s - self.standing.since_real_s

    def _to(self, state: State, do: Doing = "none", text: str = "") -> Step:
        return Step(self.name, state, do, text)

    def _taken(self) -> Step:
        return self._to("taken", text=f"somebody else has it now: {_why(self.node)}")

    def _begun(self) -> Step:
        """Slurm was not told (a kill, an error), or it failed once and is in use again: others may
        have gone out since, so it waits for the budget as all do."""
        return self._to("aborted" if self.wish == "abort" else "waiting")

    def _drained(self) -> Step | None:
        if self.wish != "run":
            return self._to("aborted" if self.wish == "abort" else "waiting", "undo")
        if self.node.state == "DOWN" and "NOT_RESPONDING" not in self.node.flags:
            return self._to("failed", text="went down while its jobs ran to their end")
        if empty(self.node) and not self.held:
            return self._to("working", "work")
        # Once: who cannot leave runs to its end.
        ask = self.plan.migrate and self.outcome == "absent"
        return self._to("draining", "leave") if ask else None

    def _worked(self) -> Step | None:
        if self.outcome == "ok":
            return self._to("verifying")
        if self.outcome == "failed":
            return self._to("failed", text="its command failed")
        if self.outcome == "running":
            limit_s = self.plan.command_timeout_s
            if self._since_s <= limit_s:
                return None
            return self._to("failed", text=f"its command did not end within {limit_s:g} s")
        if self.outcome == "lost" and self.standing.runs >= MAX_RUNS:
            return self._to("failed", text="its command was cut off twice and left no result")
        return self._to("working", "work")

    def _verified(self) -> Step | None:
        if self.outcome == "ok":
            return self._to("returning", "return")
        if self.outcome == "failed":
            return self._to("failed", text="its verification failed")
        limit_s = self.plan.return_timeout_s
        if self._since_s > limit_s:
            what = "its verification did not end" if self.outcome == "running" else self._absence()
            return self._to("failed", text=f"{what} within {limit_s:g} s")
        if self.outcome == "running" or not self._is_back():
            return None
        if self.plan.verify:
            return self._to("verifying", "verify")
        return self._to("returning", "return")

    def _is_back(self) -> bool:
        if _ABSENT & self.node.flags:
            return False
        # Slurm keeps boot times in whole seconds.
        booted_s = self.node.boot_real_s or 0
        return not self.plan.expect_reboot or booted_s >= int(self.standing.begun_real_s)

    def _absence(self) -> str:
        if _ABSENT & self.node.flags or not self.plan.expect_reboot:
            return "it did not come back"
        return "it did not reboot"


def _why(node: Node) -> str:
    return node.reason or f"{node.state.lower()}, no reason given"


def _begin(
    plan: Plan, standings: Mapping[str, Standing], nodes: Mapping[str, Node], failed: int
) -> Iterator[Step]:
    """Nodes to begin with now, as far as the budget goes: idle ones first. ``failed``: at this
    look."""
    waiting = [name for name, each in standings.items() if each.state == "waiting"]
    for name in waiting:
        if name not in nodes:
            failed += 1
            yield Step(name, "failed", "none", "Slurm does not know it")
    waiting = [name for name in waiting if name in nodes]
    failed += sum(each.state == "failed" for each in standings.values())
    busy = {name for name, each in standings.items() if each.state in ACTIVE}
    gone = {name for name in plan.nodes if name not in nodes or out(nodes[name])}
    unfit = [name for name in waiting if name in gone]
    if failed > plan.max_failures:
        return
    if waiting and not busy and len(unfit) == len(waiting):
        for name in unfit:
            yield Step(name, "skipped", "none", f"was out already: {_why(nodes[name])}")
        return
    away = busy | gone
    per_group = Counter(plan.groups[name] for name in away if name in plan.groups)
    order = [name for name in waiting if name not in gone]
    for name in sorted(order, key=lambda n: (not empty(nodes[n]), nodes[n].cpus_allocated)):
        if len(away) >= plan.budget:
            return
        group = plan.groups.get(name)
        if plan.per_group and group is not None and per_group[group] >= plan.per_group:
            continue
        if group is not None:
            per_group[group] += 1
        away.add(name)
        yield Step(name, "begun", "drain")
