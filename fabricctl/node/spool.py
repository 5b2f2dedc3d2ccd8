"""The spool directory of one allocation: ``<job>.<begin>/`` with its request and journals."""

from collections.abc import Sequence
from pathlib import Path

from fabricctl.node import rootfiles


def save_start(spool: Path, text: str) -> None:
    """Keeps the start request for the sealer, also after the node's next boot; raises OSError."""
    path = spool / "start"
    if has_start(spool):
        return
    temporary = spool / ".start.new"
    temporary.unlink(missing_ok=True)
    rootfiles.write_new(temporary, text.encode(), 0o600, 0, 0)
    temporary.replace(path)


def has_start(spool: Path) -> bool:
    """Whether :func:`save_start` was done."""
    return (spool / "start").exists()


def read_start(spool: Path) -> str:
    """Raises OSError, also for one that is not root's: an agent may write to its directory."""
    return rootfiles.read_small(spool / "start", 0).decode(errors="replace")


def next_life(spool: Path) -> int:
    """One more than the highest journal that is there."""
    lives = [int(path.stem) for path in journals(spool)]
    return max(lives, default=-1) + 1


def journals(spool: Path) -> Sequence[Path]:
    """The journals of all lives, in their order."""
    found = [path for path in spool.glob("*.journal") if path.stem.isdecimal()]
    return sorted(found, key=lambda path: int(path.stem))
