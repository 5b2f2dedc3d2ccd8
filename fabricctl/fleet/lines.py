"""One record of each of many nodes through one pipe.

srun hands its tasks' output over in pieces, and pieces of several tasks alternate: lines of 2 KB
from eight nodes were torn at every try (22.05), lines below 1 KB never. So records go in short
lines that say whose they are and where they belong.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

PIECE = 700  # characters of ASCII
MAX_PIECES = 2000  # of one node
_LINE = re.compile(r"fabric ([A-Za-z0-9][A-Za-z0-9._-]{0,63}) (\d{1,4})/(\d{1,4}) (.*)")


def split(node: str, record: Mapping[str, object]) -> str:
    """The record as lines."""
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=True)
    pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
    count = len(pieces)
    return "".join(f"fabric {node} {at}/{count} {each}\n" for at, each in enumerate(pieces, 1))


def join(output: str) -> dict[str, dict[str, Any]]:
    """Node -> its record, of those that are whole; anything else in the output is passed over."""
    pieces: dict[str, dict[int, str]] = {}
    counts: dict[str, int] = {}
    for line in output.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        node, at, count = match.group(1), int(match.group(2)), int(match.group(3))
        if count <= MAX_PIECES and counts.setdefault(node, count) == count:
            pieces.setdefault(node, {})[at] = match.group(4)
    found = {}
    for node, mine in pieces.items():
        if set(mine) != set(range(1, counts[node] + 1)):
            continue
        try:
            record = json.loads("".join(mine[at] for at in sorted(mine)))
        except ValueError:
            continue
        if isinstance(record, dict):
            found[node] = record
    return found
