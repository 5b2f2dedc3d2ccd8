"""Many jobs: sums of digests, lemons, and what cannot be read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fabricctl.cli.fleet_report import command
from fabricctl.fleet.inventory.store import Inventory
from fabricctl_analysis.fleet import Digest, digest, digest_of, traces
from fabricctl_analysis.fleet_document import document
from fabricctl_analysis.fleet_sums import Group, summed
from fabricctl_analysis.fleet_words import lines
from fabricctl_analysis.pool import spread
from tests.support.fakeslurm import FakeSlurm, use
from tests.support.simjobs import BEGIN_NS, Fault, Sim
from tests.support.traces import Cut, Plan, write


def of(sim: Sim) -> Digest:
    return digest(sim.report(), Path("x"))


def test_a_digest_s_parts_add_up_to_its_time() -> None:
    made = of(Sim(1, [Fault("storage", 1, 100, 40)], seconds=300))
    assert made.elapsed == pytest.approx(4 * 300 / 3600)
    lost = sum(one.hours for one in made.lost)
    rest = made.elapsed - made.ideal - lost - made.no_step - made.not_known
    assert abs(rest) < 0.01 * made.elapsed  # small ups and downs
    ((cause, nodes),) = [(one.cause, one.nodes) for one in made.lost]
    assert (cause, nodes) == ("storage", ())  # the file system is nobody's own


def test_a_node_that_stops_again_and_again_is_a_lemon() -> None:
    bad = [Fault("host_stopped", 2, at, 6) for at in (40, 90, 140, 190, 240)]
    fleet = summed([of(Sim(1, bad, seconds=300)), *(of(Sim(seed, seconds=300)) for seed in (2, 3))])
    ((node, count, mean),) = fleet.lemons()
    assert (node, count) == ("n2", 5) and mean < 1
    worst = fleet.by_node()[0]
    assert (worst.name, worst.incidents, list(worst.lost)) == ("n2", 5, ["host_stopped"])


def test_a_healthy_fleet_has_no_lemon() -> None:
    fleet = summed(of(Sim(seed, seconds=200)) for seed in range(4))
    assert fleet.lemons() == [] and fleet.whole.lost == {} and fleet.goodput > 0.98


def test_losses_of_all_jobs_come_out_right_with_their_error() -> None:
    """Known truth: of 5 jobs, each loses what its fault took; the sum's interval holds it."""
    sims = [Sim(seed, [Fault("link_down", seed % 4, 100, 40)], seconds=300) for seed in range(5)]
    whole = summed(map(of, sims)).whole
    truth = sum(sim.lost_s for sim in sims) / 3600
    assert abs(whole.lost_h / truth - 1) < 0.05
    assert abs(whole.lost_h - truth) < 2 * whole.error_h < 0.2 * truth


def switch_of(node: str, interface: str | None) -> str | None:
    return f"{interface or 'r0'}-{'a' if node in ('n0', 'n1') else 'b'}"


def test_what_happens_below_a_switch_is_summed_by_rail() -> None:
    bad = [Fault("link_down", 0, 60, 20), Fault("link_down", 2, 160, 20)]
    fleet = summed([of(Sim(1, bad, seconds=300))], switch_of=switch_of)
    assert {one.name: list(one.lost) for one in fleet.by_switch()} == {
        "r0-a": ["link_down"], "r0-b": ["link_down"]
    }  # fmt: skip
    assert {one.name: one.incidents for one in fleet.by_link()} == {"n0 r0": 1, "n2 r0": 1}


def test_restarts_make_ettr_and_mtbf() -> None:
    made = of(Sim(1, [Fault("restart", 1, 100, 20)], seconds=300))
    assert made.failures == {"node_dead": 1}
    rate = summed([made]).failures()["nodes"]
    low, high = rate.bounds()
    assert rate.failures == 1 and low < 1 / made.elapsed < high  # of 4 nodes x 300 s


def test_the_accounting_adds_accounts_waiting_and_preemption() -> None:
    begin_s = BEGIN_NS // 10**9
    first = use(1, begin_s, begin_s + 100, submit_real_s=begin_s - 7200, state="PREEMPTED",
                node_count=4)  # fmt: skip
    second = use(1, begin_s + 3700, None, account="lab2")
    other = use(99, begin_s, begin_s + 9)
    fleet = summed([of(Sim(1, seconds=100))], [second, other, first])
    assert list(fleet.attempts) == [1]
    waited = fleet.waited()
    assert (waited["queue_h"], waited["requeue_h"], waited["preempted"]) == (2.0, 1.0, 1)
    assert waited["preempted_node_h"] == pytest.approx(4 * 100 / 3600)
    assert [one.name for one in fleet.by_account()] == ["lab"]
    text = "\n".join(lines(fleet, "x"))
    assert "2.00 h before the first start, 1.00 h between" in text and "ACCOUNT" in text


def test_a_node_s_failure_is_not_counted_twice() -> None:
    made = of(Sim(1, [Fault("restart", 1, 100, 20)], seconds=300))
    ends = BEGIN_NS // 10**9
    again = use(1, ends, ends + 300, state="NODE_FAIL")
    assert summed([made], [again]).failures()["nodes"].failures == 1
    waits = use(1, ends, None, start_real_s=None, state="PENDING")  # requeued, in the queue again
    assert summed([made], [again, waits]).failures()["nodes"].failures == 1
    healthy = of(Sim(2, seconds=100))
    assert summed([healthy], [again]).failures()["nodes"].failures == 1


def test_a_group_without_a_loss_has_no_division_by_nothing() -> None:
    assert Group("x").goodput is None and Group("x").error_h == 0
    assert list(lines(summed([]), "none")) == ["none: 0.0 node-h"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write(Plan(job=1, seconds=60, cuts=[Cut("n1", 0, 20, 23)]), folder / "alice")
    write(Plan(job=2, seconds=60, user="bob"), folder / "bob")
    (folder / "bob" / "job-3.h5").write_text("nonsense")
    return folder


@pytest.fixture
def archive(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "archive")


def test_an_archive_is_summed_in_processes(archive: Path) -> None:
    done = CliRunner().invoke(
        command, ["--dir", str(archive), "--processes", "2", "--json", "--no-slurm"]
    )
    assert done.exit_code == 0, done.output
    made = json.loads(done.output)
    assert made["jobs"] == 2 and made["link_losses"] == 1 and made["links"] == {"n1 r0": 1}
    assert made["elapsed_node_h"] == pytest.approx(2 * 4 * 60 / 3600)
    assert set(made["users"]) == {"alice", "bob"}
    assert "job-3.h5" in made["unreadable"][0]["why"]
    text = CliRunner().invoke(command, ["--dir", str(archive), "--no-slurm"]).output
    assert "2 jobs in" in text and "not read: trace" in text and "Links were lost 1 times" in text
    assert "MTBF of a node: above" in text and "fabricctl plan --failures 0" in text


def test_groups_are_shown_in_full_with_slurm_and_inventory(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fabricctl import config
    from fabricctl.slurm import choose

    slurm = FakeSlurm(the_usage=[use(1, 10, 70, account="physics")])
    monkeypatch.setattr(choose, "open_slurm", lambda *_: slurm)
    with Inventory(tmp_path / "inventory.db") as inventory:
        inventory.record("n1", {"nic.ib0.cable": "leaf1:7", "slurm.switch": "s1"})
    site = config.load(Path("/dev/null"), {"FABRICCTL_FLEET_DIR": str(tmp_path)})
    monkeypatch.setattr(config, "load", lambda: site)
    asked = ["--dir", str(archive), "--by", "account", "--by", "switch", "--by", "link"]
    done = CliRunner().invoke(command, asked)
    assert done.exit_code == 0, done.output
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert rows["physics"].split()[1:3] and "n1 r0" in done.stdout and "WHERE" not in done.stdout
    slurm.broken = True
    done = CliRunner().invoke(command, asked)
    assert "accounts and waiting are not known" in done.stderr
    assert "by account: the accounting was not asked" in done.stdout


@pytest.mark.skipif(shutil.which("mpiexec") is None, reason="no MPI to start ranks with")
def test_ranks_of_an_mpi_job_read_the_same(archive: Path) -> None:
    pytest.importorskip("mpi4py")
    argv = ["mpiexec", "-n", "2", sys.executable, "-m", "mpi4py.futures", "-m",
            "fabricctl.cli.main", "fleet-report", "--dir", str(archive), "--json", "--no-slurm",
            "--mpi"]  # fmt: skip
    asroot = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(argv, env=os.environ | asroot, capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    here = document(summed(spread(digest_of, traces(archive, 0), 1, False)))
    assert json.loads(done.stdout) == json.loads(json.dumps(here))


def test_old_traces_and_links_are_left_out(archive: Path) -> None:
    old = archive / "bob" / "job-2.h5"
    os.utime(old, (1, 1))
    (archive / "bob" / "job-9_1.h5").symlink_to("job-2.h5")
    assert [path.name for path in traces(archive, 10**9 * 1000)] == ["job-1.h5", "job-3.h5"]


def test_a_wrong_since_is_told(archive: Path) -> None:
    done = CliRunner().invoke(command, ["--dir", str(archive), "--since", "soon"])
    assert "neither 12h, 7d, 4w nor 2026-11-01" in str(done.exception)
