"""What sbatch, salloc and srun say to wrong options: fail at submit, name what is allowed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from fabricctl.lab.cluster import Lab
from tests.support.plugstack import PLUGIN, plugstack

pytestmark = pytest.mark.lab

WRAP = ("--wrap", "true")
MODES = "not one of off, observe, on"
LEFT = "and one at least must be left to work"
NUMBER = "not a number of nodes, 0 to 99999"


@dataclass(frozen=True)
class Wrong:
    """One command that must not reach the queue, and the first line that it prints."""

    argv: tuple[str, ...]
    message: str
    site: tuple[str, ...] = ()  # plugstack.conf arguments
    environment: Mapping[str, str] = field(default_factory=dict)


def sbatch(*options: str, message: str, site: tuple[str, ...] = (), **environment: str) -> Wrong:
    text = f"sbatch: error: fabric: submit: {message}"
    return Wrong(("sbatch", *options, *WRAP), text, site, environment)


def other(*argv: str, message: str, **environment: str) -> Wrong:
    text = f"{argv[0]}: error: fabric: submit: {message}"
    return Wrong((*argv, "true"), text, (), environment)


WRONG = {
    "a word": sbatch("--fabric-resilience=maybe", message=f"--fabric-resilience=maybe: {MODES}"),
    "a word, salloc": other(
        "salloc", "--fabric-resilience=maybe", message=f"--fabric-resilience=maybe: {MODES}"
    ),
    "a word, srun": other(
        "srun", "--fabric-resilience=maybe", message=f"--fabric-resilience=maybe: {MODES}"
    ),
    "capitals": sbatch("--fabric-resilience=ON", message=f"--fabric-resilience=ON: {MODES}"),
    "nothing after =": sbatch("--fabric-resilience=", message=f"--fabric-resilience=: {MODES}"),
    "two modes": sbatch(
        "--fabric-resilience=on,observe", message=f"--fabric-resilience=on,observe: {MODES}"
    ),
    "a number": sbatch("--fabric-resilience=1", message=f"--fabric-resilience=1: {MODES}"),
    "a blank": sbatch("--fabric-resilience=on ", message=f"--fabric-resilience=on : {MODES}"),
    "a long word": sbatch(
        f"--fabric-resilience={'x' * 80}", message=f"--fabric-resilience={'x' * 60}: {MODES}"
    ),
    "the last one counts": sbatch(
        "--fabric-resilience=on",
        "--fabric-resilience=most",
        message=f"--fabric-resilience=most: {MODES}",
    ),
    "environment": sbatch(message=f"FABRIC_RESILIENCE=always: {MODES}", FABRIC_RESILIENCE="always"),
    "environment, salloc": other(
        "salloc", message=f"FABRIC_RESILIENCE=always: {MODES}", FABRIC_RESILIENCE="always"
    ),
    "environment, srun": other(
        "srun", message=f"FABRIC_RESILIENCE=always: {MODES}", FABRIC_RESILIENCE="always"
    ),
    "spares, a word": sbatch("--fabric-spares=two", message=f"--fabric-spares=two: {NUMBER}"),
    "spares, nothing": sbatch("--fabric-spares=", message=f"--fabric-spares=: {NUMBER}"),
    "spares, negative": sbatch("--fabric-spares=-1", message=f"--fabric-spares=-1: {NUMBER}"),
    "spares, half": sbatch("--fabric-spares=0.5", message=f"--fabric-spares=0.5: {NUMBER}"),
    "spares, too many": sbatch(
        "--fabric-spares=100000", message=f"--fabric-spares=100000: {NUMBER}"
    ),
    "spares, srun": other("srun", "--fabric-spares=x", message=f"--fabric-spares=x: {NUMBER}"),
    "spares in the environment": sbatch(
        "--fabric-resilience", message=f"FABRIC_SPARES=some: {NUMBER}", FABRIC_SPARES="some"
    ),
    "spares without resilience": sbatch(
        "-N4", "--fabric-spares=1", message="--fabric-spares=1: needs --fabric-resilience"
    ),
    "spares with off": sbatch(
        "-N4",
        "--fabric-spares=1",
        "--fabric-resilience=off",
        message="--fabric-spares=1: needs --fabric-resilience",
    ),
    "every node a spare": sbatch(
        "-N4",
        "--fabric-resilience",
        "--fabric-spares=4",
        message="--fabric-spares=4: the job asks for 4 nodes, " + LEFT,
    ),
    "a range's lower end": sbatch(
        "-N2-4",
        "--fabric-resilience",
        "--fabric-spares=2",
        message="--fabric-spares=2: the job asks for 2 nodes, " + LEFT,
    ),
    "one node, salloc": other(
        "salloc",
        "-N1",
        "--fabric-resilience",
        "--fabric-spares=1",
        message="--fabric-spares=1: the job asks for 1 node, " + LEFT,
    ),
    "every node a spare, srun": other(
        "srun",
        "-N2",
        "--fabric-resilience",
        "--fabric-spares=3",
        message="--fabric-spares=3: the job asks for 2 nodes, " + LEFT,
    ),
    "every node a spare by environment": sbatch(
        "-N2",
        message="FABRIC_SPARES=2: the job asks for 2 nodes, " + LEFT,
        FABRIC_RESILIENCE="on",
        FABRIC_SPARES="2",
    ),
    "bare where on is not allowed": sbatch(
        "--fabric-resilience",
        message="--fabric-resilience=on: this site allows off, observe",
        site=("allow=observe",),
    ),
    "a mode that is not allowed": sbatch(
        "--fabric-resilience=observe",
        message="--fabric-resilience=observe: this site allows off, on",
        site=("allow=on",),
    ),
    "nothing is allowed": sbatch(
        "--fabric-resilience=observe",
        message="--fabric-resilience=observe: this site allows off",
        site=("allow=",),
    ),
    "a word names what is allowed": sbatch(
        "--fabric-resilience=maybe",
        message="--fabric-resilience=maybe: not one of off, observe",
        site=("allow=observe",),
    ),
    "environment, not allowed": sbatch(
        message="FABRIC_RESILIENCE=on: this site allows off, observe",
        site=("allow=observe",),
        FABRIC_RESILIENCE="on",
    ),
    "more spares than allowed": sbatch(
        "--fabric-resilience",
        "--fabric-spares=3",
        message="--fabric-spares=3: this site allows at most 2",
        site=("max_spares=2",),
    ),
    "more spares than allowed by environment": sbatch(
        "--fabric-resilience",
        message="FABRIC_SPARES=3: this site allows at most 2",
        site=("max_spares=2",),
        FABRIC_SPARES="3",
    ),
    "a clock, a word": sbatch(
        "--fabric-resilience",
        "--fabric-clock=real",
        message="--fabric-clock=real: not one of page, ptp, system",
    ),
    "a clock that is not allowed": sbatch(
        "--fabric-resilience",
        message="FABRIC_CLOCK=system: this site allows page, ptp",
        site=("allow_clock=ptp",),
        FABRIC_CLOCK="system",
    ),
    "a clock for a job that is only observed": sbatch(
        "--fabric-resilience=observe",
        "--fabric-clock=system",
        message="--fabric-clock=system: needs --fabric-resilience=on: observe changes nothing on "
        "nodes",
        site=("allow_clock=system",),
    ),
    "a clock without resilience": sbatch(
        "--fabric-clock=ptp",
        message="--fabric-clock=ptp: needs --fabric-resilience=on: off changes nothing on nodes",
        site=("allow_clock=ptp",),
    ),
    "two modes in a heterogeneous job": sbatch(
        "-N1",
        "--fabric-resilience=observe",
        ":",
        "-N1",
        "--fabric-resilience=on",
        message="--fabric-resilience=on: give it to the first component: all of a heterogeneous "
        "job have its mode",
    ),
    "spares of a small component": sbatch(
        "-N4",
        "--fabric-resilience",
        ":",
        "-N1",
        "--fabric-spares=1",
        message="--fabric-spares=1: the job asks for 1 node, " + LEFT,
    ),
}


def refused(lab: Lab, wrong: Wrong, word: str) -> None:
    with plugstack(lab, line=f"{word} {PLUGIN} {' '.join(wrong.site)}"):
        done = lab.exec("ctl", wrong.argv, user="alice", check=False, environment=wrong.environment)
    first, *more = done.stderr.splitlines()
    assert first == wrong.message
    # Slurm may add which option that was; nothing tells of a job.
    assert all(": error: " in line for line in more)
    assert done.stdout == ""
    assert done.returncode != 0


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_option_fails_at_submit(lab: Lab, wrong: Wrong) -> None:
    refused(lab, wrong, "required")


@pytest.mark.parametrize("name", ["a word", "environment, srun", "every node a spare"])
def test_it_fails_where_the_plugin_is_optional_too(lab: Lab, name: str) -> None:
    refused(lab, WRONG[name], "optional")


def test_a_wrong_option_in_the_script_fails_at_submit(lab: Lab) -> None:
    script = "#!/bin/sh\n#SBATCH --fabric-resilience=maybe\ntrue\n"
    done = lab.exec("ctl", ["sbatch"], user="alice", check=False, input=script)
    wanted = f"sbatch: error: fabric: submit: --fabric-resilience=maybe: {MODES}"
    assert done.stderr.splitlines()[0] == wanted
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fabric-spares",), "sbatch: option '--fabric-spares' requires an argument"),
        (("--fabric-resiliance",), "sbatch: unrecognized option '--fabric-resiliance'"),
    ],
)
def test_slurm_itself_refuses(lab: Lab, options: tuple[str, ...], message: str) -> None:
    done = lab.run(["sbatch", *WRAP, *options], check=False)
    assert done.stderr.splitlines()[0] == message
    assert done.returncode != 0


def test_without_the_plugin_the_option_is_unknown(lab: Lab) -> None:
    with plugstack(lab, line="# nothing"):
        done = lab.run(["sbatch", "--fabric-resilience", *WRAP], check=False)
    assert done.stderr.splitlines()[0] == "sbatch: unrecognized option '--fabric-resilience'"
    assert done.returncode != 0


# What a step may ask for ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "step", "message"),
    [
        (
            (),
            "--fabric-resilience",
            "--fabric-resilience=on: job {job} was submitted without it, and a step cannot add it",
        ),
        (
            ("--fabric-resilience=off",),
            "--fabric-resilience=observe",
            "--fabric-resilience=observe: job {job} was submitted without it, and a step cannot "
            "add it",
        ),
        (
            ("--fabric-resilience=observe",),
            "--fabric-resilience=on",
            "--fabric-resilience=on: job {job} was submitted with observe, and a step cannot have "
            "more",
        ),
        (
            ("--fabric-resilience",),
            "--fabric-spares=0",
            "--fabric-spares=0: spares are the whole job's: give it to sbatch or salloc",
        ),
    ],
)
def test_a_step_cannot_have_more_than_its_job(
    lab: Lab, job: tuple[str, ...], step: str, message: str
) -> None:
    script = f"echo $SLURM_JOB_ID; srun --overlap {step} echo ran; echo $?"
    done = lab.run(["srun", "-N1", *job, "sh", "-c", script])
    number, status = done.stdout.split()
    wanted = f"srun: error: fabric: step: {message.format(job=number)}"
    assert wanted in done.stderr.splitlines()
    assert status == "1"


# What wins ------------------------------------------------------------------------------------

ENVELOPE = 'echo "$SLURM_SPANK_FABRIC_ENVELOPE"'


@pytest.mark.parametrize(
    ("options", "environment", "site", "envelope"),
    [
        ((), {}, (), ""),
        (("--fabric-resilience",), {}, (), "mode=on;spares=0;on_missing=warn"),
        (("--fabric-resilience=on",), {}, (), "mode=on;spares=0;on_missing=warn"),
        (("--fabric-resilience=observe",), {}, (), "mode=observe;spares=0;on_missing=warn"),
        ((), {"FABRIC_RESILIENCE": "on"}, (), "mode=on;spares=0;on_missing=warn"),
        ((), {"FABRIC_RESILIENCE": ""}, (), ""),
        (
            ("--fabric-resilience=observe",),
            {"FABRIC_RESILIENCE": "on"},
            (),
            "mode=observe;spares=0;on_missing=warn",
        ),
        (("--fabric-resilience=off",), {"FABRIC_RESILIENCE": "on"}, ("default=on",), ""),
        (("--fabric-resilience=off",), {"FABRIC_RESILIENCE": "bad"}, (), ""),
        ((), {"FABRIC_RESILIENCE": "off"}, ("default=on",), ""),
        ((), {}, ("default=observe",), "mode=observe;spares=0;on_missing=warn"),
        (("--fabric-resilience",), {}, ("default=off",), "mode=on;spares=0;on_missing=warn"),
        (
            ("-N2", "--fabric-resilience", "--fabric-spares=1"),
            {"FABRIC_SPARES": "7"},
            (),
            "mode=on;spares=1;on_missing=warn",
        ),
        (
            ("-n2", "--fabric-resilience"),
            {"FABRIC_SPARES": "1"},
            (),
            "mode=on;spares=1;on_missing=warn",
        ),
        ((), {"FABRIC_SPARES": "1"}, (), ""),
        (("--fabric-spares=0",), {}, (), ""),
        (
            ("--fabric-resilience",),
            {},
            ("on_missing=refuse", "sample_hz=2.5"),
            "mode=on;spares=0;on_missing=refuse;sample_hz=2.5",
        ),
    ],
)
def test_command_line_then_environment_then_the_sites_default(
    lab: Lab,
    options: tuple[str, ...],
    environment: Mapping[str, str],
    site: tuple[str, ...],
    envelope: str,
) -> None:
    argv = ["srun", *options, "sh", "-c", ENVELOPE]
    with plugstack(lab, *site):
        done = lab.exec("ctl", argv, user="alice", environment=environment)
    found = re.sub(r"key=[0-9a-f]{64};", "", done.stdout.splitlines()[0])
    assert found == (f"v=1;{envelope}" if envelope else "")


def test_who_submits_is_told_what_the_site_published(lab: Lab) -> None:
    hint = "/shared/submit-hint"
    lab.host_path("ctl", hint).write_text("under_one_switch=2\nrails=n3: rail r1 is down\n")
    script = "#!/bin/sh\n#SBATCH -N2 --fabric-resilience=observe\ntrue\n"
    with plugstack(lab, f"hint={hint}"):
        told = lab.run(["sbatch", "--parsable"], input=script)
        plain = lab.run(["sbatch", "--parsable", "--wrap", "true"])
    lab.run(["scancel", told.stdout.strip(), plain.stdout.strip()], check=False)
    assert told.stderr.splitlines() == [
        "sbatch: fabric: submit: hint: 2 nodes fit under one switch: "
        "--switches=1@10:00 waits up to ten minutes for that",
        "sbatch: fabric: submit: hint: n3: rail r1 is down",
    ]
    assert plain.stderr == ""


# Mistakes in plugstack.conf -------------------------------------------------------------------


def test_a_wrong_plugstack_argument_is_named_and_stops_nobody(lab: Lab) -> None:
    wanted = [
        "error: fabric: plugstack: unknown key 'alow': did you mean 'allow'?",
        "error: fabric: plugstack: max_spares=many: not a number of nodes, 0 to 99999; ignored",
    ]
    with plugstack(lab, "alow=observe", "max_spares=many"):
        lab.fault("kill", "n1", "slurmd")
        lab.heal("kill", "n1", "slurmd")
        done = lab.run(["srun", "-w", "n1", "--fabric-resilience", "echo", "ran"])
        log = lab.exec("n1", ["cat", "/var/log/slurm/slurmd.log"]).stdout
    assert done.stdout == "ran\n"
    assert done.stderr.splitlines()[:2] == [f"srun: {line}" for line in wanted]
    assert all(line in log for line in wanted)
