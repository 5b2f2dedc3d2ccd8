"""The node service's small parts: requests, root's files, Slurm's answers, restarts."""

import os
import time
from pathlib import Path

import pytest

from fabricctl.errors import FabricError, SystemRefusedError
from fabricctl.node import orphans, requests, rootfiles, service, spawn, spool
from fabricctl.node.inotify import Inotify

ENVELOPE = "v=1;mode=on;key=" + "ab" * 32 + ";spares=0;on_missing=warn"


def start_text(job: int = 5) -> str:
    return (
        f"job={job}\nuid=7001\nuser=alice\nnodes=n[1-2]\nnode=n1\ncluster=c\nenvelope={ENVELOPE}\n"
    )


class Refused(list[tuple[str, str]]):
    def __call__(self, path: Path, why: str) -> None:
        self.append((path.name, why))


def write(path: Path, text: str, age_s: float = 0) -> Path:
    path.write_text(text)
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def test_requests_come_in_the_order_they_were_written(tmp_path: Path) -> None:
    write(tmp_path / "5.stop", "", 30)
    write(tmp_path / "5.start", "", 20)
    write(tmp_path / "4.start", "", 10)
    found = requests.waiting(tmp_path, Refused())
    assert [(request.job, request.what) for request in found] == [
        (5, "stop"),
        (5, "start"),
        (4, "start"),
    ]


def test_garbage_is_refused(tmp_path: Path) -> None:
    write(tmp_path / ".6.start", "left by an earlier version")
    write(tmp_path / "07.start", "")
    write(tmp_path / "7.begin", "")
    (tmp_path / "8.start").mkdir()
    (tmp_path / "9.start").symlink_to("/etc/shadow")
    os.mkfifo(tmp_path / "10.stop")
    refused = Refused()
    assert requests.waiting(tmp_path, refused) == []
    names = {name for name, _ in refused}
    assert names == {".6.start", "07.start", "7.begin", "8.start", "9.start", "10.stop"}
    for name in names:
        requests.remove(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [0, 20, -1])
def test_a_request_that_is_being_written_is_left_alone(tmp_path: Path, length: int) -> None:
    write(tmp_path / "5.start", start_text()[:length], 1)
    (request,) = requests.waiting(tmp_path, Refused())
    assert requests.read_start(request) is None
    write(tmp_path / "5.start", start_text()[:length], 6)  # its prolog died
    (request,) = requests.waiting(tmp_path, Refused())
    with pytest.raises(FabricError, match="not whole"):
        requests.read_start(request)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "job=5",
        "\0" * 100,
        "job=5\n" * 2,
        start_text().replace("job=5", "job=6"),
        start_text().replace("uid=7001", "uid=root"),
        start_text().replace("mode=on", "mode=off"),
        start_text().replace("node=n1", "node=n9"),
        start_text().replace("user=alice", "user=../../etc"),
        start_text().replace("nodes=n[1-2]", "nodes=n[1-999999]"),
        "x" * 300_000,
    ],
)
def test_a_start_request_that_no_prolog_writes_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path / "5.start", text, 6)
    (request,) = requests.waiting(tmp_path, Refused())
    with pytest.raises((FabricError, OSError)):
        requests.read_start(request)


def test_a_start_request_is_read(tmp_path: Path) -> None:
    write(tmp_path / "5.start", start_text(), 3)
    (request,) = requests.waiting(tmp_path, Refused())
    read = requests.read_start(request)
    assert read is not None
    start, text = read
    assert (start.job, start.user, start.nodes) == (5, "alice", ("n1", "n2"))
    assert text == start_text()
    assert 2e9 < time.time_ns() - request.written_real_ns < 10e9


def test_root_reads_through_no_link_and_waits_for_no_fifo(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "big").write_bytes(b"x" * (rootfiles.MAX_BYTES + 1))
    for name in ("link", "fifo", "big", "none"):
        with pytest.raises(OSError):
            rootfiles.read_small(tmp_path / name, os.geteuid())
    with pytest.raises(OSError, match="not a regular file of uid"):
        rootfiles.read_small(tmp_path / "target", os.geteuid() + 1)
    assert rootfiles.read_small(tmp_path / "target", os.geteuid()) == b"secret"


def test_root_writes_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        rootfiles.write_new(tmp_path / "link", b"x", 0o644, os.getuid(), os.getgid())
    assert not (tmp_path / "elsewhere").exists()


def test_a_link_in_place_of_a_directory_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OSError):
        rootfiles.make_dir(tmp_path / "link", 0o711, os.getuid(), os.getgid())
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o700


def test_removing_a_tree_leaves_what_its_links_lead_to(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("kept")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "link").symlink_to(tmp_path / "outside")
    (tree / "a" / "b" / "file").write_text("")
    rootfiles.remove_tree(tree)
    assert not tree.exists()
    assert (tmp_path / "outside" / "file").read_text() == "kept"
    rootfiles.remove_tree(tree)  # gone already: no error
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    rootfiles.remove_tree(tmp_path / "link")
    assert (tmp_path / "outside" / "file").read_text() == "kept"


def test_a_tree_is_removed_however_deep_it_nests(tmp_path: Path) -> None:
    """Users make directories where their ranks say where they stand: one that is never removed
    takes the room of all who come later."""
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("tree", dir_fd=here)
        os.close(os.open("file", os.O_CREAT, dir_fd=here))
        below = os.open("tree", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    rootfiles.remove_tree(tmp_path / "tree")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_tree_that_grows_as_fast_as_it_is_removed_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rootfiles, "MOST_DIRECTORIES", 5)
    (tmp_path / "tree" / "/".join("abcdefg")).mkdir(parents=True)
    with pytest.raises(OSError, match="more than 5 directories"):
        rootfiles.remove_tree(tmp_path / "tree")


def test_a_renamed_file_wakes_the_watch(tmp_path: Path) -> None:
    import select

    watch = Inotify(tmp_path)
    assert select.select([watch], [], [], 0)[0] == []
    (tmp_path / ".x").write_text("")
    (tmp_path / ".x").rename(tmp_path / "x")
    assert select.select([watch], [], [], 1)[0] == [watch]
    watch.drain()
    assert select.select([watch], [], [], 0)[0] == []
    watch.close()


def test_the_lock_is_held_by_one_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "LOCK_WAIT_S", 0.1)
    fd = service.take_lock(tmp_path / "node.lock", os.getgid())
    with pytest.raises(SystemRefusedError, match="another node service"):
        service.take_lock(tmp_path / "node.lock", os.getgid())
    os.close(fd)
    os.close(service.take_lock(tmp_path / "node.lock", os.getgid()))


def test_agents_do_not_run_as_root() -> None:
    with pytest.raises(SystemRefusedError, match="do not run as root"):
        spawn.agent_identity("root")
    with pytest.raises(SystemRefusedError, match="no such user"):
        spawn.agent_identity("nobody-of-this-name")


@pytest.mark.parametrize(
    ("output", "status", "expected"),
    [
        ("5|RUNNING|n[1-3]\n", 0, ""),
        ("5|SUSPENDED|n1\n", 0, ""),
        ("5|COMPLETING|n[1-3]\n", 0, "Slurm says COMPLETING"),
        ("5|PENDING|\n", 0, "Slurm says PENDING"),
        ("5|RUNNING|n[2-3]\n", 0, "the node left the job"),
        ("", 0, "Slurm does not know the job any more"),
        ("slurm_load_jobs error: Invalid job id specified\n", 1, "Slurm does not know the job"),
        ("slurm_load_jobs error: Unable to contact slurm controller\n", 1, None),
        ("", 1, None),
        ("garbage\n", 0, None),
        ("6|RUNNING|n1\n", 0, None),
        ("6|PENDING|\n5|RUNNING|n1\n", 0, ""),
    ],
)
def test_what_slurm_says_about_a_job(output: str, status: int, expected: str | None) -> None:
    found = orphans.judge(5, "n1", output, status)
    assert found == expected or (expected and found and found.startswith(expected))


def test_journals_of_later_lives_come_later(tmp_path: Path) -> None:
    for name in ("10.journal", "9.journal", "x.journal", "start"):
        (tmp_path / name).write_text("")
    assert [path.name for path in spool.journals(tmp_path)] == ["9.journal", "10.journal"]
    assert spool.next_life(tmp_path) == 11
