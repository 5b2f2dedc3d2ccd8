"""The commands backend on what Slurm 22.05, 24.11 and 26.05 really printed (tests/data/slurm).

All three were asked about the same scene: tests/support/slurm_record.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from fabricctl.errors import NotFoundError, SlurmError
from fabricctl.slurm import json_shapes
from fabricctl.slurm.commands import CommandSlurm
from fabricctl.slurm.model import FINISHED
from fabricctl.slurm.run import Answer, failure

DATA = Path(__file__).parents[1] / "data" / "slurm"
VERSIONS = ("22.05", "24.11", "26.05")
WIDE, ODD, KILLED, ARRAY, HET, HELD, TASK = 1, 2, 3, 4, 5, 7, 8
REASON = "bad cable: r0 = Foo=1, see ticket [4711] \u00e9"


class Recorded:
    """Plays the recorded answers; a call that was never recorded is a test's mistake."""

    def __init__(self, version: str) -> None:
        self.folder = DATA / version
        self.calls = json.loads((self.folder / "index.json").read_text())

    def __call__(self, argv: Sequence[str]) -> Answer:
        for call in self.calls:
            if call["argv"] == list(argv) and not call["situation"]:
                return self._answer(call)
        raise AssertionError(f"not recorded for {self.folder.name}: {argv}")

    def situation(self, name: str) -> tuple[list[str], Answer]:
        (call,) = [call for call in self.calls if call["situation"] == name]
        return call["argv"], self._answer(call)

    def _answer(self, call: dict[str, str | int]) -> Answer:
        text = (self.folder / str(call["stdout"])).read_text()
        return Answer(int(call["status"]), text, str(call["stderr"]))


@pytest.fixture(params=VERSIONS)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return Recorded(request.param)


@pytest.fixture
def slurm(recorded: Recorded) -> CommandSlurm:
    return CommandSlurm(recorded, mark=str)


def test_the_version_is_read(slurm: CommandSlurm, recorded: Recorded) -> None:
    major, minor = recorded.folder.name.split(".")
    assert slurm.version.series == (int(major), int(minor))
    assert slurm.version.text.startswith(recorded.folder.name)


def test_only_versions_that_have_it_are_asked_for_json(recorded: Recorded) -> None:
    with_json = any(json_shapes.OPTION in call["argv"] for call in recorded.calls)
    assert with_json == (recorded.folder.name != "22.05")


def test_all_jobs_are_there_once(slurm: CommandSlurm) -> None:
    assert [job.id for job in slurm.jobs()] == [WIDE, ODD, KILLED, ARRAY, HET, HET + 1, HELD, TASK]


def test_a_running_job(slurm: CommandSlurm) -> None:
    job = slurm.job(WIDE)
    assert (job.state, job.user, job.uid, job.account) == ("RUNNING", "ann", 2001, "physics")
    assert (job.nodes, job.node_count, job.cpus) == (("n1", "n2"), 2, 2)
    assert (job.partitions, job.reason, job.reservation) == (("main",), None, None)
    assert job.time_limit_s == 90 * 60
    assert job.submit_real_s is not None and job.start_real_s is not None
    assert 0 <= job.start_real_s - job.submit_real_s < 30
    assert job.start_real_s > 1_700_000_000
    assert (job.end_real_s, job.exit_status, job.exit_signal) == (None, None, None)
    assert job == next(each for each in slurm.jobs() if each.id == WIDE)


def test_a_name_cannot_pose_as_another_field(slurm: CommandSlurm) -> None:
    job = next(job for job in slurm.jobs() if job.id == ODD)
    assert job.name == "odd | name=x UserId=root(0) \u00e9 "
    assert (job.user, job.uid) == ("bob", 2002)


def test_exit_status_and_signal_of_ended_jobs(slurm: CommandSlurm) -> None:
    ended = {job.id: (job.exit_status, job.exit_signal) for job in slurm.jobs() if job.finished}
    assert ended == {ODD: (200, None), KILLED: (0, 9)}
    assert all(job.end_real_s for job in slurm.jobs() if job.state in FINISHED)


def test_an_array_and_its_split_off_task(slurm: CommandSlurm) -> None:
    jobs = {job.id: job for job in slurm.jobs()}
    rest, task = jobs[ARRAY], jobs[TASK]
    assert (rest.array_job, rest.array_task, rest.state) == (ARRAY, None, "PENDING")
    assert (task.array_job, task.array_task, task.state) == (ARRAY, 0, "RUNNING")
    assert (rest.start_real_s, rest.nodes, rest.name) == (None, (), "two\nlines")


def test_components_of_a_heterogeneous_job(slurm: CommandSlurm) -> None:
    parts = [job for job in slurm.jobs() if job.het_job == HET]
    assert [(job.id, job.het_offset) for job in parts] == [(HET, 0), (HET + 1, 1)]
    assert all(job.time_limit_s is None for job in parts)


def test_a_held_job_of_two_partitions(slurm: CommandSlurm) -> None:
    job = next(job for job in slurm.jobs() if job.id == HELD)
    assert (job.partitions, job.reason, job.state) == (
        ("debug", "main"), "JobHeldUser", "PENDING",
    )  # fmt: skip


def test_steps_numbered_ones_first(slurm: CommandSlurm) -> None:
    first, batch = slurm.steps(WIDE)
    assert (first.job, first.step, first.name, first.tasks) == (WIDE, "0", "sleep", 2)
    assert first.nodes == ("n1", "n2")
    assert (batch.step, batch.nodes, batch.tasks) == ("batch", ("n1",), 1)
    assert [(step.job, step.step) for step in slurm.steps(TASK)] == [(TASK, "batch")]
    assert [(step.job, step.step) for step in slurm.steps(HET)] == [(HET, "batch")]


def test_a_drained_node_and_a_healthy_one(slurm: CommandSlurm) -> None:
    healthy, _, drained = slurm.nodes()
    assert "DRAIN" in drained.flags
    assert not drained.usable
    assert (drained.reason, drained.reason_user) == (REASON, "root")
    assert drained.reason_real_s is not None and drained.reason_real_s > 1_700_000_000
    assert (healthy.name, healthy.cpus, healthy.memory_mib) == ("n1", 4, 2000)
    assert (healthy.reason, healthy.reason_user, healthy.reason_real_s) == (None, None, None)
    assert healthy.usable
    assert (healthy.features, healthy.partitions) == (("fast", "ib"), ("main",))
    assert healthy.version == slurm.version.text
    assert healthy.boot_real_s is not None


def test_partitions(slurm: CommandSlurm) -> None:
    debug, main = slurm.partitions()
    assert (debug.name, debug.nodes, debug.max_time_s) == ("debug", ("n3",), 1800)
    assert (main.name, main.nodes, main.max_time_s) == ("main", ("n1", "n2", "n3"), None)
    assert (debug.default, main.default, main.state) == (False, True, "UP")


def test_a_maintenance_reservation(slurm: CommandSlurm) -> None:
    (found,) = slurm.reservations()
    assert (found.name, found.nodes, found.maintenance) == ("upkeep", ("n2",), True)
    assert (found.users, found.accounts, found.partition) == (("root", "ann"), (), None)
    assert found.end_real_s - found.start_real_s == 3600


def test_the_configuration(slurm: CommandSlurm) -> None:
    found = slurm.configuration()
    assert (found["ClusterName"], found["SLURM_CONF"]) == ("mini", "/etc/slurm/slurm.conf")
    assert found["SlurmUser"].startswith("slurm(")
    assert "Cgroup Support Configuration:" not in found
    assert not any(key.startswith("Slurmctld(") for key in found)


def test_usage_has_what_began(slurm: CommandSlurm, recorded: Recorded) -> None:
    now_s = int((recorded.folder / "when").read_text())
    found = {use.job: use for use in slurm.usage(now_s - 3600, now_s)}
    assert set(found) == {WIDE, ODD, KILLED, HET, HET + 1, TASK}
    assert (found[WIDE].state, found[WIDE].nodes, found[WIDE].cpus) == ("RUNNING", ("n1", "n2"), 2)
    assert (found[ODD].state, found[ODD].user, found[ODD].elapsed_s) == ("FAILED", "bob", 0)
    assert found[TASK].name == "two\nlines"
    assert found[WIDE].end_real_s is None


def test_an_unknown_job_is_not_found(slurm: CommandSlurm) -> None:
    with pytest.raises(NotFoundError) as caught:
        slurm.job(99_999_999)
    assert str(caught.value) == (
        "job 99999999: the controller does not know it (any more): see sacct -j 99999999"
    )


def test_an_unknown_node_is_not_found(slurm: CommandSlurm) -> None:
    with pytest.raises(NotFoundError) as caught:
        slurm.set_node_state(["nosuch"], "drain", "x")
    assert str(caught.value) == (
        "nodes nosuch: scontrol update NodeName=nosuch State=DRAIN Reason=x: slurm_update error: "
        "Invalid node name specified: see: sinfo -N"
    )


def test_a_requeue_that_slurm_refuses(slurm: CommandSlurm) -> None:
    with pytest.raises(SlurmError) as caught:
        slurm.requeue(HELD)
    assert str(caught.value) == "scontrol requeue 7: Job is pending execution for job 7"


SITUATIONS = {
    "as a user": (
        "runuser -u ann -- scontrol update NodeName=n1 State=DRAIN Reason=x: "
        "slurm_update error: Invalid user id: run this as root or SlurmUser"
    ),
    "no slurm.conf": (
        "scontrol show node: scontrol: fatal: Could not establish a configuration source: "
        "set SLURM_CONF, or run this on a host of the cluster"
    ),
    "no munged": (
        "scontrol show node: slurm_load_node error: Protocol authentication error: "
        "is munged up, with the cluster's key? see: munge -n | unmunge"
    ),
    "no slurmdbd": (
        "sacct --allusers: sacct: error: Problem talking to the database: Connection refused: "
        "is slurmdbd up? see: sacctmgr ping"
    ),
    "no slurmctld": (
        "scontrol show node: slurm_load_node error: Unable to contact slurm controller "
        "(connect failure): is slurmctld up? see: scontrol ping"
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_what_is_broken_is_said_with_what_to_do(situation: str, recorded: Recorded) -> None:
    argv, answer = recorded.situation(situation)
    assert answer.status != 0
    assert str(failure(argv, answer)) == SITUATIONS[situation]
