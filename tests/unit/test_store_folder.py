"""The folder of a user below the shared directory, and who may have made it."""

import os
import stat
from pathlib import Path

import pytest

from fabricctl.errors import SystemRefusedError
from fabricctl.store import collect


def test_the_folder_is_made_for_its_user_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    old = os.umask(0)
    try:
        path = collect.ensure_user_dir(tmp_path, "alice", os.geteuid())
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert collect.ensure_user_dir(tmp_path, "alice", os.geteuid()) == path


@pytest.mark.parametrize("user", ["", ".", "..", "a/b"])
def test_a_user_name_is_one_folder(user: str, tmp_path: Path) -> None:
    with pytest.raises(SystemRefusedError, match="cannot be a folder's name"):
        collect.ensure_user_dir(tmp_path, user, os.geteuid())


def test_a_folder_that_others_may_swap_or_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(SystemRefusedError, match="chmod 1777"):
        collect.ensure_user_dir(tmp_path, "alice", os.geteuid())
    tmp_path.chmod(0o1777)
    path = collect.ensure_user_dir(tmp_path, "alice", os.geteuid())
    path.chmod(0o770)
    for call in (
        lambda: collect.ensure_user_dir(tmp_path, "alice", os.geteuid()),
        lambda: collect.merge(path, 7, ("n1",), 0, False),
    ):
        with pytest.raises(SystemRefusedError, match="others may write to it: chmod go-w"):
            call()


@pytest.mark.parametrize("target", ["nowhere", "there"])
def test_a_link_in_the_folders_place_is_refused(target: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(0o700)
    (tmp_path / "alice").symlink_to(tmp_path / target)
    with pytest.raises(SystemRefusedError, match="alice: not a folder that can be used"):
        collect.ensure_user_dir(tmp_path, "alice", os.geteuid())


def test_a_folder_that_another_user_made_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a folder to another user needs root")
    (tmp_path / "alice").mkdir(0o700)
    os.chown(tmp_path / "alice", 12345, 12345)
    with pytest.raises(SystemRefusedError, match="belongs to uid 12345, not to 0"):
        collect.ensure_user_dir(tmp_path, "alice", 0)


def test_the_folder_is_not_made_with_anothers_rights(tmp_path: Path) -> None:
    with pytest.raises(SystemRefusedError, match="must be made by uid 4711"):
        collect.ensure_user_dir(tmp_path, "alice", 4711)
    assert not list(tmp_path.iterdir())


def test_what_was_set_aside_is_not_replaced_by_what_is_damaged_later(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    path = collect.ensure_user_dir(tmp_path, "alice", os.geteuid())
    for text in ("first", "second", "third"):
        (path / "job-7.h5").write_text(text)
        (path / ".parts" / "job-7").mkdir(parents=True, exist_ok=True)
        collect.merge(path, 7, ["n1"], 10**18, complete_only=False)
    kept = sorted((found.name, found.read_text()) for found in path.iterdir() if found.is_file())
    assert kept == [
        ("job-7.h5.damaged", "first"),
        ("job-7.h5.damaged.1", "second"),
        ("job-7.h5.damaged.2", "third"),
    ]
