"""Health: looks that are taken in, what is kept of them, and the command."""

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fabricctl.cli.main import cli
from fabricctl.errors import DataError, FabricError, SlurmError, SystemRefusedError, UsageError
from fabricctl.fleet import changes
from fabricctl.fleet.audit import report
from fabricctl.fleet.audit.model import Check
from fabricctl.fleet.health import live, run
from fabricctl.fleet.health.lemons import lemons, tail
from fabricctl.fleet.health.policy import Decision
from fabricctl.fleet.health.store import HealthStore
from fabricctl.sections import HealthConfig
from fabricctl.slurm.model import NodeAction
from tests.support.fakeslurm import FakeSlurm, node
from tests.support.healthscene import DEAD, NAMES, ON, RAIL, SHA, Scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


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


def test_a_line_that_a_full_disk_tore_takes_no_other_with_it(tmp_path: Path) -> None:
    (tmp_path / changes.FILE).write_text("at_real_ms=17;id=0a")
    with changes.ChangeLog(tmp_path, "health").change("drain", "n2"):
        pass
    found = [(line["on"], line["outcome"]) for line in changes.read(tmp_path)]
    assert found == [("n2", "begun"), ("n2", "done")]


def test_a_change_that_was_made_is_never_said_not_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = changes.ChangeLog(tmp_path, "health").change("drain", "n1")
    with pytest.raises(SystemRefusedError, match="the change is done, and"), made:
        monkeypatch.setattr("os.write", lambda *_: 3)


def test_a_node_that_did_not_answer_and_was_drained_for_it_has_an_incident(scene: Scene) -> None:
    silent = Check("n3", "slurm", "answers", "fail", "did not answer", "answers")
    for _ in range(2):
        scene.taken_only(silent)
    assert scene.drained == {"n3"}
    scene.taken_only(replace(silent, status="not measured", value="is drained"))
    store = HealthStore(scene.directory / "health.db")
    found = [(each.weight, each.open) for each in store.incidents(0)]
    assert found == [("error", 0), ("unknown", 1)]
    store.close()


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


def heard(**silent: float) -> dict[str, Any]:
    """What fabricd answers: n3's r0 has no carrier; ``silent``: node -> seconds."""
    nodes: list[list[object]] = []
    links: list[list[object]] = []
    for name in NAMES:
        fresh = name not in silent
        nodes.append([name, "idle", 0, 4, *([1.0, 9, 9, 0, 1, 1] if fresh else [None] * 6),
                      silent.get(name, 0.5), ""])  # fmt: skip
        for rail in ("r0", "r1") if fresh else ():
            state = "no carrier" if (name, rail) == ("n3", "r0") else "up"
            links.append([name, rail, state, 1, 1, 0, 0.5])
    nodes.append(["n9", "idle", 0, 4, *[None] * 6, None, ""])  # never reported
    return {"reports": {"interval_s": 5.0}, "nodes": nodes, "links": links}


def test_what_fabricd_knows_becomes_checks_and_who_never_reported_is_none_of_its() -> None:
    found = live.checks(heard(n5=40.0))
    bad = [(c.node, c.rail, c.name, c.status, c.value) for c in found if c.status != "ok"]
    assert bad == [
        ("n3", "r0", "carrier", "fail", "no carrier"),
        ("n5", "", "reports", "warn", "nothing for 40.00 s"),
    ]
    assert not [c for c in found if c.node == "n9"]
    assert {c.node for c in live.checks(heard(), ["n1", "n9"])} == {"n1"}
    for wrong in ({}, {**heard(), "links": [[1]]}, {**heard(), "reports": None}):
        with pytest.raises(DataError, match="cannot be read"):
            live.checks(wrong)


def test_a_report_that_was_looked_at_confirms_nothing() -> None:
    """Reports are seldom where nodes are many: two looks at one are not two in a row."""
    of_before = live.checks(heard(), ["n1", "n3"], {"n1": 0.4, "n3": 60.0})
    assert {check.node for check in of_before} == {"n3"}
    assert live.checks(heard(), ["n3"], {"n3": 0.4}) == []
    silent = live.checks(heard(n5=40.0), ["n5"], {"n5": 1.0})
    assert [check.value for check in silent] == ["nothing for 40.00 s"]


def test_a_live_look_closes_and_counts_only_what_it_looked_at(scene: Scene) -> None:
    scene.policy = replace(ON, confirm=3, return_after=1)
    scene.look([DEAD, RAIL])
    fine = [Check("n3", "link", "carrier", "ok", "up", "up", rail) for rail in ("r0", "r1")]
    store = HealthStore(scene.directory / "health.db")
    store.take("cd" * 32, scene.at_s + 1, ["n3"], fine, whole=False)
    record = store.records(["n3"])["n3"]
    assert [(m.area, m.name) for m in record.matters] == [("host", "spool")]
    assert record.clean == 0
    store.take("ce" * 32, scene.at_s + 2, ["n1"], [replace(fine[0], node="n1")], whole=False)
    assert store.records(["n1"])["n1"].clean == 1  # of the look before; this one adds none
    store.take("cf" * 32, scene.at_s + 3, ["n1"], [replace(RAIL, node="n1")], whole=False)
    assert store.records(["n1"])["n1"].clean == 0
    store.close()


def test_the_command_acts_on_what_fabricd_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = FakeSlurm({name: node(name) for name in NAMES})
    monkeypatch.setattr("fabricctl.slurm.choose.open_slurm", lambda _=None: slurm)
    monkeypatch.setattr(
        "fabricctl.fleet.head.service.ask", lambda *_: json.dumps(heard(n5=40.0)).encode()
    )
    for key, value in (("FLEET_DIR", str(tmp_path)), ("HEALTH_MODE", "on"),
                       ("HEALTH_CONFIRM", "1"), ("HEALTH_ERROR_RAIL", "drain")):  # fmt: skip
        monkeypatch.setenv(f"FABRICCTL_{key}", value)
    done = CliRunner().invoke(cli, ["health", "look", "--live"])
    assert done.exit_code == 0, done.output
    assert "n3           drain: done: fabric: health: r0 link carrier: no carrier (fabricd " \
        in done.output  # fmt: skip
    assert "n5           note: done" in done.output
    assert {name for name, _, _ in slurm.changes} == {"n3"} or len(slurm.changes) == 1
    done = CliRunner().invoke(cli, ["health", "look", "--live", "n[1-4]"])
    assert (done.exit_code, done.stdout) == (0, "nothing is to be done\n")
    done = CliRunner().invoke(cli, ["health", "look", "--live", "n[20-21]"])
    assert isinstance(done.exception, FabricError)
    for words in (["--report", "x"], ["--via", "ssh"], ["--partition", "main"]):
        done = CliRunner().invoke(cli, ["health", "look", "--live", *words])
        assert isinstance(done.exception, UsageError)
