"""``fabricctl status``, ``fabricctl job``: what they say of a cluster."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fabricctl.cli.main import cli
from fabricctl.cli.table import table
from fabricctl.errors import SlurmError
from fabricctl.fleet.history import job_events
from fabricctl.fleet.overview import node_state, overview
from fabricctl.slurm.model import Node
from tests.support import traces
from tests.support.fakeslurm import NOW_S, FakeSlurm, job, node

STATES = {
    "idle": node("n1"),
    "mixed": node("n1", "MIXED"),
    "draining": node("n1", "MIXED", "DRAIN", cpus_allocated=2),
    "drained": node("n1", "IDLE", "DRAIN"),
    "down": node("n1", "IDLE", "NOT_RESPONDING"),
    "powered down": node("n1", "IDLE", "POWERED_DOWN"),
    "unknown": node("n1", "ERROR"),
}


@pytest.mark.parametrize("word", STATES)
def test_one_word_for_a_node(word: str) -> None:
    assert node_state(STATES[word]) == word


def test_nodes_that_share_a_reason_are_told_as_one_the_worst_first() -> None:
    drained = {"reason": "broken fan", "reason_user": "root", "reason_real_s": NOW_S - 75}
    nodes: list[Node] = [
        node("n1", "IDLE", "DRAIN", **drained),
        node("n2", "IDLE", "DRAIN", **drained),
        node("n3", "DOWN", reason="Not responding", reason_user="slurm"),
        node("n4", "IDLE", "DRAIN", reason="fabric: maintenance m1"),
    ]
    found = overview(nodes, [job(1), job(2, "PENDING", reason="JobHeldAdmin")], NOW_S)
    assert [(one.severity, one.text) for one in found.findings] == [
        ("error", "n3 is down: Not responding (slurm)"),
        ("warning", "n[1-2] are drained for 1 min 15 s: broken fan (root)"),
        ("warning", "job 2 waits for somebody: JobHeldAdmin"),
        ("info", "n4 is drained: fabric: maintenance m1"),
    ]
    assert (found.nodes, found.jobs) == ({"drained": 3, "down": 1}, {"running": 1, "waiting": 1})


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm({name: node(name) for name in ("n1", "n2")}, [job(7, nodes="n[1-2]")])
    monkeypatch.setattr("fabricctl.slurm.choose.open_slurm", lambda: fake)
    return fake


def test_status_ends_with_0_when_nothing_is_open_and_with_1_when_a_node_is_down(
    slurm: FakeSlurm,
) -> None:
    done = CliRunner().invoke(cli, ["status"])
    assert done.exit_code == 0
    assert done.output.splitlines()[1:] == [
        "Nodes  2: 2 idle", "Jobs   1 running", "", "nothing is open",
    ]  # fmt: skip
    slurm.the_nodes["n2"] = node("n2", "DOWN")
    done = CliRunner().invoke(cli, ["status", "--json"])
    assert done.exit_code == 1
    said = json.loads(done.output)
    assert (said["version"], said["worst"], said["nodes"]) == (1, "error", {"idle": 1, "down": 1})
    assert said["findings"][0]["nodes"] == ["n2"]
    assert CliRunner().invoke(cli, ["status", "--fail-on", "never"]).exit_code == 0


def test_status_fails_on_warnings_when_asked_to(slurm: FakeSlurm) -> None:
    slurm.the_nodes["n2"] = node("n2", "IDLE", "DRAIN", reason="x")
    assert CliRunner().invoke(cli, ["status"]).exit_code == 0
    assert CliRunner().invoke(cli, ["status", "--fail-on", "warning"]).exit_code == 1


def test_status_without_slurm_is_an_error_and_never_nothing_is_open(slurm: FakeSlurm) -> None:
    slurm.broken = True
    done = CliRunner().invoke(cli, ["status"])
    assert isinstance(done.exception, SlurmError)
    assert done.output == ""


def test_a_jobs_events_are_in_order_and_name_node_and_rail(tmp_path: Path) -> None:
    plan = traces.Plan(
        cuts=[traces.Cut("n2", 0, 10.0, 13.0)],
        notes=[("n1", 20.0, traces.Severity.WARNING, "peers", "n9 is silent")],
        without_trace=["n4"],
    )
    events = job_events(traces.write(plan, tmp_path / "alice"))
    assert [event.at_real_ns for event in events] == sorted(e.at_real_ns for e in events)
    links = [(e.node, e.rail, e.severity, e.text) for e in events if e.kind == "link"]
    assert links == [
        ("n2", 0, "error", "r0 lost carrier"),
        ("n2", 0, "info", "r0 has carrier again"),
    ]
    assert ("n1", "warning", "peers: n9 is silent") in [
        (e.node, e.severity, e.text) for e in events if e.kind == "note"
    ]
    assert [e.node for e in events if e.text.endswith("left no trace")] == ["n4"]


def test_job_events_of_one_node_and_kind(tmp_path: Path) -> None:
    path = traces.write(traces.Plan(cuts=[traces.Cut("n2", 1, 10.0, 13.0)]), tmp_path / "alice")
    done = CliRunner().invoke(cli, ["job", "events", str(path), "--kind", "link", "--json"])
    assert done.exit_code == 0
    assert [json.loads(line)["rail"] for line in done.output.splitlines()] == [1, 1]
    done = CliRunner().invoke(cli, ["job", "events", str(path), "--kind", "link", "--node", "n1"])
    assert done.output == ""


def test_a_running_job_is_shown_with_why_it_has_no_trace_yet(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FABRICCTL_TRACE_DIR", str(tmp_path))
    slurm.the_jobs = [job(7, nodes="n[1-2]", name="a\x1b[31mb")]
    done = CliRunner().invoke(cli, ["job", "show", "7"])
    assert done.exit_code == 0
    assert "Job 7: a?[31mb" in done.output
    assert "2 nodes n[1-2], 4 CPUs, no limit, 0 requeues" in done.output
    assert "Trace: no trace: " in done.output
    assert CliRunner().invoke(cli, ["job", "show", "8"]).exit_code == 1


def test_a_table_is_cut_where_it_is_widest() -> None:
    rows = [("n1", "a very long reason indeed", 3), ("node22", None, 14)]
    assert table(("NODE", "WHY", "COUNT"), rows, right="COUNT", width=24) == (
        "NODE    WHY        COUNT\nn1      a very l~      3\nnode22  -             14"
    )
    assert "a very long reason indeed" in table(("NODE", "WHY", "COUNT"), rows)
