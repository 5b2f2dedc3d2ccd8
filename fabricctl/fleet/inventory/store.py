"""The inventory's data base: what was declared, and every value that was ever seen, since when.

SQLite, one file. A value that is seen again only moves its ``last``; another one begins a row of
its own: so what changed, and when, is always there.
"""

import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from fabricctl.errors import DataError, SystemRefusedError

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE seen (
    node TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
    first_real_s INTEGER NOT NULL, last_real_s INTEGER NOT NULL,
    gone_real_s INTEGER            -- when it was first found to be another, or missing
);
CREATE INDEX seen_now ON seen (node, key) WHERE gone_real_s IS NULL;
CREATE TABLE visit (node TEXT PRIMARY KEY, last_real_s INTEGER NOT NULL);
CREATE TABLE declared (
    node TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
    since_real_s INTEGER NOT NULL, source TEXT NOT NULL, PRIMARY KEY (node, key)
);
"""


@dataclass(frozen=True)
class Seen:
    """One value of one node, from when to when; ``gone_real_s`` None: it is so now."""

    node: str
    key: str
    value: str
    first_real_s: int
    last_real_s: int
    gone_real_s: int | None


class Inventory:
    """The open data base; a context manager. Raises :class:`DataError` for a damaged one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._make()
        except sqlite3.OperationalError as error:
            raise SystemRefusedError(f"inventory {path}: {error}") from None
        except sqlite3.DatabaseError as error:
            raise DataError(f"inventory {path}: not one of ours, or damaged: {error}") from None
        except OSError as error:
            raise SystemRefusedError(f"inventory {path}: {error.strerror}") from None

    def __enter__(self) -> "Inventory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._db.close()

    def _make(self) -> None:
        with _Transaction(self._db):
            there = self._db.execute(
                "SELECT count(*) FROM sqlite_master WHERE name = 'meta'"
            ).fetchone()[0]
            if not there:
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute("INSERT INTO meta VALUES ('schema', ?)", (str(SCHEMA_VERSION),))
        (version,) = self._db.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
        if version != str(SCHEMA_VERSION):
            raise DataError(
                f"inventory {self.path}: schema {version}, this program knows {SCHEMA_VERSION}"
            )

    # What was seen -------------------------------------------------------------------------------

    def record(self, node: str, facts: Mapping[str, str], at_real_s: int | None = None) -> int:
        """Takes in what a node found out about itself; how many values are new or gone."""
        now_s = int(time.time()) if at_real_s is None else at_real_s
        changes = 0
        with _Transaction(self._db):
            known = {
                key: (value, row)
                for row, key, value in self._db.execute(
                    "SELECT rowid, key, value FROM seen WHERE node = ? AND gone_real_s IS NULL",
                    (node,),
                ).fetchall()
            }
            for key, (value, row) in known.items():
                if facts.get(key) == value:
                    self._db.execute(
                        "UPDATE seen SET last_real_s = ? WHERE rowid = ?", (now_s, row)
                    )
                else:
                    self._db.execute(
                        "UPDATE seen SET gone_real_s = ? WHERE rowid = ?", (now_s, row)
                    )
                    changes += key not in facts
            for key, value in facts.items():
                if known.get(key, (None, 0))[0] != value:
                    self._db.execute(
                        "INSERT INTO seen VALUES (?, ?, ?, ?, ?, NULL)",
                        (node, key, value, now_s, now_s),
                    )
                    changes += 1
            self._db.execute(
                "INSERT INTO visit VALUES (?, ?) "
                "ON CONFLICT (node) DO UPDATE SET last_real_s = excluded.last_real_s",
                (node, now_s),
            )
        return changes

    def now(self) -> dict[str, dict[str, Seen]]:
        """Node -> key -> the value that was seen last."""
        found: dict[str, dict[str, Seen]] = {}
        for row in self._db.execute(
            "SELECT node, key, value, first_real_s, last_real_s, gone_real_s FROM seen "
            "WHERE gone_real_s IS NULL ORDER BY node, key"
        ):
            found.setdefault(row[0], {})[row[1]] = Seen(*row)
        return found

    def history(self, node: str, key: str | None = None) -> list[Seen]:
        """Every value that the node ever had, oldest first."""
        rows = self._db.execute(
            "SELECT node, key, value, first_real_s, last_real_s, gone_real_s FROM seen "
            "WHERE node = ? AND (? IS NULL OR key = ?) ORDER BY first_real_s, key",
            (node, key, key),
        )
        return [Seen(*row) for row in rows]

    def visits(self) -> dict[str, int]:
        """Node -> when its facts were taken last."""
        return dict(self._db.execute("SELECT node, last_real_s FROM visit").fetchall())

    def forget(self, nodes: Iterable[str]) -> None:
        """Nodes that left the cluster: what was seen and declared of them goes."""
        with _Transaction(self._db):
            for node in nodes:
                for table in ("seen", "visit", "declared"):
                    self._db.execute(f"DELETE FROM {table} WHERE node = ?", (node,))  # noqa: S608

    # What was declared ---------------------------------------------------------------------------

    def declare(self, node: str, values: Mapping[str, str], source: str) -> int:
        """Sets what a node should have; keys that are not named stay. How many changed."""
        now_s, changes = int(time.time()), 0
        with _Transaction(self._db):
            known = self.declared().get(node, {})
            for key, value in values.items():
                if known.get(key) == value:
                    continue
                self._db.execute(
                    "INSERT INTO declared VALUES (?, ?, ?, ?, ?) "
                    "ON CONFLICT (node, key) DO UPDATE SET value = excluded.value, "
                    "since_real_s = excluded.since_real_s, source = excluded.source",
                    (node, key, value, now_s, source),
                )
                changes += 1
        return changes

    def undeclare(self, nodes: Iterable[str]) -> None:
        with _Transaction(self._db):
            for node in nodes:
                self._db.execute("DELETE FROM declared WHERE node = ?", (node,))

    def declared(self) -> dict[str, dict[str, str]]:
        """Node -> key -> value."""
        found: dict[str, dict[str, str]] = {}
        rows = self._db.execute("SELECT node, key, value FROM declared ORDER BY node, key")
        for node, key, value in rows:
            found.setdefault(node, {})[key] = value
        return found


class _Transaction:
    """All or nothing; one inside another is part of it."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._outer = self._db.in_transaction
        if not self._outer:
            self._db.execute("BEGIN IMMEDIATE")

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        if not self._outer:
            self._db.execute("COMMIT" if kind is None else "ROLLBACK")
