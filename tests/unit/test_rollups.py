"""A report made from rollups says what one made from every sample says."""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from fabricctl.store import dtypes, rollups, schema, thin
from fabricctl.store.trace import open_trace
from fabricctl_analysis.activity import _throttled
from fabricctl_analysis.load import job_facts, load, node_rows
from fabricctl_analysis.model import Report
from fabricctl_analysis.rows import Boot, place
from fabricctl_analysis.summarise import summarise
from fabricctl_analysis.windows import Grid
from tests.support.traces import Cut, Plan, write

S = 1_000_000_000
PLAN = Plan(
    nodes=["n1", "n2"],
    seconds=1500,
    cuts=[Cut("n1", 0, 200, 203), Cut("n1", 1, 700.2, 700.4), Cut("n2", 0, 900, 1100, told=False)],
    away={"n2": (300, 420)},
    reset_at_s={"n1": 500},
    errors=[("n2", 1, "rx_errors", 17)],
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(PLAN, tmp_path_factory.mktemp("rollups") / "alice")


def report(path: Path, width: str | None) -> Report:
    with open_trace(path) as trace:
        job = trace.job
        rows = node_rows(trace, width)
        return summarise(job_facts(trace), rows, job.begin_real_ns, job.end_real_ns)


def test_long_tables_have_rollups_and_short_ones_have_none(path: Path, tmp_path: Path) -> None:
    with h5py.File(path) as file:
        assert {"rail_1min", "host_1min", "job_1min"} <= set(file["nodes/n1"])
        assert len(file["nodes/n1/host_1min"]) < 40
        assert "host_1s" not in file["nodes/n1"]  # of samples once a second
    with h5py.File(write(Plan(nodes=["n1"], seconds=3), tmp_path / "a")) as file:
        assert not any(name.endswith("_1min") for name in file["nodes/n1"])


def test_thinned_rows_give_the_same_report(path: Path) -> None:
    every, few = report(path, None), report(path, "1min")
    assert few.whole == every.whole
    assert few.marks == every.marks and few.steps == every.steps
    for a, b in zip(every.rails, few.rails, strict=True):
        assert a.link == b.link
        for name, figure in a.counters.items():
            assert (b.counters[name].value, b.counters[name].at_least) == (
                figure.value,
                figure.at_least,
            ), name
        assert b.peaks["rx"].value == pytest.approx(a.peaks["rx"].value, rel=1e-6)
    for one, other in zip(every.nodes, few.nodes, strict=True):
        assert one.measured == other.measured
        for name, figure in one.figures.items():
            assert other.figures[name].value == pytest.approx(figure.value, rel=0.02), name


@pytest.mark.parametrize("width", [None, "1s", "1min"])
def test_a_gpu_held_down_for_a_second_of_each_minute_is_so_in_a_rollup(width: str | None) -> None:
    gpus = dtypes.empty(schema.GPU, 1800)
    gpus["time_mono_ns"], gpus["gpu"] = np.arange(1800) * S, 0
    gpus["throttle_reasons"] = np.where(np.arange(1800) % 60 == 30, 0x40, 0)
    clock = dtypes.empty(schema.CLOCK, 1)
    clock["time_mono_ns"], clock["time_real_ns"], clock["width_ns"] = 0, PLAN.begin_real_ns, 100
    tables = {table.name: dtypes.empty(table) for table in schema.TABLES} | {"clock": clock}
    tables["gpu"] = gpus if width is None else thin.thin(gpus, rollups.BY_TABLE["gpu"], width)
    rows = place("n1", (), [Boot(tables)])
    share = _throttled(rows, Grid(PLAN.begin_real_ns, 60 * S, 30))
    assert share == pytest.approx(np.full(30, 1 / 60), rel=0.05)


def test_a_trace_without_rollups_is_thinned_while_it_is_read(path: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.h5"
    bare.write_bytes(path.read_bytes())
    with h5py.File(bare, "r+") as file:
        for node in file["nodes"].values():
            for name in [name for name in node if name.endswith("_1min")]:
                del node[name]
    for a, b in zip(report(path, "1min").rails, report(bare, "1min").rails, strict=True):
        assert (a.link, a.counters, a.peaks) == (b.link, b.counters, b.peaks)


def test_three_lines_of_h5py_read_a_rollup(path: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "data-format.md").read_text()
    lines = text.split("## Rollups")[1].split("```python\n")[1].split("```")[0]
    scope: dict[str, pd.DataFrame] = {}
    exec(lines.replace("job-7.h5", str(path)), scope)
    assert scope["rail"]["rows"].sum() == 2 * 1500


def test_a_rollup_is_a_frame_like_its_table(path: Path) -> None:
    frames = load(path, width="1min")
    assert len(frames["host"]) < 100 < len(load(path)["host"])
    assert frames["host"]["rows"].sum() == len(load(path)["host"])
    assert set(frames["rail"]["node"]) == {"n1", "n2"}


def test_what_was_left_out_shows_in_its_extremes() -> None:
    rows = dtypes.empty(schema.JOB, 600)
    rows["time_mono_ns"] = np.arange(600) * S
    rows["cpu_ns"] = np.arange(600) * S
    rows["cpu_ns"][250:] += 5 * S
    rows["memory_bytes"] = 1000
    rows["memory_bytes"][333] = 9000
    rows["memory_bytes"][400:420] = schema.NOT_MEASURED["Q"]
    rows["processes"] = 1
    kept = thin.thin(rows, rollups.BY_TABLE["job"], "1min")
    assert kept["rows"].sum() == 600
    assert kept["memory_bytes_highest"][kept["memory_bytes_highest"] < 1 << 60].max() == 9000
    assert kept["cpu_ns_peak"][kept["cpu_ns_peak"] < 1 << 60].max() == 6 * S
    assert {399, 400, 419, 420} <= set((kept["time_mono_ns"] // S).tolist())
    assert kept["longest_ns"].max() == S


@pytest.mark.parametrize("rollup", rollups.ROLLUPS, ids=lambda r: r.table.name)
def test_noise_is_thinned_without_a_complaint(rollup: rollups.Rollup) -> None:
    random = np.random.default_rng(1)
    kind = dtypes.dtype(rollup.table)
    rows = np.frombuffer(random.bytes(200 * kind.itemsize), kind).copy()
    rows["time_mono_ns"] = np.sort(rows["time_mono_ns"])
    assert thin.thin(rows, rollup, "1min")["rows"].sum() == 200
