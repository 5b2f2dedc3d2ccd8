"""``fabricctl usage``: what is counted, lost, credited and charged."""

import csv
import datetime
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fabricctl import config
from fabricctl.cli.main import cli
from fabricctl.cli.usage import record
from fabricctl.errors import ConfigError, UsageError
from fabricctl.fleet import losses
from fabricctl.fleet.period import moment
from fabricctl.fleet.usage import Price, Spans, seconds_within, summed, union_s
from fabricctl.slurm import json_shapes, text
from fabricctl.store.trace import open_trace
from tests.support import traces
from tests.support.fakeslurm import NOW_S, FakeSlurm, use

H = 3600


def test_only_what_lies_in_the_period_is_counted() -> None:
    whole = use(1, NOW_S, NOW_S + 10 * H)
    assert seconds_within(whole, NOW_S - H, NOW_S + 99 * H) == 10 * H
    days = [seconds_within(whole, NOW_S + h * H, NOW_S + (h + 4) * H) for h in (-2, 2, 6, 10)]
    assert days == [2 * H, 4 * H, 4 * H, 0]


def test_time_suspended_is_not_used() -> None:
    half = use(1, NOW_S, NOW_S + 10 * H, elapsed_s=5 * H)
    assert seconds_within(half, NOW_S, NOW_S + 10 * H) == 5 * H
    assert seconds_within(half, NOW_S, NOW_S + 2 * H) == H


def test_a_running_job_counts_until_now() -> None:
    running = use(1, NOW_S - H, None, state="RUNNING")
    assert seconds_within(running, NOW_S - 9 * H, NOW_S) == H


def test_sums_by_account_and_user_the_largest_first() -> None:
    usages = [
        use(1, NOW_S, NOW_S + H, node_count=4, cpus=16, gpus=8),
        use(1, NOW_S + H, NOW_S + 2 * H, node_count=4, cpus=16, gpus=8),  # requeued
        use(2, NOW_S, NOW_S + H, user="bob", node_count=9),
    ]
    bob, alice = summed(usages, NOW_S, NOW_S + 9 * H, ("account", "user"))
    assert (alice.group, alice.attempts, alice.jobs) == (("lab", "alice"), 2, {1})
    assert (alice.node_s, alice.cpu_s, alice.gpu_s) == (8 * H, 32 * H, 16 * H)
    assert (bob.group, bob.node_s) == (("lab", "bob"), 9 * H)


def test_a_failed_nodes_attempt_is_lost_and_not_charged_for() -> None:
    usages = [
        use(1, NOW_S, NOW_S + 2 * H, node_count=3, state="NODE_FAIL"),
        use(1, NOW_S + 2 * H, NOW_S + 3 * H, node_count=3),
    ]
    (one,) = summed(
        usages, NOW_S, NOW_S + 9 * H, (), prices=lambda _: Price(node_hour=10),
        credited=("node_fail",),
    )  # fmt: skip
    assert one.lost_node_s == {"node_fail": 6 * H}
    assert (one.charge, one.credit, one.credited_node_s) == (30.0, 60.0, 6 * H)


def test_links_that_are_down_together_are_lost_once_and_credited_when_the_site_says_so() -> None:
    spans = Spans(1, NOW_S, NOW_S + H, ((NOW_S + 10, NOW_S + 20), (NOW_S + 15, NOW_S + 40)))
    usages = [use(1, NOW_S, NOW_S + H, node_count=2), use(2, NOW_S, NOW_S + H)]
    for credited, credit in (((), 0), (("link_down",), 60)):
        (one,) = summed(usages, NOW_S, NOW_S + 9 * H, (), links={1: [spans]}, credited=credited)
        assert one.lost_node_s == {"link_down": 60}
        assert (one.credited_node_s, one.traced) == (credit, 1)


def test_each_attempt_has_its_own_trace() -> None:
    first = Spans(1, NOW_S, NOW_S + 90, ((NOW_S, NOW_S + 30),))
    second = Spans(1, NOW_S + 100, NOW_S + 200, ((NOW_S + 110, NOW_S + 120),))
    usages = [use(1, NOW_S, NOW_S + 90), use(1, NOW_S + 100, NOW_S + 200)]
    (one,) = summed(usages, NOW_S, NOW_S + H, (), links={1: [first, second]})
    assert one.lost_node_s == {"link_down": 40}


def test_spans_that_meet_or_leave_the_period() -> None:
    assert union_s([(0, 10), (5, 12), (12, 14), (30, 99)], 2, 40) == 22
    assert union_s([], 0, 10) == 0


def test_links_of_a_trace_are_credited_to_the_millisecond(tmp_path: Path) -> None:
    plan = traces.Plan(cuts=[traces.Cut("n2", 0, 10.0, 13.0), traces.Cut("n3", 1, 50.0, None)])
    traces.write(plan, tmp_path / "alice")
    (tmp_path / "bob").mkdir()
    (tmp_path / "bob" / "job-12.h5").write_bytes(b"damaged")
    found, problems = losses.read(tmp_path, {4711, 12})
    (spans,) = found[4711]
    begin_s = plan.begin_real_ns / 1e9
    assert union_s(spans.down, begin_s, begin_s + 60) == pytest.approx(3 + 10, abs=1e-3)
    assert len(problems) == 1 and "job-12.h5" in problems[0]
    with open_trace(tmp_path / "alice" / "job-4711.h5") as trace:
        assert losses.spans(trace) == spans


MOMENTS = {
    "2026-11-01": "2026-11-01T00:00:00+01:00",
    "2026-07-01": "2026-07-01T00:00:00+02:00",  # summer time, seen from winter
    "2026-11-01T08:30": "2026-11-01T08:30:00+01:00",
    "2026-11-01T08:30Z": "2026-11-01T08:30:00+00:00",
    "12h": "2026-11-21T00:00:00+01:00",
    "today": "2026-11-21T00:00:00+01:00",
    "yesterday": "2026-11-20T00:00:00+01:00",
    "month": "2026-11-01T00:00:00+01:00",
    "year": "2026-01-01T00:00:00+01:00",
}


@pytest.mark.parametrize("words", MOMENTS)
def test_times_as_administrators_write_them(words: str) -> None:
    import zoneinfo

    now = datetime.datetime(2026, 11, 21, 12, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
    assert moment(words, now) == datetime.datetime.fromisoformat(MOMENTS[words]).timestamp()


@pytest.mark.parametrize("words", ["", "soon", "7", "2026-13-01", "99999999999d"])
def test_a_wrong_time_is_refused(words: str) -> None:
    with pytest.raises(UsageError, match="a date"):
        moment(words, datetime.datetime.now().astimezone())


def test_gpus_are_read_from_both_of_sacct_s_forms() -> None:
    row = text.FIELD.join(
        ("7", "ann", "a", "main", "COMPLETED", "n1", "1", "4", "10", "20", "30", "10",
         "billing=4,cpu=4,gres/gpu=2,gres/gpu:a100=2,mem=8G", "a name")
    )  # fmt: skip
    (found,) = text.usage(row + "\n", "")
    assert (found.gpus, found.name) == (2, "a name")
    data = Path(__file__).parents[1] / "data" / "slurm" / "26.05"
    (file,) = data.glob("*sacct-allusers-duplicates*")
    given = json.loads(file.read_text())["jobs"][0]
    given["tres"]["allocated"] += [
        {"type": "gres", "name": "gpu", "id": 1001, "count": 2},
        {"type": "gres", "name": "gpu:a100", "id": 1002, "count": 2},
    ]
    assert json_shapes.usage(given).gpus == 2


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeSlurm:
    fake = FakeSlurm(the_usage=[use(1, NOW_S, NOW_S + H, node_count=4, user="=evil()"),
                                use(2, NOW_S, NOW_S + H, partition="gpu", gpus=2)])  # fmt: skip
    monkeypatch.setattr("fabricctl.slurm.choose.open_slurm", lambda _=None: fake)
    monkeypatch.setenv("FABRICCTL_TRACE_DIR", str(tmp_path))
    file = tmp_path / "fabricctl.toml"
    file.write_text("[usage]\nnode_hour = 2\n[partition.gpu]\nusage.gpu_hour = 5.5\n")
    monkeypatch.setenv("FABRICCTL_CONFIG", str(file))
    return fake


PERIOD = ["--from", "2026-09-21", "--to", "2026-09-23"]


@pytest.mark.usefixtures("slurm")
def test_prices_of_a_partition_go_before_the_general_one() -> None:
    done = CliRunner().invoke(cli, ["usage", *PERIOD, "--by", "partition", "--json"])
    assert done.exit_code == 0
    said = json.loads(done.output)
    assert {g["partition"]: g["charge"] for g in said["groups"]} == {"main": 8.0, "gpu": 13.0}
    assert said["total"]["charge"] == 21.0
    assert said["total"]["node_hours"] == 5.0


@pytest.mark.usefixtures("slurm")
def test_a_name_is_no_formula_in_a_spreadsheet_and_no_tag_in_a_page(tmp_path: Path) -> None:
    page = tmp_path / "usage.html"
    done = CliRunner().invoke(cli, ["usage", *PERIOD, "--csv", "--html", str(page)])
    assert done.exit_code == 0
    first, second = csv.DictReader(io.StringIO(done.stdout))
    assert (first["user"], first["node_hours"], second["user"]) == ("'=evil()", "4.0", "alice")
    assert page.stat().st_mode & 0o777 == 0o600
    assert '<td class="t">=evil()</td>' in page.read_text()


@pytest.mark.usefixtures("slurm")
def test_the_screen_has_a_total() -> None:
    done = CliRunner().invoke(cli, ["usage", *PERIOD, "--by", "account", "--by", "user"])
    lines = done.output.splitlines()
    assert lines[1].split() == ["ACCOUNT", "USER", "JOBS", "NODE-H", "CPU-H", "GPU-H", "LOST",
                                "CREDITED", "EUR"]  # fmt: skip
    assert lines[-2].split() == ["total", "2", "5.00", "8.00", "2.00", "0.00", "0.00", "21.00"]


def test_a_period_that_ends_before_it_begins_is_refused() -> None:
    done = CliRunner().invoke(cli, ["usage", "--from", "today", "--to", "yesterday"])
    assert isinstance(done.exception, UsageError)


def test_an_unknown_cause_of_credit_is_a_wrong_configuration(tmp_path: Path) -> None:
    file = tmp_path / "fabricctl.toml"
    file.write_text("[usage]\ncredit = ['node_fial']\n")
    with pytest.raises(ConfigError, match="did you mean 'node_fail'"):
        config.load(file, {})


def test_energy_is_summed_where_it_was_measured_and_is_nothing_where_not() -> None:
    uses = [
        use(1, 0, 3600, energy_j=7_200_000),
        use(2, 3000, 4200, energy_j=None),
        use(3, 0, 7200, energy_j=3_600_000),  # half of it lies in the period
    ]
    (total,) = summed(uses, 0, 3600, ())
    assert total.energy_j == pytest.approx(9_000_000)
    assert (total.metered, total.attempts) == (2, 3)
    assert record(total, ())["energy_kwh"] == 2.5
    (none,) = summed(uses[1:2], 0, 3600, ())
    assert record(none, ())["energy_kwh"] is None
    assert [text.energy(joules) for joules in (None, 0, 5, -2, 2**64 - 2)] == [
        None, None, 5, None, None,
    ]  # fmt: skip
