"""A lab comes from nothing, heals what died, and leaves nothing, whatever was killed meanwhile."""

import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabricctl.errors import LabError
from fabricctl.lab import cgroups
from fabricctl.lab.cluster import Lab
from fabricctl.lab.rtnl import Rtnl
from fabricctl.lab.spec import LabSpec
from tests.support.labname import lab_name

pytestmark = pytest.mark.lab

NAME = lab_name("life")
SMALL = LabSpec(name=NAME, nodes=2, rails=1, bare=True)


def cli(*words: str) -> list[str]:
    return [sys.executable, "-m", "fabricctl.cli.main", "lab", *words]


@pytest.fixture
def small() -> Iterator[Lab]:
    """A lab that is not up yet, and is gone afterwards."""
    lab = Lab(SMALL)
    lab.down()
    yield lab
    lab.down()


def traces(name: str = NAME) -> dict[str, object]:
    """Everything on this machine that a lab of that name could leave."""
    mark = f"fabricctl-lab/{name}"
    here = f"/proc/{os.getpid()}"
    return {
        "mounts": [
            line for line in Path(here, "mountinfo").read_text().splitlines() if mark in line
        ],
        "files": sorted(str(path) for path in Path("/run/fabricctl-lab").glob(f"{name}*")),
        "groups": sorted(
            str(path) for path in Path("/sys/fs/cgroup").glob(f"*/fabricctl-lab-{name}")
        ),
        "processes": [
            words
            for path in Path("/proc").glob("[0-9]*")
            if f"fabricctl-lab/{name}/" in (words := command_line(path))
        ],
        "links": Path(here, "net/dev").read_text().count(":"),
    }


def command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def host() -> dict[str, bytes]:
    """Files of this machine that a lab has no business with."""
    names = ("passwd", "group", "shadow", "hosts", "nsswitch.conf", "slurm/plugstack.conf")
    files = [Path("/etc", name) for name in names]
    return {str(file): file.read_bytes() for file in files if file.exists()}


def test_from_nothing_to_idle_and_back_to_nothing() -> None:
    lab = Lab(LabSpec(name=NAME))
    lab.down()
    before, machine = traces(), host()
    begin_s = time.monotonic()
    lab.up()
    took_s = time.monotonic() - begin_s
    try:
        assert set(lab.slurm_states().values()) == {"idle"}
        assert len(lab.slurm_states()) == 5
    finally:
        lab.down()
    assert traces() == before
    assert host() == machine
    assert not any(before[what] for what in ("mounts", "files", "groups", "processes"))
    # On a machine that is busy with other things as well, as long as these leave it.
    assert took_s < 5 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def test_down_of_nothing_is_content(small: Lab) -> None:
    small.down()
    done = subprocess.run(cli("down", "--name", NAME), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_second_up_changes_nothing(small: Lab) -> None:
    small.up()
    pids = [node.pid for node in small.status()]
    begin_s = time.monotonic()
    small.up()
    assert [node.pid for node in small.status()] == pids
    assert time.monotonic() - begin_s < 3


def test_up_with_other_settings_is_refused_and_the_lab_stays(small: Lab) -> None:
    small.up()
    other = Lab(LabSpec(name=NAME, nodes=3, rails=1, bare=True))
    with pytest.raises(LabError, match=r"other settings \(2 nodes, 1 rails\): take it down first"):
        other.up()
    assert [node.state for node in small.status()] == ["up"] * 3


def test_up_heals_what_was_killed_one_by_one(small: Lab) -> None:
    """Every process of the lab, killed alone, then up: all is there again."""
    small.up()
    roles = sorted({role(pid) for pid in small.processes()})
    assert len(roles) >= 4
    for word in roles:
        for pid in small.processes():
            if role(pid) == word:
                os.kill(pid, signal.SIGKILL)
                break
        small.up()
        services = [one for node in small.status() for one in node.services.values()]
        assert len(services) == 6
        assert all(one["up"] for one in services), word
        assert small.run(["srun", "-p", "all", "-N2", "hostname"]).stdout.split() != []


@pytest.mark.parametrize("what", ["fabricctl.lab.init", "slurmctld", "munged", "slurmd"])
def test_up_continues_what_was_stopped(small: Lab, what: str) -> None:
    small.up()
    pid = next(pid for pid in small.processes() if what in command_line(Path(f"/proc/{pid}")))
    os.kill(pid, signal.SIGSTOP)
    small.up()
    assert small.run(["srun", "-p", "all", "-N2", "hostname"]).returncode == 0


def test_a_job_right_after_a_node_was_healed_runs(small: Lab) -> None:
    """Slurm knows the rebooted node by the time that `up` returns."""
    small.up()
    for _ in range(3):
        small.fault("node-kill", "n1")
        small.up()
        done = small.run(["srun", "-p", "all", "-N2", "hostname"])
        assert sorted(done.stdout.split()) == ["n1", "n2"]


def role(pid: int) -> str:
    return command_line(Path(f"/proc/{pid}")).rpartition("/run/fabricctl-lab")[0] or command_line(
        Path(f"/proc/{pid}")
    )


def test_up_heals_links_and_switches_that_were_broken_by_hand(small: Lab) -> None:
    small.up()
    enter = ["nsenter", f"--net={small.paths.switch_netns('r0')}", "ip", "link"]
    subprocess.run([*enter, "del", "n1"], check=True)
    subprocess.run([*enter, "set", "n2", "nomaster"], check=True)
    subprocess.run([*enter, "set", "ctl", "down"], check=True)
    small.up()
    for node in ("n1", "n2"):
        assert small.exec(node, ["cat", "/sys/class/net/r0/carrier"]).stdout == "1\n"
    done = small.exec("n1", ["ip", "-br", "addr", "show", "r0"])
    assert small.spec.address("n1", "r0") in done.stdout


@pytest.mark.parametrize("seed", range(6))
def test_a_tool_killed_in_the_middle_leaves_nothing_that_down_does_not_find(
    small: Lab, seed: int
) -> None:
    before = traces()
    chance = random.Random(seed)
    command = cli("up", "--name", NAME, "--nodes", "2", "--rails", "1", "--bare")
    for _ in range(3):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            time.sleep(chance.uniform(0.05, 0.9))
            process.kill()
    if seed % 2:
        Lab(SMALL).up()
        assert set(Lab(SMALL).slurm_states().values()) == {"idle"}
    small.down()
    time.sleep(0.3)  # what was starting when the tool died has come to the fore by now
    assert traces() == before


def test_what_a_killed_tool_left_half_made_is_completed(small: Lab) -> None:
    """A version 1 cpuset is born empty, and an empty one takes no process and no child's CPUs; a
    node calls itself over its loopback interface, which a new namespace has down."""
    small.up()
    for node in SMALL.all_nodes:
        small.nodes.kill(node)
    cgroups.remove(NAME)
    for tree in cgroups.hierarchies():
        tree.group(NAME).mkdir()
    with Rtnl(small.paths.node_netns("ctl")) as net:
        net.set_up(net.links()["lo"].index, False)
    small.up()
    assert set(small.slurm_states().values()) == {"idle"}


def test_down_leaves_nothing_of_a_lab_with_faults_and_jobs(small: Lab) -> None:
    before = traces()
    small.up()
    small.run(["sbatch", "-p", "all", "-N2", "--wrap", "srun sleep 1000"])
    small.fault("flap", "n1", "r0", period_s=0.1)
    small.fault("freeze", "n2")
    small.fault("cut", "n1", "m0", for_s=600)
    small.down()
    assert traces() == before


def test_two_ups_at_once_make_one_lab(small: Lab) -> None:
    command = cli("up", "--name", NAME, "--nodes", "2", "--rails", "1", "--bare")
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.communicate(timeout=60)
        assert process.returncode == 0
    inits = [pid for pid in small.processes() if "fabricctl.lab.init" in role(pid)]
    assert len(inits) == 3


def test_labs_of_two_names_live_side_by_side(small: Lab) -> None:
    small.up()
    with Lab(LabSpec(name=f"{NAME}-b", nodes=2, rails=1, bare=True)) as other:
        small.fault("switch-dead", "r0")
        assert other.exec("n1", ["cat", "/sys/class/net/r0/carrier"]).stdout == "1\n"
        assert other.run(["srun", "-p", "all", "-N2", "hostname"]).returncode == 0
    assert small.run(["srun", "-N1", "hostname"]).returncode == 0
    assert not any(traces(f"{NAME}-b")[what] for what in ("mounts", "files", "groups", "processes"))


def test_a_dead_lab_still_pins_no_file_system_of_another(small: Lab) -> None:
    """A node's mount namespace holds nothing but what the node sees."""
    small.up()
    with Lab(LabSpec(name=f"{NAME}-b", nodes=1, rails=1, bare=True)) as other:
        shown = other.exec("n1", ["cat", "/proc/self/mountinfo"]).stdout
    assert f"/{NAME}/" not in shown
    assert len(shown.splitlines()) < 60


@pytest.mark.parametrize(
    ("argv", "status"),
    [(["true"], 0), (["sh", "-c", "exit 3"], 3), (["sh", "-c", "kill -TERM $$"], -15)],
)
def test_exec_gives_back_the_commands_status(small: Lab, argv: list[str], status: int) -> None:
    small.up()
    done = subprocess.run(cli("exec", "--name", NAME, "n1", "--", *argv), check=False)
    assert done.returncode == status


def test_exec_runs_as_the_user_from_its_home(small: Lab) -> None:
    small.up()
    words = ["sh", "-c", "id -un; pwd; echo $HOME; hostname; command -v srun fabricctl"]
    done = subprocess.run(
        cli("exec", "--name", NAME, "-u", "bob", "n2", "--", *words),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.split()
    assert lines[:4] == ["bob", "/shared/home/bob", "/shared/home/bob", "n2"]
    assert lines[4] == "/usr/bin/srun"


def test_exec_passes_the_terminal_on(small: Lab) -> None:
    small.up()
    said = bytearray()

    def read(fd: int) -> bytes:
        data = os.read(fd, 1024)
        said.extend(data)
        return data

    words = ["sh", "-c", "test -t 0 && test -t 1 && stty size >/dev/null && echo terminal"]
    assert pty.spawn(cli("exec", "--name", NAME, "n1", "--", *words), read) == 0
    assert b"terminal" in said


def test_a_command_that_outlives_its_time_is_ended_on_the_node(small: Lab) -> None:
    small.up()
    with pytest.raises(subprocess.TimeoutExpired):
        small.exec("n1", ["sleep", "4321"], timeout_s=0.5)
    time.sleep(0.3)
    assert "sleep 4321" not in small.exec("n1", ["ps", "ax"]).stdout


def test_status_tells_scripts_what_lives(small: Lab) -> None:
    small.up()
    small.fault("kill", "n1", "slurmd")
    done = subprocess.run(cli("status", "--name", NAME, "--json"), capture_output=True, check=True)
    told = json.loads(done.stdout)
    assert told["v"] == 1
    assert [node["name"] for node in told["nodes"]] == ["ctl", "n1", "n2"]
    assert told["nodes"][1]["services"]["slurmd"]["up"] is False
    assert told["nodes"][2]["slurm"] == "idle"
    assert [fault["id"] for fault in told["faults"]] == ["kill.n1.slurmd"]
    assert Path(told["fault_log"]).exists()


def test_nodes_cannot_write_what_is_the_machines(small: Lab) -> None:
    small.up()
    checkout = str(Path(__file__).parents[2])
    for place in ("/usr", "/usr/bin", checkout):
        done = small.exec("n1", ["touch", f"{place}/written-by-a-node"], check=False)
        assert "Read-only file system" in done.stderr
    small.exec("n1", ["touch", "/etc/written-by-a-node", "/root/x", "/var/tmp/x"])
    assert not Path("/etc/written-by-a-node").exists()


def test_missing_programs_are_named_with_their_packages(
    monkeypatch: pytest.MonkeyPatch, small: Lab
) -> None:
    monkeypatch.setattr("fabricctl.lab.cluster.search_path", lambda: "/bin/nowhere")
    with pytest.raises(Exception, match="apt-get install munge slurm-client slurmctld slurmd util"):
        small.up()
