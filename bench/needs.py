"""What a benchmark needs of this machine, looked for before anything is started: a program ends
with status 69 where that is missing, and its last line says what."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

PYTHON = Path(__file__).parents[1] / ".venv/bin/python"
UNAVAILABLE = 69  # sysexits.h, EX_UNAVAILABLE
_LOOK = """
import sys
from importlib.util import find_spec
print(*(name for name in sys.argv[1:] if find_spec(name) is None))
"""


def need(*modules: str, extra: str) -> None:
    """What programs of jobs import; ``extra`` brings them."""
    argv = [str(PYTHON), "-c", _LOOK, *modules]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd="/")
    except (OSError, subprocess.CalledProcessError) as error:
        lack(f"{PYTHON} cannot be run ({error}): make build-dev")
    if done.stdout.strip():
        pip = PYTHON.parent / "pip"
        lack(f"{PYTHON} lacks {done.stdout.strip()}: {pip} install -e '.[{extra}]'")


def need_root() -> None:
    """For namespaces of one's own."""
    if os.geteuid() != 0:
        lack("needs root: it makes network namespaces")


def lack(what: str) -> NoReturn:
    """Ends this program."""
    sys.stderr.write(f"{Path(sys.argv[0]).stem}: {what}\n")
    raise SystemExit(UNAVAILABLE)
