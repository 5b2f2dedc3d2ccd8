"""A cluster whose nodes are looked at, for tests of what health makes of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fabricctl.fleet import changes
from fabricctl.fleet.audit.model import Check
from fabricctl.fleet.health import run
from fabricctl.fleet.health.store import HealthStore
from fabricctl.sections import HealthConfig
from tests.support.fakeslurm import NOW_S, FakeSlurm, node

ON = HealthConfig(mode="on", max_drained="2", max_at_once="2")
NAMES = [f"n{number}" for number in range(1, 9)]
DEAD = Check("n3", "host", "spool", "fail", "0 MiB free", "32 MiB")
RAIL = Check("n3", "link", "carrier", "fail", "no carrier", "up", "r0")
SHA = "ab" * 32


@dataclass
class Scene:
    """A cluster, its health store and what nodes were asked to do with their rails."""

    directory: Path
    slurm: FakeSlurm = field(
        default_factory=lambda: FakeSlurm({name: node(name) for name in NAMES})
    )
    policy: HealthConfig = ON
    at_s: int = NOW_S
    rails: list[tuple[str, ...]] = field(default_factory=list)
    rail_trouble: str = ""

    def look(
        self, bad: Iterable[Check] = (), names: Sequence[str] = NAMES, *, dry: bool = False
    ) -> list[tuple[str, str, str]]:
        """``(node, action, outcome)`` of one look."""
        self.at_s += 60
        broken = {(c.node, c.area, c.name, c.rail): c for c in bad}
        checks = list(broken.values())
        for name in names:
            for area, what, rail in (("host", "spool", ""), ("host", "memory", ""),
                                     ("link", "carrier", "r0"), ("link", "carrier", "r1"),
                                     ("fabric", "reach", "r0")):  # fmt: skip
                if (name, area, what, rail) not in broken:
                    checks.append(Check(name, area, what, "ok", "fine", "", rail))
        return self.taken(checks, names, dry=dry)

    def taken(
        self, checks: Sequence[Check], names: Sequence[str], *, dry: bool = False
    ) -> list[tuple[str, str, str]]:
        sha = f"{self.at_s:064x}"
        with run.only_one(self.directory):
            store = HealthStore(self.directory / "health.db")
            store.take(sha, self.at_s, names, checks)
            outcomes = self.health(store, dry=dry).look(names, f"audit {sha[-12:]}")
            store.close()
        return [(each.decision.node, each.decision.action, str(each)) for each in outcomes]

    def taken_only(self, check: Check) -> list[tuple[str, str, str]]:
        """A look at one node of which this is all that was found."""
        self.at_s += 60
        return self.taken([check], [check.node])

    def health(self, store: HealthStore, *, dry: bool = False) -> run.Health:
        log = changes.ChangeLog(self.directory, "health")
        return run.Health(self.policy, self.slurm, store, log, self._rail, dry=dry)

    def _rail(self, name: str, words: Sequence[str]) -> str:
        self.rails.append((name, *words))
        return self.rail_trouble

    def give_back(self, *names: str) -> list[str]:
        store = HealthStore(self.directory / "health.db")
        found = [str(each) for each in self.health(store).give_back(names)]
        store.close()
        return found

    @property
    def drained(self) -> set[str]:
        return {n.name for n in self.slurm.nodes() if "DRAIN" in n.flags}
