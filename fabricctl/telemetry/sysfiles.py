"""Reading numbers out of small files of the kernel, as the readers of this package do."""

from pathlib import Path

MAX_BYTES = 65_536


def number(path: Path) -> int | None:
    """A file that holds one whole number of 0 or more; None where there is none."""
    try:
        with path.open("rb") as stream:
            text = stream.read(32).strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def words(path: Path) -> str:
    """A small text; raises OSError."""
    with path.open("rb") as stream:
        return stream.read(MAX_BYTES).decode("ascii", "replace")
