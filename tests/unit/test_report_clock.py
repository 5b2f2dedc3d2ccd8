"""The job clock in the report: what it says against a trace whose truth is known."""

import json
import re
from datetime import UTC
from pathlib import Path

import pytest

from fabricctl_analysis import build
from fabricctl_analysis.build import report_of
from fabricctl_analysis.findings import findings
from fabricctl_analysis.model import Report
from fabricctl_analysis.render_html import render_html
from fabricctl_analysis.render_json import render_json
from fabricctl_analysis.render_text import WIDTH, render_text
from fabricctl_analysis.when import When
from tests.support.traces import Plan, write
from tests.unit.test_report_render import ROOT, _described, _paths

HELD, LOST = (20.0, 30.0), (40.0, 48.0)


def report(tmp_path: Path, plan: Plan) -> Report:
    return report_of(write(plan, tmp_path / "alice"))


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Report:
    plan = Plan(clock_from_s=2.0, clock_held={"n2": HELD}, clock_lost={"n3": LOST})
    return report(tmp_path_factory.mktemp("traces"), plan)


def text(shown: Report) -> str:
    when = When(shown.whole, UTC)
    return render_text(shown, findings(shown, when), when)


def made(shown: Report) -> dict[str, dict[str, object]]:
    document = json.loads(render_json(shown, findings(shown, When(shown.whole, UTC))))
    return {node["node"]: node for node in document["job_clock"]["nodes"]}


def test_the_screen_says_how_well_the_nodes_agreed_and_who_was_lost(troubled: Report) -> None:
    lines = text(troubled).split("\n")
    assert max(map(len, lines)) <= WIDTH
    words = " ".join(" ".join(lines).split())
    assert (
        "Job clock: 4 of 4 nodes on one time, each likely within 60 ns, 9.16 us at worst" in words
    )
    assert "n2 11.00 s, 14:13:39.1 to 14:13:50.1 (held over to 9.16 us)" in words
    assert "n3 9.00 s, 14:13:59.1 to 14:14:08.1 (no job time)" in words
    assert "By the job clock these clocks were never further apart than 3.0" in words


def test_it_is_told_whose_stamps_the_clock_was_made_of(tmp_path: Path) -> None:
    shown = report(tmp_path, Plan(clock_from_s=2.0, nic_stamps=("n1", "n3")))
    assert "The NICs of n[1,3] stamped its probes." in " ".join(text(shown).split())
    told = {node: found["stamps"] for node, found in made(shown).items()}
    assert set(told.values()) == {"hardware", "software"}
    assert {node for node, source in told.items() if source == "hardware"} == {"n1", "n3"}


def test_a_long_trace_tells_the_same_of_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read by the minute, rows are further apart than any that follow each other."""
    plan = Plan(
        nodes=("n1", "n2", "n3"), seconds=900, clock_from_s=2.0,
        clock_held={"n2": (200.0, 300.0)}, clock_lost={"n3": (400.0, 480.0)},
    )  # fmt: skip
    path = write(plan, tmp_path / "alice")
    every = report_of(path)
    for width in ("1s", "1min"):
        monkeypatch.setattr(build, "width_for", lambda _, width=width: width)
        thinned = report_of(path)
        for node, same in zip(thinned.nodes, every.nodes, strict=True):
            assert node.clock is not None and same.clock is not None
            for name in ("first_ns", "rows", "synchronised_ns", "ahead_ns", "holdovers", "lost"):
                assert getattr(node.clock, name) == getattr(same.clock, name), name
            assert node.clock.likely_ns is not None and same.clock.likely_ns is not None
            assert node.clock.likely_ns[2] == same.clock.likely_ns[2]


def test_spells_without_measurements_are_findings_that_can_be_shown(troubled: Report) -> None:
    found = findings(troubled, When(troubled.whole, UTC))
    told = {one.nodes[0]: one for one in found if one.kind == "clock_lost"}
    assert set(told) == {"n2", "n3"}
    held = told["n2"]
    assert held.begin_ns is not None and held.end_ns is not None
    assert held.severity == "info"
    assert (held.end_ns - held.begin_ns) / 1e9 == pytest.approx(11.0)


def test_json_has_bounds_spells_and_the_error_over_time(troubled: Report) -> None:
    nodes = made(troubled)
    assert list(nodes) == ["n1", "n2", "n3", "n4"]
    assert nodes["n1"]["first_s"] == pytest.approx(2.1)
    assert nodes["n1"]["likely_ns"] == {"median": 60, "p99": 60, "max": 60}
    assert nodes["n1"]["certain_ns"] == {"median": 6_060, "max": 6_060}
    assert nodes["n1"]["holdover"] == nodes["n1"]["lost"] == []
    (held,) = nodes["n2"]["holdover"]  # type: ignore[misc]
    assert held["likely_ns"] == 9_160  # type: ignore[has-type]
    (lost,) = nodes["n3"]["lost"]  # type: ignore[misc]
    assert lost["begin_s"] == pytest.approx(39.1)  # type: ignore[has-type]
    assert nodes["n4"]["system_clock_ahead_ns"] == {"least": 3_000_000, "most": 3_000_000}
    over = nodes["n3"]["error_over_time"]
    assert isinstance(over, list)
    assert [part["likely_ns"] for part in over].count(None) == 1  # the spell without job time
    assert {part["likely_ns"] for part in over} == {60, None}


def test_the_json_is_as_documented(troubled: Report) -> None:
    document = json.loads(render_json(troubled, ()))
    described = _described((ROOT / "docs" / "report-json.md").read_text())
    clock = {path for path in described if path.startswith("job_clock")}
    assert {path for path in _paths(document) if path.startswith("job_clock")} == clock


def test_the_page_shows_the_error_of_every_node(troubled: Report) -> None:
    page = render_html(troubled, (), When(troubled.whole, UTC))
    part = page[page.index("<h2>Job clock</h2>") :]
    assert "Error of the job clock" in part
    rows = re.findall(r"<tr><td>(n\d)</td>(.*?)</tr>", part)
    assert [name for name, _ in rows[:4]] == ["n1", "n2", "n3", "n4"]
    assert "9.16 us" in rows[1][1]


def test_a_wide_jobs_clocks_are_drawn_as_a_band(tmp_path: Path) -> None:
    nodes = [f"n{nth}" for nth in range(1, 13)]
    wide = report(tmp_path, Plan(nodes=nodes, seconds=20, clock_from_s=1.0))
    page = render_html(wide, (), When(wide.whole, UTC))
    assert "Error of the job clock" in page
    assert len(made(wide)) == 12


def test_a_node_without_job_time_is_named_and_nothing_is_said_of_what_lies_apart(
    tmp_path: Path,
) -> None:
    plan = Plan(clock_from_s=1.0, clock_lost={"n4": (0.0, 60.0)})
    some = report(tmp_path, plan)
    words = " ".join(text(some).split())
    assert "Job clock: 3 of 4 nodes" in words
    assert "n4 never had job time." in words
    assert "How far the nodes' clocks were apart was not measured" in words
    assert json.loads(render_json(some, ()))["clock"]["between_nodes_error_ns"] is None


def test_a_job_without_a_job_clock_says_so(tmp_path: Path) -> None:
    none = report(tmp_path, Plan())
    assert "Job clock: no node had one." in text(none)
    assert made(none) == {}
    alone = report(tmp_path / "one", Plan(nodes=["n1"]))
    assert "Job clock" not in text(alone)
