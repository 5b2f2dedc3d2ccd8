"""The log of changes: who changed what through these commands, before and after it was done.

One line of fields a change and outcome, flushed to the disk, in ``fleet.dir``/changes.log. A change
that cannot be written down is not made.
"""

import os
import pwd
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fabricctl import fields
from fabricctl.errors import FabricError, FieldsError, SystemRefusedError

FILE = "changes.log"
MAX_TEXT = 400


class ChangeLog:
    """Appends; many commands may at once, a line is one write."""

    def __init__(self, directory: Path, command: str) -> None:
        self._path = directory / FILE
        self._command = command

    @contextmanager
    def change(self, what: str, on: str, text: str = "") -> Iterator[None]:
        """Around the change itself. Raises :class:`SystemRefusedError`, before anything was done,
        when it cannot be written down; what the change raises is written down and raised on."""
        number = secrets.token_hex(6)
        self._write(number, what, on, text, "begun")
        try:
            yield
        except FabricError as error:
            self._write(number, what, on, str(error), "failed")
            raise
        self._write(number, what, on, "", "done")

    def _write(self, number: str, what: str, on: str, text: str, outcome: str) -> None:
        line = {
            "at_real_ms": str(int(time.time() * 1000)),
            "id": number,
            "uid": str(os.getuid()),
            "user": caller(),
            "command": self._command,
            "what": what,
            "on": harmless(on),
            "outcome": outcome,
            "text": harmless(text),
        }
        data = (fields.encode(line, ";") + "\n").encode()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(self._path, flags, 0o640)
            try:
                size = os.fstat(fd).st_size
                if size and os.pread(fd, 1, size - 1) != b"\n":
                    data = b"\n" + data  # what a full disk tore stays a line of its own
                if os.write(fd, data) != len(data):
                    raise OSError(28, "the disk is full")
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            begun = outcome == "begun"
            said = "a change that cannot be written down is not made" if begun else (
                f"the change is {outcome}, and that could not be written down"
            )  # fmt: skip
            raise SystemRefusedError(f"{self._path}: {error.strerror}: {said}") from None


def read(directory: Path) -> list[Mapping[str, str]]:
    """All lines, oldest first; torn ones are passed over. Raises :class:`SystemRefusedError`."""
    try:
        text = (directory / FILE).read_text(errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SystemRefusedError(f"{directory / FILE}: {error.strerror}") from None
    found: list[Mapping[str, str]] = []
    for line in text.split("\n")[:-1]:
        try:
            given = fields.decode(line, ";")
        except FieldsError:
            continue
        if given.get("at_real_ms", "").isdecimal() and "outcome" in given:
            found.append(given)
    return found


def caller() -> str:
    """Who called: behind sudo the one who typed it, as far as its environment says."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    typed = os.environ.get("SUDO_USER", "") if uid == 0 else ""
    return harmless(f"{typed} as {name}" if typed and typed != name else name)


def harmless(text: str) -> str:
    """As a value of a line."""
    return "".join(c if c.isprintable() and c != ";" else "," for c in text)[:MAX_TEXT]
