"""A Slurm that is a few lists: for tests of what asks and changes it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fabricctl import hostlist
from fabricctl.errors import NotFoundError, SlurmError
from fabricctl.slurm.model import (
    Job,
    Node,
    NodeAction,
    Partition,
    Reservation,
    Rights,
    Step,
    Usage,
    Version,
)

NOW_S = 1_790_000_000


def node(name: str, state: str = "IDLE", *flags: str, **given: object) -> Node:
    base = Node(name, state, frozenset(flags), None, None, None, 4, 0, 4000, (), ("main",),
                name, "22.05.8", NOW_S - 1000)  # fmt: skip
    return replace(base, **given)  # type: ignore[arg-type]


def job(number: int, state: str = "RUNNING", nodes: str = "", **given: object) -> Job:
    names = tuple(hostlist.expand(nodes))
    base = Job(number, "job", 6001, "alice", "lab", ("main",), state, None, names, len(names), 4,
               NOW_S - 100, NOW_S - 90, None, None, None, None, None, None, None, None, 0,
               None)  # fmt: skip
    return replace(base, **given)  # type: ignore[arg-type]


def use(number: int, begin_s: int, end_s: int | None, **given: object) -> Usage:
    elapsed_s = (end_s or NOW_S) - begin_s
    base = Usage(number, "alice", "lab", "main", "COMPLETED", ("n1",), 1, 4, begin_s, begin_s,
                 end_s, elapsed_s, "job")  # fmt: skip
    return replace(base, **given)  # type: ignore[arg-type]


@dataclass
class FakeSlurm:
    """Jobs and nodes as a test set them; remembers what was changed."""

    the_nodes: dict[str, Node] = field(default_factory=dict)
    the_jobs: list[Job] = field(default_factory=list)
    the_usage: list[Usage] = field(default_factory=list)
    changes: list[tuple[str, str, str]] = field(default_factory=list)  # node, action, reason
    the_steps: list[Step] = field(default_factory=list)
    the_rights: dict[str, Rights] = field(default_factory=dict)
    backend: str = "commands"
    reason: str = "a test"
    version: Version = Version(22, 5, "22.05.8")
    broken: bool = False  # every question fails

    def _check(self) -> None:
        if self.broken:
            raise SlurmError("scontrol show node: Unable to contact slurm controller")

    def jobs(self) -> tuple[Job, ...]:
        self._check()
        return tuple(self.the_jobs)

    def job(self, job: int) -> Job:
        for each in self.jobs():
            if each.id == job:
                return each
        raise NotFoundError(f"job {job}: the controller does not know it (any more)")

    def steps(self, job: int) -> tuple[Step, ...]:
        self.job(job)
        return tuple(each for each in self.the_steps if each.job == job)

    def nodes(self) -> tuple[Node, ...]:
        self._check()
        return tuple(sorted(self.the_nodes.values(), key=lambda each: each.name))

    def partitions(self) -> tuple[Partition, ...]:
        self._check()
        return (Partition("main", "UP", True, tuple(self.the_nodes), None),)

    def reservations(self) -> tuple[Reservation, ...]:
        return ()

    def set_node_state(self, nodes: Iterable[str], action: NodeAction, reason: str = "") -> None:
        self._check()
        for name in nodes:
            if name not in self.the_nodes:
                raise NotFoundError(f"nodes {name}: Invalid node name specified")
            known = self.the_nodes[name]
            if action == "resume":
                changed = replace(known, flags=known.flags - {"DRAIN"}, reason=None, state="IDLE")
            else:
                changed = replace(known, flags=known.flags | {"DRAIN"}, reason=reason)
            self.the_nodes[name] = changed
            self.changes.append((name, action, reason))

    def set_node_comment(self, nodes: Iterable[str], comment: str) -> None:
        self._check()
        for name in nodes:
            self.the_nodes[name] = replace(self.the_nodes[name], comment=comment or None)
            self.changes.append((name, "comment", comment))

    def release_node(self, job: int, node: str) -> None:
        self.changes.append((node, "release", str(job)))

    def requeue(self, job: int, hold: bool = False) -> None:
        raise AssertionError("nothing here requeues")

    def cancel(self, job: int, signal: int | None = None) -> None:
        raise AssertionError("nothing here cancels")

    def usage(
        self, begin_real_s: int, end_real_s: int, job: int | None = None
    ) -> tuple[Usage, ...]:
        self._check()
        return tuple(use for use in self.the_usage if job in (None, use.job))

    def rights(self) -> Mapping[str, Rights]:
        self._check()
        return dict(self.the_rights)

    def configuration(self) -> Mapping[str, str]:
        return {"ClusterName": "fake"}
