"""What every backend must do, on a live Slurm, and that they all say the same.

Run by pytest on a host of an idle cluster of at least three nodes with four CPUs each, as root::

    CONTRACT_BACKENDS=commands,pyslurm CONTRACT_USERS=ann,bob CONTRACT_ACCOUNTING=1 pytest FILE

Not collected by itself: tests/lab/test_slurm_*.py bring the clusters.
"""

import os
import pwd
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from fabricctl import hostlist
from fabricctl.errors import NotFoundError, SlurmError, UsageError
from fabricctl.slurm.choose import open_slurm
from fabricctl.slurm.model import Job, Slurm

BACKENDS = os.environ.get("CONTRACT_BACKENDS", "commands").split(",")
ANN, BOB = os.environ.get("CONTRACT_USERS", "ann,bob").split(",")
ACCOUNTING = os.environ.get("CONTRACT_ACCOUNTING") == "1"
WAIT_S = 30.0

ODD_NAME = "odd | name=x UserId=root(0) \u00e9 "
TWO_LINES = "two\nlines"
REASON = "bad cable: r0 = Foo=1, see ticket [4711] \u00e9"


def submit(user: str, *args: str) -> int:
    """A job of that user; its id."""
    done = subprocess.run(
        ["runuser", "-u", user, "--", "sbatch", "--parsable", "--output=/dev/null", *args],
        cwd="/", capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split(";")[0])


def until(what: str, condition: Callable[[], bool], wait_s: float = WAIT_S) -> None:
    end_s = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < end_s, f"not within {wait_s:g} s: {what}"
        time.sleep(0.2)


def state(slurm: Slurm, job: int) -> str:
    return slurm.job(job).state


@dataclass(frozen=True)
class Scene:
    """Jobs of every kind, standing still."""

    wide: int  # on two nodes, with a step
    odd: int  # ended with 200, its name tries to look like another record
    killed: int  # died of signal 9
    array: int  # task 0 runs, tasks 2 and 4 wait
    het: int  # two components
    held: int  # two partitions where there are two
    node: str  # drained


@pytest.fixture(scope="session")
def slurms() -> dict[str, Slurm]:
    return {name: open_slurm("pyslurm" if name == "pyslurm" else "commands") for name in BACKENDS}


@pytest.fixture(params=BACKENDS)
def slurm(request: pytest.FixtureRequest, slurms: dict[str, Slurm]) -> Slurm:
    return slurms[request.param]


@pytest.fixture(scope="session")
def scene(slurms: dict[str, Slurm]) -> Iterator[Scene]:
    slurm = slurms["commands"]
    partitions = ",".join(sorted(part.name for part in slurm.partitions()))
    node = slurm.nodes()[-1].name
    wide = submit(ANN, "-N2", "-n2", "-t", "1:30:00", "--wrap", "srun sleep 300")
    odd = submit(BOB, "-J", ODD_NAME, "--wrap", "exit 200")
    killed = submit(BOB, "--wrap", "kill -9 $$")
    array = submit(BOB, "-J", TWO_LINES, "--array=0-4:2%1", "--wrap", "sleep 300")
    het = submit(BOB, "-N1", "--wrap", "sleep 300", ":", "-N1")
    held = submit(BOB, "-H", "-p", partitions, "--wrap", "sleep 300")
    until(
        "the scene stands",
        lambda: (
            all(state(slurm, job) == "RUNNING" for job in (wide, het))
            and all(slurm.job(job).finished for job in (odd, killed))
            and any(job.array_task == 0 and job.state == "RUNNING" for job in slurm.jobs())
            and {step.step for step in slurm.steps(wide)} == {"0", "batch"}
        ),
    )
    slurm.set_node_state([node], "drain", REASON)
    yield Scene(wide, odd, killed, array, het, held, node)
    for job in (wide, array, het, held):
        subprocess.run(["scancel", str(job)], timeout=30, check=True)
    slurm.set_node_state([node], "resume")


def same(slurms: dict[str, Slurm], ask: Callable[[Slurm], object]) -> None:
    """All backends answer alike; the cluster may move between two questions, so try again."""
    for attempt in range(5):
        answers = {name: ask(each) for name, each in slurms.items()}
        first = answers["commands"]
        if all(answer == first for answer in answers.values()):
            return
        time.sleep(0.3 * attempt)
    for answer in answers.values():
        assert answer == first


def test_the_backend_is_the_one_asked_for_and_says_why(slurm: Slurm) -> None:
    assert slurm.backend in BACKENDS
    assert slurm.reason


def test_without_a_wish_pyslurm_is_chosen_where_its_probe_agrees() -> None:
    chosen = open_slurm()
    assert chosen.backend == ("pyslurm" if "pyslurm" in BACKENDS else "commands")
    assert chosen.reason == (
        "its probe agrees with scontrol" if "pyslurm" in BACKENDS else "pyslurm is not installed"
    )


def test_backends_agree_on_jobs(slurms: dict[str, Slurm], scene: Scene) -> None:
    same(slurms, lambda slurm: slurm.jobs())


def test_backends_agree_on_each_job(slurms: dict[str, Slurm], scene: Scene) -> None:
    for job in slurms["commands"].jobs():
        same(slurms, lambda slurm, number=job.id: slurm.job(number))


def test_backends_agree_on_steps(slurms: dict[str, Slurm], scene: Scene) -> None:
    for job in slurms["commands"].jobs():
        same(slurms, lambda slurm, number=job.id: slurm.steps(number))


def test_backends_agree_on_nodes(slurms: dict[str, Slurm], scene: Scene) -> None:
    same(slurms, lambda slurm: slurm.nodes())


def test_backends_agree_on_partitions(slurms: dict[str, Slurm], scene: Scene) -> None:
    same(slurms, lambda slurm: slurm.partitions())


def test_a_running_job_has_its_nodes_its_times_and_its_limit(slurm: Slurm, scene: Scene) -> None:
    job = slurm.job(scene.wide)
    assert (job.state, job.user, job.uid) == ("RUNNING", ANN, pwd.getpwnam(ANN).pw_uid)
    assert (job.node_count, len(job.nodes), job.cpus) == (2, 2, 2)
    assert set(job.nodes) <= {node.name for node in slurm.nodes()}
    assert job.time_limit_s == 5400
    assert job.submit_real_s is not None and job.start_real_s is not None
    assert time.time() - 300 < job.submit_real_s <= job.start_real_s <= time.time() + 1
    assert (job.end_real_s, job.exit_status, job.exit_signal, job.reason) == (None,) * 4
    assert (job.array_job, job.het_job, job.restarts, job.finished) == (None, None, 0, False)


def test_a_name_cannot_pose_as_another_field(slurm: Slurm, scene: Scene) -> None:
    for job in (slurm.job(scene.odd), next(j for j in slurm.jobs() if j.id == scene.odd)):
        assert (job.name, job.user) == (ODD_NAME, BOB)
        assert job.uid == pwd.getpwnam(BOB).pw_uid


def test_an_exit_status_above_127_is_not_cut(slurm: Slurm, scene: Scene) -> None:
    job = slurm.job(scene.odd)
    assert (job.state, job.exit_status, job.exit_signal) == ("FAILED", 200, None)
    assert job.end_real_s is not None
    assert next(j for j in slurm.jobs() if j.id == scene.odd) == job


def test_a_signal_is_told_from_a_status(slurm: Slurm, scene: Scene) -> None:
    job = slurm.job(scene.killed)
    assert (job.exit_status, job.exit_signal) == (0, 9)


def test_an_array_is_its_tasks_and_what_is_not_yet_split_off(slurm: Slurm, scene: Scene) -> None:
    tasks = {j.array_task: j for j in slurm.jobs() if j.array_job == scene.array}
    assert set(tasks) == {0, None}
    assert (tasks[0].state, tasks[0].name) == ("RUNNING", TWO_LINES)
    assert (tasks[None].state, tasks[None].id) == ("PENDING", scene.array)
    assert tasks[None].start_real_s is None
    assert [step.job for step in slurm.steps(tasks[0].id)] == [tasks[0].id]


def test_a_heterogeneous_job_is_its_components(slurm: Slurm, scene: Scene) -> None:
    parts = {j.het_offset: j for j in slurm.jobs() if j.het_job == scene.het}
    assert set(parts) == {0, 1}
    assert parts[0].id == scene.het


def test_a_held_job_waits_in_all_its_partitions(slurm: Slurm, scene: Scene) -> None:
    job = slurm.job(scene.held)
    assert (job.state, job.reason, job.nodes) == ("PENDING", "JobHeldUser", ())
    assert set(job.partitions) == {part.name for part in slurm.partitions()}


def test_steps_are_those_that_run(slurm: Slurm, scene: Scene) -> None:
    first, batch = slurm.steps(scene.wide)
    assert (first.step, first.name, first.tasks, first.nodes) == (
        "0", "sleep", 2, slurm.job(scene.wide).nodes,
    )  # fmt: skip
    assert (batch.step, len(batch.nodes)) == ("batch", 1)
    assert slurm.steps(scene.odd) == ()


def test_a_drained_node_has_its_reason_word_for_word(slurm: Slurm, scene: Scene) -> None:
    node = next(node for node in slurm.nodes() if node.name == scene.node)
    assert (node.reason, node.reason_user) == (REASON, "root")
    assert "DRAIN" in node.flags and not node.usable
    assert node.reason_real_s is not None and node.reason_real_s <= time.time() + 1
    others = [node for node in slurm.nodes() if node.name != scene.node]
    assert all(node.usable and node.reason is None for node in others)
    assert all(node.cpus >= 4 and node.version and node.boot_real_s for node in others)


def test_one_partition_is_the_default(slurm: Slurm) -> None:
    assert sum(part.default for part in slurm.partitions()) == 1
    assert all(part.nodes and part.state == "UP" for part in slurm.partitions())


def test_a_reservation_is_seen_alike(slurms: dict[str, Slurm], scene: Scene) -> None:
    target = slurms["commands"].nodes()[0].name
    begin = int(time.time()) + 3600
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(begin))
    make = ["scontrol", "create", "reservation=upkeep", "users=root", f"starttime={when}",
            "duration=60", f"nodes={target}", "flags=maint,ignore_jobs"]  # fmt: skip
    subprocess.run(make, timeout=30, check=True, stdout=subprocess.DEVNULL)
    try:
        for slurm in slurms.values():
            (found,) = slurm.reservations()
            assert (found.name, found.nodes, found.maintenance) == ("upkeep", (target,), True)
            assert (found.start_real_s, found.end_real_s) == (begin, begin + 3600)
            assert found.users == ("root",)
        same(slurms, lambda slurm: slurm.reservations())
    finally:
        subprocess.run(["scontrol", "delete", "reservation=upkeep"], timeout=30, check=True)
    assert all(slurm.reservations() == () for slurm in slurms.values())


def test_nodes_are_drained_and_come_back(slurm: Slurm, slurms: dict[str, Slurm]) -> None:
    names = [node.name for node in slurms["commands"].nodes()][:2]

    def flags() -> list[bool]:
        return ["DRAIN" in n.flags for n in slurms["commands"].nodes() if n.name in names]

    slurm.set_node_state(names, "drain", "test of two = words")
    assert flags() == [True, True]
    reasons = {n.reason for n in slurms["commands"].nodes() if n.name in names}
    assert reasons == {"test of two = words"}
    comment = "Extra words: Reason=x [root@12] State=DOWN"
    slurm.set_node_comment(names, comment)
    same(slurms, lambda each: each.nodes())
    assert {n.comment for n in slurm.nodes() if n.name in names} == {comment}
    assert {n.reason for n in slurm.nodes() if n.name in names} == reasons
    slurm.set_node_state(names, "resume")
    assert flags() == [False, False]
    assert {n.comment for n in slurm.nodes() if n.name in names} == {comment}
    slurm.set_node_comment(names, "")
    assert {n.comment for n in slurm.nodes() if n.name in names} == {None}


def test_a_job_is_requeued_and_counted(slurm: Slurm) -> None:
    job = submit(BOB, "--requeue", "--wrap", "sleep 300")
    try:
        until("it runs", lambda: state(slurm, job) == "RUNNING")
        slurm.requeue(job)
        until("it waits again", lambda: slurm.job(job).state == "PENDING")
        assert slurm.job(job).restarts == 1
        assert slurm.job(job).start_real_s is None
    finally:
        slurm.cancel(job)


def test_a_job_is_requeued_and_held(slurm: Slurm) -> None:
    job = submit(BOB, "--requeue", "--wrap", "sleep 300")
    try:
        until("it runs", lambda: state(slurm, job) == "RUNNING")
        slurm.requeue(job, hold=True)
        until("it is held", lambda: state(slurm, job) in ("PENDING", "REQUEUE_HOLD"))
        assert slurm.job(job).reason is not None
    finally:
        slurm.cancel(job)


def test_a_job_is_cancelled_and_stays_so(slurm: Slurm) -> None:
    job = submit(BOB, "--wrap", "sleep 300")
    until("it runs", lambda: state(slurm, job) == "RUNNING")
    slurm.cancel(job)
    until("it is cancelled", lambda: state(slurm, job) == "CANCELLED")
    assert slurm.job(job).finished
    slurm.cancel(job)


def tasks_of(slurm: Slurm, array: int) -> dict[int | None, Job]:
    return {j.array_task: j for j in slurm.jobs() if j.array_job == array}


def test_one_task_is_cancelled_though_it_has_the_arrays_number(slurm: Slurm) -> None:
    array = submit(BOB, "--array=0-1", "--wrap", "sleep 300")
    try:
        until(
            "both run",
            lambda: {j.state for j in tasks_of(slurm, array).values()} == {"RUNNING"},
        )
        tasks = tasks_of(slurm, array)
        assert tasks[1].id == array
        slurm.cancel(array)
        until("task 1 is cancelled", lambda: tasks_of(slurm, array)[1].state == "CANCELLED")
        assert tasks_of(slurm, array)[0].state == "RUNNING"
    finally:
        subprocess.run(["scancel", str(array)], timeout=30, check=True)


def test_one_task_is_requeued_though_it_has_the_arrays_number(slurm: Slurm) -> None:
    array = submit(BOB, "--requeue", "--array=0-1", "--wrap", "sleep 300")
    try:
        until(
            "both run",
            lambda: {j.state for j in tasks_of(slurm, array).values()} == {"RUNNING"},
        )
        slurm.requeue(array)
        until("task 1 waits again", lambda: tasks_of(slurm, array)[1].state == "PENDING")
        assert tasks_of(slurm, array)[0].state == "RUNNING"
    finally:
        subprocess.run(["scancel", str(array)], timeout=30, check=True)


def test_what_is_left_of_an_array_is_cancelled_without_its_running_task(slurm: Slurm) -> None:
    array = submit(BOB, "--array=0-4%1", "--wrap", "sleep 300")
    try:
        until("task 0 runs", lambda: 0 in tasks_of(slurm, array))
        until("it runs", lambda: tasks_of(slurm, array)[0].state == "RUNNING")
        assert tasks_of(slurm, array)[None].id == array
        slurm.cancel(array)
        until("the rest is cancelled", lambda: slurm.job(array).state == "CANCELLED")
        assert tasks_of(slurm, array)[0].state == "RUNNING"
    finally:
        subprocess.run(["scancel", str(array)], timeout=30, check=True)


def test_a_signal_reaches_the_steps_and_leaves_the_job(slurm: Slurm) -> None:
    job = submit(BOB, "--wrap", "srun sh -c 'trap exit USR1; sleep 300 & wait'; sleep 300")
    try:
        until("the step is there", lambda: any(s.step == "0" for s in slurm.steps(job)))
        time.sleep(0.5)  # the shell in it sets its trap
        slurm.cancel(job, signal=10)
        until("the step is gone", lambda: all(s.step != "0" for s in slurm.steps(job)))
        assert state(slurm, job) == "RUNNING"
    finally:
        slurm.cancel(job)


@pytest.mark.parametrize(
    "ask",
    [
        lambda slurm: slurm.job(99_999_999),
        lambda slurm: slurm.steps(99_999_999),
        lambda slurm: slurm.requeue(99_999_999),
        lambda slurm: slurm.cancel(99_999_999),
        lambda slurm: slurm.set_node_state(["nosuch"], "drain", "x"),
    ],
    ids=["job", "steps", "requeue", "cancel", "drain"],
)
def test_what_is_not_there_is_not_found(slurm: Slurm, ask: Callable[[Slurm], object]) -> None:
    with pytest.raises(NotFoundError):
        ask(slurm)


def test_a_drain_needs_a_reason_without_line_ends(slurm: Slurm) -> None:
    for reason in ("", "  ", "two\nlines"):
        with pytest.raises(UsageError):
            slurm.set_node_state([slurm.nodes()[0].name], "drain", reason)


def test_the_configuration_is_slurms_own(slurm: Slurm) -> None:
    found = slurm.configuration()
    assert found["ClusterName"]
    assert found["ProctrackType"] == "proctrack/linuxproc" or found["ProctrackType"]
    assert len(found) > 100
    assert found["SLURM_VERSION"] == slurm.version.text


HOST_LISTS = (
    "n1", "n[1-3]", "n[1-3,7]", "n[08-10]", "n[1-2]-ib[0-1]", "a,b[2-3],c", "x[1,3-4]y",
    "n[1,3-4,009-011]",
    "rack[0-1]node[00-02]", "n[9-11],m[1]", "n1-2",
)  # fmt: skip


@pytest.mark.parametrize("text", HOST_LISTS)
def test_host_lists_are_what_slurm_takes_them_for(text: str) -> None:
    said = subprocess.run(
        ["scontrol", "show", "hostnames", text],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    if "]y" in text and open_slurm("commands").version.series < (24, 11):
        assert said.stdout == ""  # why commands.py never asks Slurm with such a list
        return
    assert hostlist.expand(text) == said.stdout.split()
    again = subprocess.run(
        ["scontrol", "show", "hostnames", hostlist.fold(said.stdout.split())],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert sorted(again.stdout.split()) == sorted(said.stdout.split())


def attempts(slurm: Slurm, job: int) -> list[str]:
    now = int(time.time())
    return [use.state for use in slurm.usage(now - 3600, now + 60) if use.job == job]


@pytest.mark.skipif(not ACCOUNTING, reason="this cluster has no slurmdbd")
def test_usage_has_every_attempt_of_a_job(slurm: Slurm) -> None:
    job = submit(BOB, "--requeue", "--wrap", "sleep 300")
    until("it runs", lambda: state(slurm, job) == "RUNNING")
    until("the accounting has it", lambda: attempts(slurm, job) == ["RUNNING"])
    time.sleep(1.1)  # two attempts of one second would be one to the accounting
    slurm.requeue(job)
    until("it waits again", lambda: state(slurm, job) == "PENDING")
    until("the first attempt is kept", lambda: attempts(slurm, job) == ["REQUEUED"])
    slurm.cancel(job)
    until("it is cancelled", lambda: slurm.job(job).finished)
    assert attempts(slurm, job) == ["REQUEUED"]  # the second never began
    use = next(u for u in slurm.usage(int(time.time()) - 600, int(time.time())) if u.job == job)
    assert (use.user, use.node_count, len(use.nodes), use.name) == (BOB, 1, 1, "wrap")
    assert use.elapsed_s >= 1
    assert use.start_real_s is not None and use.end_real_s is not None
    assert use.end_real_s - use.start_real_s == use.elapsed_s


@pytest.mark.skipif(not ACCOUNTING, reason="this cluster has no slurmdbd")
def test_usage_of_odd_names_is_read(slurm: Slurm, scene: Scene) -> None:
    now = int(time.time())
    found = {use.job: use for use in slurm.usage(0, now)}
    assert found[scene.odd].name == ODD_NAME
    assert found[scene.odd].state == "FAILED"
    task = next(j for j in slurm.jobs() if j.array_job == scene.array and j.array_task == 0)
    assert found[task.id].name == TWO_LINES


def test_usage_of_a_time_that_ends_before_it_begins_is_refused(slurm: Slurm) -> None:
    with pytest.raises(UsageError):
        slurm.usage(10, 10)


@pytest.mark.skipif(ACCOUNTING, reason="this cluster has slurmdbd")
def test_usage_without_accounting_is_a_clear_error(slurm: Slurm) -> None:
    with pytest.raises(SlurmError, match="set AccountingStorageType=accounting_storage/slurmdbd"):
        slurm.usage(0, int(time.time()))


def test_a_clock_zone_of_the_caller_changes_nothing(
    slurm: Slurm, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: Job = slurm.job(scene.wide)
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")
    assert slurm.job(scene.wide) == before
