"""`fabricctl lemons`, the tracker's wrappers, and `fabricctl node`."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fabricctl.cli import lemons
from fabricctl.cli.main import cli
from fabricctl.errors import FabricError
from fabricctl.state.track import generate
from tests.support.fakeslurm import FakeSlurm, node

ROOT = Path(__file__).parents[2]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    toml = tmp_path / "fabricctl.toml"
    toml.write_text(f'[fleet]\ndir = "{tmp_path}"\n')
    monkeypatch.setenv("FABRICCTL_CONFIG", str(toml))
    made = FakeSlurm({f"n{number}": node(f"n{number}") for number in range(1, 9)})
    monkeypatch.setattr("fabricctl.slurm.choose.open_slurm", lambda _=None: made)
    return made


def test_a_fleet_without_incidents_has_no_lemon(slurm: FakeSlurm) -> None:
    done = CliRunner().invoke(cli, ["lemons"], catch_exceptions=False)
    assert (done.exit_code, done.output) == (0, "no lemon among 8 nodes; 0 had an incident\n")


def test_a_node_that_fails_again_and_again_is_named(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = [("n3", "node_fail", 1_790_000_000 + 7200 * nth) for nth in range(9)]
    monkeypatch.setattr(lemons, "_of_jobs", lambda _: iter([*every, ("n5", "boot_fail", 5)]))
    done = CliRunner().invoke(cli, ["lemons", "--from", "30d"], catch_exceptions=False)
    assert done.exit_code == 1
    assert "n3" in done.output and "9 node_fail" in done.output and "n5" not in done.output
    done = CliRunner().invoke(cli, ["lemons", "--all", "--json"], catch_exceptions=False)
    given = json.loads(done.output)
    assert {row["node"]: row["lemon"] for row in given["nodes"]} == {"n3": True, "n5": False}


def test_what_comes_back_within_an_hour_is_one_incident() -> None:
    found = list(lemons._merged([("n1", "a", 100), ("n1", "b", 200), ("n2", "a", 150),
                                 ("n1", "a", 200 + 3601)]))  # fmt: skip
    assert found == [("n1", "a", 100), ("n2", "a", 150), ("n1", "a", 3801)]


def test_wrappers_are_made_for_every_function_and_language(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ROOT / "fabricctl/state/track/mpi.list"
    monkeypatch.setattr(sys, "argv", ["generate.py", str(names)])
    generate.main()
    out = capsys.readouterr().out
    for name, _, roles in generate.functions(names.read_text()):
        assert f"EXPORT word MPI_{name}(" in out and f"mpi_{name.lower()}_(" in out
        assert (f"MPI_{name}_c(" in out) == generate.has_large(name, roles)
    assert out.count("{") == out.count("}")


def test_a_host_tells_its_facts_and_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    run = CliRunner().invoke
    given = json.loads(run(cli, ["node", "facts", "--json"], catch_exceptions=False).output)
    assert given["node"] == "n7" and given["facts"]
    assert run(cli, ["node", "facts"]).output.count("\n") == len(given["facts"])
    assert run(cli, ["node", "facts", "--parts"]).output
    done = run(cli, ["node", "audit-links"], input="{}")
    assert isinstance(done.exception, FabricError) and "stdin is not what" in str(done.exception)
    done = run(cli, ["node", "audit-pairs"], input='{"table": {}, "port": 1}')
    assert isinstance(done.exception, FabricError)
