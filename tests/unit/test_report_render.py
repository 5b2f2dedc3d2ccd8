"""The report's three renderings: what they show, what they hide from hostile texts."""

import json
import re
from datetime import UTC
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fabricctl.store.schema import PathEvent, PathReason, Severity
from fabricctl_analysis.build import report_of
from fabricctl_analysis.findings import findings
from fabricctl_analysis.model import Report
from fabricctl_analysis.render_html import render_html
from fabricctl_analysis.render_json import document, render_json
from fabricctl_analysis.render_text import WIDTH, Screen, render_text
from fabricctl_analysis.when import When
from tests.support.fakeslurm import NOW_S, use
from tests.support.traces import Cut, Moved, Plan, write

EVIL = "\x1b]0;x\x07<script>alert(1)</script>\"'&\u202e</td>"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Report:
    plan = Plan(
        without_trace=["n4"],
        cuts=[Cut("n2", 0, 20.124, 23.14), Cut("n3", 1, 30.5, 31.2, told=False)],
        away={"n3": (40, 50)},
        errors=[("n1", 0, "rx_errors", 7)],
        not_measured=["psi_io_some_us", "tx_dropped"],
        notes=[("n1", 3.0, Severity.WARNING, "peers", EVIL)],
        moved=[
            Moved("n1", "n2", 0, 20.124, 20.127, 20.139, 24.2),
            Moved("n2", "n1", 0, 20.124, 20.1241, 20.135, 24.2, PathReason.CARRIER),
        ],
        path_events=[
            ("n2", 20.6, PathEvent.CAUSE, {"rail": 0, "text": b"own_port"}),
            ("n1", 41.0, PathEvent.STALLED, {"peer": b"n3"}),
            ("n1", 43.0, PathEvent.BACK, {"peer": b"n3"}),
            ("n2", 50.0, PathEvent.REQUEST, {"text": EVIL.encode()}),
            ("n2", 51.0, PathEvent.SHARE, {"text": EVIL.encode()}),
            ("n2", 51.0, PathEvent.TROUBLE, {"text": b"no share of r1: " + EVIL.encode()}),
            ("n2", 52.0, PathEvent.PACED, {"rail": 0, "text": b"packets wait 900 us"}),
            ("n2", 53.0, PathEvent.REROUTED, {"peer": b"n3", "rail": 0, "text": EVIL.encode()}),
            ("n2", 54.0, PathEvent.REROUTED, {"peer": b"n3", "rail": 0, "text": b"away"}),
            ("n3", 1.0, PathEvent.OFF, {"text": EVIL.encode()}),
        ],
    )
    path = write(plan, tmp_path_factory.mktemp("traces") / "alice")
    return report_of(path, [use(4711, NOW_S - 50, NOW_S - 9, state="NODE_FAIL", account=EVIL)])


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Report:
    nodes = [f"gpu-a100-rack{nth // 10:02d}-node{nth:03d}" for nth in range(40)]
    cuts = [Cut(nodes[31], 1, 10.0, 11.0)]
    plan = Plan(nodes=nodes, seconds=20, cuts=cuts, job=99)
    return report_of(write(plan, tmp_path_factory.mktemp("traces") / "alice"))


def text(report: Report, screen: Screen | None = None) -> str:
    when = When(report.whole, UTC)
    return render_text(report, findings(report, when), when, screen)


def html(report: Report) -> str:
    when = When(report.whole, UTC)
    return render_html(report, findings(report, when), when)


@pytest.fixture(scope="module")
def pages(troubled: Report, wide: Report) -> tuple[str, str]:
    return html(troubled), html(wide)


def test_the_screen_begins_with_the_job_and_what_went_wrong(troubled: Report) -> None:
    lines = text(troubled).split("\n")
    assert lines[0] == "Job 4711: alice on lab, 4 nodes n[1-4]"
    assert lines[1].strip() == "2026-09-21 14:13:20.0 to 14:14:20.0 UTC, 1 min 0 s"
    first = next(line for line in lines if line.startswith("!!"))
    assert first == "!! Rail r0 of n2 was without carrier 3.02 s, 14:13:40.124 to 14:13:43.140."


def test_the_screen_fits_80_columns(troubled: Report, wide: Report) -> None:
    for screen in (Screen(), Screen(unicode=True)):
        for report in (troubled, wide):
            assert max(map(len, text(report, screen).split("\n"))) <= WIDTH


def test_a_wide_job_fits_one_screen_and_shows_the_rail_that_was_down(wide: Report) -> None:
    shown = text(wide)
    assert len(shown.split("\n")) < 60
    assert re.search(r"node031 r1|~?.*r1 r1 .* 1\.00 s", shown)
    assert "of 80 rails" in shown and "of 40 nodes" in shown


def test_without_a_terminal_there_is_ascii_and_no_escape(troubled: Report) -> None:
    plain = text(troubled)
    assert plain.isascii()
    assert "\x1b" not in plain


def test_colour_is_put_on_and_off_again(troubled: Report) -> None:
    coloured = text(troubled, Screen(colour=True, unicode=True))
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == text(troubled, Screen(unicode=True))
    assert coloured.count("\x1b[0m") * 2 == coloured.count("\x1b[")


def test_hostile_texts_reach_no_rendering(troubled: Report, pages: tuple[str, str]) -> None:
    assert "\x1b]" not in text(troubled, Screen(unicode=True))
    assert "\u202e" not in text(troubled, Screen(unicode=True))
    page = pages[0]
    assert "<script>alert(1)" not in page and "\u202e" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_not_measured_is_a_question_mark_and_never_zero(troubled: Report) -> None:
    n4 = next(line for line in text(troubled).split("\n") if line.startswith("n4  "))
    assert n4.split() == ["n4", "no", *["?"] * 7]
    rail = next(line for line in text(troubled).split("\n") if line.startswith("n1 r0"))
    assert "0+?" in rail.split()


def test_an_undisturbed_job_is_told_to_be_so_only_as_far_as_measured(tmp_path: Path) -> None:
    quiet = report_of(write(Plan(), tmp_path / "alice"))
    assert "Nothing stands out in what was measured" in " ".join(text(quiet).split())
    blind = report_of(write(Plan(seconds=0.05), tmp_path / "bob"))
    assert "Nothing stands out" not in text(blind)


class _Links(HTMLParser):
    """What a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")
        ]


def test_the_page_fetches_nothing_and_is_small(pages: tuple[str, str]) -> None:
    for page in pages:
        parser = _Links()
        parser.feed(page)
        assert parser.found == ["data:,"]
        assert "default-src 'none'" in page
        assert len(page) < 5_000_000


def test_a_wide_job_has_a_bounded_number_of_plots(pages: tuple[str, str]) -> None:
    page = pages[1]
    assert page.count("<figure>") <= 2 + 1 + 12 + 4
    assert "The 12 of 80 rails that tell most" in page


def test_json_holds_to_its_documented_shape(troubled: Report) -> None:
    made = json.loads(render_json(troubled, findings(troubled, When(troubled.whole, UTC))))
    described = _described((ROOT / "docs" / "report-json.md").read_text())
    assert _paths(made) <= described
    assert made["version"] == 1


# Keys of lists that may be empty, and of what may be null.
_AT_TIMES = ("clock.steps", "rails[].missed", "accounts", "advice", "job_clock")


def test_every_documented_path_is_written(troubled: Report) -> None:
    found = findings(troubled, When(troubled.whole, UTC))
    described = _described((ROOT / "docs" / "report-json.md").read_text())
    optional = {path for path in described if path.startswith(_AT_TIMES)}
    assert described - optional <= _paths(document(troubled, found)) | {"clock.steps"}


def test_json_gives_instants_twice_and_null_for_what_is_not_known(troubled: Report) -> None:
    made = json.loads(render_json(troubled, ()))
    down = next(rail["down"][0] for rail in made["rails"] if rail["down"])
    assert down["begin"] == "2026-09-21T14:13:40.124000000Z"
    assert down["begin_s"] == pytest.approx(20.124)
    assert made["nodes"][0]["figures"]["psi_io_some"]["value"] is None
    assert made["nodes"][3]["figures"] == {}
    assert made["clock"]["between_nodes_error_ns"] is None


def _paths(value: object, at: str = "") -> set[str]:
    """``rails[].counters.*.value`` and the like; keys that are data stand as ``*``."""
    if isinstance(value, dict):
        starred = at.rsplit(".", 1)[-1] in ("figures", "counters", "peaks")
        inner = [_paths(v, f"{at}.{'*' if starred else k}".lstrip(".")) for k, v in value.items()]
        return set().union(*inner) if inner else {at}
    if isinstance(value, list):
        inner = [_paths(item, f"{at}[]") for item in value]
        return set().union(*inner) if inner else set()
    return {at}


def _described(document: str) -> set[str]:
    return set(re.findall(r"^\| `([\w.*\[\]]+)` \|", document, re.MULTILINE))
