"""The lab of a user who is not root, inside that user's own namespaces."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.labname import NUMBER, lab_name

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(
        shutil.which("newuidmap") is None, reason="newuidmap is missing: apt-get install uidmap"
    ),
]

UID = 7001 + NUMBER
FIRST_ID = 200_000 + 65_536 * NUMBER
NAME = lab_name("user")
Cli = Callable[..., "subprocess.CompletedProcess[str]"]

# Users as this machine does not have them, seen by one process and its children only.
AS_TESTER = """
mount --bind "$1/etc" /etc
uid=$2
into=""
# The kernel gives no user namespace to a process in a chroot (user_namespaces(7)).
[ ! -d "$1/root" ] || { mount --rbind / "$1/root"; into="chroot $1/root"; }
shift 2
exec $into setpriv --reuid $uid --regid $uid --clear-groups env -u XDG_RUNTIME_DIR "$@"
"""


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """Files of users for AS_TESTER, with subordinate ids."""
    etc = tmp_path / "etc"
    subprocess.run(["cp", "-a", "/etc", str(etc)], check=True)
    with (etc / "passwd").open("a") as passwd:
        passwd.write(f"tester:x:{UID}:{UID}::/nonexistent:/bin/bash\n")
    for name in ("subuid", "subgid"):
        (etc / name).write_text(f"tester:{FIRST_ID}:65536\n")
    return tmp_path


@pytest.fixture
def cli(users: Path) -> Iterator[Cli]:
    def call(*words: str) -> "subprocess.CompletedProcess[str]":
        program = [sys.executable, "-m", "fabricctl.cli.main", "lab", *words]
        return subprocess.run(
            ["unshare", "-m", "sh", "-ec", AS_TESTER, "sh", str(users), str(UID), *program],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "FABRICCTL_LAB": NAME},
            timeout=120,
        )

    yield call
    call("down")


def keepers() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes()
            if path.stat().st_uid in range(FIRST_ID, FIRST_ID + 65536) or (
                path.stat().st_uid == UID and b"lab\0up" in words
            ):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def test_a_user_brings_a_lab_up_uses_it_and_leaves_nothing(cli: Cli) -> None:
    done = cli("up", "--nodes", "2", "--bare")
    assert done.returncode == 0, done.stderr
    assert "without root: no control groups" in done.stderr
    ran = cli("run", "--", "srun", "-p", "all", "-N2", "sh", "-c", "hostname; id -un")
    assert sorted(ran.stdout.split()) == ["alice", "alice", "n1", "n2"]
    assert cli("exec", "n1", "--", "sh", "-c", "exit 7").returncode == 7
    assert cli("fault", "cut", "n1", "r0").returncode == 0
    assert cli("exec", "n1", "--", "cat", "/sys/class/net/r0/carrier").stdout == "0\n"
    assert cli("fault", "freeze", "n2").returncode == 0
    nodes = json.loads(cli("status", "--json").stdout)["nodes"]
    assert [node["state"] for node in nodes] == ["up", "up", "frozen"]
    assert cli("heal", "--all").returncode == 0
    assert cli("down").returncode == 0
    assert keepers() == []
    assert not Path(f"/tmp/fabricctl-lab-{UID}").exists()


def test_a_user_whose_keeper_was_killed_starts_anew(cli: Cli) -> None:
    assert cli("up", "--nodes", "1", "--bare").returncode == 0
    for pid in keepers():
        subprocess.run(["kill", "-9", str(pid)], check=False, capture_output=True)
    done = cli("status")
    assert done.returncode == 1
    assert "no lab of yours is up" in done.stderr
    assert cli("up", "--nodes", "1", "--bare").returncode == 0
    assert cli("run", "--", "srun", "hostname").stdout == "n1\n"


def test_a_user_without_further_ids_is_told_what_to_do(cli: Cli, users: Path) -> None:
    (users / "etc" / "subuid").write_text("")
    done = cli("up")
    assert done.returncode == 71
    assert done.stderr.splitlines()[-1] == (
        "fabricctl: lab: needs root, or 65535 ids for tester in /etc/subuid: as root, apt-get "
        "install uidmap; usermod --add-subuids 100000-165535 --add-subgids 100000-165535 tester"
    )


def test_a_machine_without_user_namespaces_says_so(cli: Cli, users: Path) -> None:
    (users / "root").mkdir()
    done = cli("up")
    assert done.returncode == 71
    assert done.stderr.splitlines()[-1] == (
        "fabricctl: lab: needs root, or user namespaces, which this machine does not give "
        "(unshare: Operation not permitted)"
    )
