"""The inventory's data base: what was declared, and every value that was ever seen, since when.

SQLite, one file, or PostgreSQL by its URL. A value that is seen again only moves its ``last``;
another one begins a row of its own: so what changed, and when, is always there.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from fabricctl.errors import DataError
from fabricctl.fleet.inventory.database import Database

SCHEMA_VERSION = 1
_SLURM = "slurm."
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS seen (
    node TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
    first_real_s BIGINT NOT NULL, last_real_s BIGINT NOT NULL,
    gone_real_s BIGINT             -- when it was first found to be another, or missing
);
CREATE INDEX IF NOT EXISTS seen_now ON seen (node, key) WHERE gone_real_s IS NULL;
CREATE TABLE IF NOT EXISTS visit (node TEXT PRIMARY KEY, last_real_s BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS declared (
    node TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
    since_real_s BIGINT NOT NULL, source TEXT NOT NULL, PRIMARY KEY (node, key)
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

    def __init__(self, where: Path | str) -> None:
        self._db = Database(where)
        try:
            self._make()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> "Inventory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._db.close()

    def _make(self) -> None:
        with self._db:
            for statement in filter(str.strip, _SCHEMA.split(";")):
                self._db.ask(statement)
            self._db.ask("INSERT INTO meta VALUES ('schema', ?) ON CONFLICT (name) DO NOTHING",
                         (str(SCHEMA_VERSION),))  # fmt: skip
        ((version,),) = self._db.ask("SELECT value FROM meta WHERE name = 'schema'")
        if version != str(SCHEMA_VERSION):
            raise DataError(
                f"{self._db.name}: schema {version}, this program knows {SCHEMA_VERSION}"
            )

    # What was seen -------------------------------------------------------------------------------

    def record(self, node: str, facts: Mapping[str, str], at_real_s: int | None = None) -> int:
        """Takes in what a node found out about itself; how many values are new or gone.

        What Slurm says of it (``slurm.``) is no node's to know: without any of it, it stays.
        """
        now_s = int(time.time()) if at_real_s is None else at_real_s
        changes = 0
        with self._db:
            known = dict(
                self._db.ask(
                    "SELECT key, value FROM seen WHERE node = ? AND gone_real_s IS NULL", (node,)
                )
            )
            asked = any(key.startswith(_SLURM) for key in facts)
            for key, value in known.items():
                if key.startswith(_SLURM) and not asked:
                    continue
                same = facts.get(key) == value
                column = "last_real_s" if same else "gone_real_s"
                self._db.ask(
                    f"UPDATE seen SET {column} = ? "  # noqa: S608
                    "WHERE node = ? AND key = ? AND gone_real_s IS NULL",
                    (now_s, node, key),
                )
                changes += key not in facts
            for key, value in facts.items():
                if known.get(key) != value:
                    self._db.ask(
                        "INSERT INTO seen VALUES (?, ?, ?, ?, ?, NULL)",
                        (node, key, value, now_s, now_s),
                    )
                    changes += 1
            self._db.ask(
                "INSERT INTO visit VALUES (?, ?) "
                "ON CONFLICT (node) DO UPDATE SET last_real_s = excluded.last_real_s",
                (node, now_s),
            )
        return changes

    def now(self) -> dict[str, dict[str, Seen]]:
        """Node -> key -> the value that was seen last."""
        found: dict[str, dict[str, Seen]] = {}
        for row in self._db.ask(
            "SELECT node, key, value, first_real_s, last_real_s, gone_real_s FROM seen "
            "WHERE gone_real_s IS NULL ORDER BY node, key"
        ):
            found.setdefault(row[0], {})[row[1]] = Seen(*row)
        return found

    def history(self, node: str, key: str | None = None) -> list[Seen]:
        """Every value that the node ever had, oldest first."""
        rows = self._db.ask(
            "SELECT node, key, value, first_real_s, last_real_s, gone_real_s FROM seen "
            "WHERE node = ? AND (CAST(? AS TEXT) IS NULL OR key = ?) ORDER BY first_real_s, key",
            (node, key, key),
        )
        return [Seen(*row) for row in rows]

    def visits(self) -> dict[str, int]:
        """Node -> when its facts were taken last."""
        return dict(self._db.ask("SELECT node, last_real_s FROM visit"))

    def forget(self, nodes: Iterable[str]) -> None:
        """Nodes that left the cluster: what was seen and declared of them goes."""
        with self._db:
            for node in nodes:
                for table in ("seen", "visit", "declared"):
                    self._db.ask(f"DELETE FROM {table} WHERE node = ?", (node,))  # noqa: S608

    # What was declared ---------------------------------------------------------------------------

    def declare(self, node: str, values: Mapping[str, str], source: str) -> int:
        """Sets what a node should have; keys that are not named stay. How many changed."""
        now_s, changes = int(time.time()), 0
        with self._db:
            known = dict(self._db.ask("SELECT key, value FROM declared WHERE node = ?", (node,)))
            for key, value in values.items():
                if known.get(key) == value:
                    continue
                self._db.ask(
                    "INSERT INTO declared VALUES (?, ?, ?, ?, ?) "
                    "ON CONFLICT (node, key) DO UPDATE SET value = excluded.value, "
                    "since_real_s = excluded.since_real_s, source = excluded.source",
                    (node, key, value, now_s, source),
                )
                changes += 1
        return changes

    def undeclare(self, nodes: Iterable[str]) -> None:
        with self._db:
            for node in nodes:
                self._db.ask("DELETE FROM declared WHERE node = ?", (node,))

    def declared(self) -> dict[str, dict[str, str]]:
        """Node -> key -> value."""
        found: dict[str, dict[str, str]] = {}
        rows = self._db.ask("SELECT node, key, value FROM declared ORDER BY node, key")
        for node, key, value in rows:
            found.setdefault(node, {})[key] = value
        return found
