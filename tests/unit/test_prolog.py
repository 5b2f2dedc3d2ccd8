"""Slurm's prolog and epilog scripts, run as slurmd runs them: as they are, with little around."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from fabricctl.errors import DataError, EnvelopeError, FabricError
from fabricctl.records import JobStart

ROOT = Path(__file__).parents[2]
PROLOG = ROOT / "prolog" / "fabric-prolog"
EPILOG = ROOT / "epilog" / "fabric-epilog"
SCRIPTS = pytest.mark.parametrize("script", [PROLOG, EPILOG], ids=["prolog", "epilog"])
KEY = "5a" * 32
ENVELOPE = f"v=1;mode=on;key={KEY};spares=1;on_missing=warn"
# What slurmd sets (prep_script_slurmd.c), but for what the scripts do not use.
SLURM = {
    "SLURMD_NODENAME": "n3",
    "SLURM_CLUSTER_NAME": "lab",
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_PARTITION": "gpu",
    "SLURM_JOB_UID": "6001",
    "SLURM_JOB_USER": "alice",
    "SLURM_NODELIST": "n[1-4]",
}


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    directory = tmp_path / "requests"
    directory.mkdir()
    return directory


def run(script: Path, requests: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    given = {**SLURM, "SPANK_FABRIC_ENVELOPE": ENVELOPE, **changes}
    return execute([str(script)], {**given, "FABRIC_RUN_DIR": str(requests.parent)})


def execute(argv: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        argv, env=environment, cwd="/", capture_output=True, check=False, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done


def names(requests: Path) -> list[str]:
    return sorted(path.name for path in requests.iterdir())


def test_the_prolog_announces_the_job(requests: Path) -> None:
    assert run(PROLOG, requests).stderr == ""
    assert names(requests) == ["17.start"]
    file = requests / "17.start"
    assert file.stat().st_mode & 0o777 == 0o600
    start = JobStart.parse(file.read_text())
    assert (start.job, start.uid, start.user, start.node) == (17, 6001, "alice", "n3")
    assert (start.nodes, start.cluster) == (("n1", "n2", "n3", "n4"), "lab")
    assert start.partition == "gpu"
    assert (start.envelope.key.hex(), start.envelope.spares) == (KEY, 1)


def test_the_epilog_announces_the_end(requests: Path) -> None:
    assert run(EPILOG, requests).stderr == ""
    assert names(requests) == ["17.stop"]
    assert (requests / "17.stop").stat().st_mode & 0o777 == 0o600


def test_a_requeued_job_is_announced_again(requests: Path) -> None:
    run(PROLOG, requests)
    run(PROLOG, requests, SLURM_NODELIST="n3,n9")
    assert names(requests) == ["17.start"]
    assert JobStart.parse((requests / "17.start").read_text()).nodes == ("n3", "n9")


def test_newer_slurm_may_leave_the_older_name_of_the_node_list_out(requests: Path) -> None:
    run(PROLOG, requests, SLURM_NODELIST="", SLURM_JOB_NODELIST="n[3-4]")
    assert JobStart.parse((requests / "17.start").read_text()).nodes == ("n3", "n4")


@SCRIPTS
def test_without_an_envelope_nothing_happens(script: Path, requests: Path) -> None:
    assert run(script, requests, SPANK_FABRIC_ENVELOPE="").stderr == ""
    assert names(requests) == []
    execute([str(script)], SLURM)
    execute([str(script)], {})


@pytest.mark.parametrize(
    "envelope",
    [
        f"{ENVELOPE}\njob=1",
        f"{ENVELOPE}\nuser=root\nuid=0",
        f"{ENVELOPE}\nlater=x",
        f"{ENVELOPE}\rjob=1",
        "\n",
        "x",
        "%s%n\\n\\x41",
        "$(touch /tmp/fabric-prolog-ran)`touch /tmp/fabric-prolog-ran`",
        "'\"; touch /tmp/fabric-prolog-ran; '",
        "\x1b[2J",
        "v=1;v=1",
        "*",
        "x" * 100_000,
    ],
)
def test_a_hostile_envelope_is_no_more_than_a_bad_value(requests: Path, envelope: str) -> None:
    run(PROLOG, requests, SPANK_FABRIC_ENVELOPE=envelope)
    text = (requests / "17.start").read_text()
    assert text.count("\n") == 10
    with pytest.raises((EnvelopeError, DataError)):
        JobStart.parse(text)
    assert not Path("/tmp/fabric-prolog-ran").exists()


@pytest.mark.parametrize("name", list(SLURM))
def test_an_absent_variable_makes_a_request_that_is_refused(requests: Path, name: str) -> None:
    run(PROLOG, requests, **{name: ""})
    files = [path.read_text() for path in requests.iterdir()]
    for text in files:
        if name in ("SLURM_CLUSTER_NAME", "SLURM_JOB_PARTITION"):
            JobStart.parse(text)  # without them a job is protected none the less
        else:
            with pytest.raises(FabricError):
                JobStart.parse(text)


@SCRIPTS
def test_without_the_service_the_log_is_told_and_the_job_goes_on(
    script: Path, requests: Path
) -> None:
    requests.rmdir()
    run(script, requests)
    assert not requests.exists()


@SCRIPTS
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a full file system needs root")
def test_a_full_run_dir_leaves_no_half_request(script: Path, requests: Path) -> None:
    inside = (
        'mount -t tmpfs -o size=4k none "$FABRIC_RUN_DIR/requests" && '
        'head -c 8192 /dev/zero >"$FABRIC_RUN_DIR/requests/full" 2>/dev/null; '
        f'{script}; echo "status $?" >&2; ls -A "$FABRIC_RUN_DIR/requests" >&2'
    )
    environment = {**SLURM, "SPANK_FABRIC_ENVELOPE": ENVELOPE, "PATH": os.environ["PATH"]}
    environment["FABRIC_RUN_DIR"] = str(requests.parent)
    done = execute(["unshare", "-m", "sh", "-c", inside], environment)
    left = done.stderr.partition("status 0\n")[2].split()
    # An end says all by its name, which there is room for.
    assert left == (["full"] if script == PROLOG else ["17.stop", "full"])


@SCRIPTS
def test_the_key_is_in_no_command_line(script: Path, requests: Path) -> None:
    given = {**SLURM, "SPANK_FABRIC_ENVELOPE": ENVELOPE, "FABRIC_RUN_DIR": str(requests.parent)}
    traced = execute(["sh", "-x", str(script)], given).stderr
    ran = [line for line in traced.splitlines() if re.match(r"\+ (?!\[|printf |case )", line)]
    commands = [line for line in ran if not re.match(r"\+ \w+=", line)]
    assert {line.split()[1] for line in commands} == {"umask", "exit"}  # no program at all
    builtin = execute(["sh", "-c", "command -V printf >&2"], {}).stderr
    assert builtin == "printf is a shell builtin\n"


@SCRIPTS
@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_every_shell_reads_them_alike(script: Path, requests: Path, shell: str) -> None:
    given = {**SLURM, "SPANK_FABRIC_ENVELOPE": ENVELOPE, "FABRIC_RUN_DIR": str(requests.parent)}
    execute([str(shutil.which(shell)), str(script)], given)
    assert len(names(requests)) == 1


@SCRIPTS
def test_they_stay_thin(script: Path) -> None:
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/bin/sh"
    assert len(lines) <= 20
    assert not any(re.search(r"\b(scontrol|squeue|sinfo|sacct)\b", line) for line in lines)
