"""Nonsense in a trace: a report that says what it can, never a traceback."""

import math
from datetime import UTC
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from fabricctl.store import dtypes, schema
from fabricctl_analysis.build import report_of
from fabricctl_analysis.findings import findings
from fabricctl_analysis.load import job_facts, load
from fabricctl_analysis.model import JobFacts, Report
from fabricctl_analysis.render_html import render_html
from fabricctl_analysis.render_json import render_json
from fabricctl_analysis.render_text import WIDTH, render_text
from fabricctl_analysis.rows import Boot, NodeRows, place
from fabricctl_analysis.summarise import summarise
from fabricctl_analysis.when import When
from tests.support.traces import Cut, Plan, journals, write

FACTS = JobFacts(1, None, None, 0, "alice", "lab", "on", 0, ("n1", "n2"), "file", 1)


def noise(seed: int) -> NodeRows:
    """One node of pure noise, or of a true trace with columns of noise."""
    random = np.random.default_rng(seed)
    plan = Plan(cuts=[Cut("n1", 0, 20, 23)], away={"n1": (40, 50)})
    tables = dict(journals(plan, "n1", 0)[0].tables)
    for table in schema.TABLES:
        rows = tables[table.name].copy()
        if seed % 3 == 0:
            rows = np.frombuffer(
                random.bytes(37 * rows.dtype.itemsize), dtype=dtypes.dtype(table)
            ).copy()
        elif len(rows):
            for column in random.choice(rows.dtype.names, 2):
                bits = random.bytes(len(rows) * rows.dtype[column].itemsize)
                rows[column] = np.frombuffer(bits, dtype=rows.dtype[column])
        tables[table.name] = rows
    begin = int(random.integers(-(2**63), 2**63 - 1)) if seed % 2 else None
    return place("n1", ("ib0", "\x1b[2J"), [Boot(tables)], sample_hz=0.0, begin_ns=begin)


def rendered(report: Report) -> tuple[str, str]:
    when = When(report.whole, UTC)
    found = findings(report, when)
    text = render_text(report, found, when)
    assert max(map(len, text.split("\n"))) <= WIDTH
    assert "\x1b" not in text and "nan" not in text and "inf" not in text.replace("infin", "")
    return text, render_json(report, found)


@pytest.mark.parametrize("seed", range(60))
def test_noise_gives_a_report_and_no_traceback(seed: int) -> None:
    report = summarise(FACTS, [noise(seed)], None, None)
    rendered(report)
    for rail in report.rails:
        for figure in [*rail.counters.values(), *rail.peaks.values()]:
            assert figure.value is None or (math.isfinite(figure.value) and figure.value >= 0)


@pytest.mark.parametrize("seed", range(3))
def test_noise_can_be_drawn(seed: int) -> None:
    report = summarise(FACTS, [noise(seed)], None, None)
    when = When(report.whole, UTC)
    assert len(render_html(report, findings(report, when), when)) < 5_000_000


def test_a_trace_without_a_node_says_that_nothing_was_measured() -> None:
    text, _ = rendered(summarise(FACTS, [], None, None))
    assert "n[1-2] were not measured at all" in text


@pytest.mark.parametrize("value", [-1, 0, 2**63 - 1, 2**62])
def test_impossible_begins_and_ends_are_passed_over(value: int, tmp_path: Path) -> None:
    path = write(Plan(seconds=5), tmp_path / "alice")
    edit(path, begin_real_ns=value, end_real_ns=value)
    report = report_of(path)
    assert report.whole.length_ns < 10**10
    rendered(report)
    assert len(load(path)["rail"])


@pytest.mark.parametrize("hz", [math.nan, math.inf, 1e-300, 1e-10, -1.0, 1e300])
def test_an_impossible_rate_of_samples_is_passed_over(hz: float, tmp_path: Path) -> None:
    path = write(Plan(seconds=20, nodes=["n1"]), tmp_path / "alice")
    with h5py.File(path, "r+") as file:
        file["nodes/n1"].attrs["sample_hz"] = hz
    rendered(report_of(path))


def edit(path: Path, **attributes: Any) -> None:
    with h5py.File(path, "r+") as file:
        for item in (file, *file["nodes"].values()):
            for name, value in attributes.items():
                item.attrs[name] = np.int64(value)


def test_a_flapping_rail_of_days_is_drawn_with_bounded_size(tmp_path: Path) -> None:
    cuts = [Cut("n1", 0, at, at + 0.01) for at in range(1, 3000)]
    path = write(Plan(nodes=["n1"], rails=["ib0"], seconds=3001, cuts=cuts), tmp_path / "alice")
    report = report_of(path)
    when = When(report.whole, UTC)
    assert len(report.rails[0].link.downs) == 2999
    assert len(render_html(report, findings(report, when), when)) < 2_500_000


def test_facts_are_cleaned(tmp_path: Path) -> None:
    from fabricctl.store.trace import open_trace

    with open_trace(write(Plan(seconds=2, nodes=["n1"]), tmp_path / "alice")) as trace:
        assert job_facts(trace).user == "alice"
