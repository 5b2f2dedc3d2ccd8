"""What a benchmark's programs import, looked for before anything is started."""

import subprocess
import sys
from pathlib import Path

PYTHON = Path(__file__).parents[1] / ".venv/bin/python"
UNAVAILABLE = 69  # sysexits.h, EX_UNAVAILABLE
_LOOK = """
import sys
from importlib.util import find_spec
print(*(name for name in sys.argv[1:] if find_spec(name) is None))
"""


def need(*modules: str, extra: str) -> None:
    """Ends this program with status 69 where the Python that jobs run with lacks one of them;
    ``extra`` brings them."""
    argv = [str(PYTHON), "-c", _LOOK, *modules]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd="/")
    except (OSError, subprocess.CalledProcessError) as error:
        lacks = f"cannot be run ({error}): make build-dev"
    else:
        if not done.stdout.strip():
            return
        lacks = f"lacks {done.stdout.strip()}: {PYTHON.parent / 'pip'} install -e '.[{extra}]'"
    sys.stderr.write(f"{Path(sys.argv[0]).stem}: {PYTHON} {lacks}\n")
    raise SystemExit(UNAVAILABLE)
