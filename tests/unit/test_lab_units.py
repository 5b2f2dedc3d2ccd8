"""Our systemd units as the lab applies them."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fabricctl.errors import LabError
from fabricctl.lab import units

SYSTEMD = Path(__file__).parents[2] / "site-config" / "systemd"
_INSIDE = """
import json, os, socket, sys
from pathlib import Path
from fabricctl.lab import units

units.sandbox(Path(sys.argv[1])).enter()
os.execv(sys.executable, [sys.executable, "-c", sys.argv[2]])
"""
_TRIES = """
import ctypes, json, os, socket
def refused(call):
    try:
        return call() and ""
    except OSError as error:
        return error.strerror
libc = ctypes.CDLL(None, use_errno=True)
def raw(name, *args):
    if getattr(libc, name)(*args) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "bounding": int(status["CapBnd"], 16), "effective": int(status["CapEff"], 16),
    "netlink": refused(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    "packet": refused(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    "unshare": refused(lambda: raw("unshare", 0x20000)),
    "mount": refused(lambda: raw("mount", b"x", b"/mnt", b"tmpfs", 0, None)),
}))
"""


def inside(name: str) -> dict[str, object]:
    import json

    argv = [sys.executable, "-c", _INSIDE, str(SYSTEMD / name), _TRIES]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    return dict(json.loads(done.stdout))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to lose")
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_a_service_has_what_its_unit_gives_and_no_more() -> None:
    """As root, after an exec, which would give root everything back."""
    found = inside("fabricctl-node.service")
    kept = sum(
        1 << number for number in units.sandbox(SYSTEMD / "fabricctl-node.service").capabilities
    )
    assert found["bounding"] == kept and not int(str(found["effective"])) & ~kept
    assert found["netlink"] == ""
    for what in ("packet", "unshare", "mount"):
        assert found[what] == "Operation not permitted"
    assert inside("fabricd.service")["effective"] == 0


def test_a_unit_of_a_mount_is_read(tmp_path: Path) -> None:
    found = units.mount(SYSTEMD / "run-fabricctl-track.mount")
    assert (found.where, found.kind) == ("/run/fabricctl/track", "tmpfs")
    assert "size=64m" in found.options and "nosuid" in found.options
    with pytest.raises(LabError, match="not a unit of a mount"):
        units.mount(SYSTEMD / "fabricd.service")


def test_a_unit_that_names_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    for line in ("CapabilityBoundingSet=CAP_FLY", "RestrictAddressFamilies=AF_NONE"):
        (tmp_path / "x.service").write_text(f"[Unit]\nA=b\n[Service]\n# said\n{line}\n")
        with pytest.raises(LabError, match=r"x\.service"):
            units.sandbox(tmp_path / "x.service")


def test_lists_grow_and_shrink_as_in_systemd(tmp_path: Path) -> None:
    (tmp_path / "x.service").write_text(
        "[Service]\nCapabilityBoundingSet=CAP_KILL\nCapabilityBoundingSet=CAP_CHOWN\n"
        "RestrictAddressFamilies=AF_UNIX\nSystemCallFilter=read write\nSystemCallFilter=~write\n"
    )
    found = units.sandbox(tmp_path / "x.service")
    assert found.capabilities == (0, 5)
    assert found.families == (int(socket.AF_UNIX),)
    assert found.calls == (("read",) if shutil.which("systemd-analyze") else ())


def test_it_is_found_where_packages_put_it(tmp_path: Path) -> None:
    assert units.find(SYSTEMD.parents[1], "fabricd.service") == SYSTEMD / "fabricd.service"
    assert units.find(tmp_path, "no-such.service") is None


def test_what_a_node_has_from_its_boot_on_is_tmpfiles_d(tmp_path: Path) -> None:
    found = units.directories(SYSTEMD.parent / "tmpfiles.d" / "fabricctl.conf")
    assert units.Directory("/run/fabricctl/requests", 0o711) in found
    place = units.Directory(str(tmp_path / "run" / "requests"), 0o711)
    for _ in range(2):
        place.make()
    assert (tmp_path / "run" / "requests").stat().st_mode & 0o7777 == 0o711
    (tmp_path / "x.conf").write_text("d /run/x 0711 fabric root -\n")
    with pytest.raises(LabError, match="is no directory of root's"):
        units.directories(tmp_path / "x.conf")
