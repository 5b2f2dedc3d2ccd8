"""Where the executable ``fabric-pathd`` is."""

import os
import shutil
from pathlib import Path

from fabricctl.errors import SystemRefusedError

NAME = "fabric-pathd"
_HERE = Path(__file__).parent
_PLACES = (
    _HERE / NAME,  # installed with the package
    _HERE.parents[1] / "build" / "paths" / NAME,  # built in the source tree
    Path("/usr/libexec/fabricctl") / NAME,
    Path("/usr/local/libexec/fabricctl") / NAME,
)


def find() -> Path:
    """Raises :class:`SystemRefusedError` when it is not installed."""
    for place in _PLACES:
        if os.access(place, os.X_OK):
            return place
    found = shutil.which(NAME)
    if found:
        return Path(found)
    raise SystemRefusedError(f"{NAME}: not installed; build it: make -C fabricctl/paths")
