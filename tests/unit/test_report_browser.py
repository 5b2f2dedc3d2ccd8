"""The page in a real browser: it draws, it zooms, nothing is fetched and nothing complains."""

import re
import shutil
import subprocess
from datetime import UTC
from pathlib import Path

import pytest

from fabricctl.store.schema import Severity
from fabricctl_analysis.build import report_of
from fabricctl_analysis.findings import findings
from fabricctl_analysis.render_html import render_html
from fabricctl_analysis.when import When
from tests.support.traces import Cut, Plan, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

# Runs in the page and says what it finds on the console: canvases in Bokeh's shadow roots that
# have ink on them, the time range before and after "Show", and whether the page is too wide.
PROBE = """
<script>
function canvases(root) {
  let found = [...root.querySelectorAll("canvas")];
  for (const item of root.querySelectorAll("*")) {
    if (item.shadowRoot) found = found.concat(canvases(item.shadowRoot));
  }
  return found;
}
function inked(canvas) {
  if (!canvas.width || !canvas.height) return false;
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return data.some(function (value) { return value !== 0; });
}
window.addEventListener("load", function () {
  setTimeout(function () {
    const time = Bokeh.documents[0].get_model_by_name("time");
    const before = time.end - time.start;
    console.log("PROBE plots " + document.querySelectorAll("figure").length);
    console.log("PROBE inked " + canvases(document).filter(inked).length);
    console.log("PROBE wide " + (document.documentElement.scrollWidth - window.innerWidth));
    document.querySelector("button[data-begin]").click();
    console.log("PROBE zoomed " + Math.round(time.end - time.start));
    document.querySelector("button[data-time=all]").click();
    console.log("PROBE back " + (time.end - time.start === before));
    console.log("PROBE dark " + getComputedStyle(document.body).backgroundColor);
    console.log("PROBE done");
  }, 1500);
});
</script>
"""


def console(page: Path, *options: str, width: int = 1200) -> list[tuple[str, str]]:
    """What the page wrote to the console: level and words."""
    assert CHROMIUM is not None
    line = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--no-first-run", "--enable-logging=stderr", "--virtual-time-budget=6000",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={page.parent / 'profile'}",
        f"--window-size={width},900", "--dump-dom", *options, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    # [pid:tid:date:LEVEL:CONSOLE:12] "words", source: file (12)
    found = re.findall(r":(\w+):CONSOLE.*?\] (.*)", done.stderr)
    return [line for line in found if "setting log level" not in line[1]]  # Bokeh's greeting


def told(lines: list[tuple[str, str]], what: str) -> str:
    words = [re.search(rf"PROBE {what} ([^\"]*)\"", line) for _, line in lines]
    (found,) = [match.group(1) for match in words if match]
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    plan = Plan(
        without_trace=["n4"],
        cuts=[Cut("n2", 0, 20.124, 23.14), Cut("n3", 1, 30.5, 31.2, told=False)],
        away={"n3": (40, 50)},
        notes=[("n1", 3.0, Severity.WARNING, "x", "<img src=//a.b/c onerror=alert(1)>")],
    )
    report = report_of(write(plan, folder / "alice"))
    when = When(report.whole, UTC)
    html = render_html(report, findings(report, when), when)
    made = folder / "report.html"
    made.write_text(html.replace("</body>", PROBE + "</body>"))
    return made


def test_the_browser_would_tell_of_an_error(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<script>nothing.here()</script>")
    assert any("ReferenceError" in words for _, words in console(bad))


def test_the_page_draws_and_zooms_without_complaint(page: Path) -> None:
    lines = console(page)
    assert [line for line in lines if "PROBE" not in line[1]] == []
    plots = int(told(lines, "plots"))
    assert plots == 1 + 6 + 4
    assert int(told(lines, "inked")) >= plots
    assert abs(int(told(lines, "zoomed")) - 5 * 3016) <= 1  # ms: the outage, twice on each side
    assert told(lines, "back") == "true"
    assert any("PROBE done" in words for _, words in lines)


def test_the_page_follows_the_reader_s_choice_of_light_or_dark(page: Path) -> None:
    assert told(console(page), "dark") == "rgb(255, 255, 255)"
    dark = console(page, "--blink-settings=preferredColorScheme=0")
    assert told(dark, "dark") == "rgb(16, 18, 22)"


def test_at_phone_width_nothing_sticks_out(page: Path) -> None:
    frame = page.with_name("phone.html")
    frame.write_text(f'<iframe src="{page.name}" style="width:390px;height:800px"></iframe>')
    lines = console(frame, "--allow-file-access-from-files")
    assert int(told(lines, "wide")) <= 0
