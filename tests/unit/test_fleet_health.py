"""Health: what leads to which action, and all that speaks against one."""

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from fabricctl.cli.main import cli
from fabricctl.errors import FabricError, SlurmError, SystemRefusedError, UsageError
from fabricctl.fleet import changes
from fabricctl.fleet.audit import report
from fabricctl.fleet.audit.model import Check
from fabricctl.fleet.health import run
from fabricctl.fleet.health.lemons import lemons, tail
from fabricctl.fleet.health.policy import PREFIX, Decision, Matter, Record, decide
from fabricctl.fleet.health.store import HealthStore
from fabricctl.sections import HealthConfig
from fabricctl.slurm.model import NodeAction, Partition
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


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_confirmed_error_drains_with_a_reason_that_carries_the_evidence(scene: Scene) -> None:
    assert scene.look([DEAD]) == [("n3", "drain", "refused: not confirmed yet")]
    assert scene.drained == set()
    assert scene.look([DEAD]) == [("n3", "drain", "done")]
    reason = scene.slurm.the_nodes["n3"].reason or ""
    assert reason.startswith("fabric: health: host spool: 0 MiB free (audit ")
    assert reason.endswith(f"{scene.at_s:064x}"[-12:] + ")")
    assert scene.look([DEAD]) == []  # it is out: nothing more is to be done
    log = changes.read(scene.directory)
    assert [(line["what"], line["on"], line["outcome"]) for line in log] == [
        ("drain", "n3", "begun"), ("drain", "n3", "done"),
    ]  # fmt: skip
    assert log[0]["user"] and log[0]["text"] == reason


def test_nothing_but_drain_is_ever_asked_of_slurm(scene: Scene) -> None:
    """Drain lets jobs end; down would kill them."""
    for _ in range(3):
        scene.look([DEAD])
    assert {action for _, action, _ in scene.slurm.changes} == {"drain"}


def test_observe_is_the_default_and_touches_nothing(scene: Scene) -> None:
    assert HealthConfig().mode == "observe"
    scene.policy = replace(ON, mode="observe")
    scene.look([DEAD, RAIL])
    assert ("n3", "drain", "would be done") in scene.look([DEAD, RAIL])
    assert scene.slurm.changes == [] and scene.rails == [] and changes.read(scene.directory) == []
    store = HealthStore(scene.directory / "health.db")
    assert [t.outcome for t in store.decisions() if t.action == "drain"][-1] == "would be done"
    store.close()


def test_an_error_that_comes_and_goes_is_never_confirmed(scene: Scene) -> None:
    for _ in range(5):
        scene.look([DEAD])
        scene.look([])
    assert scene.drained == set()


def test_what_could_not_be_measured_is_noted_and_never_more(scene: Scene) -> None:
    scene.policy = replace(ON, confirm=1, error="drain")
    silent = Check("n3", "slurm", "answers", "not measured", "is full")
    for _ in range(5):
        assert {action for _, action, _ in scene.taken_only(silent)} == {"note"}
    assert scene.drained == set()


def test_a_node_that_nobody_could_ask_keeps_what_was_open(scene: Scene) -> None:
    """A drained node takes no audit job; that must not count as a clean look."""
    scene.policy = replace(ON, return_after=1)
    scene.look([DEAD])
    scene.look([DEAD])
    silent = Check("n3", "slurm", "answers", "not measured", "is drained")
    for _ in range(4):
        scene.taken_only(silent)
    assert scene.drained == {"n3"}
    store = HealthStore(scene.directory / "health.db")
    assert ("host", "spool") in {(m.area, m.name) for m in store.records(["n3"])["n3"].matters}
    store.close()


def test_a_bad_rail_is_excluded_and_the_node_stays(scene: Scene) -> None:
    scene.look([RAIL])
    assert scene.look([RAIL]) == [("n3", "rail", "done")]
    assert scene.rails[0][:3] == ("n3", "rail-out", "r0")
    assert scene.rails[0][3].startswith(f"{PREFIX} r0 link carrier: no carrier")
    assert scene.look([RAIL]) == [] and len(scene.rails) == 1
    assert scene.drained == set()


def test_a_node_whose_last_good_rail_is_gone_is_drained(scene: Scene) -> None:
    both = [RAIL, replace(RAIL, rail="r1")]
    scene.look(both)
    assert [what[:2] for what in scene.look(both)] == [("n3", "drain")]
    assert scene.rails == [] and scene.drained == {"n3"}


def test_a_rail_that_the_node_would_not_give_up_is_told_and_tried_again(scene: Scene) -> None:
    scene.rail_trouble = "r0 is the last rail that is in use: it stays"
    scene.look([RAIL])
    for _ in range(2):
        ((_, action, outcome),) = scene.look([RAIL])
        assert action == "rail" and outcome.startswith("failed: n3: r0 is the last rail")
    assert changes.read(scene.directory)[-1]["outcome"] == "failed"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"flags": frozenset({"DRAIN"}), "reason": "broken fan"}, "is drained already: broken fan"),
        ({"flags": frozenset({"DRAIN"}), "reason": "fabric: maintenance kernel"},
         "is drained already: fabric: maintenance kernel"),
        ({"flags": frozenset({"DRAIN"}), "reason": "fabric: health: typed by hand"},
         "is drained already: fabric: health: typed by hand"),
        ({"state": "DOWN", "reason": "Not responding"}, "is down: Not responding"),
        ({"reason": "keep: debugging, bob"}, "has a reason of somebody else: keep: debugging, bob"),
        ({"flags": frozenset({"MAINTENANCE"})}, "lies in a maintenance reservation"),
        ({"flags": frozenset({"REBOOT_ISSUED"})}, "is being rebooted or powered down"),
        ({"flags": frozenset({"POWERED_DOWN"})}, "is being rebooted or powered down"),
    ],
)  # fmt: skip
def test_a_node_that_somebody_has_is_left_alone(
    scene: Scene, change: Mapping[str, object], why: str
) -> None:
    before = replace(scene.slurm.the_nodes["n3"], **change)  # type: ignore[arg-type]
    scene.slurm.the_nodes["n3"] = before
    scene.look([DEAD])
    assert scene.look([DEAD]) == [("n3", "drain", f"refused: {why}")]
    assert scene.slurm.the_nodes["n3"] == before and scene.slurm.changes == []


def test_at_most_so_many_nodes_are_drained_by_us_maintenance_counted(scene: Scene) -> None:
    scene.slurm.the_nodes["n8"] = node("n8", "IDLE", "DRAIN", reason="fabric: maintenance kernel")
    bad = [replace(DEAD, node=name) for name in ("n1", "n2")]
    scene.look(bad)
    outcomes = scene.look(bad)
    assert ("n1", "drain", "done") in outcomes
    assert (
        "n2",
        "drain",
        "refused: 2 nodes are drained by fabricctl, at most 2 may be",
    ) in outcomes
    assert scene.drained == {"n1", "n8"}
    for _ in range(5):
        scene.look(bad)
    assert scene.drained == {"n1", "n8"}


def test_the_bound_is_for_what_is_there_now_not_for_each_look(scene: Scene) -> None:
    for number in range(1, 8):
        bad = [replace(DEAD, node=f"n{each}") for each in range(1, number + 1)]
        scene.look(bad[-1:])
        scene.look(bad[-1:])
    assert len(scene.drained) == 2


def test_many_nodes_at_once_are_a_common_cause_and_none_is_drained(scene: Scene) -> None:
    """The shared file system is full: every node says so."""
    bad = [replace(DEAD, node=name) for name in NAMES]
    for _ in range(4):
        outcomes = scene.look(bad)
    assert {outcome for _, _, outcome in outcomes} == {
        "refused: 8 nodes at once, more than 2: taken for a common cause"
    }
    assert scene.drained == set()


def test_a_partition_keeps_its_share_of_usable_nodes(scene: Scene) -> None:
    scene.policy = replace(ON, keep_share=0.9)
    scene.look([DEAD])
    ((_, _, outcome),) = scene.look([DEAD])
    assert outcome == "refused: partition main would keep less than 90 % of its nodes usable"
    assert scene.drained == set()


def test_the_share_counts_nodes_that_are_out_for_any_reason() -> None:
    nodes = {name: node(name) for name in NAMES}
    for name in ("n5", "n6", "n7", "n8"):
        nodes[name] = node(name, "DOWN")
    matter = Matter("n3", "host", "spool", "", "error", "full", 2, NOW_S)
    parts = [Partition("all", "UP", True, tuple(NAMES), None)]
    (decision,) = decide(ON, {"n3": Record((matter,))}, nodes, parts, "audit x")
    assert decision.refused.startswith("partition all would keep less than 50 %")


def test_somebody_who_drains_in_the_last_moment_keeps_the_node(scene: Scene) -> None:
    """Between what was decided and what is done Slurm is asked again."""
    scene.look([DEAD])
    slurm, asked = scene.slurm, []

    class Late(FakeSlurm):
        def nodes(self):  # type: ignore[no-untyped-def]
            asked.append(1)
            if len(asked) == 2:
                self.the_nodes["n3"] = node("n3", "IDLE", "DRAIN", reason="bob: fan")
            return super().nodes()

    scene.slurm = Late(slurm.the_nodes)
    assert scene.look([DEAD]) == [("n3", "drain", "refused: somebody else has it now: bob: fan")]
    assert scene.slurm.the_nodes["n3"].reason == "bob: fan" and scene.slurm.changes == []


def test_only_our_own_drains_are_undone(scene: Scene) -> None:
    scene.policy = replace(ON, return_after=2)
    scene.slurm.the_nodes["n5"] = node("n5", "IDLE", "DRAIN", reason="broken fan")
    scene.slurm.the_nodes["n6"] = node("n6", "IDLE", "DRAIN", reason=f"{PREFIX} host spool: full")
    scene.slurm.the_nodes["n7"] = node("n7", "IDLE", "DRAIN", reason="fabric: maintenance kernel")
    scene.policy = replace(scene.policy, max_drained="8")
    scene.look([DEAD])
    scene.look([DEAD])
    assert scene.drained == {"n3", "n5", "n6", "n7"}
    scene.look([])
    assert scene.drained == {"n3", "n5", "n6", "n7"}  # one clean look is not two
    scene.look([])
    assert scene.drained == {"n5", "n6", "n7"}
    scene.look([])
    assert scene.drained == {"n5", "n6", "n7"}
    assert scene.slurm.changes[-1][:2] == ("n3", "resume")


@pytest.mark.parametrize("added", [" - bob: cable ordered", ""])
def test_a_drain_that_somebody_wrote_on_is_theirs(scene: Scene, added: str) -> None:
    scene.policy = replace(ON, return_after=1)
    scene.look([DEAD])
    scene.look([DEAD])
    ours = scene.slurm.the_nodes["n3"].reason or ""
    scene.slurm.the_nodes["n3"] = node(
        "n3", "IDLE", "DRAIN", reason=ours + added if added else "bob: mine"
    )
    scene.look([])
    scene.look([])
    assert scene.drained == {"n3"}
    assert scene.give_back("n3")[0].startswith("refused: not drained by fabricctl health")
    assert scene.drained == {"n3"}


def test_nothing_returns_by_itself_unless_the_site_says_so(scene: Scene) -> None:
    scene.look([DEAD])
    scene.look([DEAD])
    for _ in range(5):
        scene.look([])
    assert scene.drained == {"n3"}
    assert scene.give_back("n3", "n5") == ["done"]
    assert scene.drained == set()
    assert scene.give_back("n3", "nosuch") == []
    scene.slurm.the_nodes["n5"] = node("n5", "IDLE", "DRAIN", reason="fan")
    assert scene.give_back("n5") == ["refused: not drained by fabricctl health: fan"]


def test_a_rail_returns_with_clean_looks_or_on_demand(scene: Scene) -> None:
    scene.policy = replace(ON, return_after=1)
    scene.look([RAIL])
    scene.look([RAIL])
    assert scene.look([]) == [("n3", "return", "done")]
    assert scene.rails[-1] == ("n3", "rail-in", "r0")
    assert scene.look([]) == []


def test_a_comment_is_written_where_there_is_none_and_taken_away_again(scene: Scene) -> None:
    scene.policy = replace(ON, error="comment", confirm=1)
    scene.slurm.the_nodes["n4"] = node("n4", comment="bob: careful")
    bad = [DEAD, replace(DEAD, node="n4")]
    outcomes = scene.look(bad)
    assert ("n3", "comment", "done") in outcomes
    assert ("n4", "comment", "refused: has a comment of somebody else: bob: careful") in outcomes
    assert scene.drained == set()
    assert (scene.slurm.the_nodes["n3"].comment or "").startswith(PREFIX)
    assert [what[:2] for what in scene.look(bad)] == [("n4", "comment")]
    scene.look([])
    assert scene.slurm.the_nodes["n3"].comment is None
    assert scene.slurm.the_nodes["n4"].comment == "bob: careful"


def test_a_warning_is_a_note_and_ignored_checks_are_nothing(scene: Scene) -> None:
    scene.policy = replace(ON, confirm=1, ignore=("host.spool", "link.*"))
    warn = Check("n2", "host", "memory", "warn", "4 % available")
    assert scene.look([warn, DEAD, RAIL]) == [("n2", "note", "done")]
    assert scene.slurm.changes == []


def test_a_report_is_taken_once_and_none_older_than_one_before(scene: Scene) -> None:
    scene.look([DEAD])
    store = HealthStore(scene.directory / "health.db")
    with pytest.raises(UsageError, match="taken already"):
        store.take(f"{scene.at_s:064x}", scene.at_s, ["n3"], [DEAD])
    with pytest.raises(UsageError, match="not newer"):
        store.take(SHA, scene.at_s, ["n3"], [DEAD])
    assert store.records(["n3"])["n3"].matters[0].looks == 1
    store.close()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [({"cluster": "other"}, "is of cluster 'other'"), ({"end_real_s": 1000 - 3700}, "s old"),
     ({"end_real_s": 1100}, "from the future")],
)  # fmt: skip
def test_reports_of_others_or_of_other_times_are_refused(
    wrong: Mapping[str, object], why: str
) -> None:
    given = {"cluster": "fake", "end_real_s": 1000, **wrong}
    with pytest.raises(UsageError, match=why):
        run.check_report(given, "fake", HealthConfig(), 1000)
    run.check_report({"cluster": "fake", "end_real_s": 990}, "fake", HealthConfig(), 1000)


def test_while_slurm_is_away_or_says_no_nothing_is_claimed(scene: Scene) -> None:
    scene.look([DEAD])
    scene.slurm.broken = True
    with pytest.raises(SlurmError):
        scene.look([DEAD])
    scene.slurm.broken = False

    class Refuses(FakeSlurm):
        def set_node_state(
            self, nodes: Iterable[str], action: NodeAction, reason: str = ""
        ) -> None:
            raise SlurmError("Access/permission denied")

    kept, scene.slurm = scene.slurm, Refuses(scene.slurm.the_nodes)
    ((_, _, outcome),) = scene.look([DEAD])
    assert outcome == "failed: Access/permission denied"
    assert changes.read(scene.directory)[-1]["outcome"] == "failed"
    scene.slurm = kept
    assert scene.look([DEAD]) == [("n3", "drain", "done")]


def test_a_crash_between_writing_down_and_draining_is_made_good(scene: Scene) -> None:
    scene.look([DEAD])

    class Dies(FakeSlurm):
        def set_node_state(
            self, nodes: Iterable[str], action: NodeAction, reason: str = ""
        ) -> None:
            raise KeyboardInterrupt

    kept, scene.slurm = scene.slurm, Dies(scene.slurm.the_nodes)
    with pytest.raises(KeyboardInterrupt):
        scene.look([DEAD])
    scene.slurm = kept
    assert scene.look([DEAD]) == [("n3", "drain", "done")]
    assert scene.give_back("n3") == ["done"]


def test_what_cannot_be_written_down_is_not_done(scene: Scene) -> None:
    scene.look([DEAD])
    (scene.directory / changes.FILE).mkdir()
    ((_, _, outcome),) = scene.look([DEAD])
    assert outcome.startswith("failed:") and "not made" in outcome
    assert scene.slurm.changes == []


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with run.only_one(tmp_path), pytest.raises(UsageError, match="at work"), run.only_one(tmp_path):
        pass
    with run.only_one(tmp_path):
        pass


def test_hostile_text_from_a_node_stays_one_line_and_short(scene: Scene) -> None:
    evil = replace(DEAD, value='x" State=DOWN; \\ `reboot` ' + "y" * 250)
    scene.look([evil])
    scene.look([evil])
    reason = scene.slurm.the_nodes["n3"].reason or ""
    assert len(reason) <= 180 and reason.endswith(")")
    assert not set("\"'\\`;\n") & set(reason)


def test_a_damaged_store_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "health.db").write_bytes(b"not a database, but long enough to look at" * 40)
    with pytest.raises(SystemRefusedError, match=r"health\.db"):
        HealthStore(tmp_path / "health.db")
    store = HealthStore(tmp_path / "good.db")
    store._db.execute("BEGIN IMMEDIATE")
    other = HealthStore(tmp_path / "good.db")
    other._db.execute("PRAGMA busy_timeout=10")
    with pytest.raises(SystemRefusedError, match="locked"):
        other.write(1, Decision("n1", "note", "x"), "done")
    store._db.execute("ROLLBACK")
    for each in (store, other):
        each.close()
    assert sqlite3.connect(tmp_path / "good.db").execute("PRAGMA integrity_check").fetchone()


def test_the_command_takes_a_report_acts_and_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = FakeSlurm({name: node(name) for name in NAMES})
    monkeypatch.setattr("fabricctl.slurm.choose.open_slurm", lambda _=None: slurm)
    monkeypatch.setenv("FABRICCTL_FLEET_DIR", str(tmp_path))
    monkeypatch.setenv("FABRICCTL_HEALTH_MODE", "on")
    monkeypatch.setenv("FABRICCTL_HEALTH_CONFIRM", "1")
    now_s = int(time.time())

    def call(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli, ["health", *words])
        if isinstance(done.exception, FabricError):
            return done.exception.exit_status, str(done.exception)
        return done.exit_code, done.stdout + done.stderr

    def written(name: str, checks: list[Check], end_s: int) -> str:
        given = report.document(checks, ["n3"], "fake", end_s - 9, end_s)
        (tmp_path / name).write_text(json.dumps(given))
        return str(tmp_path / name)

    first = written("a.json", [DEAD], now_s - 10)
    code, said = call("look", "--report", first, "--dry-run")
    assert code == 0 and "n3           drain: would be done" in said and not slurm.changes
    code, said = call("look", "--report", first)
    assert code == 0 and "n3           drain: done" in said and slurm.changes
    assert call("look", "--report", first)[0] == 2
    assert call("look", "n3", "--report", first)[0] == 2
    (tmp_path / "b.json").write_text(Path(first).read_text().replace("0 MiB", "9 MiB"))
    code, said = call("look", "--report", str(tmp_path / "b.json"))
    assert code == 65 and "was changed" in said
    code, said = call("status")
    assert "1 nodes are drained by fabricctl, at most 1 may be" in said
    assert "host spool" in said
    (evidence,) = (tmp_path / "reports").glob("*.json")
    assert evidence.stem in said  # the reason names the file that holds the evidence
    assert report.read(evidence.read_text())["nodes"] == {"n3": "fail"}
    assert call("return", "n[3-4]") == (0, "   n3           return: done: asked for\n")
    assert call("status", "--log")[1].count("done") == 2
    done = CliRunner().invoke(cli, ["changes", "--from", "1d"])
    assert [line.split()[4] for line in done.stdout.splitlines()[1:]] == ["drain", "return"]


def test_one_node_with_many_incidents_is_a_lemon_and_a_fleet_of_equals_has_none() -> None:
    names = [f"n{number}" for number in range(1000)]
    even = [(name, "link.carrier", at) for at, name in enumerate(names[::3])]
    assert not [each for each in lemons(even, names) if each.certain]
    found = lemons([*even, *(("n1", "gpu.ecc", 9000 + at) for at in range(7))], names)
    assert [each.node for each in found if each.certain] == ["n1"]
    assert found[0].kinds == {"gpu.ecc": 7} and found[0].last_real_s == 9006
    # Two of a small cluster are a repair that failed, not a lemon; strangers do not count.
    assert not [each for each in lemons([("n1", "x", 1)] * 2, names[:4]) if each.certain]
    assert lemons([("gone", "x", 1)] * 9, names) == []


def test_the_tail_of_the_distribution_is_the_textbook_s() -> None:
    assert tail(0, 1.0) == 1.0
    assert tail(1, 1.0) == pytest.approx(1 - 0.36787944)
    assert tail(3, 2.0) == pytest.approx(0.3233236)
    assert 0 < tail(40, 0.5) < 1e-55
