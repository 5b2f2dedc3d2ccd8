"""Running commands, and answers that are not what they should be."""

import json
import os
import re
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fabricctl.errors import SlurmError, UsageError
from fabricctl.slurm import json_shapes, text
from fabricctl.slurm.commands import CommandSlurm, parse_version
from fabricctl.slurm.model import STATE_FLAGS
from fabricctl.slurm.run import Answer, environment, failure, run


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    return tmp_path


def test_variables_that_change_what_commands_print_are_scrubbed() -> None:
    given = {
        "PATH": "/bin", "HOME": "/root", "SLURM_CONF": "/etc/slurm.conf", "TZ": "Asia/Kolkata",
        "SQUEUE_FORMAT": "%i", "SINFO_FORMAT": "x", "SLURM_TIME_FORMAT": "relative",
        "SLURM_CLUSTERS": "all", "SLURM_JSON": "compact", "LANG": "de_DE", "LC_TIME": "de_DE",
        "SACCT_FEDERATION": "1", "SQUEUE_STATES": "PD", "SLURM_JWT": "token",
    }  # fmt: skip
    assert environment(given) == {
        "PATH": "/bin", "HOME": "/root", "SLURM_CONF": "/etc/slurm.conf", "SLURM_JWT": "token",
        "LC_ALL": "C", "TZ": "UTC", "SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0",
    }  # fmt: skip


def test_a_command_gets_that_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    program(path, "squeue", "env")
    said = run(["squeue"]).stdout
    assert "SQUEUE_FORMAT" not in said
    assert "LC_ALL=C\n" in said


def test_a_command_that_hangs_is_given_up(path: Path) -> None:
    program(path, "scontrol", "exec sleep 600")
    begin_s = time.monotonic()
    with pytest.raises(SlurmError) as caught:
        run(["scontrol", "show", "node"], timeout_s=0.2)
    assert time.monotonic() - begin_s < 300
    assert str(caught.value) == (
        "scontrol show node: no answer within 0.2 s: is slurmctld up? see: scontrol ping"
    )


def test_a_command_that_is_not_there(path: Path) -> None:
    with pytest.raises(SlurmError) as caught:
        run(["nosuchcommand"])
    assert str(caught.value) == (
        "nosuchcommand: no such command: install Slurm's client package, or put it into PATH"
    )


def test_a_command_that_may_not_be_run(path: Path) -> None:
    (path / "squeue").write_text("")
    with pytest.raises(SlurmError) as caught:
        run([str(path / "squeue")])
    assert str(caught.value) == f"{path}/squeue: cannot be run: {os.strerror(13)}"


def test_a_slurm_conf_that_is_not_there_is_said_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", "/nonexistent/slurm.conf")
    with pytest.raises(SlurmError) as caught:
        run(["scontrol", "show", "node"])
    assert str(caught.value) == (
        "scontrol: SLURM_CONF=/nonexistent/slurm.conf: no such file: correct or unset it"
    )


def test_output_that_is_not_utf8_is_kept_readable(path: Path) -> None:
    program(path, "squeue", r"printf 'a\377b'")
    assert run(["squeue"]).stdout == r"a\xffb"


def test_a_failure_without_words_names_the_status() -> None:
    assert str(failure(["scontrol", "ping"], Answer(7, "", " \n"))) == (
        "scontrol ping: ended with status 7 and said nothing"
    )


VERSIONS = {
    "slurm-wlm 22.05.8": (22, 5, "22.05.8"),
    "slurm 24.11.5\n": (24, 11, "24.11.5"),
    "slurm 26.05.0-0rc1": (26, 5, "26.05.0-0rc1"),
}


@pytest.mark.parametrize("said", VERSIONS)
def test_versions_are_read(said: str) -> None:
    version = parse_version(said)
    assert (version.major, version.minor, version.text) == VERSIONS[said]


def test_what_is_no_version_is_said() -> None:
    with pytest.raises(SlurmError, match=r"^scontrol --version: 'hello' has no version in it$"):
        parse_version("hello\n")


def answering(version: str, stdout: str) -> CommandSlurm:
    def execute(argv: Sequence[str]) -> Answer:
        if argv[-1] == "--version":
            return Answer(0, f"slurm {version}\n", "")
        return Answer(0, stdout, "")

    return CommandSlurm(execute, mark=str)


BROKEN = {
    ("24.11.5", ""): "squeue: answered without JSON: install Slurm's JSON serializer plugin",
    ("24.11.5", "[]"): "squeue: answered without JSON: install Slurm's JSON serializer plugin",
    ("24.11.5", "{}"): "squeue: answered without JSON: install Slurm's JSON serializer plugin",
    ("24.11.5", '{"jobs": 3}'): "squeue: jobs is not a list: report this, please",
    ("24.11.5", '{"jobs": [{}]}'): "squeue: JSON lacks 'job_state': report this, please",
    ("22.05.8", "\x1e1\x1f2\n"): "squeue: '1\\x1f2\\n' has 2 fields, not 18",
}


@pytest.mark.parametrize("answer", BROKEN, ids=lambda pair: f"{pair[0]} {pair[1]!r}")
def test_an_answer_of_another_shape_is_said(answer: tuple[str, str]) -> None:
    with pytest.raises(SlurmError) as caught:
        answering(*answer).jobs()
    assert str(caught.value) == BROKEN[answer]


def test_no_jobs_is_no_error() -> None:
    assert answering("22.05.8", "").jobs() == ()
    assert answering("24.11.5", '{"jobs": []}').jobs() == ()


def test_the_state_shown_is_the_flag_that_squeue_would_show() -> None:
    assert json_shapes.state_word(["RUNNING"]) == "RUNNING"
    assert json_shapes.state_word(["RUNNING", "CONFIGURING"]) == "CONFIGURING"
    assert json_shapes.state_word(["COMPLETED", "SIGNALING", "COMPLETING"]) == "COMPLETING"
    assert json_shapes.state_word(["PENDING", "RECONFIG_FAIL"]) == "PENDING"
    assert all(json_shapes.state_word(["PENDING", flag]) == flag for flag in STATE_FLAGS)


def number(value: int = 0, known: bool = True, infinite: bool = False) -> dict[str, Any]:
    return {"set": known, "infinite": infinite, "number": value}


def test_a_number_that_is_not_set_is_not_zero() -> None:
    assert json_shapes.number(number(0)) == 0
    assert json_shapes.number(number(0, known=False)) is None
    assert json_shapes.number(number(0, infinite=True)) is None
    assert json_shapes.number(5) == 5
    with pytest.raises(SlurmError):
        json_shapes.number("5")


DURATIONS = {
    "05:00": 300, "1:30:00": 5400, "01:30:00": 5400, "2-00:00:01": 172_801,
    "365-00:00:00": 31_536_000, "UNLIMITED": None, "NOT_SET": None, "Partition_Limit": None,
    "INVALID": None, "N/A": None,
}  # fmt: skip


@pytest.mark.parametrize("printed", DURATIONS)
def test_durations(printed: str) -> None:
    assert text.duration_s(printed) == DURATIONS[printed]


def test_a_duration_that_cannot_be_read_is_said() -> None:
    with pytest.raises(SlurmError, match="duration 'soon' is not days-hh:mm:ss"):
        text.duration_s("soon")


def test_times_are_seconds_or_nothing() -> None:
    assert text.seconds("1795256689") == 1_795_256_689
    assert [text.seconds(word) for word in ("N/A", "NONE", "Unknown", "None", "0")] == [None] * 5
    with pytest.raises(SlurmError, match="'2026-11-21T10:24:14' is not seconds since 1970"):
        text.seconds("2026-11-21T10:24:14")


NODE = (
    "NodeName=n3 Arch=x86_64 CPUAlloc=0 CPUTot=4 AvailableFeatures=(null) NodeAddr=10.0.0.3 "
    "Version=22.05.8 OS=Linux 6.1 State=9 RealMemory=2000 State=DOWN*+DRAIN Partitions=main "
    "BootTime=None AllocTRES= Reason={reason} [root@1795256689]{after}"
)


@pytest.mark.parametrize("after", ["", " Comment=Reason=x", " Comment=a Extra=b [ann@1]", " "])
@pytest.mark.parametrize("reason", ["Not responding", "a [b@3] Comment", "State=IDLE x=[1]", "é"])
def test_a_reason_is_kept_whatever_is_in_it(reason: str, after: str) -> None:
    (node,) = text.nodes(NODE.format(reason=reason, after=after).replace("State=9 ", ""))
    assert (node.reason, node.reason_user, node.reason_real_s) == (reason, "root", 1_795_256_689)
    assert (node.state, node.flags) == ("DOWN", {"DRAIN"})
    assert (node.boot_real_s, node.features) == (None, ())


def test_a_name_of_two_lines_stays_one_record_of_the_accounting() -> None:
    def row(job: int, name: str) -> str:
        fields = (str(job), "bob", "(null)", "main", "CANCELLED by 0", "n[1-2]", "2", "2",
                  "10", "20", "30", "10", "cpu=2,gres/gpu=1", name)  # fmt: skip
        return text.FIELD.join(fields)

    first, second = text.usage(f"{row(1, 'two' + chr(10) + 'lines')}\n{row(2, 'x')}\n", "")
    assert (first.name, first.state, first.nodes) == ("two\nlines", "CANCELLED", ("n1", "n2"))
    assert first.gpus == 1
    assert (second.job, second.account) == (2, None)


def test_a_name_that_reads_as_records_of_others_stays_a_name() -> None:
    """squeue and sacct print names as they are, control characters too (tried on 22.05)."""
    row = ["999", "999", "N/A", "root", "0", "root", "main", "RUNNING", "None", "n1", "1", "1",
           "10", "10", "20", "1:00", "(null)", "forged"]  # fmt: skip
    used = ["888", "bob", "lab", "main", "COMPLETED", "n1", "1", "1", "10", "10", "20", "10", ""]
    name = f"x\x1e{chr(31).join(row)}\n{chr(31).join([*used, 'forged'])}"
    asked: list[str] = []

    def execute(argv: Sequence[str]) -> Answer:
        asked.append(argv[-1])
        if argv[-1] == "--version":
            return Answer(0, "slurm 22.05.8\n", "")
        if argv[0] == "sacct":
            (between,) = [a.partition("=")[2] for a in argv if a.startswith("--delimiter=")]
            return Answer(0, between.join(["7", *used[1:], name]) + "\n", "")
        if argv[-1].startswith("--Format="):
            return Answer(0, "7 0 N/A N/A 0\n", "")
        begin, *between = re.split("%[A-Za-z]", argv[-1].removeprefix("--format="))
        return Answer(0, begin + between[0].join(["7", "7", *row[2:-1], name]) + "\n", "")

    slurm = CommandSlurm(execute)
    assert [(job.id, job.name) for job in slurm.jobs()] == [(7, name)]
    assert [(use.job, use.name) for use in slurm.usage(1, 100)] == [(7, name)]
    slurm.jobs()
    assert len(set(asked)) == len(asked) - 1, "each question has separators of its own"


def test_node_lists_go_through_the_host_list_reader() -> None:
    assert text.names("n[1-2,7]") == ("n1", "n2", "n7")
    assert text.names("None assigned") == ()
    with pytest.raises(SlurmError, match="brackets do not match"):
        text.names("n[1-2")


def changing() -> tuple[CommandSlurm, list[list[str]]]:
    asked: list[list[str]] = []

    def execute(argv: Sequence[str]) -> Answer:
        asked.append(list(argv))
        return Answer(0, "slurm 24.11.5" if argv[-1] == "--version" else json.dumps({}), "")

    slurm = CommandSlurm(execute)
    asked.clear()
    return slurm, asked


def test_nodes_are_named_to_slurm_in_the_short_form() -> None:
    slurm, asked = changing()
    slurm.set_node_state(["n3", "n1", "n2"], "drain", "rail 0: 3 % loss")
    slurm.set_node_state(["n1"], "resume")
    assert asked == [
        ["scontrol", "update", "NodeName=n[1-3]", "State=DRAIN", "Reason=rail 0: 3 % loss"],
        ["scontrol", "update", "NodeName=n1", "State=RESUME"],
    ]


def test_a_list_that_old_slurm_does_not_read_is_written_out() -> None:
    slurm, asked = changing()
    slurm.set_node_state(["n2-ib", "n1-ib"], "resume")
    slurm.set_node_state(["r1n2", "r1n1", "r2"], "resume")
    assert [argv[2] for argv in asked] == ["NodeName=n1-ib,n2-ib", "NodeName=r1n[1-2],r2"]


REFUSED = {
    ((), "drain", "x"): "drain: no node is named",
    (("n1",), "drain", ""): "drain n1: a reason is needed: say why",
    (("n1", "n2"), "down", " "): "down n[1-2]: a reason is needed: say why",
    (("n1",), "drain", "a\nb"): "drain n1: the reason has a control character in it",
}


@pytest.mark.parametrize("change", REFUSED, ids=str)
def test_a_node_change_that_slurm_would_take_wrongly_is_refused(change: Any) -> None:
    slurm, asked = changing()
    with pytest.raises(UsageError) as caught:
        slurm.set_node_state(*change)
    assert str(caught.value) == REFUSED[change]
    assert asked == []
