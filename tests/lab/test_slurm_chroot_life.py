"""Chroots leave nothing behind, and fail with a reason."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import chroot

pytestmark = pytest.mark.lab

SUITE = chroot.SUITES["bookworm"]


def processes(word: str) -> list[str]:
    """Command lines of all processes that have this word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if word.encode() in words:
            found.append(b" ".join(words).decode())
    return found


def gone_within(word: str, wait_s: float) -> None:
    end_s = time.monotonic() + wait_s
    while found := processes(word):
        assert time.monotonic() < end_s, found
        time.sleep(0.05)


def mounts() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if "fabricctl-chroot" in line]


def test_a_run_leaves_nothing_and_changes_nothing_in_the_cache() -> None:
    root = chroot.make(SUITE)
    script = "touch /etc/left /usr/left; setsid -f sleep 987601; cat /proc/1/comm; ip -br link"
    done = chroot.run(SUITE, ["bash", "-c", script], timeout_s=60)
    assert done.returncode == 0
    assert "lo " in done.stdout
    assert not (root / "etc/left").exists()
    assert not (root / "usr/left").exists()
    assert processes("987601") == []
    assert mounts() == []


def test_a_run_that_takes_too_long_is_ended_with_all_that_it_started() -> None:
    chroot.make(SUITE)
    with pytest.raises(subprocess.TimeoutExpired):
        chroot.run(SUITE, ["bash", "-c", "setsid -f sleep 987602; sleep 987602"], timeout_s=2)
    gone_within("987602", 5)
    assert mounts() == []


def test_a_killed_run_leaves_no_process() -> None:
    chroot.make(SUITE)
    code = (
        "from tests.support import chroot\n"
        "chroot.run(chroot.SUITES['bookworm'], ['sleep', '987603'], timeout_s=60)\n"
    )
    running = subprocess.Popen([sys.executable, "-c", code], cwd=chroot.PROJECT)
    end_s = time.monotonic() + 20
    while len(processes("987603")) < 2:  # unshare has the word, too
        assert time.monotonic() < end_s
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    running.wait(timeout=10)
    gone_within("987603", 5)


def test_a_chroot_with_something_mounted_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "x" / "sys").mkdir(parents=True)
    (tmp_path / "x" / "sys" / "kept").touch()
    code = (
        "import subprocess, sys\nfrom pathlib import Path\nfrom tests.support import chroot\n"
        "path = Path(sys.argv[1])\n"
        "subprocess.run(['mount', '-t', 'tmpfs', 'x', str(path / 'sys')], check=True)\n"
        "try: chroot._remove(path)\n"
        "except chroot.ChrootError as error: print(error)\n"
    )
    argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", code]
    done = subprocess.run(
        [*argv, str(tmp_path / "x")],
        cwd=chroot.PROJECT, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stdout == (f"chroot {tmp_path}/x: {tmp_path}/x/sys is mounted: umount it first\n")
    assert (tmp_path / "x" / "sys" / "kept").exists()
    chroot._remove(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_chroot_that_cannot_be_made_is_an_error_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chroot, "CACHE", tmp_path)
    monkeypatch.setattr(chroot, "mirror", lambda: f"file://{tmp_path}/nothing")
    with pytest.raises(chroot.ChrootError, match=r"(?s)^chroot bookworm: unshare ended with .*E: "):
        chroot.make(SUITE)
    assert not list(tmp_path.glob("bookworm-??????*-")) and mounts() == []
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(chroot.ChrootError, match="debootstrap is missing: apt install debootstrap"):
        chroot.make(SUITE)
