"""Never silently unprotected: what users are told, when, and what on_missing=refuse does."""

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabricctl.lab.cluster import Lab
from tests.support.plugstack import PLUGIN, plugstack

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
RUN = "/run/fabrictest"  # written by hand, beside the node service's own
NODES = ("n1", "n2")
ALL = ("n1", "n2", "n3", "n4")
REFUSED = "no task is started, because this site wants none without protection (on_missing=refuse)"


def next_job(lab: Lab) -> int:
    text = lab.exec("ctl", ["scontrol", "show", "config"]).stdout
    found = re.search(r"^NEXT_JOB_ID\s*=\s*(\d+)", text, re.MULTILINE)
    assert found
    return int(found[1])


def status(age_s: float = 0, **changes: str) -> str:
    """The text of a status file."""
    fields = {
        "v": "1",
        "state": "running",
        "nodes": "2",
        "settled": "1",
        "updated_mono_ns": str(time.monotonic_ns() - int(age_s * 1e9)),
        **changes,
    }
    return "".join(f"{key}={value}\n" for key, value in fields.items())


def put(lab: Lab, node: str, job: int, text: str) -> None:
    """Replaces a job's status file, as its agent does."""
    script = f"mkdir -p jobs/{job} && cat >jobs/{job}/.new && mv jobs/{job}/.new jobs/{job}/status"
    lab.exec(node, ["sh", "-c", f"cd {RUN} && {script}"], input=text)


@pytest.fixture
def by_hand(lab: Lab) -> Iterator[Lab]:
    """A run_dir on n1 and n2 that nothing but the test writes to."""
    for node in NODES:
        make = f"mkdir -p {RUN} && cd {RUN} && mkdir -p jobs requests steps && touch node.lock"
        lab.exec(node, ["sh", "-c", make])
    with plugstack(lab, f"run_dir={RUN}"):
        yield lab
    for node in NODES:
        lab.exec(node, ["rm", "-rf", RUN])


@contextlib.contextmanager
def service(lab: Lab, node: str) -> Iterator[None]:
    """Somebody holds node.lock."""
    argv = ["flock", f"{RUN}/node.lock", "sh", "-c", "echo held; exec sleep 1000"]
    line = lab.exec_argv(node, argv)
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        yield
        holder.terminate()


def srun(lab: Lab, *argv: str, nodes: str = "n1,n2") -> subprocess.CompletedProcess[str]:
    return lab.run(["srun", f"-w{nodes}", *argv], check=False)


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Our lines, sorted: nodes speak in any order."""
    return sorted(
        re.sub(r"heard 1\d\d s", "heard 100 s", line.removeprefix("fabric: step: "))
        for line in done.stderr.splitlines()
        if line.startswith("fabric: ")
    )


# At the step's begin --------------------------------------------------------------------------


def test_a_protected_step_is_told_nothing(by_hand: Lab) -> None:
    job = next_job(by_hand)
    for node in NODES:
        put(by_hand, node, job, status())
    done = srun(by_hand, "--fabric-resilience", "echo", "ran")
    assert (done.stdout, done.stderr) == ("ran\nran\n", "")


def test_a_dead_service_is_told_once_by_each_node(by_hand: Lab) -> None:
    done = srun(by_hand, "-n4", "--fabric-resilience", "echo", "ran")
    why = "is not protected: its node service is not running"
    assert told(done) == [f"n1 {why}", f"n2 {why}"]
    assert (done.stdout, done.returncode) == ("ran\n" * 4, 0)


def test_a_missing_prolog_is_told(by_hand: Lab) -> None:
    with service(by_hand, "n1"), service(by_hand, "n2"):
        done = srun(by_hand, "--fabric-resilience", "true")
    why = "is not protected: its prolog did not announce the job"
    assert told(done) == [f"n1 {why}", f"n2 {why}"]


def test_an_agent_that_starts_is_given_time(by_hand: Lab) -> None:
    job = next_job(by_hand)
    for node in NODES:
        by_hand.exec(node, ["touch", f"{RUN}/requests/{job}.start"])
    with service(by_hand, "n1"), service(by_hand, "n2"):
        done = srun(by_hand, "--fabric-resilience", "true")
        found = by_hand.exec("n2", ["find", f"{RUN}/steps", "-type", "f"]).stdout
    assert told(done) == []
    assert found == f"{RUN}/steps/{job}/0\n"


def test_a_silent_agent_is_told(by_hand: Lab) -> None:
    job = next_job(by_hand)
    put(by_hand, "n1", job, status())
    put(by_hand, "n2", job, status(age_s=100))
    done = srun(by_hand, "--fabric-resilience", "true")
    assert told(done) == ["n2 is not protected: its agent was last heard 100 s ago"]


def test_other_nodes_are_told_by_one_that_knows(by_hand: Lab) -> None:
    job = next_job(by_hand)
    put(by_hand, "n1", job, status(age_s=100))
    put(by_hand, "n2", job, status(missing="n[7-8]", unplugged="n9"))
    done = srun(by_hand, "--fabric-resilience", "true")
    assert told(done) == [
        "n1 is not protected: its agent was last heard 100 s ago",
        "n9 not protected: steps ran there without the plugin (absent, or built for another Slurm)",
        "n[7-8] not protected: no agent was heard from there",
    ]


def test_a_step_that_is_off_is_told_nothing(by_hand: Lab) -> None:
    script = "srun --overlap --fabric-resilience=off echo ran"
    done = srun(by_hand, "-n1", "-N1", "--fabric-resilience", "sh", "-c", script, nodes="n1")
    assert told(done) == ["n1 is not protected: its node service is not running"]
    assert done.stdout == "ran\n"


@pytest.mark.parametrize("program", ["sbatch", "salloc", "srun"])
def test_the_users_stderr_is_reached_from_every_kind_of_job(by_hand: Lab, program: str) -> None:
    wanted = "fabric: step: n1 is not protected: its node service is not running"
    if program == "sbatch":
        file = by_hand.host_path("ctl", "/shared/home/alice/err")
        file.unlink(missing_ok=True)
        options = ["-e", "err", "-wn1", "--fabric-resilience", "--wrap", "echo done >&2"]
        by_hand.run(["sbatch", *options])
        deadline = time.monotonic() + 20
        while not file.exists() or not file.read_text().endswith("done\n"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        text = file.read_text()
    else:
        inner = ["srun", "true"] if program == "salloc" else ["true"]
        text = by_hand.run([program, "-wn1", "--fabric-resilience", *inner]).stderr
    assert text.splitlines().count(wanted) == 1


# At its end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["sbatch", "srun"])
def test_what_happens_during_a_step_is_told_at_its_end(by_hand: Lab, program: str) -> None:
    job = next_job(by_hand)
    for node in NODES:
        put(by_hand, node, job, status())
    file = by_hand.host_path("ctl", "/shared/home/alice/err")
    file.unlink(missing_ok=True)
    argv = [program, "-w", "n1,n2", "-eerr", "--fabric-resilience"]
    argv += ["--wrap", "sleep 2"] if program == "sbatch" else ["sleep", "2"]
    with subprocess.Popen(by_hand.exec_argv("ctl", argv, user="alice")) as running:
        wait_running(by_hand, job)
        put(by_hand, "n1", job, status(problem="its journal cannot be written", missing="n2"))
        assert running.wait(30) == 0
    text = wait_text(file, "fabric: ")
    assert sorted(text.splitlines()) == [
        "fabric: step: n1 is not protected: its journal cannot be written",
        "fabric: step: n2 not protected: no agent was heard from there",
    ]


def wait_running(lab: Lab, job: int) -> None:
    deadline = time.monotonic() + 20
    argv = ["squeue", "-h", "-o", "%t", "-j", str(job)]
    while lab.exec("ctl", argv, check=False).stdout != "R\n":
        assert time.monotonic() < deadline, f"job {job} does not run"
        time.sleep(0.05)
    time.sleep(0.5)


def wait_text(file: Path, word: str) -> str:
    deadline = time.monotonic() + 20
    while not file.exists() or word not in file.read_text():
        assert time.monotonic() < deadline, f"{word!r} is not in {file}"
        time.sleep(0.05)
    time.sleep(0.2)  # the other line
    return file.read_text()


def test_what_was_told_at_the_begin_is_not_told_again(by_hand: Lab) -> None:
    job = next_job(by_hand)
    put(by_hand, "n1", job, status(missing="n2", problem="no rail is up"))
    done = srun(by_hand, "-n2", "--fabric-resilience", "sleep", "1", nodes="n1")
    assert told(done) == [
        "n1 is not protected: no rail is up",
        "n2 not protected: no agent was heard from there",
    ]


# on_missing=refuse ----------------------------------------------------------------------------


@pytest.fixture
def refusing(by_hand: Lab) -> Iterator[Lab]:
    with plugstack(by_hand, f"run_dir={RUN}", "on_missing=refuse"):
        yield by_hand


def test_no_task_starts_on_a_node_that_is_not_protected(refusing: Lab) -> None:
    job = next_job(refusing)
    put(refusing, "n1", job, status())
    done = srun(refusing, "--kill-on-bad-exit=0", "--fabric-resilience", "hostname")
    assert done.returncode == 78
    assert done.stdout == "n1\n"
    assert told(done) == [
        "n2 is not protected: its node service is not running",
        f"n2: {REFUSED}",
    ]
    assert "Exited with exit code 78" in done.stderr


def test_no_task_starts_when_another_node_is_not_protected(refusing: Lab) -> None:
    put(refusing, "n1", next_job(refusing), status(missing="n2"))
    done = srun(refusing, "--fabric-resilience", "hostname", nodes="n1")
    assert (done.returncode, done.stdout) == (78, "")
    assert told(done) == ["n1: " + REFUSED, "n2 not protected: no agent was heard from there"]


def test_a_refused_batch_job_fails_with_78_and_drains_nothing(refusing: Lab) -> None:
    file = refusing.host_path("ctl", "/shared/home/alice/refused")
    options = ["--parsable", "--requeue", "-wn1", "-o", "refused", "--fabric-resilience"]
    job = refusing.run(["sbatch", *options, "--wrap", "echo ran"]).stdout.strip()
    deadline = time.monotonic() + 20
    text = ""
    while "JobState=FAILED" not in text:
        assert time.monotonic() < deadline, text
        time.sleep(0.1)
        text = refusing.exec("ctl", ["scontrol", "-o", "show", "job", job]).stdout
    assert " ExitCode=78:0 " in text
    assert " Restarts=0 " in text
    assert file.read_text().splitlines() == [
        "fabric: step: n1 is not protected: its node service is not running",
        f"fabric: step: n1: {REFUSED}",
    ]
    assert refusing.slurm_states()["n1"] in ("idle", "comp", "mix")


def test_a_step_is_not_refused_while_agents_start(refusing: Lab) -> None:
    job = next_job(refusing)
    refusing.exec("n1", ["touch", f"{RUN}/requests/{job}.start"])
    with service(refusing, "n1"):
        done = srun(refusing, "--fabric-resilience", "echo", "ran", nodes="n1")
    assert (done.stdout, told(done)) == ("ran\n", [])


def test_jobs_and_steps_without_the_option_are_not_refused(refusing: Lab) -> None:
    done = srun(refusing, "echo", "ran")
    assert (done.stdout, done.stderr) == ("ran\nran\n", "")


# With real agents -----------------------------------------------------------------------------


@pytest.fixture
def foreign_plugin(lab: Lab, tmp_path: Path) -> str:
    """Our plugin as built for a Slurm that is not the one that runs; its path on the nodes."""
    include = tmp_path / "include"
    shutil.copytree("/usr/include/slurm", include / "slurm")
    version = include / "slurm" / "slurm_version.h"
    text = re.sub(r"(SLURM_VERSION_NUMBER) 0x\w+", r"\1 0x170b00", version.read_text())
    version.write_text(text)
    argv = ["make", "-s", "-C", str(ROOT / "spank_plugin"), f"BUILD={tmp_path / 'build'}"]
    subprocess.run([*argv, f"SLURM_INCLUDE={include}"], check=True, timeout=60)
    assert (tmp_path / "build" / "slurm-version").read_text() == "23.11.0\n"
    shutil.copy(tmp_path / "build" / "fabric.so", lab.paths.shared / "foreign.so")
    return "/shared/foreign.so"


@contextlib.contextmanager
def plugstack_of_node(lab: Lab, node: str, line: str) -> Iterator[None]:
    """This node alone has another plugstack.conf."""
    file = "/etc/slurm/plugstack.conf"
    mount = f"cat >/run/plugstack && mount --bind /run/plugstack {file}"
    lab.exec(node, ["sh", "-c", mount], input=line + "\n")
    try:
        yield
    finally:
        lab.exec(node, ["umount", file])


@pytest.mark.parametrize("why", ["absent", "foreign"])
def test_a_node_without_a_fitting_plugin_is_told_of_by_the_others(
    lab: Lab, foreign_plugin: str, why: str
) -> None:
    line = f"optional {foreign_plugin}" if why == "foreign" else "# nothing"
    with plugstack_of_node(lab, "n3", line):
        done = srun(lab, "--fabric-resilience", "sleep", "9", nodes="n1,n2,n3,n4")
        log = lab.exec("n3", ["tail", "-n", "50", "/var/log/slurm/slurmd.log"]).stdout
    assert done.returncode == 0
    wanted = (
        "n3 not protected: steps ran there without the plugin (absent, or built for another Slurm)"
    )
    assert set(told(done)) == {wanted}
    assert ("Incompatible Slurm plugin" in log) == (why == "foreign")
    assert lab.slurm_states()["n3"] in ("idle", "comp")


def test_a_node_whose_prolog_cannot_announce_is_told_of_by_itself_and_the_others(
    lab: Lab,
) -> None:
    requests = "/run/fabricctl/requests"
    lab.exec("n3", ["mount", "-t", "tmpfs", "-o", "ro,mode=711", "none", requests])
    try:
        done = srun(lab, "--fabric-resilience", "sleep", "12", nodes="n1,n2,n3,n4")
    finally:
        lab.exec("n3", ["umount", requests])
    assert done.returncode == 0
    assert set(told(done)) == {
        "n3 is not protected: its prolog did not announce the job",
        "n3 not protected: no agent was heard from there",
    }
    assert lab.slurm_states()["n3"] in ("idle", "comp")


def test_a_required_plugin_for_another_slurm_stops_submission_loudly(
    lab: Lab, foreign_plugin: str
) -> None:
    with plugstack(lab, line=f"required {foreign_plugin}"):
        done = lab.run(["srun", "true"], check=False)
    assert done.returncode != 0
    assert "Incompatible Slurm plugin" in done.stderr
    with plugstack(lab, line=f"optional {foreign_plugin}"):
        done = lab.run(["srun", "--fabric-resilience", "true"], check=False)
    assert done.returncode != 0
    assert "unrecognized option '--fabric-resilience'" in done.stderr


def test_the_plugin_is_the_one_that_this_checkout_builds() -> None:
    newest = max(path.stat().st_mtime for path in (ROOT / "spank_plugin").glob("*.[ch]"))
    assert PLUGIN.stat().st_mtime >= newest, "make -C spank_plugin"
