"""`fabricctl job where`: agents are asked over real sockets; what is shown of their answers."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from fabricctl import fields, layout, wire
from fabricctl.agent import mesh
from fabricctl.agent.ask import Asker, job_here
from fabricctl.cli import job_where
from fabricctl.cli.main import cli
from fabricctl.config import Config
from fabricctl.errors import DataError, NotFoundError
from fabricctl.membership import Member
from fabricctl.state.track import position, verdict
from fabricctl.state.track.position import CommSeen, Position
from fabricctl.store.schema import RankState
from tests.support.asked import Asked, AskedAgent

KEY = bytes(range(32))
BASE = Position(
    rank=0, ranks=4, launch=0, node="n1", pid=100, state=RankState.RUNNING, letter="R", calls=3,
    op=1, peer=-1, comm=0, coll=0, age_ms=1500, step=7, step_age_ms=20,
)  # fmt: skip


def at(rank: int, **changes: object) -> Position:
    return replace(BASE, rank=rank, **changes)  # type: ignore[arg-type]


class Agent(AskedAgent):
    """Answers as the agents of a job do, on this machine."""

    def __init__(self, job: int, ports: list[int], ranks: str, node: str = "localhost") -> None:
        self._job, self._ranks, self._node = str(job), ranks, node
        self.asked: list[Asked] = []
        super().__init__(ports, KEY, self._said)

    def _said(self, asked: Asked) -> Iterator[bytes]:
        self.asked.append(asked)
        said = {"job": self._job, "node": self._node, "kind": "there", "to": asked["ask"],
                "ranks": self._ranks, "links": "rail r1 without carrier"}  # fmt: skip
        yield b"nonsense"
        yield wire.seal(said, KEY)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """Job 7 of two nodes, of which one answers, on a node whose user asks."""
    toml = tmp_path / "fabricctl.toml"
    toml.write_text(f'[node]\nrun_dir = "{tmp_path}/run"\n')
    monkeypatch.setenv("FABRICCTL_CONFIG", str(toml))
    monkeypatch.setattr(job_where, "ANSWER_S", 0.4)
    files = layout.NodeFiles(tmp_path / "run")
    files.job_dir(7).mkdir(parents=True)
    given = {"key": KEY.hex(), "nodes": "localhost,nowhere.invalid", "node": "localhost"}
    files.envelope(7).write_text(fields.encode(given))
    agent = Config().agent
    ranks = position.encode([at(0), at(1, op=2)])
    made = Agent(7, mesh.ports(7, agent.port_first, agent.port_count), ranks)
    yield made
    made.close()


def test_the_user_is_told_where_ranks_stand_and_who_is_silent(job: Agent) -> None:
    done = CliRunner().invoke(cli, ["job", "where", "7"], catch_exceptions=False)
    assert done.exit_code == 0
    assert done.output.startswith("job 7: 2 of 4 ranks, iteration 7\nRANKS ")
    assert "not heard: nowhere.invalid" in done.output
    assert job.asked[0]["kind"] == "where" and job.asked[0]["node"] == mesh.ASKER
    done = CliRunner().invoke(cli, ["job", "where", "7", "--json"], catch_exceptions=False)
    given = json.loads(done.output)
    assert [rank["rank"] for rank in given["ranks"]] == [0, 1]
    assert given["silent_nodes"] == ["nowhere.invalid"]


def test_an_answer_that_is_none_is_an_error(job: Agent) -> None:
    job._ranks = "not ranks"
    member = Member(7, KEY, ("localhost",), "localhost", 0)
    asker = Asker(member, Config())
    try:
        with pytest.raises(DataError, match="localhost: "):
            job_where._look(asker, member)
    finally:
        asker.close()


def test_the_job_is_the_one_that_this_runs_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert (job_here(None), job_here("13")) == (12, 13)
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(NotFoundError, match="no job: name one"):
        job_here(None)


def text(*ranks: Position, silent: tuple[str, ...] = ()) -> list[str]:
    found = verdict.judge(list(ranks), list(silent), {})
    return job_where._as_text(7, list(ranks), list(silent), found).splitlines()


def test_ranks_at_one_place_share_a_line_the_many_first() -> None:
    lines = text(
        *(at(rank, node=f"n{rank}", coll=5, op=2) for rank in range(3)),
        at(3, calls=4, letter="D", age_ms=90_000, launch=0),
    )
    assert lines[2].startswith("3: 0-2 ") and " #5" in lines[2] and lines[2].endswith("n[0-2]")
    assert lines[3].startswith("3 ") and "waiting for a device or file after" in lines[3]


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"state": RankState.STOPPED, "calls": 4}, "stopped, last after"),
        ({"state": RankState.GONE}, "gone, "),
        ({"peer": 3}, " with 3"),
        ({"peer": 3, "coll": 9}, " #9 root 3"),
        ({"comm": 77}, " on "),
        ({"calls": 0}, "computing"),
        ({"calls": 2, "letter": "S"}, "asleep after"),
        ({"state": RankState.FINALIZED, "comms": {1: CommSeen(0, 4, 1, 0)}}, "ended"),
        ({"state": RankState.FINALIZED, "comms": {2: CommSeen(0, 1, 0, 0)}}, "finalized"),
    ],
)
def test_a_place_in_words(changes: dict[str, object], place: str) -> None:
    assert place in job_where._place(at(0, **changes))


def test_a_job_without_tracked_ranks_says_how_to_have_them() -> None:
    assert "no rank is tracked (docs/tracker.md" in text()[0]
    assert "start 3" in text(at(0, launch=2))[0]


def test_a_screen_is_not_flooded() -> None:
    lines = text(*(at(rank, ranks=40, coll=rank + 1) for rank in range(40)))
    assert any(line.startswith("and 16 ranks at 16 other places") for line in lines)
