"""Faults of nodes, services and file systems, on a live Slurm."""

import errno
import subprocess
import time
from collections.abc import Callable

import pytest

from fabricctl.errors import LabError, UsageError
from fabricctl.lab.cluster import Lab
from fabricctl.lab.vclock import VirtualClock
from tests.support.wire import delivered, warm

pytestmark = pytest.mark.lab


def wait_until(what: Callable[[], bool], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


def state(lab: Lab, node: str) -> str:
    return next(item.state for item in lab.status() if item.name == node)


def up(lab: Lab, node: str, service: str) -> bool:
    return bool(lab.nodes.status(node).services[service]["up"])


@pytest.mark.parametrize("kind", ["node-kill", "power-off"])
def test_a_dead_node_runs_nothing_and_comes_back_with_its_disk(lab: Lab, kind: str) -> None:
    lab.exec("n3", ["sh", "-c", "echo kept >/var/tmp/kept; echo gone >/tmp/gone"])
    lab.fault(kind, "n3")
    assert state(lab, "n3") == "down"
    with pytest.raises(LabError, match=f"n3 of lab {lab.name} is down"):
        lab.exec("n3", ["true"])
    assert delivered(lab, "n1", "n3", "r0", count=5) == 0
    lab.heal(kind, "n3")
    assert state(lab, "n3") == "up"
    assert lab.exec("n3", ["cat", "/var/tmp/kept"]).stdout == "kept\n"
    assert lab.exec("n3", ["ls", "/tmp/gone"], check=False).returncode != 0
    lab.up()  # until it takes jobs: the fault's end has booted it, not this
    done = lab.run(["srun", "--fabric-resilience", "-w", "n3", "hostname"])
    assert done.stdout == "n3\n"
    assert "not protected" not in done.stderr


@pytest.mark.parametrize(("kind", "closed"), [("node-kill", True), ("power-off", False)])
def test_a_crash_closes_connections_and_a_power_cut_does_not(
    lab: Lab, kind: str, closed: bool
) -> None:
    warm(lab, "n1", "n3", "r0")
    server = "import socket; s=socket.create_server(('', 5005)); c, _ = s.accept(); c.recv(1)"
    client = (
        "import socket; s=socket.create_connection(('n3-r0', 5005)); print('on', flush=True);"
        "s.settimeout(2); print(repr(s.recv(1)))"
    )
    python = "/usr/bin/python3"
    with (
        subprocess.Popen(lab.exec_argv("n3", [python, "-c", server])) as far,
        subprocess.Popen(
            lab.exec_argv("n1", ["sh", "-c", f'sleep 0.5; exec {python} -c "{client}" 2>&1']),
            stdout=subprocess.PIPE,
            text=True,
        ) as near,
    ):
        assert near.stdout is not None
        assert near.stdout.readline() == "on\n"
        lab.fault(kind, "n3")
        said = near.stdout.read()
        far.wait(10)
    assert ("b''" in said) == closed
    assert ("TimeoutError" in said or "timed out" in said) != closed


def test_a_frozen_node_stands_still_and_goes_on_where_it_was(lab: Lab) -> None:
    counting = "i=0; while sleep 0.02; do i=$((i+1)); echo $i >/var/tmp/count; done"
    with subprocess.Popen(lab.exec_argv("n2", ["sh", "-c", counting])) as process:
        count = lab.host_path("n2", "/var/tmp/count")
        wait_until(lambda: count.exists() and count.read_text() != "")
        lab.fault("freeze", "n2")
        assert state(lab, "n2") == "frozen"
        before = count.read_text()
        time.sleep(0.3)
        assert count.read_text() == before
        assert delivered(lab, "n1", "n2", "r0", count=5) >= 0
        lab.heal("freeze", "n2")
        wait_until(lambda: count.read_text().strip() not in ("", before.strip()))
        process.kill()
    assert state(lab, "n2") == "up"


def test_a_node_that_comes_back_by_itself_goes_ahead_of_nobody(lab: Lab) -> None:
    """Whoever heals at an instant does: its slurmd, and all jobs there, would starve the others."""
    lab.fault("power-off", "n3", for_s=0.5)
    wait_until(lambda: state(lab, "n3") == "up" and up(lab, "n3", "slurmd"))
    policies = lab.exec("n3", ["sh", "-c", "chrt -p $(pidof slurmd); chrt -p 1"]).stdout
    assert policies.count("SCHED_OTHER") == 2


def test_a_frozen_node_can_lose_power_and_come_back(lab: Lab) -> None:
    lab.fault("freeze", "n2")
    lab.fault("power-off", "n2")
    assert state(lab, "n2") == "down"
    lab.heal_all()
    assert state(lab, "n2") == "up"


def test_a_node_with_a_suspended_job_can_lose_power(lab: Lab) -> None:
    """Slurm freezes the job's processes: they do not die before somebody thaws them."""
    made = lab.run(["sbatch", "--parsable", "--no-requeue", "-w", "n3", "--wrap", "sleep 600"])
    job = made.stdout.strip()
    shown = ["squeue", "-h", "-j", job, "-o", "%T"]
    wait_until(lambda: lab.exec("ctl", shown).stdout.strip() == "RUNNING")
    wait_until(lambda: lab.exec("n3", ["pidof", "sleep"], check=False).stdout != "")
    lab.exec("ctl", ["scontrol", "suspend", job])
    wait_until(lambda: lab.exec("ctl", shown).stdout.strip() == "SUSPENDED")
    lab.fault("power-off", "n3")
    assert state(lab, "n3") == "down"
    lab.heal("power-off", "n3")
    assert state(lab, "n3") == "up"
    lab.exec("ctl", ["scancel", job])
    lab.up()


@pytest.mark.parametrize(
    ("node", "service"), [("n1", "slurmd"), ("ctl", "slurmctld"), ("n1", "munged")]
)
def test_a_killed_service_stays_dead_until_it_is_healed(lab: Lab, node: str, service: str) -> None:
    lab.fault("kill", node, service)
    assert not up(lab, node, service)
    time.sleep(1.2)
    assert not up(lab, node, service)
    lab.heal("kill", node, service)
    assert up(lab, node, service)
    # A slurmctld that was killed knows what it saved: a job that has ended since then runs there.
    lab.exec("ctl", ["sh", "-c", "squeue -h -o %A | xargs -r scancel"], check=False)
    wait_until(lambda: lab.slurm_states().get("n1") == "idle")
    assert lab.run(["srun", "-w", "n1", "hostname"]).stdout == "n1\n"


def test_a_fault_whose_time_ends_on_a_frozen_node_ends_after_it(lab: Lab) -> None:
    lab.fault("kill", "n1", "slurmd", for_s=4.0)
    lab.fault("freeze", "n1")
    time.sleep(4.5)
    assert len(lab.in_force()) == 2
    lab.heal("freeze", "n1")
    wait_until(lambda: not lab.in_force())
    assert up(lab, "n1", "slurmd")


def test_the_node_service_is_restarted_within_a_second(lab: Lab) -> None:
    name = "fabricctl-node"
    before = lab.nodes.status("n1").services[name]
    lab.fault("kill", "n1", name)
    wait_until(lambda: up(lab, "n1", name), 2)
    after = lab.nodes.status("n1").services[name]
    assert after["pid"] != before["pid"]
    killed = lab.log()[-1]["mono_ns"]
    assert after["started_mono_ns"] - killed < 1e9


def test_killing_an_unknown_service_names_those_there_are(lab: Lab) -> None:
    with pytest.raises(LabError, match="no service 'slurmx' here; there are: munged, slurmd"):
        lab.fault("kill", "n1", "slurmx")
    assert not lab.in_force()


def test_a_stopped_process_stands_still_and_continues(lab: Lab) -> None:
    argv = ["sh", "-c", "while sleep 0.02; do date +%N >/var/tmp/alive-4711; done"]
    with subprocess.Popen(lab.exec_argv("n4", argv)) as process:
        alive = lab.host_path("n4", "/var/tmp/alive-4711")
        wait_until(alive.exists)
        lab.fault("stop", "n4", "alive-4711")
        before = alive.stat().st_mtime_ns
        time.sleep(0.3)
        assert alive.stat().st_mtime_ns == before
        lab.heal("stop", "n4", "alive-4711")
        wait_until(lambda: alive.stat().st_mtime_ns > before)
        process.kill()


@pytest.mark.parametrize(
    ("words", "directory"),
    [
        (("disk-full", "n2", "spool"), "/var/spool/fabricctl"),
        (("disk-full", "n2", "disk"), "/var/tmp"),
        (("shared-full",), "/shared/home/alice"),
    ],
)
def test_a_full_disk_takes_no_byte_until_it_is_healed(
    lab: Lab, words: tuple[str, ...], directory: str
) -> None:
    file = lab.host_path("n2", directory) / "filler"
    file.write_bytes(b"before")
    lab.fault(*words)
    # Up to the end of the last block there is room.
    with pytest.raises(OSError, match="No space left") as caught, file.open("ab") as stream:
        stream.write(bytes(100_000))
    assert caught.value.errno == errno.ENOSPC
    assert lab.exec("n2", ["df", "--output=avail", directory]).stdout.split()[-1] == "0"
    lab.heal(*words)
    file.write_bytes(bytes(1_000_000))
    file.unlink()


def test_a_virtual_clock_is_shown_to_its_node_and_taken_back(lab: Lab) -> None:
    lab.fault("clock", "n1", offset_ns=5000, drift_ppb=1000.0, wander_ppb=100.0, seed=3)
    text = lab.exec("n1", ["cat", "/run/fabricctl-lab/clock"], user="alice").stdout
    clock = VirtualClock.parse(text)
    assert clock.error_ns(clock.begin_mono_ns) == 5000
    assert clock.error_ns(clock.begin_mono_ns + 10**9) == pytest.approx(6000, abs=500)
    assert lab.exec("n2", ["ls", "/run/fabricctl-lab"]).stdout == ""
    lab.heal("clock", "n1")
    assert lab.exec("n1", ["ls", "/run/fabricctl-lab"]).stdout == ""


def test_every_fault_leaves_a_line_with_both_clocks(lab: Lab) -> None:
    begin_mono_ns, begin_real_ns = time.monotonic_ns(), time.time_ns()
    lab.fault("cut", "n1", "r0")
    lab.heal("cut", "n1", "r0")
    fault, heal = lab.log()[-2:]
    assert (fault["event"], heal["event"]) == ("fault", "heal")
    assert begin_mono_ns < fault["mono_ns"] < heal["mono_ns"] < time.monotonic_ns()
    assert begin_real_ns < fault["real_ns"] < heal["real_ns"] < time.time_ns()
    assert fault["target"] == ["n1", "r0"]
    assert lab.paths.fault_log.stat().st_size > 0


def test_a_fault_on_a_node_that_is_not_there_names_those_that_are(lab: Lab) -> None:
    with pytest.raises(UsageError, match="no node 'n9'; there are: ctl, n1, n2, n3, n4, n5"):
        lab.fault("cut", "n9", "r0")
