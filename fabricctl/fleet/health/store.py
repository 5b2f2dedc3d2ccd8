"""Looks at nodes and what came of them, in SQLite: ``fleet.dir``/health.db.

Every look is taken in whole or not at all; a report is taken once, and none that is older than one
taken before, so that nobody can confirm a matter by saying it twice.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fabricctl.errors import SystemRefusedError, UsageError
from fabricctl.fleet.audit.model import Check
from fabricctl.fleet.health.policy import Decision, Matter, Record

_SCHEMA = """
CREATE TABLE IF NOT EXISTS look (sha256 TEXT PRIMARY KEY, at_real_s INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS node (node TEXT PRIMARY KEY, clean INTEGER NOT NULL,
  rails TEXT NOT NULL, at_real_s INTEGER NOT NULL, reason TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS matter (node TEXT, area TEXT, name TEXT, rail TEXT, weight TEXT,
  text TEXT, looks INTEGER, since_real_s INTEGER, last_real_s INTEGER, open INTEGER);
CREATE UNIQUE INDEX IF NOT EXISTS matter_open ON matter (node, area, name, rail) WHERE open;
CREATE INDEX IF NOT EXISTS matter_when ON matter (last_real_s);
CREATE TABLE IF NOT EXISTS excluded (node TEXT, rail TEXT, text TEXT, at_real_s INTEGER,
  PRIMARY KEY (node, rail));
CREATE TABLE IF NOT EXISTS decision (at_real_s INTEGER, node TEXT, rail TEXT, action TEXT,
  text TEXT, outcome TEXT);
"""
KEEP_DECISIONS = 10_000
_WEIGHTS = {"fail": "error", "warn": "warning", "not measured": "unknown"}


@dataclass(frozen=True)
class Incident:
    """A matter from its first look to its last."""

    node: str
    kind: str  # area.name
    rail: str
    weight: str
    text: str
    begin_real_s: int
    end_real_s: int
    open: int  # 1: it was there at the last look


@dataclass(frozen=True)
class Taken:
    """What was decided once; ``outcome``: done, would be done, refused: ..., failed: ..."""

    at_real_s: int
    node: str
    rail: str
    action: str
    text: str
    outcome: str


class HealthStore:
    """Open it with the lock of :func:`fabricctl.fleet.health.run.only_one` held to write."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            self._db = sqlite3.connect(path, timeout=10, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise SystemRefusedError(f"{path}: {error}") from None
        self._path = path
        self._trial = False

    def close(self) -> None:
        self._db.close()

    def begin_trial(self) -> None:
        """All that follows is undone when this is closed."""
        with self._whole():
            pass  # whoever writes now is waited for
        self._db.execute("BEGIN IMMEDIATE")
        self._trial = True

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """All or nothing."""
        if self._trial:
            yield
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise SystemRefusedError(f"{self._path}: {error}") from None

    def take(
        self, sha256: str, at_s: int, nodes: Sequence[str], checks: Sequence[Check], *,
        whole: bool = True,
    ) -> None:  # fmt: skip
        """One look. Not ``whole``: it says nothing of what it does not name.

        Raises :class:`UsageError` for one that was taken, or is older than one.
        """
        with self._whole():
            latest = self._db.execute("SELECT MAX(at_real_s) FROM look").fetchone()[0]
            if self._db.execute("SELECT 1 FROM look WHERE sha256 = ?", (sha256,)).fetchone():
                raise UsageError(f"health: report {sha256[:12]} was taken already")
            if latest is not None and at_s <= latest:
                raise UsageError(
                    f"health: report {sha256[:12]} is not newer than one that was taken"
                )
            self._db.execute("INSERT INTO look VALUES (?, ?)", (sha256, at_s))
            by_node: dict[str, list[Check]] = {}
            for check in checks:
                by_node.setdefault(check.node, []).append(check)
            for node in nodes:
                self._take_node(node, at_s, by_node.get(node, []), whole)

    def _take_node(self, node: str, at_s: int, checks: Sequence[Check], whole: bool) -> None:
        found = {(c.area, c.name, c.rail): c for c in checks if c.status != "ok"}
        db = self._db
        known = db.execute("SELECT area, name, rail FROM matter WHERE node = ? AND open", (node,))
        # What was not measured this time is as open as before.
        measured = {c.area for c in checks if c.status != "not measured"}
        named = {(c.area, c.name, c.rail) for c in checks}
        for key in known.fetchall():
            if key in found or not (whole or key in named):
                continue
            if key[0] in measured or _is_silence(key, checks):
                db.execute("UPDATE matter SET open = 0 WHERE node = ? AND area = ? AND name = ? "
                           "AND rail = ? AND open", (node, *key))  # fmt: skip
        for (area, name, rail), check in found.items():
            # Of another weight it is another matter: an error stays one that was, for lemons.
            db.execute("UPDATE matter SET open = 0 WHERE node = ? AND area = ? AND name = ? AND "
                       "rail = ? AND open AND weight <> ?",
                       (node, area, name, rail, _WEIGHTS[check.status]))  # fmt: skip
            db.execute(
                "INSERT INTO matter VALUES (?, ?, ?, ?, ?, ?, 1, ?, ?, 1) ON CONFLICT "
                "(node, area, name, rail) WHERE open DO UPDATE SET looks = looks + 1, "
                "text = excluded.text, last_real_s = excluded.last_real_s",
                (node, area, name, rail, _WEIGHTS[check.status], check.value[:200], at_s, at_s),
            )
        fine = bool(checks) and all(c.status in ("ok", "warn") for c in checks)
        more = int(whole) if fine else None  # clean looks; None: the row of them is broken
        rails = " ".join(sorted({c.rail for c in checks if c.rail}))
        db.execute(
            "INSERT INTO node (node, clean, rails, at_real_s) VALUES (?, ?, ?, ?) ON CONFLICT "
            "(node) DO UPDATE SET clean = CASE WHEN ? THEN clean + excluded.clean ELSE 0 END, "
            "rails = CASE WHEN excluded.rails = '' THEN rails ELSE excluded.rails END, "
            "at_real_s = excluded.at_real_s",
            (node, more or 0, rails, at_s, more is not None),
        )

    def records(self, nodes: Sequence[str]) -> dict[str, Record]:
        """Of those that were ever looked at."""
        found = {}
        for node in nodes:
            row = self._db.execute("SELECT clean, rails, reason FROM node WHERE node = ?", (node,))
            known = row.fetchone()
            if known is None:
                continue
            matters = self._db.execute(
                "SELECT node, area, name, rail, weight, text, looks, since_real_s FROM matter "
                "WHERE node = ? AND open ORDER BY since_real_s, area, name, rail", (node,)
            )  # fmt: skip
            gone = self._db.execute("SELECT rail FROM excluded WHERE node = ?", (node,)).fetchall()
            found[node] = Record(tuple(Matter(*each) for each in matters), known[0],
                                 frozenset(known[1].split()), frozenset(r for (r,) in gone),
                                 known[2])  # fmt: skip
        return found

    def nodes(self) -> list[str]:
        """All that were ever looked at."""
        return [name for (name,) in self._db.execute("SELECT node FROM node ORDER BY node")]

    def looked(self) -> dict[str, int]:
        """Node -> when it was looked at last."""
        return dict(self._db.execute("SELECT node, at_real_s FROM node"))

    def set_reason(self, node: str, reason: str) -> None:
        """What we are about to write to Slurm: on the disk before it is written there."""
        with self._whole():
            self._db.execute(
                "INSERT INTO node (node, clean, rails, at_real_s, reason) VALUES (?, 0, '', 0, ?) "
                "ON CONFLICT (node) DO UPDATE SET reason = excluded.reason", (node, reason)
            )  # fmt: skip

    def set_excluded(self, node: str, rail: str, text: str | None, at_s: int) -> None:
        """``text`` None: it is used again."""
        with self._whole():
            self._db.execute("DELETE FROM excluded WHERE node = ? AND rail = ?", (node, rail))
            if text is not None:
                self._db.execute("INSERT INTO excluded VALUES (?, ?, ?, ?)",
                                 (node, rail, text, at_s))  # fmt: skip

    def write(self, at_s: int, decision: Decision, outcome: str) -> None:
        with self._whole():
            self._db.execute(
                "INSERT INTO decision VALUES (?, ?, ?, ?, ?, ?)",
                (at_s, decision.node, decision.rail, decision.action, decision.text, outcome),
            )
            self._db.execute(
                "DELETE FROM decision WHERE rowid <= (SELECT MAX(rowid) FROM decision) - ?",
                (KEEP_DECISIONS,),
            )

    def decisions(self, since_real_s: int = 0) -> list[Taken]:
        """Oldest first."""
        rows = self._db.execute("SELECT at_real_s, node, rail, action, text, outcome FROM decision "
                                "WHERE at_real_s >= ? ORDER BY rowid", (since_real_s,))  # fmt: skip
        return [Taken(*row) for row in rows]

    def excluded(self) -> list[tuple[str, str, str, int]]:
        """``(node, rail, why, since)``."""
        return list(self._db.execute("SELECT * FROM excluded ORDER BY node, rail"))

    def incidents(self, since_real_s: int) -> list[Incident]:
        """Matters that were open at some look since then."""
        rows = self._db.execute(
            "SELECT node, area || '.' || name, rail, weight, text, since_real_s, last_real_s, open "
            "FROM matter WHERE last_real_s >= ? ORDER BY since_real_s", (since_real_s,)
        )  # fmt: skip
        return [Incident(*row) for row in rows]


def _is_silence(key: tuple[str, str, str], checks: Sequence[Check]) -> bool:
    """The node did not answer before, and does now."""
    return key[:2] == ("slurm", "answers") and any(c.status != "not measured" for c in checks)
