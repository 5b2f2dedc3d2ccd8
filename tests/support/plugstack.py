"""The lab's plugstack.conf, changed for a test and put back after it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fabricctl.lab.cluster import Lab

PLUGIN = Path(__file__).parents[2] / "build" / "spank" / "fabric.so"


@contextmanager
def plugstack(lab: Lab, *arguments: str, line: str | None = None) -> Iterator[None]:
    """Every Slurm program started inside sees it; slurmd only when started again."""
    file = lab.paths.etc / "slurm" / "plugstack.conf"
    before = file.read_text()
    file.write_text((line or f"required {PLUGIN} {' '.join(arguments)}") + "\n")
    try:
        yield
    finally:
        file.write_text(before)
