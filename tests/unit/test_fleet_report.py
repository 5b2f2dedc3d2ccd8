"""Many jobs: sums of digests, lemons, and what cannot be read."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from fabricctl.cli.fleet_report import command
from fabricctl_analysis.fleet import Digest, digest, summed, traces
from tests.support.simjobs import Fault, Sim
from tests.support.traces import Cut, Plan, write


def of(sim: Sim) -> Digest:
    return digest(sim.report(), Path("x"))


def test_a_digest_s_parts_add_up_to_its_time() -> None:
    made = of(Sim(1, [Fault("storage", 1, 100, 40)], seconds=300))
    assert made.elapsed == pytest.approx(4 * 300 / 3600)
    rest = made.elapsed - made.ideal - sum(made.lost.values()) - made.no_step - made.not_known
    assert abs(rest) < 0.01 * made.elapsed  # small ups and downs
    assert list(made.lost) == ["storage"] and made.incidents == {}


def test_a_node_that_stops_again_and_again_is_a_lemon() -> None:
    bad = [Fault("host_stopped", 2, at, 6) for at in (40, 90, 140, 190, 240)]
    fleet = summed([of(Sim(1, bad, seconds=300)), *(of(Sim(seed, seconds=300)) for seed in (2, 3))])
    ((node, count, mean),) = fleet.lemons()
    assert (node, count) == ("n2", 5) and mean < 1
    assert next(iter(fleet.by_node().most_common()))[0] == "n2"


def test_a_healthy_fleet_has_no_lemon() -> None:
    fleet = summed(of(Sim(seed, seconds=200)) for seed in range(4))
    assert fleet.lemons() == [] and fleet.by_cause() == {}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    write(Plan(job=1, seconds=60, cuts=[Cut("n1", 0, 20, 23)]), tmp_path / "alice")
    write(Plan(job=2, seconds=60, user="bob"), tmp_path / "bob")
    (tmp_path / "bob" / "job-3.h5").write_text("nonsense")
    return tmp_path


def test_an_archive_is_summed_in_processes(archive: Path) -> None:
    done = CliRunner().invoke(command, ["--dir", str(archive), "--processes", "2", "--json"])
    assert done.exit_code == 0, done.output
    made = json.loads(done.output)
    assert made["jobs"] == 2 and made["link_losses"] == 1 and made["links"] == {"n1 r0": 1}
    assert made["elapsed_node_h"] == pytest.approx(2 * 4 * 60 / 3600)
    assert set(made["users"]) == {"alice", "bob"}
    assert "job-3.h5" in made["unreadable"][0]["why"]
    text = CliRunner().invoke(command, ["--dir", str(archive)]).output
    assert "2 jobs in" in text and "not read: trace" in text and "Links were lost 1 times" in text


def test_old_traces_and_links_are_left_out(archive: Path) -> None:
    old = archive / "bob" / "job-2.h5"
    os.utime(old, (1, 1))
    (archive / "bob" / "job-9_1.h5").symlink_to("job-2.h5")
    assert [path.name for path in traces(archive, 10**9 * 1000)] == ["job-1.h5", "job-3.h5"]


def test_a_wrong_since_is_told(archive: Path) -> None:
    done = CliRunner().invoke(command, ["--dir", str(archive), "--since", "soon"])
    assert "neither 12h, 7d, 4w nor 2026-11-01" in str(done.exception)
