"""``fabricctl report``: which trace a name leads to, and what is said when there is none."""

import importlib.util
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from fabricctl.cli.main import main
from fabricctl_analysis.export import _family
from fabricctl_analysis.load import load
from tests.support.traces import Cut, Plan, write

S = 1_000_000_000


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Fabricctl = Callable[..., Done]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A trace directory with no job in it."""
    (tmp_path / "traces" / "alice").mkdir(parents=True)
    (tmp_path / "traces" / "alice").chmod(0o700)
    return tmp_path / "traces"


@pytest.fixture
def fabricctl(
    site: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Fabricctl]:
    """Runs the command line with that site's configuration and a Slurm that knows no job."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.chdir(tmp_path)
    time.tzset()

    def run(
        *words: str, slurm: str = "exit 1", traces: Path = site, command: str = "report"
    ) -> Done:
        squeue = programs / "squeue"
        squeue.write_text(f"#!/bin/sh\n{slurm}\n")
        squeue.chmod(0o755)
        monkeypatch.setenv("FABRICCTL_TRACE_DIR", str(traces))
        monkeypatch.setattr(sys, "argv", ["fabricctl", command, *words])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        printed = capsys.readouterr()
        return Done(status, printed.out, printed.err)

    yield run
    monkeypatch.undo()
    time.tzset()


def failure(done: Done, status: int, words: Sequence[str]) -> None:
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("fabricctl: ") and done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def test_a_job_id_leads_to_its_trace(site: Path, fabricctl: Fabricctl) -> None:
    write(Plan(seconds=5, nodes=["n1"], cuts=[Cut("n1", 0, 1.5, 2.5)]), site / "alice")
    done = fabricctl("4711")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Job 4711: alice on lab, 1 node n1\n")
    assert "Rail r0 of n1 was without carrier 1.00 s, 14:13:21.500 to 14:13:22.500." in done.stdout


def test_an_array_task_leads_to_its_newest_trace(site: Path, fabricctl: Fabricctl) -> None:
    write(Plan(seconds=3, nodes=["n1"], job=15, array=(12, 3)), site / "alice")
    assert fabricctl("12_3").stdout.startswith("Job 12_3 (job 15): alice")
    assert fabricctl("15").stdout.startswith("Job 12_3 (job 15): alice")


def test_a_component_of_a_heterogeneous_job_leads_to_its_trace(
    site: Path, fabricctl: Fabricctl
) -> None:
    write(Plan(seconds=3, nodes=["n1"], job=16, het=(12, 1)), site / "alice")
    assert fabricctl("12+1").stdout.startswith("Job 12+1 (job 16): alice")
    failure(fabricctl("12+2"), 66, ["12+2", "no trace"])


def test_two_jobs_are_compared(site: Path, fabricctl: Fabricctl) -> None:
    write(Plan(seconds=30), site / "alice")
    write(Plan(seconds=40, job=4712), site / "alice")
    done = fabricctl("4711", "--compare", "4712")
    assert done.returncode == 0 and "B took 10.00 s longer" in done.stdout
    made = json.loads(fabricctl("4711", "--compare", "4712", "--json").stdout)
    assert sum(part["seconds"] for part in made["parts"]) == pytest.approx(made["seconds"])
    failure(fabricctl("4711", "--compare", "4712", "--markdown"), 2, ["--compare"])


def test_a_trace_is_exported_as_openmetrics(site: Path, fabricctl: Fabricctl) -> None:
    write(Plan(seconds=5, nodes=["n1"], not_measured=["psi_io_full_us"]), site / "alice")
    done = fabricctl("4711", "--openmetrics", "job.om", command="export")
    assert (done.returncode, done.stdout) == (0, "")
    lines = Path("job.om").read_text().splitlines()
    assert lines[-1] == "# EOF"
    assert "# TYPE fabricctl_rail_rx_bytes counter" in lines
    begin = 'fabricctl_rail_rx_bytes_total{job_id="4711",node="n1",rail="1"} '
    series = [line.removeprefix(begin).split() for line in lines if line.startswith(begin)]
    assert len(series) == 5 and series[0][1] == "1790000000.100"
    assert not any(line.startswith("fabricctl_host_psi_io_full_us_total") for line in lines)
    assert any(line.startswith("fabricctl_host_memory_available_bytes{") for line in lines)
    families = list(text_string_to_metric_families(Path("job.om").read_text()))
    samples = sum(len(family.samples) for family in families)
    assert samples == sum(not line.startswith("#") for line in lines)
    failure(fabricctl("4711", command="export"), 2, ["--parquet", "--openmetrics"])


def test_connections_that_are_on_no_rail_are_exported_too(tmp_path: Path) -> None:
    """As those of the management network; a label without a value is one that is not there."""
    path = write(Plan(seconds=5, nodes=["n1"], every_table=True), tmp_path / "alice")
    flows = load(path)["tcp_flow"]
    flows["rail"] = pd.array([pd.NA] * len(flows), "UInt8")
    begin = 'fabricctl_tcp_flow_connections{job_id="7",node="n1",rail="",peer="'
    told = [line for line in _family("tcp_flow", flows, 7) if line.startswith(begin)]
    assert len(told) == len(flows) > 0


def test_a_trace_is_exported_as_parquet_or_says_what_is_missing(
    site: Path, fabricctl: Fabricctl
) -> None:
    write(Plan(seconds=5, nodes=["n1"]), site / "alice")
    done = fabricctl("4711", "--parquet", "out", command="export")
    if importlib.util.find_spec("pyarrow") is None:
        failure(done, 71, ["pyarrow", "fabricctl[parquet]"])
        return
    frame = pd.read_parquet("out/rail.parquet")
    assert len(frame) == 10 and set(frame["node"]) == {"n1"}


def test_a_pdf_needs_a_browser_and_says_so(
    site: Path, fabricctl: Fabricctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(Plan(seconds=5), site / "alice")
    monkeypatch.setenv("PATH", "/nowhere")
    done = fabricctl("4711", "--pdf", "r.pdf")
    failure(done, 71, ["--pdf", "chromium", "--html"])
    assert not Path("r.pdf").exists()


def test_the_newest_attempt_is_shown_unless_another_is_asked_for(
    site: Path, fabricctl: Fabricctl
) -> None:
    first = Plan(seconds=5, nodes=["n1"])
    later = Plan(seconds=8, nodes=["n1"], begin_real_ns=first.begin_real_ns + 3600 * S)
    write(first, site / "alice")
    write(later, site / "alice")
    newest = fabricctl("4711").stdout
    assert newest.startswith("Job 4711 (requeue 1): alice") and "15:13:28.0 UTC, 8.00 s" in newest
    assert "14:13:25.0 UTC, 5.00 s" in fabricctl("4711", "--attempt", "0").stdout
    failure(fabricctl("4711", "--attempt", "2"), 66, ["no trace of attempt 2; there is 0, 1"])


def test_a_file_is_read_where_it_lies(site: Path, fabricctl: Fabricctl) -> None:
    path = write(Plan(seconds=3, nodes=["n1"]), site / "alice")
    assert fabricctl(str(path)).returncode == 0
    failure(fabricctl(str(path), "--attempt", "1"), 2, ["--attempt"])
    failure(fabricctl("./none.h5"), 66, ["none.h5: no such file"])


def test_a_running_job_has_no_trace_yet(fabricctl: Fabricctl) -> None:
    done = fabricctl("4712", slurm="echo RUNNING")
    failure(done, 66, ["job 4712", "Slurm says that it is running", "made when it ends"])


def test_parts_that_wait_are_named(site: Path, fabricctl: Fabricctl) -> None:
    parts = site / "alice" / ".parts" / "job-4713"
    parts.mkdir(parents=True)
    (parts / "n1.1790000000000000000.h5").touch()
    failure(fabricctl("4713"), 66, ["1 node traces wait", f"fabricctl report {parts}/n1."])


def test_a_job_without_a_trace_is_told_why_that_can_be(fabricctl: Fabricctl) -> None:
    for slurm in ("exit 1", "echo 'slurm_load_jobs error: Invalid job id' >&2; exit 1", "exit 0"):
        failure(fabricctl("4714", slurm=slurm), 66, ["--fabric-resilience", "another user's"])


def test_an_unknown_kind_of_name_is_a_usage_error(fabricctl: Fabricctl) -> None:
    failure(fabricctl("job4711"), 2, ["'job4711'", "12_3"])
    failure(fabricctl("0"), 2, ["job id"])


def test_without_a_trace_directory_the_configuration_is_named(fabricctl: Fabricctl) -> None:
    done = fabricctl("4711", traces=Path("/nonexistent/traces"))
    failure(done, 66, ["/nonexistent/traces does not exist", "trace.dir"])


def test_a_damaged_trace_is_one_line_and_no_traceback(site: Path, fabricctl: Fabricctl) -> None:
    path = write(Plan(seconds=3, nodes=["n1"]), site / "alice")
    path.write_bytes(path.read_bytes()[:3000])
    failure(fabricctl("4711"), 65, [str(path)])


def test_json_goes_to_stdout_alone(site: Path, fabricctl: Fabricctl) -> None:
    write(Plan(seconds=3, nodes=["n1"]), site / "alice")
    done = fabricctl("4711", "--json")
    assert (json.loads(done.stdout)["job"]["job"], done.stderr) == (4711, "")


def test_html_is_written_whole_and_for_its_owner(
    site: Path, tmp_path: Path, fabricctl: Fabricctl
) -> None:
    write(Plan(seconds=3, nodes=["n1"]), site / "alice")
    done = fabricctl("4711", "--html", "r.html")
    assert done.stderr == "fabricctl: wrote r.html\n"
    assert done.stdout.startswith("Job 4711")
    assert stat.S_IMODE((tmp_path / "r.html").stat().st_mode) == 0o600
    assert (tmp_path / "r.html").read_text().endswith("</html>\n")
    failed = fabricctl("4711", "--html", "none/r.html")
    assert failed.returncode == 71 and "none/r.html: cannot be written" in failed.stderr


def test_an_ascii_terminal_gets_ascii(site: Path) -> None:
    path = write(Plan(seconds=3, nodes=["n1"]), site / "alice")
    line = [sys.executable, "-m", "fabricctl.cli.main", "report", str(path)]
    for encoding, ascii_only in (("ascii", True), ("utf-8", False)):
        environ = {**os.environ, "PYTHONIOENCODING": encoding}
        shown = subprocess.run(line, env=environ, capture_output=True, timeout=60, check=True)
        assert shown.stdout.isascii() == ascii_only


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_user_sees_the_own_folder_only(site: Path, fabricctl: Fabricctl, tmp_path: Path) -> None:
    write(Plan(seconds=3, nodes=["n1"]), site / "alice")
    write(Plan(seconds=3, nodes=["n1"], user="bob"), site / "bob")
    failure(fabricctl("4711"), 2, ["several users have one (alice, bob)"])
    reader = "import os; os.setuid(65534)\nfrom fabricctl.cli import find_trace\n" + (
        "try: find_trace.find('4711')\nexcept Exception as e: print(e)"
    )
    for folder in tmp_path.resolve().parents:
        if folder != Path("/") and str(folder).startswith("/tmp/"):  # pytest's own are 0700
            folder.chmod(folder.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", reader],
        env={**os.environ, "FABRICCTL_TRACE_DIR": str(site)},
        text=True, capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("job 4711: no trace: none in")
    assert "nobody" in done.stdout
