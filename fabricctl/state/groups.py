"""What nodes fall with: their switch and power feed, from a file that the site keeps.

One line a node: its name, then ``level=group`` words::

    n1 switch=leaf3 power=feed-a

``fabricctl inventory export --format groups`` writes it.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from fabricctl.errors import DataError

LEVELS = ("switch", "power")
BYTES_MOST = 8 << 20
_WORD = re.compile(r"(?P<level>[a-z]+)=(?P<group>[^=\s]{1,200})")


def parse(text: str, nodes: Collection[str]) -> dict[str, dict[str, str]]:
    """Of these nodes; raises :class:`DataError` for a line that says something else."""
    found: dict[str, dict[str, str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        matches = [_WORD.fullmatch(word) for word in words[1:]]
        if not all(match is not None and match["level"] in LEVELS for match in matches):
            raise DataError(f"line {number}: NODE switch=NAME power=NAME expected")
        if words[0] in nodes:
            found[words[0]] = {m["level"]: m["group"] for m in matches if m is not None}
    return found


def read(path: Path, nodes: Collection[str]) -> Mapping[str, Mapping[str, str]]:
    """Empty when the site has no such file; raises OSError and :class:`DataError`."""
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            return parse(stream.read(BYTES_MOST), nodes)
    except FileNotFoundError:
        return {}
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
