"""The page in a real browser: it draws, it zooms, nothing is fetched and nothing complains."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fabricctl.cli.pdf import printed
from fabricctl.store.schema import Severity
from fabricctl_analysis import html_strips
from fabricctl_analysis.build import report_of
from fabricctl_analysis.findings import findings
from fabricctl_analysis.model import Heat, Report, Strip
from fabricctl_analysis.render_html import render_html
from fabricctl_analysis.strips import MAX_ROWS
from fabricctl_analysis.when import When
from tests.support.simjobs import Fault, Sim
from tests.support.traces import Cut, Plan, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
WAIT_S = 120

# Everything below a root, through the shadow roots in which Bokeh draws.
EVERYTHING = """
function everything(root, selector) {
  let found = [...root.querySelectorAll(selector)];
  for (const item of root.querySelectorAll("*")) {
    if (item.shadowRoot) found = found.concat(everything(item.shadowRoot, selector));
  }
  return found;
}
function inked(canvas) {
  if (!canvas.width || !canvas.height) return false;
  const copy = document.createElement("canvas");
  copy.width = canvas.width;
  copy.height = canvas.height;
  const context = copy.getContext("2d", { willReadFrequently: true });
  context.drawImage(canvas, 0, 0);
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
  return data.some(function (value) { return value !== 0; });
}
function time() { return Bokeh.documents[0].get_model_by_name("time"); }
function shown() { const range = time(); return range.end - range.start; }
"""


class Browser:
    """Chromium, spoken to over a pipe (Chrome DevTools protocol, messages end with NUL)."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # The protocol wants descriptors 3 and 4; the shell puts the pipes there.
        shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        line = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--remote-debugging-pipe", "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *line],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        os.set_blocking(self._in, False)
        self._got, self._number, self._session = b"", 0, ""
        self.complaints: list[str] = []
        (target,) = [
            one for one in self("Target.getTargets")["targetInfos"] if one["type"] == "page"
        ]
        attached = self("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Runtime", "Page", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            for got in self._messages():
                if got.get("id") == self._number:
                    assert "error" not in got, got
                    return got["result"]
                self._note(got)
        raise AssertionError(f"the browser did not answer {method}")

    def _messages(self) -> Iterator[dict[str, Any]]:
        try:
            self._got += os.read(self._in, 1 << 20)
        except BlockingIOError:
            time.sleep(0.01)
        while b"\0" in self._got:
            message, self._got = self._got.split(b"\0", 1)
            yield json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        """Errors, warnings, log lines and anything fetched, all but Bokeh's greeting."""
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded":
            self.complaints.append(str(params["entry"]))
        elif event.get("method") == "Runtime.consoleAPICalled":
            words = " ".join(str(one.get("value")) for one in params["args"])
            if "setting log level" not in words:
                self.complaints.append(words)
        elif event.get("method") == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "data:", "blob:", "about:")):
                self.complaints.append(f"fetches {url}")

    def js(self, expression: str) -> Any:
        result = self(
            "Runtime.evaluate", expression=f"{EVERYTHING};{expression}", returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        end = time.monotonic() + WAIT_S
        while not self.js(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def open(
        self, page: Path, width: int = 1200, scheme: str = "light", phone: bool = False
    ) -> None:
        self.complaints = []
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1,
             mobile=phone)  # fmt: skip
        self("Emulation.setTouchEmulationEnabled", enabled=phone)
        self("Emulation.setEmulatedMedia",
             features=[{"name": "prefers-color-scheme", "value": scheme}])  # fmt: skip
        self("Page.navigate", url=page.as_uri())
        self.wait(
            "document.readyState === 'complete' && everything(document, 'canvas').some(inked)"
        )

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(WAIT_S)
        os.close(self._in)
        os.close(self._out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


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
    made = folder / "report.html"
    made.write_text(render_html(report, findings(report, when), when))
    return made


def test_the_browser_tells_of_errors_and_of_what_is_fetched(
    browser: Browser, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<canvas></canvas><img src=http://x.invalid/y><script>"
        "document.querySelector('canvas').getContext('2d').fillRect(0, 0, 9, 9); nothing.here()"
        "</script>"
    )
    browser.open(bad)
    told = " ".join(browser.complaints)
    assert "nothing is not defined" in told and "fetches http://x.invalid/y" in told


def test_every_plot_is_drawn_without_complaint(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.js("document.querySelectorAll('figure').length") == 2 + 1 + 6 + 4
    browser.wait("everything(document, 'canvas').filter(inked).length >= 11")
    assert browser.complaints == []


def test_a_finding_s_button_zooms_all_plots_to_it_and_back(browser: Browser, page: Path) -> None:
    browser.open(page)
    whole_ms = browser.js("shown()")
    browser.js("document.querySelector('button[data-begin]').click()")
    # The outage of 3.016 s with twice its length on either side.
    assert browser.js("shown()") == pytest.approx(5 * 3016, abs=1)
    browser.js("document.querySelector('button[data-time=all]').click()")
    assert browser.js("shown()") == pytest.approx(whole_ms)
    assert browser.complaints == []


def test_dragging_over_a_plot_zooms(browser: Browser, page: Path) -> None:
    browser.open(page)
    whole_ms = browser.js("shown()")
    point = pointer(browser, figure=1)
    point(0.3, "mousePressed")
    for step in range(31, 50):
        point(step / 100, "mouseMoved")
    point(0.5, "mouseReleased")
    browser.wait(f"shown() < {whole_ms} / 3")
    assert browser.complaints == []


def test_the_pointer_tells_time_and_rate(browser: Browser, page: Path) -> None:
    browser.open(page)
    point = pointer(browser, figure=3)
    for step in range(30, 33):
        point(step / 100, "mouseMoved", 0.3)
    browser.wait("everything(document, '.bk-Tooltip').length > 0")
    told = browser.js(
        "everything(document, '.bk-Tooltip').map(x => x.shadowRoot.textContent).join(' ')"
    )
    assert "received" in told and "Mbit/s" in told and "14:13:3" in told
    assert browser.complaints == []


def pointer(browser: Browser, figure: int) -> Callable[..., None]:
    """Moves the mouse over a plot, by shares of its width and height."""
    browser.js(f"document.querySelectorAll('figure')[{figure}].scrollIntoView({{block: 'center'}})")
    box = browser.js(
        f"everything(document.querySelectorAll('figure')[{figure}], '.bk-events')[0]"
        ".getBoundingClientRect().toJSON()"
    )

    def point(x: float, kind: str, y: float = 0.4) -> None:
        browser("Input.dispatchMouseEvent", type=kind, x=box["left"] + box["width"] * x,
                y=box["top"] + box["height"] * y, clickCount=1,
                button="none" if kind == "mouseMoved" else "left",
                buttons=1 if kind != "mouseReleased" else 0)  # fmt: skip

    return point


@pytest.mark.parametrize(
    ("scheme", "colour"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(16, 18, 22)")]
)
def test_the_page_follows_the_reader_s_choice_of_light_or_dark(
    browser: Browser, page: Path, scheme: str, colour: str
) -> None:
    browser.open(page, scheme=scheme)
    assert browser.js("getComputedStyle(document.body).backgroundColor") == colour


def test_at_phone_width_nothing_sticks_out_and_a_finger_scrolls(
    browser: Browser, page: Path
) -> None:
    browser.open(page, width=390, phone=True)
    assert browser.js("document.documentElement.scrollWidth") <= 390
    toolbars = "[...Bokeh.documents[0]._all_models.values()].filter(x => x.type === 'Toolbar')"
    browser.wait(f"{toolbars}.every(x => x.active_drag === null)")
    assert browser.complaints == []


def test_on_paper_no_plot_is_cut_off(browser: Browser, page: Path) -> None:
    browser.open(page, width=1400)
    browser("Emulation.setEmulatedMedia", media="print")
    widest = browser.js("Math.max(...[...document.querySelectorAll('figure > div')].map("
                        "x => x.getBoundingClientRect().width))")  # fmt: skip
    assert widest <= 702  # CSS pixels between the margins of A4
    browser("Emulation.setEmulatedMedia", media="")


def test_a_verdict_jumps_to_its_place_and_a_phone_shows_the_accounts(
    browser: Browser, tmp_path: Path
) -> None:
    report = Sim(1, [Fault("storage", 1, 100, 40)], seconds=300).report()
    when = When(report.whole, UTC)
    path = tmp_path / "verdict.html"
    path.write_text(render_html(report, findings(report, when), when))
    browser.open(path)
    browser.js(
        "[...document.querySelectorAll('li')]"
        ".find(x => x.textContent.includes('waiting for files')).querySelector('button').click()"
    )
    # The stretch of 42 s with twice its length on either side.
    assert browser.js("shown()") == pytest.approx(5 * 42_000, abs=1)
    browser("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2,
            mobile=True)  # fmt: skip
    assert browser.js("document.documentElement.scrollWidth") <= 390
    assert browser.complaints == []


def widest() -> Report:
    """The maps of 1,024 nodes x 8 GPUs, each as full as it gets; plots of single nodes and rails
    are few whatever the job (bench/report.py has whole ones)."""
    report = Sim(1, [Fault("storage", 1, 100, 10)], seconds=200, nodes=2).report()
    assert report.accounts is not None
    names = [f"rack{nth // 32:02d}-gpu{nth:04d}" for nth in range(1024)]
    random = np.random.default_rng(1)

    def noise(rows: int) -> np.ndarray:
        return random.integers(0, 200, (rows, 200)).astype(np.uint8)

    strips = [
        Strip(name, tuple(f"{one} {word}" for one in names[:MAX_ROWS]), noise(MAX_ROWS), 8192)
        for name, word in (("delay", "r0"), ("waiting", "17"), ("gpu", "g7"))
    ]
    return replace(
        report,
        accounts=replace(report.accounts, nodes=1024, heat=Heat(tuple(names), noise(1024))),
        strips=tuple(strips),
    )


def test_a_thousand_nodes_with_all_maps_are_one_small_page_that_draws(
    browser: Browser, tmp_path: Path
) -> None:
    report = widest()
    when = When(report.whole, UTC)
    text = render_html(report, findings(report, when), when)
    assert len(text.encode()) < 5_000_000
    path = tmp_path / "widest.html"
    path.write_text(text)
    browser.open(path)
    captions = browser.js("[...document.querySelectorAll('figcaption')].map(x => x.innerText)")
    for words in ("Pace of each node", *(title for title, _ in html_strips._WORDS.values())):
        assert any(one.startswith(words) for one in captions), (words, captions)
    browser.wait(
        "[...document.querySelectorAll('figure')].every(x => everything(x, 'canvas').some(inked))"
    )
    whole_ms = browser.js("shown()")
    browser.js("document.querySelector('button[data-begin]').click()")
    assert browser.js("shown()") < whole_ms
    browser("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2,
            mobile=True)  # fmt: skip
    assert browser.js("document.documentElement.scrollWidth") <= 390
    assert browser.complaints == []


def test_a_page_is_printed_as_pdf() -> None:
    made = printed("<!DOCTYPE html><title>x</title><p>Where the time went</p>")
    assert made.startswith(b"%PDF-") and len(made) > 1000
