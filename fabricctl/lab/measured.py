"""Coverage of what runs on a lab's nodes, for `make coverage` alone.

With LAB_COVERAGE, a directory, nodes see it, writable, under its own name, and what a
lab starts there is measured as coverage.py's COVERAGE_PROCESS_START says.
"""

import os
from collections.abc import Mapping
from pathlib import Path

_DIRECTORY, _START = "LAB_COVERAGE", "COVERAGE_PROCESS_START"


def directories() -> tuple[Path, ...]:
    """What nodes are to see beside their own, writable."""
    found = os.environ.get(_DIRECTORY)
    return (Path(found),) if found else ()


def environment() -> Mapping[str, str]:
    """What processes on nodes have in their environment for it."""
    wanted = (_DIRECTORY, _START) if directories() else ()
    return {name: os.environ[name] for name in wanted if name in os.environ}
