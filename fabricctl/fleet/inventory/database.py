"""A connection to SQLite or PostgreSQL that takes the same few statements.

Statements are written for both: ``?`` for a value, ``ON CONFLICT``, no rowids. psycopg is imported
only where a URL names PostgreSQL (``pip install fabricctl[postgresql]``).
"""

import importlib
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fabricctl.errors import ConfigError, DataError, SystemRefusedError

URL = re.compile(r"postgres(ql)?://")
_LOCK = 0x66616272  # of writers; any number that others do not use


class Database:
    """Raises :class:`DataError` for a damaged one, :class:`SystemRefusedError` when it is away."""

    def __init__(self, where: Path | str) -> None:
        self.name = shown(where)
        self._depth = 0
        self._is_postgresql = isinstance(where, str)
        self._db: Any = _postgresql(where) if isinstance(where, str) else self._sqlite(where)

    def _sqlite(self, path: Path) -> sqlite3.Connection:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            made = sqlite3.connect(path, timeout=30.0, isolation_level=None)
            made.execute("PRAGMA journal_mode = WAL")
            made.execute("PRAGMA synchronous = FULL")
        except sqlite3.OperationalError as error:
            raise SystemRefusedError(f"{self.name}: {error}") from None
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self.name}: not one of ours, or damaged: {error}") from None
        except OSError as error:
            raise SystemRefusedError(f"{self.name}: {error.strerror}") from None
        return made

    def close(self) -> None:
        self._db.close()

    def ask(self, statement: str, given: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of it; none of a statement that has none."""
        try:
            if self._is_postgresql:
                done = self._db.execute(statement.replace("?", "%s"), given)
                return done.fetchall() if done.description else []
            return list(self._db.execute(statement, given).fetchall())
        except sqlite3.OperationalError as error:
            raise SystemRefusedError(f"{self.name}: {error}") from None
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self.name}: not one of ours, or damaged: {error}") from None
        except Exception as error:
            if not _is_psycopg(error):
                raise
            raise SystemRefusedError(f"{self.name}: {str(error).strip()}") from None

    def __enter__(self) -> None:
        """A transaction: all or nothing, one writer at a time; one inside another is part of it."""
        self._depth += 1
        if self._depth == 1:
            self.ask("BEGIN" if self._is_postgresql else "BEGIN IMMEDIATE")
            if self._is_postgresql:
                self.ask("SELECT pg_advisory_xact_lock(?)", (_LOCK,))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self.ask("COMMIT" if kind is None else "ROLLBACK")


def shown(where: Path | str) -> str:
    """For messages: never with a password."""
    if isinstance(where, Path):
        return f"inventory {where}"
    given = urlsplit(where)
    return f"inventory postgresql://{given.hostname or 'local'}{given.path}"


def _postgresql(url: str) -> Any:
    if urlsplit(url).password:
        raise ConfigError("fleet.inventory: a password belongs into ~/.pgpass, not into the URL")
    try:
        psycopg = importlib.import_module("psycopg")
    except ImportError:
        raise SystemRefusedError(
            f"{shown(url)}: psycopg is not installed: pip install 'fabricctl[postgresql]'"
        ) from None
    try:
        return psycopg.connect(url, autocommit=True, connect_timeout=10)
    except psycopg.Error as error:
        raise SystemRefusedError(f"{shown(url)}: {str(error).strip()}") from None


def _is_psycopg(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] == "psycopg"
