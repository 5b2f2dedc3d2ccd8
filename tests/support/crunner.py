"""The plugin's pure C code, compiled with sanitizers (tests/c/runner.c)."""

import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The files of the plugin that know nothing of Slurm.
SOURCES = (
    "args.c",
    "envelope.c",
    "fields.c",
    "hint.c",
    "mode.c",
    "paths.c",
    "protect.c",
    "rundir.c",
)
FLAGS = (
    "-std=gnu11",
    "-D_GNU_SOURCE",
    "-g",
    "-O1",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
)


class Runner:
    """The compiled program; every call fails when a sanitizer had something to say."""

    def __init__(self, directory: Path) -> None:
        self._program = directory / "runner"
        plugin = ROOT / "spank_plugin"
        files = [ROOT / "tests" / "c" / "runner.c", *(plugin / name for name in SOURCES)]
        compiler = os.environ.get("CC", "gcc")
        argv = [compiler, *FLAGS, f"-I{plugin}", "-o", str(self._program), *map(str, files)]
        done = subprocess.run(argv, capture_output=True, check=False, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

    def __call__(self, *argv: str, text: str = "") -> str:
        """Standard output."""
        done = subprocess.run(
            [str(self._program), *argv],
            input=text,
            capture_output=True,
            check=False,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def lines(self, what: str, items: Iterable[Sequence[bytes]]) -> list[str]:
        """One answer for each item: a separator and texts."""
        text = "".join(" ".join(part.hex() for part in item) + "\n" for item in items)
        return self(what, text=text).splitlines()
