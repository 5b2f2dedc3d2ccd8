"""fabric-steer: a clock of the node follows job time, and is put back. No clock of this machine is
touched: tests/c/clock/standin.c answers in the kernel's place."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fabricctl import built
from fabricctl.clock import steering
from fabricctl.clock.page import Line, PageWriter
from tests.support.clock_page import sure
from tests.support.standin_clock import EPERM, STA_PLL, STA_UNSYNC, StandIn, build, environment

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="starts as root, to lose it"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
]
NOBODY = 65_534
PERIOD_MS = 10
WAIT_S = 60.0  # a loaded machine; what is waited for takes some periods


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled once (0.2 s)."""
    directory = tmp_path_factory.mktemp("standin")
    for parent in (directory, *directory.parents[:2]):
        parent.chmod(0o755)  # preloaded by root, and it stays when root is lost
    return build(directory)


class Node:
    """A node's directories, its stand-in clock, and a page that runs with CLOCK_MONOTONIC_RAW."""

    def __init__(self, root: Path, library: Path) -> None:
        self.root = root
        self.leases, self.watch, self.proc = root / "steer", root / "job", root / "proc"
        for path in (self.leases, self.watch, self.proc):
            path.mkdir()
        self.clock = StandIn(root / "clock")
        self.page = root / "page"
        self.line = Line(time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), time.time_ns(), 0.0)
        self._environment = environment(library, self.clock)
        self._children: list[subprocess.Popen[bytes]] = []

    def write_page(self, **changes: float) -> None:
        writer = PageWriter(self.page, 7, 0)
        writer.write(self.line, sure(self.line.raw_ns, **changes))
        self.page.chmod(0o644)
        writer.close()

    def off_ns(self) -> float:
        """How far the clock is ahead of job time now."""
        raw_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        return self.clock.off_ns(self.line.at(raw_ns), raw_ns)

    def start(self, job: int = 7, clock: str = "system", rails: tuple[str, ...] = ()) -> int:
        """The pid; it has begun to run."""
        setting = steering.Setting(
            job, clock, self.page, self.leases, self.state_file(job), self.watch,
            NOBODY, NOBODY, rails,
        )  # fmt: skip
        extra = f"period_ms={PERIOD_MS}\nproc={self.proc}\ncgroups={self.root}\n"
        child = subprocess.Popen(
            [built.find("clock", steering.NAME), "run"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment,
        )
        assert child.stdin is not None
        child.stdin.write((setting.text() + extra).encode())
        child.stdin.close()
        self._children.append(child)
        return child.pid

    def restore(self, *keep: int) -> str:
        argv = [
            str(built.find("clock", steering.NAME)),
            "restore",
            str(self.leases),
            "-",
            *map(str, keep),
        ]
        done = subprocess.run(
            argv, env=self._environment, check=True, capture_output=True, text=True
        )
        return done.stdout

    def state_file(self, job: int = 7) -> Path:
        return self.leases / f"{job}.state"

    def state(self, job: int = 7) -> steering.State | None:
        return steering.read_state(self.state_file(job))

    def wait(self, done: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not done():
            assert time.monotonic() < deadline_s, f"not {what}: {self.state()}, {self.off_ns()} ns"
            time.sleep(0.005)

    def wait_state(self, state: str, job: int = 7) -> steering.State:
        def reached() -> bool:
            found = self.state(job)
            return found is not None and found.state == state

        self.wait(reached, state)
        found = self.state(job)
        assert found is not None
        return found

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends the last one; its exit status."""
        child = self._children[-1]
        child.send_signal(number)
        return child.wait(WAIT_S)

    def status(self) -> int:
        """Of the last one, which ends by itself."""
        return self._children[-1].wait(WAIT_S)

    def close(self) -> None:
        for child in self._children:
            child.kill()
            child.wait()
            assert child.stderr is not None
            child.stderr.close()


@pytest.fixture
def node(library: Path) -> Iterator[Node]:
    # Not below pytest's own, which nobody but root may enter.
    with tempfile.TemporaryDirectory(prefix="steer") as root:
        Path(root).chmod(0o755)
        made = Node(Path(root), library)
        yield made
        made.close()


def test_a_clock_that_drifts_is_led_to_job_time_without_a_step(node: Node) -> None:
    node.clock.set(drift_ppb=30_000.0, shown_ns=node.clock.get("shown_ns") + 3_000)
    node.write_page()
    node.start()
    node.wait(
        lambda: abs(node.off_ns()) < 1_000 and abs(node.clock.freq_ppb + 30_000) < 10_000, "close"
    )
    assert node.clock.get("steps") == 0
    found = node.wait_state("steady")
    assert [one.name for one in found.clocks] == ["system"]
    assert node.end() == 0
    assert node.clock.freq_ppb == 0


def test_what_was_set_before_is_put_back_at_the_end(node: Node) -> None:
    node.clock.set(freq=-655_360)  # -10 ppm
    node.write_page()
    node.start()
    node.wait(lambda: node.clock.get("sets") > 3, "steered")
    assert node.end() == 0
    assert node.clock.get("freq") == -655_360


def test_it_ends_by_itself_when_the_job_is_gone(node: Node) -> None:
    node.clock.set(freq=1_000, drift_ppb=5_000.0)
    node.write_page()
    node.start()
    node.wait(lambda: node.clock.get("sets") > 3, "steered")
    node.watch.rmdir()
    assert node.status() == 0
    assert node.clock.get("freq") == 1_000


def test_after_kill_9_the_clock_is_put_back(node: Node) -> None:
    node.clock.set(freq=77, drift_ppb=20_000.0)
    node.write_page()
    node.start()
    node.wait(lambda: node.clock.get("sets") > 3, "steered")
    node.end(signal.SIGKILL)
    assert node.clock.get("freq") != 77
    assert node.restore(7) == ""  # its job goes on with it
    assert node.clock.get("freq") != 77
    assert node.restore() == "system: put back, job 7\n"
    assert node.clock.get("freq") == 77
    assert list(node.leases.glob("*.lease")) == []
    assert node.restore() == ""


def test_after_kill_9_the_next_one_goes_on_and_remembers_what_was_there(node: Node) -> None:
    node.clock.set(freq=77, drift_ppb=20_000.0)
    node.write_page()
    node.start()
    node.wait(lambda: node.clock.get("sets") > 3, "steered")
    node.end(signal.SIGKILL)
    node.start()
    sets = node.clock.get("sets")
    node.wait(lambda: node.clock.get("sets") > sets + 3, "steered again")
    assert node.end() == 0
    assert node.clock.get("freq") == 77


def test_after_kill_9_before_it_set_what_it_wrote_down_the_next_one_goes_on(node: Node) -> None:
    node.clock.set(freq=77, drift_ppb=20_000.0)
    node.write_page()
    node.start()
    node.wait(lambda: node.clock.get("sets") > 3, "steered")
    node.end(signal.SIGKILL)
    lease, freq = node.leases / "system.lease", node.clock.get("freq")
    given = dict(line.split("=") for line in lease.read_text().split())
    given |= {"ours": str(freq + 5_000), "older": str(freq)}
    lease.write_text("".join(f"{key}={value}\n" for key, value in given.items()))
    node.start()
    sets = node.clock.get("sets")
    node.wait(lambda: node.clock.get("sets") > sets + 3, "steered again")
    assert node.end() == 0
    assert node.clock.get("freq") == 77


def test_one_that_somebody_else_set_since_is_left_to_them(node: Node) -> None:
    node.clock.set(freq=77, drift_ppb=20_000.0)
    node.write_page()
    node.start()
    node.wait(lambda: node.clock.get("sets") > 3, "steered")
    node.end(signal.SIGKILL)
    node.clock.set(freq=123_456)
    node.restore()
    assert node.clock.get("freq") == 123_456


def test_it_gives_up_when_somebody_else_sets_the_clock(node: Node) -> None:
    node.clock.set(freq=77)
    node.write_page()
    node.start()
    node.wait(lambda: node.clock.get("sets") > 3, "steered")
    child = node._children[-1]

    def seen() -> bool:
        """It may stand between its look and its own setting, which then wins: set once more."""
        child.send_signal(signal.SIGSTOP)
        node.clock.set(freq=9_000_000)
        child.send_signal(signal.SIGCONT)
        return child.poll() is not None

    node.wait(seen, "given up")
    assert node.status() == steering.LEFT
    state = node.state()
    assert state is not None
    assert (state.state, "somebody else steers the system clock" in state.why) == ("left", True)
    assert node.clock.get("freq") == 9_000_000
    node.restore()
    assert node.clock.get("freq") == 9_000_000


@pytest.mark.parametrize(
    ("status", "why"), [(STA_UNSYNC | STA_PLL, "STA_PLL"), (0, "STA_UNSYNC is off")]
)
def test_a_clock_that_the_kernel_calls_disciplined_is_refused(
    node: Node, status: int, why: str
) -> None:
    node.clock.set(status=status)
    node.write_page()
    node.start()
    assert node.status() == steering.REFUSED
    assert why in node.wait_state("refused").why
    assert node.clock.get("sets") == 0


def process(node: Node, comm: str, *words: str) -> None:
    place = node.proc / "4711"
    (place / "fd").mkdir(parents=True)
    (place / "comm").write_text(f"{comm}\n")
    (place / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))


@pytest.mark.parametrize(
    "words",
    [
        ("chronyd", "-F", "1"),
        ("ntpd",),
        ("systemd-timesyn",),
        ("ptp4l", "-S", "-i", "eth0"),
        ("phc2sys", "-a"),
    ],
)
def test_a_clock_that_a_program_steers_is_refused(node: Node, words: tuple[str, ...]) -> None:
    process(node, words[0], *words)
    node.write_page()
    node.start()
    assert node.status() == steering.REFUSED
    said = f"{words[0]} (pid 4711) steers the system clock of this node"
    assert node.wait_state("refused").why == said
    assert node.clock.get("sets") == 0


@pytest.mark.parametrize(
    "words",
    [("chronyd", "-x"), ("ptp4l", "-S", "--free_running=1"), ("chronyc", "tracking"), ("sleep",)],
)
def test_a_program_that_only_looks_is_none(node: Node, words: tuple[str, ...]) -> None:
    process(node, words[0], *words)
    node.write_page()
    node.start()
    node.wait(lambda: node.clock.get("sets") > 1, "steered")
    assert node.end() == 0


def test_a_service_of_systemd_is_an_owner_whatever_its_program(node: Node) -> None:
    (node.root / "system.slice" / "systemd-timesyncd.service").mkdir(parents=True)
    node.start()
    assert node.status() == steering.REFUSED
    assert "systemd-timesyncd.service" in node.wait_state("refused").why


def test_a_program_that_comes_later_gets_the_clock_as_it_was(node: Node) -> None:
    node.clock.set(freq=77, drift_ppb=20_000.0)
    node.write_page()
    node.start()
    node.wait(lambda: node.clock.get("sets") > 3, "steered")
    process(node, "chronyd", "chronyd")
    assert node.status() == steering.LEFT
    assert "chronyd" in node.wait_state("left").why
    assert node.clock.get("freq") == 77


def test_a_second_job_of_the_node_is_refused_and_told_whose_clock_it_is(node: Node) -> None:
    node.write_page()
    node.start(7)
    node.wait(lambda: node.clock.get("sets") > 1, "steered")
    node.start(8)
    assert node.status() == steering.REFUSED
    why = node.wait_state("refused", 8).why
    assert why == "job 7 steers the system clock of this node already"
    sets = node.clock.get("sets")
    node.wait(lambda: node.clock.get("sets") > sets, "still steered by the first")


def test_a_clock_too_far_off_is_refused_with_what_to_do(node: Node) -> None:
    node.clock.set(shown_ns=node.clock.get("shown_ns") + 3 * 10**9, freq=5)
    node.write_page()
    node.start()
    assert node.status() == steering.REFUSED
    assert "off job time, which would take 250 minutes" in node.wait_state("refused").why
    assert node.clock.get("freq") == 5


def test_it_waits_for_job_time_and_holds_when_that_is_lost(node: Node) -> None:
    node.clock.set(drift_ppb=10_000.0)
    node.start()
    node.wait_state("waiting")
    assert node.clock.get("sets") == 0
    node.write_page()
    node.wait(lambda: node.clock.get("sets") > 5, "steered")
    node.write_page(holdover_raw_ns=1)
    node.wait_state("holding")
    freq, looked_ns = node.clock.get("freq"), node.state_file().stat().st_mtime_ns
    node.wait(lambda: node.state_file().stat().st_mtime_ns > looked_ns, "told again")
    assert node.clock.get("freq") == freq  # goes on at the rate that it learned
    node.write_page()
    node.wait(lambda: (s := node.state()) is not None and s.state != "holding", "followed again")


def test_it_slews_no_faster_than_200_ppm(node: Node) -> None:
    node.clock.set(shown_ns=node.clock.get("shown_ns") - 10**8, freq=65_536 * 7)
    node.write_page()
    node.start()
    node.wait(lambda: node.clock.freq_ppb > 200_000, "slewing")
    assert node.clock.freq_ppb == pytest.approx(207_000, abs=1)
    assert node.wait_state("slewing").clocks[0].found_ppb == pytest.approx(7_000)


def test_without_the_right_to_set_it_is_refused(node: Node) -> None:
    node.clock.set(refuse=EPERM, drift_ppb=9_000.0)
    node.write_page()
    node.start()
    assert node.status() == steering.REFUSED
    assert "Operation not permitted" in node.wait_state("refused").why


def test_it_keeps_no_right_but_to_set_the_time(node: Node) -> None:
    node.write_page()
    pid = node.start()
    node.wait(lambda: node.clock.get("sets") > 1, "steered")
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert status["Uid"].split() == [str(NOBODY)] * 4
    assert status["Groups"].strip() == ""
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 1 << 25  # CAP_SYS_TIME
    assert status["NoNewPrivs"] == "1"


def test_the_clock_of_a_nic_is_steered_without_any_right(node: Node) -> None:
    node.clock.set(phc=3, drift_ppb=20_000.0, status=0)
    node.write_page()
    pid = node.start(clock="ptp", rails=("eth0", "eth1"))  # one card, one clock
    node.wait(lambda: node.clock.get("sets") > 5, "steered")
    assert (node.leases / "ptp3.lease").exists()
    text = Path(f"/proc/{pid}/status").read_text()
    assert "CapEff:\t0000000000000000" in text
    found = node.state()
    assert found is not None
    assert [one.name for one in found.clocks] == ["ptp3"]
    assert node.end() == 0
    assert node.clock.get("freq") == 0


def test_a_nic_without_a_clock_is_refused(node: Node) -> None:
    node.write_page()
    node.start(clock="ptp", rails=("eth0",))
    assert node.status() == steering.REFUSED
    assert node.wait_state("refused").why.startswith("eth0: this NIC has no clock of its own")


def test_a_nics_clock_that_somebody_has_open_is_refused(node: Node) -> None:
    node.clock.set(phc=0)
    process(node, "ptp4l", "ptp4l", "-i", "eth0")
    (node.proc / "4711" / "fd" / "5").symlink_to("/dev/full")  # STANDIN_PTP
    node.write_page()
    node.start(clock="ptp", rails=("eth0",))
    assert node.status() == steering.REFUSED
    assert node.wait_state("refused").why == "ptp4l (pid 4711) steers the ptp0 clock of this node"


def test_a_damaged_lease_is_no_obstacle(node: Node) -> None:
    (node.leases / "system.lease").write_bytes(b"\xff" * 50)
    node.write_page()
    node.start()
    node.wait(lambda: node.clock.get("sets") > 1, "steered")
    assert node.end() == 0
    (node.leases / "ptp9.lease").write_text("job=")
    node.restore()
    assert list(node.leases.glob("*.lease")) == []
