"""What each kind of job and step gets from the plugin: environment, key, marks."""

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from fabricctl.lab.cluster import Lab

pytestmark = pytest.mark.lab

SHOW = """#!/bin/sh
key=${SLURM_SPANK_FABRIC_ENVELOPE#*key=}
echo "shown $1 $(hostname) $SLURM_JOB_ID mode=$FABRIC_MODE dir=$FABRIC_JOB_DIR key=${key%%;*}"
"""


@dataclass(frozen=True)
class Shown:
    """What one task found in its environment."""

    what: str
    node: str
    job: str
    mode: str
    directory: str
    key: str


def shown(text: str) -> list[Shown]:
    pattern = r"shown (\S+) (\S+) (\S*) mode=(\S*) dir=(\S*) key=(\S*)"
    return [Shown(*found) for found in re.findall(pattern, text)]


@pytest.fixture
def show(lab: Lab) -> str:
    """A program for tasks to run."""
    file = lab.host_path("ctl", "/shared/home/alice/show")
    file.write_text(SHOW)
    file.chmod(0o755)
    return "/shared/home/alice/show"


def batch(lab: Lab, body: str, *options: str, **environment: str) -> str:
    """The output of a batch job (not by sbatch -W, which looks every ten seconds)."""
    name = f"out-{time.monotonic_ns()}"
    script = f"#!/bin/sh\n{body}\necho all said\n"
    argv = ["sbatch", "-Q", "-o", name, *options]
    lab.exec("ctl", argv, user="alice", input=script, environment=environment)
    return output(lab, name)


def output(lab: Lab, name: str) -> str:
    """A batch job's output, once complete."""
    file = lab.host_path("ctl", f"/shared/home/alice/{name}")
    deadline = time.monotonic() + 30
    while not file.exists() or not (text := file.read_text()).endswith("all said\n"):
        assert time.monotonic() < deadline, file.read_text() if file.exists() else "no output"
        time.sleep(0.05)
    return text


def test_every_step_of_a_batch_job_has_the_jobs_key_and_its_own_mode(lab: Lab, show: str) -> None:
    text = batch(
        lab,
        f"{show} batch; srun {show} plain; srun --fabric-resilience=off {show} off\n"
        f"srun --fabric-resilience=observe {show} observe; srun --fabric-resilience {show} on\n"
        f"srun --export=NONE {show} bare; srun -N1 -n1 sh -c 'srun --overlap -N1 {show} nested'",
        "-wn1,n2",
        "--fabric-resilience",
    )
    found = shown(text)
    modes = {(item.what, item.mode) for item in found}
    assert modes == {
        ("batch", "on"),
        ("plain", "on"),
        ("off", ""),
        ("observe", "observe"),
        ("on", "on"),
        ("bare", "on"),
        ("nested", "on"),
    }
    assert len(found) == 1 + 5 * 2 + 1
    assert len({item.key for item in found}) == 1
    assert len(found[0].key) == 64
    for item in found:
        wanted = f"/run/fabricctl/jobs/{item.job}" if item.mode else ""
        assert item.directory == wanted
    assert "fabric: " not in text


@pytest.mark.parametrize("how", ["option", "environment"])
@pytest.mark.parametrize("program", ["sbatch", "srun", "salloc"])
def test_export_none_changes_nothing(lab: Lab, show: str, program: str, how: str) -> None:
    options = ["-wn1,n2", "--fabric-resilience=observe"] if how == "option" else ["-wn1,n2"]
    environment = {} if how == "option" else {"FABRIC_RESILIENCE": "observe"}
    if program == "sbatch":
        text = batch(lab, f"/usr/bin/srun {show} x", "--export=NONE", *options, **environment)
    else:
        inner = [show, "x"] if program == "srun" else ["srun", "--export=NONE", show, "x"]
        export = ["--export=NONE"] if program == "srun" else []
        argv = [program, *export, *options, *inner]
        text = lab.exec("ctl", argv, user="alice", environment=environment).stdout
    found = shown(text)
    assert {(item.node, item.mode) for item in found} == {("n1", "observe"), ("n2", "observe")}
    assert len({item.key for item in found}) == 1


def test_two_jobs_have_two_keys(lab: Lab, show: str) -> None:
    argv = ["srun", "-N1", "--fabric-resilience", show, "x"]
    keys = {shown(lab.run(argv).stdout)[0].key for _ in range(3)}
    assert len(keys) == 3


INNER = "rm -f inner.out; sbatch -Q -N1 {options} -o inner.out --wrap '{show} inner; echo all said'"


def test_a_job_submitted_from_a_protected_job_is_not_protected_by_that(lab: Lab, show: str) -> None:
    inner = f"srun -N1 -n1 {show} outer; {INNER.format(options='', show=show)}"
    outer = shown(batch(lab, inner, "-N1", "--fabric-resilience", "--fabric-spares=0"))
    assert [item.what for item in outer] == ["outer"]
    text = output(lab, "inner.out")
    assert [(item.mode, item.directory, item.key) for item in shown(text)] == [("", "", "")]


def test_a_job_submitted_from_a_protected_job_has_its_own_key(lab: Lab, show: str) -> None:
    inner = f"{show} outer; {INNER.format(options='--fabric-resilience', show=show)}"
    (outer,) = shown(batch(lab, inner, "-N1", "--fabric-resilience=observe"))
    text = output(lab, "inner.out")
    (found,) = shown(text)
    assert (outer.mode, found.mode) == ("observe", "on")
    assert found.directory == f"/run/fabricctl/jobs/{found.job}"
    assert found.key not in (outer.key, "")


def test_a_step_from_outside_is_the_jobs(lab: Lab, show: str) -> None:
    """srun --jobid from a login shell, which has no envelope."""
    job = lab.run(["sbatch", "--parsable", "-wn1,n2", "--fabric-resilience", "--wrap", "sleep 20"])
    number = job.stdout.strip()
    try:
        wait_for_mark(lab, "n1", number, "batch")
        time.sleep(1)  # the service copies the envelope to the job directory
        argv = ["srun", f"--jobid={number}", "--overlap", show, "x"]
        found = shown(lab.run(argv).stdout)
        assert [item.mode for item in found] == ["on", "on"]
        argv.insert(1, "--fabric-resilience=off")
        assert [item.mode for item in shown(lab.run(argv).stdout)] == ["", ""]
    finally:
        lab.run(["scancel", number])


def wait_for_mark(lab: Lab, node: str, job: str, step: str) -> None:
    deadline = time.monotonic() + 20
    path = f"/run/fabricctl/steps/{job}/{step}"
    while lab.exec(node, ["test", "-e", path], check=False).returncode:
        assert time.monotonic() < deadline, f"no {path} on {node} after 20 s"
        time.sleep(0.1)


def marks(lab: Lab, node: str) -> list[str]:
    """``owner mode size job/step`` of every mark."""
    argv = ["find", "/run/fabricctl/steps", "-type", "f", "-printf", "%U %m %s %P\\n"]
    return sorted(lab.exec(node, argv).stdout.splitlines())


def test_every_step_leaves_its_mark_while_the_job_runs(lab: Lab) -> None:
    script = "#!/bin/sh\nsrun true\nsrun --fabric-resilience=off sleep 20\n"
    argv = ["sbatch", "--parsable", "-wn1,n2", "--fabric-resilience"]
    job = lab.exec("ctl", argv, user="alice", input=script).stdout.strip()
    try:
        wait_for_mark(lab, "n1", job, "1")
        wait_for_mark(lab, "n2", job, "1")
        assert marks(lab, "n1") == [f"0 644 0 {job}/{step}" for step in ("0", "1", "batch")]
        assert marks(lab, "n2") == [f"0 644 0 {job}/{step}" for step in ("0", "1")]
    finally:
        lab.run(["scancel", job])
    deadline = time.monotonic() + 20
    while marks(lab, "n1") or marks(lab, "n2"):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_job_without_the_option_finds_nothing_of_ours(lab: Lab, show: str) -> None:
    text = batch(lab, f"{show} batch; srun {show} step; env; srun env", "-wn1,n2")
    found = shown(text)
    assert [(item.mode, item.directory, item.key) for item in found] == [("", "", "")] * 3
    paths = r"^(PWD|OLDPWD|PATH|COVERAGE_PROCESS_START)=.*$"  # they name where we are
    assert "fabric" not in re.sub(paths, "", text, flags=re.MULTILINE).lower()
    assert marks(lab, "n1") == marks(lab, "n2") == []


def test_a_heterogeneous_job_has_one_key_and_spares_of_each_component(lab: Lab, show: str) -> None:
    options = ["--fabric-resilience", "-N2", "-wn1,n2", "--fabric-spares=1", ":", "-wn3"]
    script = f"#!/bin/sh\nsrun --het-group=0,1 {show} x\necho all said\nsleep 5\n"
    argv = ["sbatch", "--parsable", "-o", "het.out", *options]
    leader = int(lab.exec("ctl", argv, user="alice", input=script).stdout.strip())
    envelopes: dict[str, dict[str, str]] = {}
    deadline = time.monotonic() + 20
    while len(envelopes) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
        for node, job in (("n1", leader), ("n2", leader), ("n3", leader + 1)):
            path = f"/run/fabricctl/jobs/{job}/envelope"
            done = lab.exec(node, ["cat", path], check=False)
            if done.returncode == 0:
                envelopes[node] = dict(line.split("=", 1) for line in done.stdout.splitlines())
    text = output(lab, "het.out")
    lab.run(["scancel", str(leader)])
    assert {node: found["spares"] for node, found in envelopes.items()} == {
        "n1": "1",
        "n2": "1",
        "n3": "0",
    }
    assert len({found["key"] for found in envelopes.values()}) == 1
    directories = {item.node: item.directory for item in shown(text)}
    assert directories == {
        "n1": f"/run/fabricctl/jobs/{leader}",
        "n2": f"/run/fabricctl/jobs/{leader}",
        "n3": f"/run/fabricctl/jobs/{leader + 1}",
    }
    assert "fabric: " not in text


def test_other_users_see_no_key(lab: Lab) -> None:
    argv = ["sbatch", "--parsable", "-wn1", "--fabric-resilience", "--wrap", "srun sleep 20"]
    job = lab.run(argv).stdout.strip()
    try:
        wait_for_mark(lab, "n1", job, "0")
        time.sleep(1)
        path = f"/run/fabricctl/jobs/{job}/envelope"
        key = re.findall(r"key=(\w{64})", lab.exec("n1", ["cat", path]).stdout)[0]
        look = f"cat {path} /proc/[0-9]*/environ; cat /proc/[0-9]*/cmdline; ls /run/fabricctl"
        seen = lab.exec("n1", ["sh", "-c", look], user="bob", check=False)
        asked = lab.run(["sh", "-c", f"scontrol -d show job {job}; squeue -O all"], user="bob")
        commands = lab.exec("n1", ["sh", "-c", "cat /proc/[0-9]*/cmdline"]).stdout
        assert "Permission denied" in seen.stderr
        for text in (seen.stdout, asked.stdout, commands):
            assert key not in text
    finally:
        lab.run(["scancel", job])


def test_the_plugin_exports_what_slurm_looks_for_and_no_more() -> None:
    plugin = Path(__file__).parents[2] / "build" / "spank" / "fabric.so"
    argv = ["nm", "-D", "--defined-only", str(plugin)]
    done = subprocess.run(argv, capture_output=True, check=True, text=True, timeout=10)
    names = {line.split()[-1] for line in done.stdout.splitlines()}
    assert names == {
        "plugin_name",
        "plugin_type",
        "plugin_version",
        "spank_plugin_version",
        "slurm_spank_init",
        "slurm_spank_init_post_opt",
        "slurm_spank_user_init",
        "slurm_spank_task_init",
        "slurm_spank_task_exit",
    }
