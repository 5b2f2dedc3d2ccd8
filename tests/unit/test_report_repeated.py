"""What comes again and again is told once, with how often, and hides nothing else."""

import json
from datetime import UTC
from pathlib import Path

import pytest

from fabricctl.store.schema import CheckpointEvent, LaunchEvent, PathEvent
from fabricctl_analysis.build import report_of
from fabricctl_analysis.findings import findings
from fabricctl_analysis.model import Finding, Report
from fabricctl_analysis.render_html import render_html
from fabricctl_analysis.render_json import render_json
from fabricctl_analysis.render_markdown import render_markdown
from fabricctl_analysis.render_text import render_text
from fabricctl_analysis.repeated import first, readable
from fabricctl_analysis.when import When
from tests.support.traces import Plan, write

STOOD = 200
WORST = (
    "n3 was silent on every rail for 300 ms from 14:14:13.000: a host that stood still, not a link."
)
SENTENCE = f"{STOOD} times a host stood still (n3), 14:13:25.0 to 14:17:23.9. The longest: {WORST}"


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """A program that `fabricctl run` ran to its end beside a host that stood still again and
    again."""
    events = []
    for nth in range(STOOD):
        begin_s = 5.0 + nth * 1.2
        for at_s, event in (
            (begin_s, PathEvent.STALLED),
            (begin_s + (0.3 if nth == 40 else 0.1), PathEvent.BACK),
        ):
            events.append(("n1", at_s, event, {"peer": b"n3"}))
    plan = Plan(
        seconds=300.0,
        path_events=events,
        launches=(("n1", 1.0, LaunchEvent.START, "n[1-4]"), ("n1", 298.0, LaunchEvent.END, "")),
        checkpoints=(("n1", 30.0, CheckpointEvent.SAVED, 100),),
    )
    return report_of(write(plan, tmp_path / "alice"))


def test_every_form_for_people_tells_it_once_and_what_else_there_is(report: Report) -> None:
    when = When(report.whole, UTC)
    found = findings(report, when)
    assert sum(one.kind == "host_silent" for one in found) == STOOD
    text = " ".join(render_text(report, found, when).split())
    for form in (text, render_html(report, found, when), render_markdown(report, found, when)):
        plain = form.replace("\\", "")
        assert SENTENCE in plain
        assert plain.count("a host that stood still") == 1
        assert "ETTR 1.000: of 4 min 57 s" in plain


def test_for_scripts_each_is_there(report: Report) -> None:
    told = json.loads(render_json(report, findings(report, When(report.whole, UTC))))
    assert sum(one["kind"] == "host_silent" for one in told["findings"]) == STOOD


def _one(kind: str, begin_ns: int | None = None, end_ns: int | None = None) -> Finding:
    return Finding("warning", kind, ("n1",), 0, begin_ns, end_ns, f"{kind} {begin_ns}.")


def test_few_of_a_kind_stay_as_they_are_in_their_order(report: Report) -> None:
    found = [_one("gap", 5, 9), _one("note", 1), _one("gap", 2, 3), _one("note", 2)]
    when = When(report.whole, UTC)
    assert [one.text for one in readable(found, when)] == ["gap 5.", "gap 2.", "note 1.", "note 2."]


def test_what_did_not_end_is_the_worst_and_what_has_no_time_says_none(report: Report) -> None:
    when = When(report.whole, UTC)
    at = report.whole.begin_ns
    (one,) = readable([_one("gap", at + n, None if n == 3 else at + 10) for n in range(5)], when)
    assert one.text.endswith(f"The longest: gap {at + 3}.")
    assert (one.begin_ns, one.end_ns, one.rail) == (at, at + 10, 0)
    (one,) = readable([_one("errors") for _ in range(6)], when)
    assert one.text == "6 times a rail counted errors (n1). The first: errors None."
    assert (one.begin_ns, one.end_ns) == (None, None)


def test_a_list_that_is_cut_keeps_the_sums_of_the_job() -> None:
    found = [*(_one(f"kind{n}") for n in range(20)), _one("ettr")]
    assert [one.kind for one in first(found, 3)] == ["kind0", "kind1", "ettr"]
    assert first(found, 30) == found
