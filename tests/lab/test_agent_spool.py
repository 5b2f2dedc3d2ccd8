"""The node service and its agents where disks and directories are not as they should be."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from fabricctl.store import schema
from tests.support.nodebox import USERS, NodeBox, wait_for

pytestmark = pytest.mark.lab


def test_a_full_spool_at_the_start_is_told_and_survived(tmp_path: Path) -> None:
    with NodeBox(tmp_path, spool="1m") as box:
        box.serve()
        fill(box)
        box.start(5)
        wait_for(lambda: "No space left" in box.status(5).get("problem", ""), "it is told")
        assert box.files.envelope(5).exists()
        (box.root / "var/spool/filler").unlink()
        wait_for(lambda: box.status(5).get("state") == "running", "it runs after all", 20)
        wait_for(lambda: "problem" not in box.status(5), "the problem is over", 20)
        time.sleep(1.2)
        box.stop(5)
        box.wait_clean()
        assert any("No space left" in text for text in [*box.notes(5), box.log()])
        with box.trace(5) as trace:
            assert len(trace.table("n1", schema.HOST)) >= 1


def test_a_job_that_met_only_a_full_spool_has_a_trace(tmp_path: Path) -> None:
    with NodeBox(tmp_path, spool="1m") as box:
        box.serve()
        fill(box)
        box.start(5)
        wait_for(lambda: "No space left" in box.status(5).get("problem", ""), "it is told")
        box.stop(5)
        time.sleep(2)
        (box.root / "var/spool/filler").unlink()
        box.wait_clean()
        with box.trace(5) as trace:
            assert len(trace.table("n1", schema.HOST)) >= 1


def test_a_service_that_dies_while_the_spool_is_full_loses_no_trace(tmp_path: Path) -> None:
    with NodeBox(tmp_path, spool="1m") as box:
        box.serve()
        fill(box)
        box.start(5)
        wait_for(box.agents, "an agent lives")
        time.sleep(1)
        box.stop(5)
        unsaved = box.root / "run/fabricctl/live"
        wait_for(lambda: any("." in path.name for path in unsaved.iterdir()), "it has ended", 30)
        box.end_service(signal.SIGKILL)
        box.serve()
        (box.root / "var/spool/filler").unlink()
        box.wait_clean(60)
        assert list(unsaved.iterdir()) == []
        with box.trace(5) as trace:
            assert (trace.job.job, trace.job.user) == (5, "alice")


def test_a_spool_of_nobody_is_removed(box: NodeBox) -> None:
    box.serve()
    box.end_service()
    orphan = box.root / "var/spool/fabricctl/9.1000"
    orphan.mkdir()
    (orphan / "0.journal").write_bytes(b"x")
    box.serve()
    wait_for(lambda: not orphan.exists(), "it is gone")
    assert "nobody knows whose it is" in box.log()


def test_a_spool_that_fills_up_costs_no_sample_that_fits_in_memory(tmp_path: Path) -> None:
    with NodeBox(tmp_path, spool="1m") as box:
        box.serve()
        box.start(5, extra=";sample_hz=10")
        box.wait_running(5)
        fill(box)
        wait_for(lambda: "No space left" in box.status(5).get("problem", ""), "it is told", 20)
        (box.root / "var/spool/filler").unlink()
        wait_for(lambda: "problem" not in box.status(5), "the problem is over", 20)
        box.stop(5)
        box.wait_clean()
        with box.trace(5) as trace:
            times = trace.table("n1", schema.HOST)["time_mono_ns"]
            assert np.diff(times).max() < 1e9


def fill(box: NodeBox) -> None:
    box.run("bash", "-c", "cat /dev/zero > /var/spool/filler 2>/dev/null || true")


def test_a_missing_shared_directory_costs_no_trace(box: NodeBox) -> None:
    box.serve()
    (box.share).rmdir()
    box.start(5)
    box.wait_running(5)
    time.sleep(1.2)
    box.stop(5)
    wait_for(lambda: "stays in the spool" in box.log(), "it is told", 20)
    assert not box.files.job_dir(5).exists()
    box.end_service(signal.SIGKILL)
    box.serve()
    box.share.mkdir()
    box.share.chmod(0o1777)
    box.wait_clean()
    with box.trace(5) as trace:
        assert len(trace.table("n1", schema.HOST)) >= 1


def test_a_folder_that_another_user_made_is_not_written_to(box: NodeBox) -> None:
    box.serve()
    (box.share / "alice").mkdir(mode=0o777)
    os.chown(box.share / "alice", USERS["bob"], USERS["bob"])
    (box.share / "bob").symlink_to("/etc")
    for job, user in ((5, "alice"), (6, "bob")):
        box.start(job, user)
        box.wait_running(job)
        box.stop(job)
    wait_for(lambda: box.log().count("stays in the spool") >= 2, "it is told", 20)
    assert list((box.share / "alice").iterdir()) == []
    assert len(list(box.spool.iterdir())) == 2
    (box.share / "alice").rmdir()
    (box.share / "bob").unlink()
    box.wait_clean(60)
    for job, user in ((5, "alice"), (6, "bob")):
        with box.trace(job, user) as trace:
            assert trace.path.stat().st_uid == USERS[user]


def test_links_in_the_users_own_folder_give_nobody_elses_rights(box: NodeBox) -> None:
    box.serve()
    own = box.share / "alice"
    own.mkdir(mode=0o700)
    (own / ".parts").symlink_to("/run/fabricctl/requests")
    (own / "job-5.h5").symlink_to("/etc/passwd")
    for path in (own, own / ".parts", own / "job-5.h5"):
        os.chown(path, USERS["alice"], USERS["alice"], follow_symlinks=False)
    before = (box.root / "etc/passwd").read_bytes()
    box.start(5)
    box.wait_running(5)
    box.stop(5)
    wait_for(lambda: "stays in the spool" in box.log() or not list(box.spool.iterdir()), "tried")
    assert (box.root / "etc/passwd").read_bytes() == before
    assert list(box.files.requests.iterdir()) == []
