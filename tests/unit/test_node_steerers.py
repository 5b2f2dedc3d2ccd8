"""The node service's side of --fabric-clock, with a real fabric-steer on a lab's virtual clock."""

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fabricctl import config as configuration
from fabricctl.agent.log import NodeLog
from fabricctl.clock import steering
from fabricctl.errors import DataError
from fabricctl.node import steerers
from fabricctl.node.spawn import Identity
from fabricctl.node.steerers import Steerers
from fabricctl.records import Envelope, JobStart, Steer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="what it starts begins as root")
NOBODY = 65_534


def job(number: int = 7, clock: Steer = "system", **changes: object) -> JobStart:
    start = JobStart(
        number, 1000, "alice", ("n1", "n2"), "n1", "c", Envelope("on", bytes(32), clock=clock)
    )
    return replace(start, **changes)  # type: ignore[arg-type]


class Box:
    """A node's run_dir with the directories of jobs 7 and 8."""

    def __init__(self, root: Path, *allowed: str) -> None:
        self.root, self.log = root, root / "log"
        (root / "jobs" / "7").mkdir(parents=True)
        (root / "jobs" / "8").mkdir()
        defaults = configuration.Config()
        self.config = replace(
            defaults,
            node=replace(defaults.node, run_dir=root),
            clock=replace(defaults.clock, steering=allowed),
        )
        self.service = self.new_service()

    def new_service(self) -> Steerers:
        return Steerers(self.config, Identity(NOBODY, NOBODY), NodeLog(self.log))

    def state(self, number: int = 7) -> steering.State | None:
        return steering.read_state(self.root / "steer" / f"{number}.state")

    def turn_until(self, done: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + 60
        while not done():
            assert time.monotonic() < deadline_s, f"not {what}: {self.log.read_text()}"
            self.service.turn(time.monotonic())
            time.sleep(0.01)

    def pid(self) -> int:
        return steerers.held_leases(self.root / "steer").get(7, 0)

    def end(self) -> None:
        self.service.stop(7, time.monotonic())
        leases = self.root / "steer"
        self.turn_until(lambda: not list(leases.glob("*")), "cleaned up")


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="steer") as name:
        path = Path(name)
        path.chmod(0o755)
        (path / "lab").mkdir()
        monkeypatch.setattr(steerers, "LAB", path / "lab")
        yield path


def test_a_job_that_may_gets_one_and_it_leaves_nothing(root: Path) -> None:
    box = Box(root, "system")
    box.service.start(job(), time.monotonic())
    box.service.start(job(), time.monotonic())  # said twice
    box.turn_until(lambda: (s := box.state()) is not None and s.state == "waiting", "started")
    box.end()
    box.turn_until(lambda: box.service.next_due_s(0.0) is None, "quiet")


def test_one_that_is_killed_is_started_again(root: Path) -> None:
    box = Box(root, "system")
    box.service.start(job(), time.monotonic())
    box.turn_until(lambda: box.pid() > 0, "started")
    first = box.pid()
    os.kill(first, signal.SIGKILL)
    box.turn_until(lambda: box.pid() not in (0, first), "started again")
    box.end()


def test_the_next_service_takes_over_what_lives_and_cleans_up_after_the_dead(root: Path) -> None:
    box = Box(root, "system")
    box.service.start(job(), time.monotonic())
    box.turn_until(lambda: box.pid() > 0, "started")
    pid = box.pid()
    box.service = box.new_service()
    box.service.begin([job()], time.monotonic())
    box.turn_until(lambda: box.pid() == pid, "still held")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    box.service = box.new_service()
    box.service.begin([], time.monotonic())
    box.turn_until(lambda: not list((root / "steer").glob("*")), "cleaned up")


@pytest.mark.parametrize(
    ("start", "why"),
    [
        (job(clock="ptp"), "this site does not allow --fabric-clock=ptp (clock.steering)"),
        (job(nodes=("n1",)), "a job of one node has no job clock"),
        (
            job(envelope=Envelope("observe", bytes(32), clock="system")),
            "the job is only observed here",
        ),
    ],
)
def test_one_that_may_not_is_told_why(root: Path, start: JobStart, why: str) -> None:
    box = Box(root, "system")
    box.service.start(start, time.monotonic())
    state = box.state()
    assert state is not None
    assert (state.state, state.why) == ("refused", why)
    assert why in box.log.read_text()
    box.service.forget(7, time.monotonic())
    assert box.state() is None


def test_by_default_no_site_allows_it(root: Path) -> None:
    box = Box(root, *configuration.Config().clock.steering)
    box.service.start(job(partition="gpu"), time.monotonic())
    state = box.state()
    assert state is not None
    assert state.why == (
        "this site does not allow --fabric-clock=system in partition gpu (clock.steering)"
    )


def test_a_job_that_asks_for_nothing_leaves_no_trace_of_it(root: Path) -> None:
    box = Box(root, "system")
    box.service.start(job(clock="page"), time.monotonic())
    box.service.forget(7, time.monotonic())
    assert not (root / "steer").exists()


def test_a_refusal_of_fabric_steer_is_final_and_logged(root: Path) -> None:
    box = Box(root, "system")
    (root / "lab" / "system").write_text("v=1\nnode_ns=1\nsystem_ns=1\nfreq=0\nstatus=0\n")
    box.service.start(job(), time.monotonic())
    box.turn_until(lambda: "no clock is steered: the kernel says" in box.log.read_text(), "refused")
    box.turn_until(lambda: box.state() is not None, "told")
    box.end()


@pytest.mark.parametrize("text", ["v=2\nstate=steady", "v=1\njob=x", "\xff", "v=1\nstate=odd"])
def test_a_damaged_state_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "7.state").write_text(text, encoding="latin-1")
    with pytest.raises(DataError):
        steering.read_state(tmp_path / "7.state")


def test_a_service_without_the_right_says_what_its_unit_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steerers, "LAB", tmp_path / "none")
    monkeypatch.setattr(steerers, "may_set_clock", lambda: False)
    box = Box(tmp_path, "system")
    box.service.start(job(), time.monotonic())
    state = box.state()
    assert state is not None and "CAP_SYS_TIME" in state.why


def test_the_right_to_set_the_clock_is_looked_up(tmp_path: Path) -> None:
    status = tmp_path / "status"
    for text, may in (
        ("CapEff:\t0000000002000000\n", True),
        ("CapEff:\t00000080008050eb\n", False),
        ("nothing\n", True),
    ):
        status.write_text(text)
        assert steerers.may_set_clock(status) == may
    assert steerers.may_set_clock(tmp_path / "none")
