"""`fabricctl job halt` and `job migrate`: what the user is told, over real sockets, where a
`fabricctl run` runs and where none does."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fabricctl import fields, layout, wire
from fabricctl.agent import ask, mesh, orders
from fabricctl.agent.orders import Orders
from fabricctl.cli import hop, job_halt
from fabricctl.cli.main import cli
from fabricctl.config import Config
from fabricctl.errors import DataError, UsageError
from tests.support.asked import Asked, AskedAgent

# Of this process alone: another that runs tests beside it has agents on the ports of its own job.
KEY = os.urandom(32)
JOB = 1000 + os.getpid()
NUMBER = str(JOB)
NODES = ("localhost", "n2", "n3", "n4")
RUN = {"run": "1", "on": "localhost,n2", "spares": "n3"}


class Agent(AskedAgent):
    """Of node localhost; answers by what agents themselves keep of orders."""

    def __init__(self) -> None:
        agent = Config().agent
        self.orders = Orders(NODES)
        self.says = {"run": "0"}
        super().__init__(mesh.ports(JOB, agent.port_first, agent.port_count), KEY, self._said)

    def _said(self, asked: Asked) -> Iterator[bytes]:
        if asked["kind"] == "halt":
            said = self.orders.take(asked["how"])
        else:
            said = self.orders.hear(asked)
        for node in NODES:  # the other agents are heard from the same place
            more = {"kind": "here", "job": NUMBER, "node": node, "to": asked["ask"]}
            yield wire.seal({**said, **more}, KEY)


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    toml = tmp_path / "fabricctl.toml"
    toml.write_text(f'[node]\nrun_dir = "{tmp_path}/run"\n')
    monkeypatch.setenv("FABRICCTL_CONFIG", str(toml))
    # No name server is asked: that may take longer than agents are waited for.
    monkeypatch.setattr(ask, "lookup", lambda _: ["127.0.0.1"])
    files = layout.NodeFiles(tmp_path / "run")
    files.job_dir(JOB).mkdir(parents=True)
    given = {"key": KEY.hex(), "nodes": ",".join(NODES), "node": "localhost"}
    files.envelope(JOB).write_text(fields.encode(given))
    made = Agent()
    yield made
    made.close()


def command(*words: str) -> Result:
    return CliRunner().invoke(cli, ["job", *words])


def test_an_order_is_kept_for_who_runs_the_program(agent: Agent) -> None:
    agent.orders.hear(RUN)
    done = command("halt", NUMBER)
    assert done.output == f"job {JOB}: `fabricctl run` ends the program, after a checkpoint\n"
    assert agent.orders.hear({})["halt"] == "checkpoint"
    done = command("migrate", NUMBER, "--from", "n2", "--to", "n3")
    assert done.output == f"job {JOB}: its ranks leave n2 for n3 after a checkpoint\n"
    assert agent.orders.hear({})["halt"] == "from:n2:n3"


@pytest.mark.parametrize("words", [("halt", NUMBER), ("migrate", NUMBER, "--from", "n2")])
def test_where_nobody_would_obey_that_is_said_and_nothing_kept(
    agent: Agent, words: tuple[str, ...]
) -> None:
    """Else a `fabricctl run` that begins later would end at once."""
    for ended in (False, True):
        if ended:
            agent.orders.hear(RUN)
            agent.orders.hear({"run": "0"})
        done = command(*words)
        assert isinstance(done.exception, UsageError | SystemExit)
        assert "no `fabricctl run` runs there" in f"{done.output}{done.exception}"
        assert agent.orders.hear({})["halt"] == ""


def test_a_run_that_was_killed_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(orders.time, "monotonic", lambda: now_s)
    kept = Orders(NODES)
    kept.hear(RUN)
    now_s += orders.RUN_S - 1
    assert kept.hear({}) == {"halt": "", **RUN}
    now_s += 2
    assert kept.hear({}) == {"halt": "", "run": "0"}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--from", "n4"), "no rank is on n4; they are on localhost,n2"),
        (("--from", "n2", "--to", "n4"), "n4 is not one of its spares: n3"),
        (("--from", "n9"), "n9 is not one of its nodes"),
    ],
)
def test_a_migration_that_cannot_be_is_refused_at_once(
    agent: Agent, words: tuple[str, ...], why: str
) -> None:
    agent.orders.hear(RUN)
    done = command("migrate", NUMBER, *words)
    assert why in f"{done.output}{done.exception}" and done.exit_code != 0
    assert agent.orders.hear({})["halt"] == ""


def test_a_migration_without_a_spare_is_refused_and_one_of_a_spare_is_told(agent: Agent) -> None:
    agent.orders.hear({**RUN, "spares": ""})
    done = command("migrate", NUMBER, "--from", "n2")
    assert "no spare is left" in f"{done.output}{done.exception}"
    agent.orders.hear(RUN)
    done = command("migrate", NUMBER, "--from", "n3", "--dry-run")
    assert done.output == f"job {JOB}: n3 would be no spare any more\n"
    assert agent.orders.hear({})["halt"] == ""


def test_what_is_no_order_is_refused() -> None:
    kept = Orders(NODES)
    for how in ("later", "from:n9", "from:n2:n9", "before:soon"):
        with pytest.raises(DataError):
            kept.take(how)
    for how in ("now", "checkpoint", "before:1700000000", "from:n2", "from:n2:n3", ""):
        kept.take(how)


@pytest.mark.parametrize("text", ["2026-03-01T11:59", "2025-12-31", "+-5"])
def test_a_time_that_is_past_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="that is past"):
        job_halt.at_time(text, datetime(2026, 3, 1, 12, 0, tzinfo=UTC))


def test_a_time_of_another_zone_is_that_zones() -> None:
    found = job_halt.at_time("17:30+02:00", datetime(2026, 3, 1, 12, 0, tzinfo=UTC))
    assert found.astimezone(UTC) == datetime(2026, 3, 1, 15, 30, tzinfo=UTC)


SRUN = """#!/bin/sh
echo "error: job 7: no spare is left" >&2
echo "srun: error: {said}" >&2
exit 2
"""


def test_what_failed_on_the_jobs_node_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    srun = tmp_path / "srun"
    srun.write_text(SRUN.format(said="n1: task 0: Exited with exit code 2"))
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(SystemExit) as ended:
        hop.hop(7, ["job", "migrate", "7"])
    assert ended.value.code == 2
    assert capfd.readouterr().err == "error: job 7: no spare is left\n"
    srun.write_text(SRUN.format(said="Unable to confirm allocation for job 7: Invalid job id"))
    with pytest.raises(hop.SlurmError, match="could not be asked"):
        hop.hop(7, ["job", "migrate", "7"])
    assert "Invalid job id" in capfd.readouterr().err
