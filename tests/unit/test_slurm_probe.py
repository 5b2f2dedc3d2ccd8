"""A pyslurm that crashes, hangs, fails or answers nonsense costs its user nothing but the choice.

That the probe agrees with a pyslurm that works is tested live, tests/lab/test_slurm_chroots.py.
"""

import json
from pathlib import Path

import pytest

from fabricctl.errors import SlurmError
from fabricctl.slurm import probe
from fabricctl.slurm.choose import open_slurm

RECORDED = Path(__file__).parents[1] / "data" / "slurm" / "24.11"

# A module in pyslurm's place, and what is said of it.
BROKEN = {
    "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n": (
        "pyslurm was killed by signal 11 when it asked Slurm"
    ),
    "import time\ntime.sleep(60)\n": "pyslurm gave no answer within 2 s",
    "import sys\nsys.exit('slurm_init: no slurm.conf')\n": (
        "pyslurm failed: slurm_init: no slurm.conf"
    ),
    "raise ImportError('libslurmfull.so: undefined symbol')\n": (
        "pyslurm failed: ImportError: libslurmfull.so: undefined symbol"
    ),
    "": "pyslurm failed: AttributeError: module 'pyslurm' has no attribute 'slurm_init'",
    "import sys, os\nprint('hello', flush=True)\nos._exit(0)\n": "pyslurm's answer cannot be read",
    "import os\nprint('[[\"n1\", 4, 99]]', flush=True)\nos._exit(0)\n": (
        "pyslurm sees other nodes than scontrol does"
    ),
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for modules, and an scontrol that says what a real one said."""
    calls = json.loads((RECORDED / "index.json").read_text())
    nodes = next(call for call in calls if call["argv"][-2:] == ["show", "node"])
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        "#!/bin/sh\n"
        'case "$*" in --version) echo slurm 24.11.5 ;; *node) cat '
        f"'{RECORDED / nodes['stdout']}' ;; esac\n"
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("source", BROKEN)
def test_a_broken_pyslurm_is_passed_over_with_the_reason(
    site: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "TIMEOUT_S", 2.0 if "sleep" in source else 120.0)
    (site / "pyslurm.py").write_text(source)
    slurm = open_slurm()
    assert (slurm.backend, slurm.reason) == ("commands", BROKEN[source])
    assert [node.name for node in slurm.nodes()] == ["n1", "n2", "n3"]


def test_a_broken_pyslurm_that_was_asked_for_is_an_error(site: Path) -> None:
    (site / "pyslurm.py").write_text("raise ImportError('no')\n")
    with pytest.raises(SlurmError) as caught:
        open_slurm("pyslurm")
    assert str(caught.value) == (
        "pyslurm: pyslurm failed: ImportError: no: use the commands, or build it for this Slurm"
    )


def test_commands_that_were_asked_for_are_not_probed(site: Path) -> None:
    (site / "pyslurm.py").write_text("raise AssertionError('imported')\n")
    slurm = open_slurm("commands")
    assert (slurm.backend, slurm.reason) == ("commands", "asked for")
