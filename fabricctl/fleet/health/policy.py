"""What findings lead to. Pure: what is known of each node and what Slurm shows go in.

Whatever speaks against an action wins, and is said: a node is drained only when nothing does.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fabricctl.fleet.maintenance.plan import parse_budget
from fabricctl.fleet.overview import OURS
from fabricctl.sections import HealthConfig
from fabricctl.slurm.model import Node, Partition

Action = Literal["none", "note", "comment", "rail", "drain", "return"]
ACTIONS: tuple[Action, ...] = ("none", "note", "comment", "rail", "drain", "return")
PREFIX = f"{OURS} health:"  # of every reason that is set here
MAX_REASON = 180  # characters; Slurm takes more, sinfo -R shows 20


@dataclass(frozen=True)
class Matter:
    """Something that is wrong with a node, or one of its rails, for some looks in a row."""

    node: str
    area: str
    name: str
    rail: str
    weight: Literal["error", "warning", "unknown"]  # unknown: it could not be measured
    text: str
    looks: int  # in a row, the last one included
    since_real_s: int


@dataclass(frozen=True)
class Record:
    """What is known of a node from looks at it."""

    matters: tuple[Matter, ...] = ()
    clean: int = 0  # looks in a row without an error
    rails: frozenset[str] = frozenset()  # that were looked at
    excluded: frozenset[str] = frozenset()  # rails that we excluded
    our_reason: str = ""  # what we wrote last to Slurm; empty: nothing


@dataclass(frozen=True)
class Decision:
    """One thing to do, or, with ``refused``, not to do, and why."""

    node: str
    action: Action
    text: str  # the reason, with the evidence
    rail: str = ""
    refused: str = ""


def decide(
    policy: HealthConfig,
    records: Mapping[str, Record],
    nodes: Mapping[str, Node],
    partitions: Sequence[Partition],
    evidence: str,
) -> list[Decision]:
    """``records``: of the nodes that were looked at just now. ``evidence`` names the look."""
    decisions: list[Decision] = []
    drains: list[tuple[int, Decision]] = []
    for name, record in sorted(records.items()):
        node = nodes.get(name)
        if node is None:
            decisions.append(Decision(name, "none", "", refused="Slurm does not know it"))
            continue
        for decision in _of_node(policy, node, record, evidence):
            if decision.action == "drain" and not decision.refused:
                worst = sum(each.weight == "error" for each in record.matters)
                drains.append((-worst, decision))
            else:
                decisions.append(decision)
    drains.sort(key=lambda item: (item[0], item[1].node))
    ordered = [decision for _, decision in drains]
    return [*decisions, *bounded(policy, ordered, nodes, partitions)]


def is_ours(node: Node, our_reason: str) -> bool:
    """We drained it, and the reason is to the letter what we wrote: nobody has added to it."""
    reason = node.reason or ""
    return bool(our_reason) and "DRAIN" in node.flags and reason == our_reason \
        and reason.startswith(PREFIX)  # fmt: skip


def is_note(node: Node, our_reason: str) -> bool:
    """It has the comment that we wrote."""
    return bool(our_reason) and node.comment == our_reason


def _of_node(
    policy: HealthConfig, node: Node, record: Record, evidence: str
) -> Iterator[Decision]:  # fmt: skip
    """What its matters lead to, the bounds of the cluster aside."""
    heaviest: dict[tuple[Action, str], list[Matter]] = {}
    for matter in record.matters:
        action = _action(policy, matter, record)
        if action == "none":
            continue
        if matter.looks < policy.confirm and action != "note":
            said = f"{_words(matter)}: seen {matter.looks} of {policy.confirm} times in a row"
            yield Decision(node.name, action, said, matter.rail, "not confirmed yet")
            continue
        rail = matter.rail if action == "rail" else ""
        heaviest.setdefault((action, rail), []).append(matter)
    for (action, rail), matters in heaviest.items():
        text = reason(matters, evidence)
        if action == "rail" and rail in record.excluded:
            continue
        refused = "" if action in ("note", "rail") else taken(node, record, action)
        if action in ("drain", "comment") and is_ours(node, record.our_reason):
            continue  # done already
        if action == "comment" and is_note(node, record.our_reason):
            continue
        yield Decision(node.name, action, text, rail, refused)
    errors = any(matter.weight != "warning" for matter in record.matters)
    if not record.matters and is_note(node, record.our_reason):
        yield Decision(node.name, "return", f"nothing is open any more ({evidence})")
    if not errors and policy.return_after and record.clean >= policy.return_after:
        said = f"{record.clean} clean looks in a row ({evidence})"
        if is_ours(node, record.our_reason):
            yield Decision(node.name, "return", said)
        for rail in sorted(record.excluded):
            yield Decision(node.name, "return", said, rail)


def _action(policy: HealthConfig, matter: Matter, record: Record) -> Action:
    """What the policy says to it; never more than a note for what could not be measured."""
    if f"{matter.area}.{matter.name}" in policy.ignore or f"{matter.area}.*" in policy.ignore:
        return "none"
    if matter.weight == "unknown":
        return "note"
    if matter.weight == "warning":
        return _known(policy.warning)
    if matter.rail:
        bad = {each.rail for each in record.matters if each.rail and each.weight == "error"}
        # A node whose last good rail is gone has nothing to fall back on.
        if record.rails - bad - record.excluded:
            return _known(policy.error_rail)
    return _known(policy.error)


def _known(word: str) -> Action:
    return next(each for each in ACTIONS if each == word)  # config.py lets no other in


def taken(node: Node, record: Record, action: Action) -> str:
    """Why a node is not ours to change; empty: nobody has it."""
    if is_ours(node, record.our_reason):
        return ""
    if "DRAIN" in node.flags:
        return f"is drained already: {node.reason or 'no reason given'}"
    if node.state == "DOWN" or "FAIL" in node.flags:
        return f"is down: {node.reason or 'no reason given'}"
    if node.reason and node.reason != record.our_reason:
        return f"has a reason of somebody else: {node.reason}"
    if action == "comment" and node.comment and not is_note(node, record.our_reason):
        return f"has a comment of somebody else: {node.comment}"
    if "MAINTENANCE" in node.flags and action == "drain":
        return "lies in a maintenance reservation"
    if {"REBOOT_ISSUED", "REBOOT_REQUESTED", "POWERING_DOWN", "POWERED_DOWN"} & node.flags:
        return "is being rebooted or powered down"
    return ""


def bounded(
    policy: HealthConfig,
    drains: Sequence[Decision],
    nodes: Mapping[str, Node],
    partitions: Sequence[Partition],
) -> Iterator[Decision]:
    """The bounds that hold for all drains together, as Slurm shows the cluster now."""
    at_once = parse_budget(policy.max_at_once, len(nodes))
    if len(drains) > at_once:
        said = f"{len(drains)} nodes at once, more than {at_once}: taken for a common cause"
        yield from (_refused(each, said) for each in drains)
        return
    most = parse_budget(policy.max_drained, len(nodes))
    ours = sum(
        "DRAIN" in node.flags and (node.reason or "").startswith(OURS) for node in nodes.values()
    )
    usable: Counter[str] = Counter()
    for partition in partitions:
        usable[partition.name] = sum(nodes[n].usable for n in partition.nodes if n in nodes)
    for each in drains:
        here = [part for part in partitions if each.node in part.nodes]
        thin = [part.name for part in here
                if usable[part.name] - 1 < policy.keep_share * len(part.nodes)]  # fmt: skip
        if ours >= most:
            yield _refused(each, f"{ours} nodes are drained by fabricctl, at most {most} may be")
        elif thin and nodes[each.node].usable:
            said = f"partition {thin[0]} would keep less than {100 * policy.keep_share:g} %"
            yield _refused(each, f"{said} of its nodes usable")
        else:
            ours += 1
            for part in here:
                usable[part.name] -= nodes[each.node].usable
            yield each


def _refused(decision: Decision, why: str) -> Decision:
    return Decision(decision.node, decision.action, decision.text, decision.rail, why)


def reason(matters: Sequence[Matter], evidence: str) -> str:
    """What Slurm is to show: the first matter, how many more, and where the evidence is."""
    order = sorted(matters, key=lambda m: (m.weight != "error", m.since_real_s, m.area, m.name))
    more = f" and {len(order) - 1} more" if len(order) > 1 else ""
    tail = f"{more} ({evidence})"
    room = MAX_REASON - len(PREFIX) - 1 - len(tail)
    said = "".join(c if c.isprintable() and c not in "\"'\\`;" else "," for c in _words(order[0]))
    return f"{PREFIX} {said[:room]}{tail}"


def _words(matter: Matter) -> str:
    where = f"{matter.rail} " if matter.rail else ""
    return f"{where}{matter.area} {matter.name}: {matter.text}"
