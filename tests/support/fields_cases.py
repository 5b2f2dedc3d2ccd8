"""The cases of tests/data/fields.txt."""

import json
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).parents[1] / "data" / "fields.txt"


@dataclass(frozen=True)
class Case:
    name: str
    separator: str
    raw: bytes
    fields: dict[str, str] | None  # None: to be refused
    words: str = ""  # of the message


def unescape(text: str) -> bytes:
    r"""Backslash escapes to bytes; ``\xNN`` is that byte."""
    return text.encode("ascii").decode("unicode_escape").encode("latin-1")


def cases() -> list[Case]:
    return [
        _case(line)
        for line in FILE.read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    ]


def _case(line: str) -> Case:
    name, separator, text, result = line.split("|", 3)
    # One blank on each side belongs to the file's layout, the others to the text.
    raw = unescape(text.removeprefix(" ").removesuffix(" "))
    split = unescape(separator.strip()).decode()
    result = result.strip()
    if result.startswith("refused"):
        return Case(name.strip(), split, raw, None, result.removeprefix("refused").strip())
    return Case(name.strip(), split, raw, json.loads(result))
