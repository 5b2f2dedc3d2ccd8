"""What ``fabricctl top`` shows: rows chosen, sorted, and as lines. No terminal in here."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fabricctl.fleet.head.views import JOB_COLUMNS, LINK_COLUMNS, NODE_COLUMNS
from fabricctl.units import format_duration

VIEWS: Mapping[str, Sequence[str]] = {
    "jobs": JOB_COLUMNS, "nodes": NODE_COLUMNS, "links": LINK_COLUMNS,
}  # fmt: skip
# column: (heading, width, how it is written)
_TEXT: Callable[[Any], str] = str


def _rate(value: Any) -> str:
    bits = 8.0 * value
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if bits >= size:
            return f"{bits / size:.3g} {unit}bit/s"
    return f"{bits:.0f} bit/s"


_SHOWN: Mapping[str, tuple[str, int, Callable[[Any], str]]] = {
    "job": ("JOB", 8, _TEXT), "user": ("USER", 10, _TEXT), "account": ("ACCOUNT", 10, _TEXT),
    "name": ("NAME", 14, _TEXT), "state": ("STATE", 11, lambda v: str(v).lower()),
    "nodes": ("NODES", 5, _TEXT), "cpus": ("CPUS", 6, _TEXT),
    "elapsed_s": ("FOR", 11, format_duration),
    "protected": ("PROT", 5, _TEXT), "rails_down": ("DOWN", 4, _TEXT),
    "rx_bytes_per_s": ("RECEIVED", 11, _rate), "tx_bytes_per_s": ("SENT", 11, _rate),
    "where": ("WHERE", 24, _TEXT), "node": ("NODE", 12, _TEXT), "jobs": ("JOBS", 4, _TEXT),
    "load": ("LOAD", 6, lambda v: f"{v:.1f}"), "mem_mib": ("MEM", 8, lambda v: f"{v / 1024:.1f}G"),
    "free_mib": ("FREE", 8, lambda v: f"{v / 1024:.1f}G"),
    "age_s": ("AGE", 6, lambda v: f"{v:.0f}s"), "reason": ("REASON", 30, _TEXT),
    "rail": ("RAIL", 8, _TEXT), "errors": ("ERRORS", 6, _TEXT),
}  # fmt: skip
_LEFT = frozenset({"user", "account", "name", "state", "where", "node", "reason", "rail"})
_BAD = frozenset({"down", "no carrier", "gone", "unknown", "not in slurm"})
_WARN = frozenset({"drained", "draining", "off", "powered down"})


class Screen:
    """The state of the screen; :meth:`take` gives it a new snapshot."""

    def __init__(self, view: str = "jobs", wanted: str = "", by: str = "") -> None:
        self.view, self.wanted, self.by = view, wanted, by
        self.down = True  # largest first
        self.at = 0  # the row that is marked
        self.inside: tuple[str, str] | None = None  # ("job", "17") or ("node", "n3")
        self.snapshot: Mapping[str, Any] = {}
        self.rows: list[Sequence[Any]] = []

    @property
    def columns(self) -> Sequence[str]:
        return VIEWS[self.view]

    def take(self, snapshot: Mapping[str, Any]) -> None:
        """The marked row stays marked, wherever it is now."""
        key = self._key(self.rows[self.at]) if self.rows and self.at < len(self.rows) else None
        self.snapshot = snapshot
        self.arrange(key)

    def arrange(self, key: object = None) -> None:
        """Rows again, after a change of view, filter or order."""
        rows: list[Sequence[Any]] = list(self.snapshot.get(self.view, ()))
        if self.inside is not None:
            rows = [row for row in rows if self._is_inside(row)]
        words = self.wanted.lower().split()
        if words:
            rows = [row for row in rows if all(w in _plain(row) for w in words)]
        if self.by in self.columns:
            at = self.columns.index(self.by)
            known = [row for row in rows if row[at] is not None]
            known.sort(key=lambda row: (isinstance(row[at], str), row[at]), reverse=self.down)
            rows = [*known, *(row for row in rows if row[at] is None)]
        self.rows = rows
        self.at = next((n for n, row in enumerate(rows) if self._key(row) == key),
                       min(self.at, max(0, len(rows) - 1)))  # fmt: skip

    def _key(self, row: Sequence[Any]) -> object:
        return (row[0], row[1]) if self.view == "links" else row[0]

    def _is_inside(self, row: Sequence[Any]) -> bool:
        what, name = self.inside or ("", "")
        if what == "node":
            if self.view == "jobs":
                return name in self._nodes_of(row)
            return bool(row[0] == name)
        return self.view == "jobs" or row[0] in self._nodes_of_job(name)

    def _nodes_of_job(self, job: str) -> set[str]:
        for row in self.snapshot.get("jobs", ()):
            if str(row[0]) == job:
                return self._nodes_of(row)
        return set()

    @staticmethod
    def _nodes_of(row: Sequence[Any]) -> set[str]:
        from fabricctl import hostlist
        from fabricctl.errors import FabricError

        try:
            return set(hostlist.expand(str(row[JOB_COLUMNS.index("where")])))
        except FabricError:
            return set()  # it waits: a reason stands there

    # What keys do

    def show(self, view: str) -> None:
        self.view, self.at = view, 0
        self.by = self.by if self.by in self.columns else ""
        self.arrange()

    def sort_next(self) -> None:
        at = self.columns.index(self.by) + 1 if self.by in self.columns else 0
        self.by = self.columns[at] if at < len(self.columns) else ""
        self.arrange()

    def turn_around(self) -> None:
        self.down = not self.down
        self.arrange()

    def enter(self) -> bool:
        """Into the marked row: from a job to its nodes, from a node to its links. False: no
        further."""
        if not self.rows or self.view == "links":
            return False
        row = self.rows[self.at]
        if self.view == "jobs":
            self.inside, view = ("job", str(row[0])), "nodes"
        else:
            self.inside, view = ("node", str(row[0])), "links"
        self.wanted = ""
        self.show(view)
        return True

    def back(self) -> None:
        self.inside, self.wanted = None, ""
        self.show("jobs" if self.view == "nodes" else "nodes")

    # What is seen

    def head(self) -> list[str]:
        """The lines above the table."""
        given = self.snapshot
        told = given.get("reports", {})
        states = ", ".join(f"{count} {state}" for state, count in given.get("states", {}).items())
        jobs = ", ".join(f"{count} {s}" for s, count in given.get("jobs_by_state", {}).items())
        caller = f"{given.get('user', '?')} ({given.get('role', '?')})"
        heard = f"{told.get('fresh', 0)} nodes report every {told.get('interval_s', 0):.3g} s"
        if told.get("stale"):
            heard += f", {told['stale']} stopped to"
        if not told.get("taken"):
            heard = "no fabricd: as Slurm sees it"
        lines = [f"{given.get('cluster', '?')}  nodes: {states or 'none'}  jobs: {jobs or 'none'}",
                 f"{heard}; you are {caller}"]  # fmt: skip
        findings = given.get("findings", [])
        lines += [f"{'!!' if weight == 'error' else ' !'} {text}" for weight, text in findings[:2]]
        if len(findings) > 2:
            lines.append(f"   and {len(findings) - 2} more: f")
        inside = f" of {' '.join(self.inside)}" if self.inside else ""
        chosen = f" with {self.wanted!r}" if self.wanted else ""
        order = f", by {self.by}{'' if self.down else ' upwards'}" if self.by else ""
        lines.append(f"[{self.view}]{inside}{chosen}: {len(self.rows)}{order}")
        return [*lines, self.titles()]

    def titles(self) -> str:
        words = []
        for name in self.columns:
            title, width, _ = _SHOWN[name]
            title += ("v" if self.down else "^") if name == self.by else ""
            right = name not in _LEFT
            words.append(f"{title[:width]:>{width}}" if right else f"{title[:width]:{width}}")
        return " ".join(words).rstrip()

    def lines(self, first: int, count: int) -> list[str]:
        """Only the rows that are seen are written."""
        return [self.line(row) for row in self.rows[first : first + count]]

    def line(self, row: Sequence[Any]) -> str:
        words = []
        for name, value in zip(self.columns, row, strict=True):
            _, width, write = _SHOWN[name]
            said = "-" if value is None else write(value)
            # Users choose their jobs' names: what ends a line or moves the cursor is none.
            said = "".join(c if c.isprintable() else "?" for c in said)
            said = said if len(said) <= width else said[: width - 1] + "~"
            words.append(f"{said:{width}}" if isinstance(value, str) else f"{said:>{width}}")
        return " ".join(words).rstrip()

    def weight(self, row: Sequence[Any]) -> str:
        """``bad``, ``warn`` or empty: how a row is coloured."""
        if "state" in self.columns:
            state = str(row[self.columns.index("state")]).lower()
            if state in _BAD:
                return "bad"
            if state in _WARN:
                return "warn"
        if "rails_down" in self.columns and row[self.columns.index("rails_down")]:
            return "bad"
        return ""


def _plain(row: Sequence[Any]) -> str:
    return " ".join(str(cell) for cell in row if cell is not None).lower()
