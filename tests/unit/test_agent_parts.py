"""The agent's small parts: pace, steps, status, log."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from fabricctl import fields, hostlist
from fabricctl.agent import main, mesh, status
from fabricctl.agent.log import MAX_LINES_PER_MINUTE, NodeLog
from fabricctl.agent.pace import Pace
from fabricctl.agent.steps import MARK_WAIT_S, StepTracker
from fabricctl.store.schema import StepEvent

BEGIN, END = StepEvent.BEGIN, StepEvent.END


def test_pace_does_not_drift_and_counts_what_it_missed() -> None:
    pace = Pace.every(0.01, 1000)
    assert pace.take(999) is None
    assert pace.take(1000) == 0
    assert pace.take(1000 + 10_400_000) == 0
    assert pace.due_mono_ns == 1000 + 20_000_000
    assert pace.take(1000 + 75_000_000) == 5
    assert pace.due_mono_ns == 1000 + 80_000_000


class Simulated:
    """An agent's loop on a clock of its own: every call of it takes a tenth of a millisecond, a
    sample four; ``ages_ns``: of the newest sample when it was handed on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: int, period_ns: int) -> None:
        self.now_ns, self._due_ns, self._sampled_ns = 5_000_000_000, 0, 0
        self.wakes, self.ages_ns = 0, list[int]()
        self._seconds = seconds
        agent = self._agent = main.Agent.__new__(main.Agent)
        agent._period_ns = period_ns
        agent._poll = None  # type: ignore[assignment]
        agent._ending = SimpleNamespace(reason="")  # type: ignore[assignment]
        agent._samplers = self  # type: ignore[assignment]
        agent._clock = SimpleNamespace(next_due_s=lambda: float("inf"))  # type: ignore[assignment]
        agent._ranks = SimpleNamespace(watch=self._work)  # type: ignore[assignment]
        agent._mesh = None
        agent._missed_samples = 0
        for name in ("_scan_steps", "_take_clocks", "_show", "_run_clock"):
            monkeypatch.setattr(agent, name, self._work)
        monkeypatch.setattr(agent, "_each_second", self._each_second)
        monkeypatch.setattr(main, "WATCH_S", 1.0)
        monkeypatch.setattr(main, "FIRST_SCANS_S", 1.0)
        monkeypatch.setattr(main, "mono_ns", self._read)

    def run(self) -> None:
        self._agent._loop()

    def wait(self, _poll: object, period_ns: int, timeout_s: float) -> tuple[list[int], int]:
        """As csrc/batch.c does."""
        end_ns = self._read() + int(timeout_s * 1e9)
        while True:
            if self.now_ns >= self._due_ns:
                self._due_ns = (self._due_ns or self.now_ns) + period_ns
                self._sampled_ns, self.now_ns = self.now_ns, self.now_ns + 4_000_000
            if self.now_ns >= end_ns - main.EARLY_NS:
                return [], 0
            self.now_ns = max(self.now_ns, min(self._due_ns, end_ns))
            self.wakes += 1
            if self.now_ns >= end_ns and self.now_ns < self._due_ns:
                return [], 0

    def _read(self) -> int:
        self.now_ns += 100_000
        return self.now_ns

    def _work(self) -> None:
        self._read()

    def _each_second(self) -> None:
        self.ages_ns.append(self._read() - self._sampled_ns)
        if len(self.ages_ns) == self._seconds:
            self._agent._ending.reason = "over"


@pytest.mark.parametrize("period_ns", [1_000_000_000, 100_000_000])
def test_what_was_sampled_is_handed_on_at_once(
    monkeypatch: pytest.MonkeyPatch, period_ns: int
) -> None:
    simulated = Simulated(monkeypatch, 10, period_ns)
    simulated.run()
    assert max(simulated.ages_ns) < 20_000_000
    assert simulated.wakes <= 10 * 1_000_000_000 // period_ns, "no wake-up but the samples'"


def test_a_step_begins_and_ends_once() -> None:
    steps = StepTracker()
    assert steps.update(["0"], [], 0) == [("0", BEGIN)]
    assert steps.update(["0"], ["0"], 1) == []
    assert steps.update(["0"], [], 2) == [("0", END)]
    assert steps.update(["0"], [], 3) == []
    assert not steps.unplugged


def test_a_step_too_short_to_be_seen_running_still_ends() -> None:
    steps = StepTracker()
    assert steps.update(["3"], [], 0) == [("3", BEGIN)]
    assert steps.update(["3"], [], 1) == [("3", END)]


def test_what_ended_in_an_earlier_agents_time_does_not_begin_again() -> None:
    steps = StepTracker(resumed=True)
    assert steps.update(["0", "1"], ["1"], 0) == [("0", END), ("1", BEGIN)]
    assert steps.update(["0", "1", "2"], ["1"], 1) == [("2", BEGIN)]
    assert steps.update(["0", "1", "2"], [], 2) == [("1", END), ("2", END)]


def test_a_step_without_the_plugins_mark_is_unplugged_after_a_while() -> None:
    steps = StepTracker()
    steps.update([], ["batch", "extern"], 10)
    steps.update([], ["batch", "extern"], 10 + MARK_WAIT_S / 2)
    assert not steps.unplugged
    steps.update([], ["batch", "extern"], 10 + MARK_WAIT_S)
    assert steps.unplugged == {"batch"}


def test_a_late_mark_clears_the_step() -> None:
    steps = StepTracker()
    steps.update([], ["0"], 0)
    steps.update([], ["0"], MARK_WAIT_S)
    steps.update(["0"], ["0"], MARK_WAIT_S + 1)
    assert not steps.unplugged


def test_marks_with_foreign_names_are_no_steps() -> None:
    assert StepTracker().update(["../x", "a" * 30, "", "0\n"], [], 0) == []


def test_steps_that_run_at_the_end_end_there() -> None:
    steps = StepTracker()
    steps.update(["0", "batch"], ["0", "batch"], 0)
    assert steps.finish() == [("0", END), ("batch", END)]


def test_the_status_file_is_what_the_envelope_document_says(tmp_path: Path) -> None:
    path = tmp_path / "status"
    known = status.Status("running", 4, 3, {"n4"}, {"n2"}, True, "spool: full\nreally")
    status.write(path, known)
    given = fields.decode(path.read_text())
    assert list(given)[:8] == [
        "v", "state", "nodes", "protected", "missing", "unplugged", "settled", "problem",
    ]  # fmt: skip
    assert (given["missing"], given["unplugged"], given["settled"]) == ("n4", "n2", "1")
    assert given["problem"] == "spool: full?really"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [item.name for item in tmp_path.iterdir()] == ["status"]


def test_the_status_of_irregular_names_stays_readable() -> None:
    names = {f"rack{n * 7919 % 100003}x{n}y" for n in range(9000)}
    text = status.Status("running", 9000, missing=names).text()
    some = hostlist.expand(fields.decode(text)["missing"])
    assert len(text) < fields.MAX_BYTES
    assert set(some) < names


def test_ports_of_a_job_are_the_same_everywhere_and_in_range() -> None:
    found = mesh.ports(4711, 20100, 400)
    assert found == mesh.ports(4711, 20100, 400)
    assert all(20100 <= port < 20500 for port in found)
    assert found != mesh.ports(4712, 20100, 400)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_a_line_that_repeats_is_written_once_and_counted(tmp_path: Path) -> None:
    clock = Clock()
    log = NodeLog(tmp_path / "log", clock)
    for _ in range(10):
        log.write("node", "the same")
    assert len(lines(tmp_path / "log")) == 1
    clock.now_s += 61
    log.write("node", "the same")
    assert lines(tmp_path / "log")[1].endswith("INFO node: the same (and 9 times more)")
    assert lines(tmp_path / "log")[2].endswith("INFO node: the same")
    os.close(log.fileno())


def test_a_flood_of_lines_is_cut_and_counted(tmp_path: Path) -> None:
    clock = Clock()
    log = NodeLog(tmp_path / "log", clock)
    for number in range(MAX_LINES_PER_MINUTE + 50):
        log.write("node", f"line {number}")
    assert len(lines(tmp_path / "log")) == MAX_LINES_PER_MINUTE
    clock.now_s += 61
    log.write("node", "later")
    assert "50 lines left out" in lines(tmp_path / "log")[-2]
    os.close(log.fileno())


def test_a_line_cannot_forge_another(tmp_path: Path) -> None:
    log = NodeLog(tmp_path / "log")
    log.write("node", "evil\n2026-01-01T00:00:00Z INFO node: forged\x1b[2J")
    (line,) = lines(tmp_path / "log")
    assert json.dumps(line).isascii()
    assert "\x1b" not in line
    os.close(log.fileno())


def test_a_log_that_cannot_be_opened_falls_back_to_stderr(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = NodeLog(tmp_path / "none" / "log")
    log.write("node", "still said")
    assert "still said" in capfd.readouterr().err
