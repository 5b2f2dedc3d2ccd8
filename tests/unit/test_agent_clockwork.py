"""What an agent tells of --fabric-clock, from what fabric-steer says."""

from pathlib import Path

import pytest

from fabricctl import config, layout
from fabricctl.agent.clockwork import Clockwork
from fabricctl.agent.record import Assignment
from fabricctl.agent.status import Status
from fabricctl.clock import steering
from fabricctl.records import Envelope, JobStart, Steer
from fabricctl.store.schema import Severity

Told = list[tuple[str, str, Severity]]


def clockwork(run_dir: Path, clock: Steer, told: Told) -> Clockwork:
    envelope = Envelope("on", bytes(32), clock=clock)
    start = JobStart(7, 1000, "alice", ("n1", "n2"), "n1", "c", envelope)
    given = Assignment(start, layout.NodeFiles(run_dir), run_dir, 0, 1)

    def tell(source: str, text: str, severity: Severity = Severity.WARNING) -> None:
        told.append((source, text, severity))

    return Clockwork(given, config.Config(), (), lambda _: None, tell)


def test_a_refusal_is_told_once_and_becomes_the_steps_notice(tmp_path: Path) -> None:
    told: Told = []
    work = clockwork(tmp_path, "system", told)
    (tmp_path / "steer").mkdir()
    assert work.rows() == ([], [])
    assert (told, work.notice) == ([], "")
    steering.write_refused(tmp_path / "steer" / "7.state", 7, "system", "job 6 steers it")
    for _ in range(2):
        work.rows()
    said = "--fabric-clock=system: refused: job 6 steers it"
    assert told == [("clock", said, Severity.WARNING)]
    assert work.notice == said
    assert f"\nnotice={said}\n" in Status("running", 2, notice=work.notice).text()


def test_a_clock_that_follows_is_told_and_needs_no_notice(tmp_path: Path) -> None:
    told: Told = []
    work = clockwork(tmp_path, "ptp", told)
    (tmp_path / "steer").mkdir()
    state = tmp_path / "steer" / "7.state"
    for word in ("waiting", "slewing", "slewing", "steady"):
        state.write_text(f"v=1\njob=7\nclock=ptp\nstate={word}\nwhy=\n")
        work.rows()
    assert [text for _, text, _ in told] == [
        "--fabric-clock=ptp: slewing",
        "--fabric-clock=ptp: steady",
    ]
    assert work.notice == ""


@pytest.mark.parametrize("text", ["", "v=9", "\x00"])
def test_a_damaged_state_harms_nobody(tmp_path: Path, text: str) -> None:
    told: Told = []
    work = clockwork(tmp_path, "system", told)
    (tmp_path / "steer").mkdir()
    (tmp_path / "steer" / "7.state").write_text(text)
    for _ in range(3):
        assert work.rows() == ([], [])
    assert len(told) <= 1


def test_a_job_that_asked_for_nothing_is_told_nothing(tmp_path: Path) -> None:
    told: Told = []
    assert clockwork(tmp_path, "page", told).rows() == ([], [])
    assert told == []
