"""The node service and its agents on a node of their own, from request to trace."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from fabricctl.store import schema
from fabricctl.store.schema import LinkEvent
from tests.support.nodebox import AGENT_UID, USERS, NodeBox, wait_for

pytestmark = pytest.mark.lab


def test_a_job_leaves_a_trace_of_the_users_and_nothing_on_the_node(box: NodeBox) -> None:
    box.serve()
    box.start(5)
    pid = box.wait_running(5)
    status = (box.root / f"proc/{pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == [str(AGENT_UID)] * 4
    assert fields["Groups"].strip() == ""
    assert fields["NoNewPrivs"] == "1"
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
    assert (box.root / f"proc/{pid}/cmdline").read_text().rstrip("\0") == "fabric-agent: job 5"
    envelope = box.files.envelope(5).stat()
    assert (envelope.st_uid, envelope.st_mode & 0o777) == (USERS["alice"], 0o400)
    time.sleep(2.2)
    box.stop(5)
    box.wait_clean()
    with box.trace(5) as trace:
        assert trace.path.stat().st_uid == USERS["alice"]
        assert trace.path.stat().st_mode & 0o777 == 0o600
        assert (trace.job.job, trace.job.user, trace.job.nodes) == (5, "alice", ("n1",))
        assert trace.nodes["n1"].rails == ("r0", "r1")
        assert len(trace.table("n1", schema.HOST)) >= 3
        assert len(trace.table("n1", schema.RAIL)) >= 6
        assert set(trace.table("n1", schema.RAIL)["carrier"]) == {1}
        assert len(trace.table("n1", schema.CLOCK)) >= 2
    assert box.notes(5)[-1] == "ended: the job's epilog ran"
    assert "ab" * 32 not in box.log()


def test_the_key_is_nowhere_but_where_it_belongs(box: NodeBox) -> None:
    box.serve()
    box.start(5)
    box.wait_running(5)
    for pid in [*box.agents(), box.service_pid()]:
        for name in ("cmdline", "environ"):
            assert b"abababab" not in (box.root / f"proc/{pid}/{name}").read_bytes()
        # No core dump has it either, and no debugger but root's: /proc/PID of a process that is not
        # dumpable is root's (prctl(2), PR_SET_DUMPABLE).
        limits = (box.root / f"proc/{pid}/limits").read_text().splitlines()
        assert [line.split()[4:6] for line in limits if line.startswith("Max core")] == [["0", "0"]]
        assert (box.root / f"proc/{pid}/environ").stat().st_uid == 0
    wait_for(lambda: not list(box.files.requests.iterdir()), "the request is removed")
    found = box.run("grep", "-rls", "abababababababab", "/run", "/var/spool")
    assert sorted(Path(line).name for line in found.split()) == ["5", "envelope", "start"]


def test_link_events_are_caught_as_they_happen(box: NodeBox) -> None:
    box.serve()
    box.start(5)
    box.wait_running(5)
    time.sleep(1.3)
    done_ns = []
    for state in ("down", "up"):
        box.run("ip", "link", "set", "far-r1", state)
        done_ns.append(time.time_ns())
        time.sleep(0.25)
    box.stop(5)
    box.wait_clean()
    with box.trace(5) as trace:
        rows = trace.table("n1", schema.LINK_EVENT)
        rows = rows[rows["rail"] == 1]
    assert list(rows["event"]) == [LinkEvent.CARRIER_DOWN, LinkEvent.CARRIER_UP]
    # nsenter and ip took up to some 20 ms before the time that was noted.
    for row, at_ns in zip(rows, done_ns, strict=True):
        assert -100e6 < int(row["time_real_ns"]) - at_ns < 10e6


def test_a_killed_agent_comes_back_and_the_record_says_so(box: NodeBox) -> None:
    box.serve()
    box.start(5)
    pid = box.wait_running(5)
    time.sleep(2.2)
    killed_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    box.kill(pid)
    wait_for(lambda: box.agent_pid(5) not in (None, pid), "another agent lives")
    box.wait_running(5)
    time.sleep(1.2)
    box.stop(5)
    box.wait_clean()
    with box.trace(5) as trace:
        lives = trace.table("n1", schema.LIFE)
        assert len(lives) == 2
        assert killed_ns - 2e9 < int(lives["end_mono_ns"][0]) <= killed_ns
    assert any("the agent before this one was killed by signal 9" in n for n in box.notes(5))


def test_agents_outlive_the_service_and_are_taken_over(box: NodeBox) -> None:
    box.serve()
    box.start(5)
    pid = box.wait_running(5)
    box.end_service(signal.SIGKILL)
    time.sleep(1)
    assert box.agent_pid(5) == pid
    box.serve()
    assert box.agent_pid(5) == pid
    box.stop(5)
    box.wait_clean()
    with box.trace(5) as trace:
        assert len(trace.table("n1", schema.LIFE)) == 1


def test_an_agent_that_died_with_the_service_is_started_again(box: NodeBox) -> None:
    box.serve()
    box.start(5)
    pid = box.wait_running(5)
    box.end_service(signal.SIGKILL)
    box.kill(pid)
    box.serve()
    wait_for(lambda: box.agent_pid(5) not in (None, pid), "another agent lives")
    box.wait_running(5)
    time.sleep(0.2)
    box.stop(5)
    box.wait_clean()
    assert "no agent lived when the node service started" in box.notes(5)


def test_agents_without_a_service_end_by_themselves_within_30_s(box: NodeBox) -> None:
    box.serve()
    box.start(5)
    box.start(6)
    pids = {box.wait_running(5), box.wait_running(6)}
    box.end_service(signal.SIGKILL)
    killed_s = time.monotonic()
    box.stop(5)
    wait_for(lambda: len(box.agents()) == 1, "the one with an epilog ends", 10)
    assert set(box.agents()) < pids
    wait_for(lambda: not box.agents(), "the idle one ends", 30)
    assert time.monotonic() - killed_s < 30
    box.serve()  # the allocation of job 6 may still be there: a service that is back asks
    box.stop(6)
    box.wait_clean()
    assert "ended: the job's epilog ran" in box.notes(5)
    assert "ended: the node service is gone and no step was seen for 20 s" in box.notes(6)


def test_a_requeue_gets_a_trace_of_its_own(box: NodeBox) -> None:
    box.serve()
    for _ in range(2):
        box.start(5)
        box.wait_running(5)
        time.sleep(1.1)
        box.stop(5)
        wait_for(lambda: not box.files.job_dir(5).exists(), "the attempt is over")
        time.sleep(1.1)  # no requeue is faster
    box.wait_clean()
    with box.trace(5) as first, box.trace(5, requeue=1) as second:
        assert first.job.end_real_ns < second.job.begin_real_ns


def test_a_new_attempt_while_the_old_one_still_runs_ends_the_old_one(box: NodeBox) -> None:
    box.serve()
    box.start(5)
    pid = box.wait_running(5)
    marks = box.files.steps(5)
    marks.mkdir()
    (marks / "0").touch()
    box.kill(pid, signal.SIGSTOP)  # so that the old attempt takes its time to end
    time.sleep(0.05)
    box.start(5, nodes="n[1-2]")
    (marks / "1").touch()  # the new attempt's first step
    wait_for(lambda: box.status(5).get("nodes") == "2", "the new attempt runs", 30)
    assert box.agent_pid(5) != pid
    assert [path.name for path in marks.iterdir()] == ["1"]
    box.stop(5)
    box.wait_clean()


def test_requests_that_wait_for_the_service_are_served_when_it_comes(box: NodeBox) -> None:
    box.serve()
    box.end_service()
    before_ns = time.time_ns()
    box.start(5)
    time.sleep(2.5)
    box.serve()
    box.wait_running(5)
    time.sleep(0.3)
    box.stop(5)
    box.wait_clean()
    assert any("waited" in note and "for the node service" in note for note in box.notes(5))
    with box.trace(5) as trace:  # begins with the prolog, as on the nodes that did not wait
        assert before_ns - 50e6 < trace.job.begin_real_ns < before_ns + 1e9


def test_nonsense_neither_stops_the_service_nor_stays(box: NodeBox) -> None:
    box.serve()
    rng = random.Random(4)
    for number in range(40):
        box.put(f"{900 + number}.start", rng.randbytes(rng.randrange(300)).decode("latin1"))
    (box.files.requests / "1.start").symlink_to("/etc/shadow")
    os.mkfifo(box.files.requests / "2.start")
    (box.files.requests / "3.stop").mkdir()
    (box.files.requests / "no such thing").write_text("")
    box.stop(77)  # never started
    box.start(5)
    box.start(5)
    box.wait_running(5)
    box.start(5)
    wait_for(lambda: not list(box.files.requests.iterdir()), "all requests are gone")
    assert len(box.agents()) == 1
    box.stop(5)
    box.stop(5)
    box.wait_clean()
    assert "refused and removed" in box.log()


def test_two_users_share_a_node(box: NodeBox) -> None:
    box.serve()
    box.start(5, "alice")
    box.start(6, "bob")
    assert box.wait_running(5) != box.wait_running(6)
    time.sleep(0.3)
    box.stop(5)
    wait_for(lambda: not box.files.job_dir(5).exists(), "the first ends")
    assert box.status(6)["state"] == "running"
    box.stop(6)
    box.wait_clean()
    for job, user in ((5, "alice"), (6, "bob")):
        with box.trace(job, user) as trace:
            assert trace.path.stat().st_uid == USERS[user]


def test_a_job_of_an_instant_has_a_trace(box: NodeBox) -> None:
    box.serve()
    box.start(5)
    box.stop(5)
    box.wait_clean()
    with box.trace(5) as trace:
        assert len(trace.table("n1", schema.HOST)) >= 1


def test_fifty_jobs_in_a_second(box: NodeBox) -> None:
    box.serve()
    begin_s = time.monotonic()
    for job in range(100, 150):
        box.start(job)
    wait_for(lambda: len(box.agents()) == 50, "fifty agents live")
    assert time.monotonic() - begin_s < 5
    for job in range(100, 150):
        box.stop(job)
    box.wait_clean(90)
    for job in range(100, 150):
        with box.trace(job) as trace:
            assert trace.job.job == job


def test_a_forged_pid_file_gets_nobody_killed(box: NodeBox) -> None:
    """A broken agent may write any number; root must not send it a signal."""
    box.serve()
    box.start(5)
    pid = box.wait_running(5)
    victim = int(box.run("bash", "-c", "sleep 100 >/dev/null 2>&1 & echo $!"))
    box.end_service(signal.SIGKILL)
    box.kill(pid)
    ticks = (box.root / f"proc/{victim}/stat").read_text().rpartition(")")[2].split()[19]
    box.files.agent_pid(5).write_text(f"{victim} {ticks}\n")
    box.serve()
    wait_for(lambda: box.agent_pid(5) not in (None, pid, victim), "a real agent lives")
    box.stop(5)
    box.wait_clean()
    assert (box.root / f"proc/{victim}").exists()


def test_an_agent_that_nobody_knows_of_gives_way(box: NodeBox) -> None:
    """The service died before its agent had written its number down."""
    box.serve()
    box.start(5)
    first = box.wait_running(5)
    box.end_service(signal.SIGKILL)
    box.files.agent_pid(5).unlink()
    box.serve()
    second = box.wait_running(5)
    assert second != first
    wait_for(lambda: box.agents() == [second], "the first one ends")
    box.stop(5)
    box.wait_clean()
    assert "ended: another agent of the job was started" in box.notes(5)


def test_after_a_reboot_the_spool_is_collected(box: NodeBox) -> None:
    box.serve()
    box.start(5)
    pid = box.wait_running(5)
    time.sleep(1.2)
    box.end_service(signal.SIGKILL)
    box.kill(pid)
    box.run("umount", "-l", "/run/fabricctl/track")
    box.run("rm", "-rf", "/run/fabricctl")
    box.serve()
    box.wait_clean()
    with box.trace(5) as trace:
        assert len(trace.table("n1", schema.HOST)) >= 1


def test_what_an_earlier_boot_left_in_a_run_directory_on_disk_is_cleared(box: NodeBox) -> None:
    box.serve()
    box.start(5)
    pid = box.wait_running(5)
    box.end_service(signal.SIGKILL)
    box.kill(pid)
    (box.files.run_dir / "boot_id").write_text("another boot")
    for path in (box.files.job_dir(5), box.files.live(5), box.files.requests / "9.start"):
        path.touch()
        os.utime(path, (1, 1))
    box.serve()
    box.wait_clean()
    with box.trace(5) as trace:
        assert trace.job.job == 5


def test_kills_at_random_points_cost_at_most_two_seconds(box: NodeBox) -> None:
    """Agents and the service are killed at random; FABRIC_KILLS and FABRIC_SEED repeat a run."""
    kills = int(os.environ.get("FABRIC_KILLS", "16"))
    rng = random.Random(int(os.environ.get("FABRIC_SEED", "1")))
    jobs = (5, 6, 7)
    box.serve()
    for job in jobs:
        box.start(job, extra=";sample_hz=20")
    killed_ns: dict[int, list[int]] = {job: [] for job in jobs}
    for number in range(kills):
        time.sleep(rng.uniform(0.0, 1.6))
        if number % 4 == 3:
            box.end_service(signal.SIGKILL)
            time.sleep(rng.uniform(0, 0.3))
            box.serve()
            continue
        job = rng.choice(jobs)
        pid = box.agent_pid(job)
        if pid is not None:
            killed_ns[job].append(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
            box.kill(pid)
    for job in jobs:
        box.wait_running(job)
        box.stop(job)
    box.wait_clean(60)
    for job in jobs:
        with box.trace(job) as trace:
            lives = trace.table("n1", schema.LIFE)
        assert len(lives) >= 1
        for at_ns in killed_ns[job]:
            before = lives[lives["time_mono_ns"] <= at_ns]["end_mono_ns"]
            last_ns = int(before.max()) if len(before) else 0
            # An agent that was killed before its first row left nothing to lose.
            newer = any(last_ns <= other < at_ns for other in killed_ns[job])
            assert at_ns - last_ns < 2e9 or newer or not last_ns


def test_an_agent_killed_at_once_still_leaves_a_record(box: NodeBox) -> None:
    box.serve()
    box.start(5)
    wait_for(box.agents, "an agent lives")
    box.kill(box.agents()[0], signal.SIGSTOP)
    box.stop(5)
    wait_for(lambda: "job=5: agent did not end in time" in box.log(), "it is killed", 30)
    box.wait_clean()
    assert any("the last agent was killed by signal 9" in text for text in box.notes(5))


def test_a_job_that_ends_while_its_keeper_begins_leaves_none(box: NodeBox) -> None:
    """A keeper is forked half a second after its job: its end comes before, with and after that."""
    box.serve()
    for nth in range(10):
        jobs = range(100 + 3 * nth, 103 + 3 * nth)
        for job in jobs:
            box.start(job)
        time.sleep(0.42 + 0.015 * nth)
        for job in jobs:
            box.stop(job)
    box.wait_clean(60)

    def left() -> bool:
        return "fabric-keeper" in box.run("ps", "-eo", "args")

    wait_for(lambda: not left(), "no keeper is left", 20)
    wait_for(lambda: not box.run("ls", "/run/fabricctl/track"), "their places are gone", 20)
