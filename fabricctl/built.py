"""Where our programs and libraries in C are."""

import os
import shutil
from pathlib import Path

from fabricctl.errors import SystemRefusedError

_TREE = Path(__file__).parents[1] / "build"
_INSTALLED = (Path("/usr/libexec/fabricctl"), Path("/usr/local/libexec/fabricctl"))


def find(part: str, name: str) -> Path:
    """``name``, which ``make -C fabricctl/<part>`` builds: in the source tree, else installed.

    Raises :class:`SystemRefusedError` when it is in neither.
    """
    for folder in (_TREE / part, *_INSTALLED):
        if os.access(folder / name, os.R_OK):
            return folder / name
    found = shutil.which(name)
    if found:
        return Path(found)
    raise SystemRefusedError(f"{name}: not installed; build it: make -C fabricctl/{part}")
