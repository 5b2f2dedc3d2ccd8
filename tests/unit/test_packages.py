"""What is packed is what is there."""

import fnmatch
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIBDIR = "%{_libdir}"


def test_every_folder_with_python_is_packed() -> None:
    folders = {
        file.parent for top in ("fabricctl", "analysis") for file in ROOT.glob(f"{top}/**/*.py")
    }
    assert [str(at) for at in folders if not (at / "__init__.py").exists()] == []


def test_the_rpm_packs_every_file_that_install_puts() -> None:
    spec = (ROOT / "site-config/rpm/fabricctl.spec").read_text()
    packed = [line.split()[-1] for line in spec.partition("%files")[2].splitlines() if "/" in line]
    listed = subprocess.run(
        ["tools/install", "--list"],
        cwd=ROOT,
        env={**os.environ, "libdir": LIBDIR, "DESTDIR": ""},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = [line.split()[1] for line in listed.splitlines()]
    missing = [
        path
        for path in paths
        if not any(fnmatch.fnmatch(path, at) or path.startswith(f"{at}/") for at in packed)
    ]
    assert len(paths) > 15
    assert missing == []
