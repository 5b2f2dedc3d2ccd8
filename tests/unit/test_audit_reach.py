"""How an audit reaches nodes: one job, without those that would hold it up; nothing left behind."""

import os
import time
from pathlib import Path

import pytest

from fabricctl.errors import DataError
from fabricctl.fleet.audit import reach
from tests.support.fakeslurm import node

NODES = [node(f"n{number}", partitions=("all",)) for number in range(1, 5)]
NAMES = [each.name for each in NODES]

# Hangs where n3 is among the nodes, as with a prolog that cannot run there; refuses n9.
SALLOC = """#!/bin/sh
for word; do
  case $word in --nodelist=*) list=${word#*=};; esac
done
case $list in
  *n3*|*1-4*) echo $$ >> hung; exec sleep 60;;
  *9*) echo "salloc: error: Unable to allocate resources: Requested nodes are busy" >&2; exit 1;;
esac
echo "$list" >> begun
SLURM_JOB_ID=7 sh -c 'echo $SLURM_JOB_ID; exec cat > /dev/null'
echo "$list" >> ended
"""
SRUN = """#!/bin/sh
echo "$*" >> steps
cat >> given
echo 'fabric n1 1/1 {"checks": []}'
echo 'fabric n8 1/1 {"checks": []}'
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in (("salloc", SALLOC), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(reach, "GRACE_S", 0.0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_one_job_and_a_step_for_each_question_and_the_job_ends_with_it(slurm: Path) -> None:
    nodes = [each for each in NODES if each.name != "n3"]
    with reach.open_way(nodes, None, 5.0) as way:
        assert way.ask(["n1", "n4"], ["audit-links"], "table") == {"n1": {"checks": []}}
        assert [job.nodes for job in way.jobs] == [("n1", "n2", "n4")] and not way.why
        assert lines(slurm / "ended") == []
    (step,) = lines(slurm / "steps")
    assert "--jobid=7 --nodelist=n[1,4] --nodes=2" in step and step.endswith("node audit-links")
    assert (slurm / "given").read_text() == "table"
    assert lines(slurm / "ended") == ["n[1-2,4]"]


def test_a_node_that_holds_up_the_job_is_found_and_left_out(slurm: Path) -> None:
    with reach.open_way(NODES, None, 5.0) as way:
        assert [job.nodes for job in way.jobs] == [("n1", "n2", "n4")]
        assert way.why == {"n3": "no job begins there within 5 s (audit.begin_s)"}
        assert way.dead == {"n3"}
    assert sorted(lines(slurm / "begun")) == sorted(lines(slurm / "ended"))
    for pid in lines(slurm / "hung"):
        until_s = time.monotonic() + 60
        while Path(f"/proc/{pid}").exists() and time.monotonic() < until_s:
            time.sleep(0.02)
        assert not Path(f"/proc/{pid}").exists()


@pytest.mark.usefixtures("slurm")
def test_a_node_that_is_busy_is_not_taken_for_dead_nor_are_all_where_nothing_begins() -> None:
    busy = [*NODES[:2], node("n9", partitions=("all",))]
    with reach.open_way(busy, None, 5.0) as way:
        assert [job.nodes for job in way.jobs] == [("n1", "n2")]
        assert "are busy" in way.why["n9"] and not way.dead
    with reach.open_way(NODES[2:3], None, 0.2) as way:
        assert not way.jobs and set(way.why) == {"n3"} and not way.dead
        assert way.ask(["n3"], ["audit-self"], "") == {}
    with reach.open_way([node("n1", partitions=())], None, 0.2) as way:
        assert way.why == {"n1": "is in no partition"}


def test_without_slurm_s_commands_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DataError, match="salloc: cannot be run"), reach.open_way(NODES, None, 1):
        pass
