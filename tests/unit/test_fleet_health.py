"""Health: what leads to which action, and all that speaks against one."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from fabricctl.fleet import changes
from fabricctl.fleet.audit.model import Check
from fabricctl.fleet.health.policy import PREFIX, Matter, Record, decide
from fabricctl.fleet.health.store import HealthStore
from fabricctl.sections import HealthConfig
from fabricctl.slurm.model import Partition
from tests.support.fakeslurm import NOW_S, FakeSlurm, node
from tests.support.healthscene import DEAD, NAMES, ON, RAIL, Scene


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


LATE = {
    "is drained already: bob: fan": node("n3", "IDLE", "DRAIN", reason="bob: fan"),
    "is being rebooted or powered down": node("n3", "IDLE", "REBOOT_REQUESTED"),
    "lies in a maintenance reservation": node("n3", "IDLE", "MAINTENANCE"),
}


@pytest.mark.parametrize("why", LATE)
def test_somebody_who_has_the_node_in_the_last_moment_keeps_it(scene: Scene, why: str) -> None:
    """Between what was decided and what is done Slurm is asked again."""
    scene.look([DEAD])
    slurm, asked = scene.slurm, []

    class Late(FakeSlurm):
        def nodes(self):  # type: ignore[no-untyped-def]
            asked.append(1)
            if len(asked) == 2:
                self.the_nodes["n3"] = LATE[why]
            return super().nodes()

    scene.slurm = Late(slurm.the_nodes)
    assert scene.look([DEAD]) == [("n3", "drain", f"refused: {why}")]
    assert scene.slurm.the_nodes["n3"] == LATE[why] and scene.slurm.changes == []


def test_nodes_that_others_drain_while_rails_are_excluded_count(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rail takes up to a minute, before any drain: maintenance goes on meanwhile."""

    def excluded(_self: Scene, name: str, words: object) -> str:
        for other in ("n7", "n8"):
            scene.slurm.set_node_state([other], "drain", "fabric: maintenance kernel")
        return ""

    monkeypatch.setattr(Scene, "_rail", excluded)
    bad = [DEAD, replace(RAIL, node="n1")]
    scene.look(bad)
    assert scene.look(bad) == [
        ("n1", "rail", "done"),
        ("n3", "drain", "refused: 2 nodes are drained by fabricctl, at most 2 may be"),
    ]
    assert scene.drained == {"n7", "n8"}


def test_a_drain_takes_our_comment_with_it(scene: Scene) -> None:
    """It stayed on the node for ever, and the next comment was refused for it."""
    scene.policy = replace(ON, warning="comment", confirm=1)
    warn = Check("n3", "host", "memory", "warn", "4 % available")
    scene.look([warn])
    assert (scene.slurm.the_nodes["n3"].comment or "").startswith(PREFIX)
    for _ in range(2):
        scene.look([warn, DEAD])
    assert scene.drained == {"n3"} and scene.slurm.the_nodes["n3"].comment is None
    assert scene.give_back("n3") == ["done"]
    assert scene.look([warn]) == [("n3", "comment", "done")]
    scene.look([])
    assert scene.slurm.the_nodes["n3"].comment is None


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
