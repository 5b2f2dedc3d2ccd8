"""The exporter: valid, bounded, and honest when Slurm is away."""

import json
import re
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner

from fabricctl.cli import metrics as command
from fabricctl.cli.main import cli
from fabricctl.errors import UsageError
from fabricctl.fleet import metrics
from fabricctl.fleet.overview import overview
from tests.support.fakeslurm import FakeSlurm, job, node

DASHBOARD = Path(__file__).parents[2] / "site-config" / "grafana" / "fabricctl-cluster.json"
SAMPLE = re.compile(r'(\w+)(\{\w+="[a-z_ ]+"\})? -?[0-9.]+')


def big(nodes: int) -> FakeSlurm:
    slurm = FakeSlurm({f"n{number}": node(f"n{number}") for number in range(nodes)})
    slurm.the_nodes["n1"] = node("n1", "DOWN")
    slurm.the_nodes["n2"] = node("n2", "IDLE", "DRAIN", reason="fabric: maintenance m")
    slurm.the_jobs = [job(number, nodes=f"n{number}") for number in range(3, nodes // 2)]
    return slurm


def text(slurm: FakeSlurm) -> str:
    nodes, jobs = slurm.nodes(), slurm.jobs()
    return metrics.render(overview(nodes, jobs), nodes, 0.25)


def test_every_line_is_a_sample_or_about_one_and_the_end_is_marked() -> None:
    lines = text(big(10)).splitlines()
    assert lines[-1] == "# EOF"
    for line in lines[:-1]:
        assert line.startswith(("# TYPE ", "# HELP ")) or SAMPLE.fullmatch(line), line
    assert 'fabricctl_nodes{state="down"} 1' in lines
    assert "fabricctl_nodes_drained_by_us 1" in lines
    assert "fabricctl_findings_worst 3" in lines


def test_ten_thousand_nodes_are_as_many_series_as_ten_and_take_less_than_a_second() -> None:
    slurm = big(10_000)
    begin_s = time.process_time()
    large = text(slurm)
    assert time.process_time() - begin_s < 1.0
    assert len(large.splitlines()) == len(text(big(10)).splitlines())


def test_without_slurm_it_says_so_and_makes_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = FakeSlurm(broken=True)
    monkeypatch.setattr("fabricctl.slurm.choose.open_slurm", lambda _=None: slurm)
    done = CliRunner().invoke(cli, ["metrics"])
    assert done.exit_code == 0
    samples = [line for line in done.output.splitlines() if not line.startswith("#")]
    assert samples[0] == "fabricctl_up 0"
    assert [line.split()[0] for line in samples] == ["fabricctl_up", "fabricctl_gather_seconds"]


def test_it_is_served_and_slurm_is_asked_once_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def gather() -> str:
        asked.append(1)
        return "# EOF\n"

    monkeypatch.setattr(command, "gather", gather)
    with command.make_server("127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        base = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            for _ in range(3):
                with urllib.request.urlopen(f"{base}/metrics", timeout=10) as answer:
                    assert answer.headers["Content-Type"] == metrics.CONTENT_TYPE
                    assert answer.read() == b"# EOF\n"
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"{base}/etc/passwd", timeout=10)
            caught.value.close()
        finally:
            server.shutdown()
            thread.join(10)
    assert asked == [1]


def test_an_address_of_ipv6_is_listened_at() -> None:
    with command.make_server("::1", 0) as server:
        assert server.server_address[0] == "::1"


@pytest.mark.parametrize("words", ["9817", ":9817", "localhost:", "localhost:99999"])
def test_a_wrong_address_is_refused(words: str) -> None:
    done = CliRunner().invoke(cli, ["metrics", "--listen", words])
    assert isinstance(done.exception, UsageError)


def test_the_dashboard_asks_for_metrics_that_are_there() -> None:
    board = json.loads(DASHBOARD.read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"fabricctl_\w+", target["expr"])
    }
    assert asked == set(metrics.METRICS)
