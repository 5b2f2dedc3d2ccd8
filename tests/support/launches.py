"""Slurm, the agents and a program of many ranks, played for `fabricctl run`."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from fabricctl.config import Config
from fabricctl.launch import heartbeat, supervise
from fabricctl.launch.placement import Placement, first
from fabricctl.launch.policy import Policy
from fabricctl.launch.supervise import Supervisor
from fabricctl.membership import Member
from fabricctl.store.schema import LaunchEvent

NODES = ("n1", "n2", "n3", "n4", "n5")


@dataclass
class World:
    """``plays`` is called at each look of a step, with the step's number and the looks so far;
    what it returns is srun's status."""

    plays: Callable[[int, int], int | None]
    silent: set[str] = field(default_factory=set)
    mute: set[str] = field(default_factory=set)  # alive, without an agent
    order: str = ""
    done: str = ""  # the start that gave its checkpoints back
    tasks_after: int = 0  # looks of a step until Slurm knows of its tasks
    told: dict[str, str] = field(default_factory=dict)  # by `fabricctl run`, to its own agent
    stall: dict[str, str] = field(default_factory=dict)
    now_s: float = 1000.0
    placed: list[tuple[str, ...]] = field(default_factory=list)
    environments: list[Mapping[str, str]] = field(default_factory=list)
    signals: list[str] = field(default_factory=list)
    events: list[tuple[LaunchEvent, str]] = field(default_factory=list)


class FakeStep:
    """One srun."""

    world: World
    carries = finished = unused = False

    def __init__(
        self,
        job: int,
        launch: int,
        placement: Placement,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        options: Sequence[str] = (),
    ) -> None:
        self._launch, self._looks = launch, 0
        self.placement, self.launch = placement, launch
        self.world.placed.append(placement.hosts)
        self.world.environments.append(environment)

    def poll(self, *, early: bool = False) -> int | None:
        self._looks += 1
        return self.world.plays(self._launch, self._looks)

    def cancel(self, number: str = "KILL") -> bool:
        if self._looks >= self.world.tasks_after:
            self.world.signals.append(number)
        return self._looks >= self.world.tasks_after

    def lost(self, nodes: Collection[str]) -> None:
        pass

    def leave(self, node: str, to: str) -> bool:
        return False

    def abandon(self) -> None:
        pass


class FakeLive(FakeStep):
    """Its others run on as long as there is a spare."""

    def __init__(self, *what: Any, environment: Mapping[str, str], options: Sequence[str],
                 **_: object) -> None:  # fmt: skip
        super().__init__(*what, environment=environment, options=options)
        self.carries = True

    def lost(self, nodes: Collection[str]) -> None:
        for _ in set(nodes) & set(self.placement.hosts):
            placed = self.placement.without(self.world.silent)
            self.carries = placed is not None
            self.placement = placed or self.placement
            self.launch += 1


class FakeAsker:
    """All agents; those of silent nodes do not answer."""

    world: World

    def __init__(self, *_: object) -> None:
        pass

    def ask(
        self,
        nodes: Collection[str],
        wait_s: float,
        kind: str = "where",
        more: Mapping[str, str] | Callable[[str], Mapping[str, str]] | None = None,
    ) -> Iterator[tuple[str, Mapping[str, str]]]:
        if kind == "alive" and more:
            self.world.told = dict(more("n1") if callable(more) else more)
        if kind == "event" and isinstance(more, Mapping):
            event = LaunchEvent(int(more["event"]))
            if (event, more["at"]) not in self.world.events[-1:]:
                self.world.events.append((event, more["at"]))
        if kind == "halt" and isinstance(more, Mapping):
            self.world.order = more["how"]
        for node in set(nodes) - self.world.silent - self.world.mute:
            mine = self.world.stall if node == "n1" and kind == "alive" else {}
            said = {"ranks": "", "halt": self.world.order, "done": self.world.done}
            yield node, {**said, **mine}

    def close(self) -> None:
        pass


@dataclass
class Machine:
    """A node itself, which is silent when its agent is."""

    world: World
    node: str

    def answered(self) -> bool:
        return self.node not in self.world.silent

    def close(self) -> None: ...


Play = Callable[..., tuple[int, World]]


def played(monkeypatch: pytest.MonkeyPatch) -> Play:
    """What runs a program under the supervisor in a world: its status, and what became of it."""

    def of(world: World, spares: int = 1, **policy: float | None) -> tuple[int, World]:
        FakeStep.world = FakeAsker.world = world

        def sleep(seconds: float) -> None:
            world.now_s += seconds

        monkeypatch.setattr(supervise, "Step", FakeStep)
        monkeypatch.setattr(supervise, "LiveStep", FakeLive)
        monkeypatch.setattr(supervise, "Asker", FakeAsker)
        monkeypatch.setattr(supervise.time, "monotonic", lambda: world.now_s)
        monkeypatch.setattr(supervise.time, "sleep", sleep)
        monkeypatch.setattr(supervise.signal, "signal", lambda *_: None)
        monkeypatch.setattr(Supervisor, "_witness", lambda _self, node: Machine(world, node))
        monkeypatch.setattr(heartbeat.time, "monotonic", lambda: world.now_s)
        member = Member(7, b"k" * 32, NODES, "n1", spares)
        placed = first(NODES, "n1", spares, None)
        given = Policy(**{"track": False, **policy})  # type: ignore[arg-type]
        one = Supervisor(member, Config(), placed, ["app"], given)
        return one.run(), world

    return of
