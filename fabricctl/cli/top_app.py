"""The terminal of ``fabricctl top``, on Textual: only the rows that are seen are drawn."""

import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.screen import ModalScreen
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Footer, Input, Static

from fabricctl.cli.top_model import Screen
from fabricctl.errors import FabricError

_STYLES = {"bad": Style(color="red"), "warn": Style(color="yellow"), "": Style()}
_MARKED = Style(reverse=True)


class Rows(ScrollView, can_focus=True):
    """A table of any length: a line is made when it is drawn."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._model = screen

    def changed(self) -> None:
        self.virtual_size = Size(len(self._model.titles()) + 40, len(self._model.rows))
        self.refresh()

    def render_line(self, y: int) -> Strip:
        at = self.scroll_offset.y + y
        if at >= len(self._model.rows):
            return Strip.blank(self.size.width)
        row = self._model.rows[at]
        style = _STYLES[self._model.weight(row)]
        text = self._model.line(row)[self.scroll_offset.x :]
        style = style + _MARKED if at == self._model.at else style
        return Strip([Segment(f"{text:{self.size.width}}"[: self.size.width], style)])

    def move(self, by: int) -> None:
        last = max(0, len(self._model.rows) - 1)
        self._model.at = min(max(0, self._model.at + by), last)
        top, high = self.scroll_offset.y, max(1, self.size.height)
        if self._model.at < top:
            self.scroll_to(y=self._model.at, animate=False)
        elif self._model.at >= top + high:
            self.scroll_to(y=self._model.at - high + 1, animate=False)
        self.refresh()


class Words(ModalScreen[None]):
    """Findings, or where a job's ranks stand; any of the keys closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,q,enter", "app.pop_screen", "back")]
    DEFAULT_CSS = "Words { align: center middle; } Words > Static { border: round $accent; " \
                  "padding: 0 1; max-height: 90%; width: 90%; overflow-y: auto; }"  # fmt: skip

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        yield Static(self._text, markup=False)


class Top(App[None]):
    """Keys, a head, rows, a line for the filter."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "view('jobs')", "jobs"), Binding("2", "view('nodes')", "nodes"),
        Binding("3", "view('links')", "links"), Binding("s", "sort", "sort"),
        Binding("r", "turn", "other way"), Binding("slash", "filter", "filter", key_display="/"),
        Binding("enter", "into", "into", priority=False), Binding("escape", "out", "back"),
        Binding("f", "findings", "findings"), Binding("w", "ranks", "ranks"),
        Binding("q", "quit", "end"),
        Binding("up", "move(-1)", show=False), Binding("down", "move(1)", show=False),
        Binding("pageup", "move(-20)", show=False), Binding("pagedown", "move(20)", show=False),
        Binding("home", "move(-1000000)", show=False), Binding("end", "move(1000000)", show=False),
    ]  # fmt: skip
    CSS = "#head { height: auto; } Rows { height: 1fr; } #filter { display: none; height: 3; } " \
          "#filter.shown { display: block; }"  # fmt: skip
    ENABLE_COMMAND_PALETTE = False

    def __init__(
        self, screen: Screen, look: Callable[[], Mapping[str, Any]], every_s: float
    ) -> None:
        super().__init__()
        self._model, self._look, self._every_s = screen, look, every_s
        self.took_s = 0.0  # of the last refresh: asked, arranged and drawn
        self._trouble = "asking..."
        self._busy = False

    def compose(self) -> ComposeResult:
        yield Static(id="head", markup=False)
        yield Rows(self._model)
        yield Input(placeholder="words that a row must have; enter", id="filter")
        yield Footer()

    def on_mount(self) -> None:
        self.query_one(Rows).focus()
        self.set_interval(self._every_s, self.again)
        self.again()

    def again(self) -> None:
        """Asks in a thread, so that keys work meanwhile; one question at a time."""
        if not self._busy:
            self._busy = True
            self._ask()

    @work(thread=True)
    def _ask(self) -> None:
        begin_s = time.monotonic()
        try:
            given: Mapping[str, Any] | None = self._look()
            trouble = ""
        except FabricError as error:
            given, trouble = None, str(error)
        self.call_from_thread(self._took, given, trouble, begin_s)

    def _took(self, given: Mapping[str, Any] | None, trouble: str, begin_s: float) -> None:
        self._busy, self._trouble = False, trouble
        if given is not None:
            self._model.take(given)
        self._draw()
        self.took_s = time.monotonic() - begin_s

    def _draw(self) -> None:
        lines = self._model.head()
        if self._trouble:
            lines = [f"!! {self._trouble}", *lines]
        self.query_one("#head", Static).update("\n".join(lines))
        self.query_one(Rows).changed()

    def action_view(self, view: str) -> None:
        self._model.inside = None
        self._model.show(view)
        self._to_top()

    def _to_top(self) -> None:
        self.query_one(Rows).scroll_to(y=0, animate=False)
        self._draw()

    def action_sort(self) -> None:
        self._model.sort_next()
        self._draw()

    def action_turn(self) -> None:
        self._model.turn_around()
        self._draw()

    def action_into(self) -> None:
        if self._model.enter():
            self._to_top()

    def action_out(self) -> None:
        asked = self.query_one("#filter", Input)
        if asked.has_class("shown"):
            asked.remove_class("shown")
            self.query_one(Rows).focus()
            return
        self._model.back()
        self._to_top()

    def action_move(self, by: int) -> None:
        self.query_one(Rows).move(by)

    def action_filter(self) -> None:
        asked = self.query_one("#filter", Input)
        asked.value = self._model.wanted
        asked.add_class("shown")
        asked.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._model.wanted = event.value
        event.input.remove_class("shown")
        self._model.arrange()
        self.query_one(Rows).focus()
        self._to_top()

    def action_findings(self) -> None:
        found = self._model.snapshot.get("findings", [])
        words = [f"{'!!' if w == 'error' else ' !' if w == 'warning' else '  '} {t}"
                 for w, t in found]  # fmt: skip
        self.push_screen(Words("\n".join(words) or "nothing is open"))

    def action_ranks(self) -> None:
        """Where the ranks of the marked job stand, as `fabricctl job where` says."""
        if self._model.view == "jobs" and self._model.rows:
            self._ranks(str(self._model.rows[self._model.at][0]))

    @work(thread=True)
    def _ranks(self, job: str) -> None:
        import subprocess
        import sys

        try:
            done = subprocess.run([sys.executable, "-m", "fabricctl.cli.main", "job", "where", job],
                                  capture_output=True, text=True, timeout=20, check=False,
                                  stdin=subprocess.DEVNULL)  # fmt: skip
            said = done.stdout or done.stderr
        except subprocess.TimeoutExpired:
            said = "no answer within 20 s"
        self.call_from_thread(self.push_screen, Words(said.strip()))
