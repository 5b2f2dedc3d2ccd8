"""What a site does to a node while jobs run there: updates, and partitions that are turned off."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nodebox import ROOT, NodeBox, wait_for

pytestmark = pytest.mark.lab

QUIET = '[partition.quiet]\nagent.max_mode = "off"\n'


@pytest.fixture
def box(tmp_path: Path) -> Iterator[NodeBox]:
    with NodeBox(tmp_path, toml=QUIET) as made:
        yield made


def version(code: Path, number: str) -> Path:
    """Another version of the package, elsewhere."""
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(ROOT / "fabricctl", code / "fabricctl", ignore=skip)
    init = code / "fabricctl" / "__init__.py"
    init.write_text(re.sub(r'"[0-9.]+"', f'"{number}"', init.read_text()))
    for path in (code.parent, code):
        path.chmod(0o755)  # job users look there, too
    return code


@pytest.mark.parametrize(("first", "then"), [("0.9.1", "0.9.2"), ("0.9.2", "0.9.1")])
def test_an_agent_ends_its_job_with_the_code_it_began_with(
    box: NodeBox, tmp_path: Path, first: str, then: str
) -> None:
    """An update and the way back: the files of the running agent are gone from the disk."""
    old, new = version(tmp_path / "old", first), version(tmp_path / "new", then)
    box.serve(old)
    box.start(5)
    agent = box.wait_running(5)
    shutil.rmtree(old)
    box.end_service()
    box.serve(new)
    assert box.wait_running(5) == agent
    box.start(6)
    box.wait_running(6)
    for job in (5, 6):
        box.stop(job)
    box.wait_clean()
    for job, number in ((5, first), (6, then)):
        with box.trace(job) as trace:
            assert trace.nodes["n1"].agent_version == number
        assert not [note for note in box.notes(job) if "died" in note or "killed" in note]


def test_a_partition_that_is_off_has_no_agent_and_says_why(box: NodeBox) -> None:
    box.serve()
    box.start(5, partition="quiet")
    box.start(6)
    box.wait_running(6)
    wait_for(lambda: bool(box.status(5).get("problem")), "the job is told")
    assert "partition quiet is not protected here" in box.status(5)["problem"]
    assert len(box.agents()) == 1
    assert not [path for path in box.spool.iterdir() if path.name.startswith("5.")]
    # A service that starts anew keeps to it, and goes on telling.
    before = box.status(5)["updated_mono_ns"]
    box.end_service()
    box.serve()
    wait_for(lambda: box.status(5).get("updated_mono_ns") != before, "it is told again")
    assert len(box.agents()) == 1
    for job in (5, 6):
        box.stop(job)
    box.wait_clean()
    assert [path.name for path in (box.share / "alice").glob("*.h5")] == ["job-6.h5"]
