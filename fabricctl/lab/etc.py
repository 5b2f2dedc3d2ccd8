"""/etc of the nodes: a copy of the machine's, with the lab's users, hosts and Slurm in it."""

import contextlib
import os
import pwd
import secrets
import shutil
import subprocess
from pathlib import Path

from fabricctl.errors import LabError
from fabricctl.lab import accounting, cgroups
from fabricctl.lab.site import Site
from fabricctl.lab.slurmconf import (
    JOB_CONTAINER_CONF,
    cgroup_conf,
    has_cgroup_v1_plugin,
    installed_version,
    slurm_conf,
)
from fabricctl.lab.spec import AGENT_UID, AGENT_USER, JOB_USERS, SHARED, LabPaths, LabSpec

_NSSWITCH = "".join(f"{db}: files\n" for db in ("passwd", "group", "shadow", "gshadow", "hosts"))
_COMPLETE = ".copied"  # made last: a copy without it was cut short
# Names of this machine that would mislead a node.
_FOREIGN = ("hostname", "resolv.conf", "fabricctl.toml", "slurm", "munge", "ld.so.preload")


def make_etc(spec: LabSpec, paths: LabPaths, site: Site | None) -> bool:
    """Writes what differs of the lab's /etc; whether slurm.conf did.

    Nodes that live go on reading it meanwhile: every file is replaced at once.
    """
    etc = paths.etc
    if not (etc / _COMPLETE).exists():
        _copy(etc)
    _users(etc)
    _write(etc / "hosts", _hosts(spec))
    _write(etc / "nsswitch.conf", _NSSWITCH)
    slurm = etc / "slurm"
    slurm.mkdir(exist_ok=True)
    extra = site.write(etc) if site else {}
    if spec.accounting:
        accounting.write(slurm)
    version = installed_version()
    v1 = cgroups.has_slurm_v1(cgroups.hierarchies()) and has_cgroup_v1_plugin()
    _write(slurm / "job_container.conf", JOB_CONTAINER_CONF)
    _write(slurm / "cgroup.conf", cgroup_conf(version, cgroup_v1=v1))
    conf = slurm_conf(spec, cgroup_v1=v1, extra=extra)
    return _write(slurm / "slurm.conf", conf)


def _copy(etc: Path) -> None:
    """From nothing, or from what a copy that was cut short left."""
    if etc.exists():
        shutil.rmtree(etc)
    # Files that only root can read stay behind when this is not really root's.
    copy = ["cp", "-a", "--no-preserve=ownership", "/etc", str(etc)]
    subprocess.run(copy, check=False, stderr=subprocess.DEVNULL, timeout=60)
    if not (etc / "passwd").exists():
        raise LabError(f"{etc}: /etc could not be copied there")
    for name in _FOREIGN:
        _remove(etc / name)
    _make_munge_key(etc / "munge" / "munge.key")
    (etc / _COMPLETE).touch()


def _write(file: Path, text: str) -> bool:
    """Replaces a file whose content differs; whether it did."""
    with contextlib.suppress(FileNotFoundError):
        if file.read_text() == text:
            return False
    new = file.with_name(f".{file.name}.new")
    new.write_text(text)
    new.chmod(0o644)
    new.replace(file)
    return True


def make_shared(paths: LabPaths) -> None:
    """Homes and the traces' directory in the shared file system."""
    traces = paths.shared / "traces"
    traces.mkdir(exist_ok=True)
    traces.chmod(0o1777)
    (paths.shared / "home").mkdir(exist_ok=True)
    for user, uid in JOB_USERS.items():
        home = paths.shared / "home" / user
        home.mkdir(exist_ok=True, mode=0o755)
        os.chown(home, uid, uid)


def make_disk(disk: Path) -> None:
    """/var of one node, as packages would have left it."""
    slurm, munge = pwd.getpwnam("slurm"), pwd.getpwnam("munge")
    for name, owner, mode in (
        ("log", None, 0o755),
        ("log/slurm", slurm, 0o755),
        ("log/munge", munge, 0o700),
        ("lib", None, 0o755),
        ("lib/munge", munge, 0o711),
        ("lib/mysql", slurm, 0o700),
        ("cache", None, 0o755),
        ("tmp", None, 0o1777),
        ("spool", None, 0o755),
        ("spool/slurmd", None, 0o755),
        ("spool/slurmctld", slurm, 0o700),
        ("spool/fabricctl", None, 0o711),
    ):
        path = disk / name
        path.mkdir(exist_ok=True)
        path.chmod(mode)
        if owner is not None:
            os.chown(path, owner.pw_uid, owner.pw_gid)
    for name, to in (("run", "/run"), ("lock", "/run/lock")):
        if not (disk / name).is_symlink():
            (disk / name).symlink_to(to)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _users(etc: Path) -> None:
    """The machine's users and groups without their passwords, and the lab's."""
    ours = {**JOB_USERS, AGENT_USER: AGENT_UID}
    users = _without(etc / "passwd", ours)
    groups = _without(etc / "group", ours)
    for user, uid in ours.items():
        home = f"{SHARED}/home/{user}" if user in JOB_USERS else "/nonexistent"
        shell = "/bin/bash" if user in JOB_USERS else "/usr/sbin/nologin"
        users.append(f"{user}:x:{uid}:{uid}:{user} of the lab:{home}:{shell}")
        groups.append(f"{user}:x:{uid}:")
    names = [line.split(":")[0] for line in users]
    _write(etc / "passwd", "\n".join([*users, ""]))
    _write(etc / "group", "\n".join([*groups, ""]))
    for name, values in (("shadow", "*:19000:0:99999:7:::"), ("gshadow", "*::")):
        owners = names if name == "shadow" else [line.split(":")[0] for line in groups]
        _write(etc / name, "".join(f"{owner}:{values}\n" for owner in owners))


def _without(file: Path, ours: dict[str, int]) -> list[str]:
    """The lines of passwd or group whose name and number are not among ours."""
    numbers = {str(uid) for uid in ours.values()}
    kept: list[str] = []
    for line in file.read_text().splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[0] not in ours and fields[2] not in numbers:
            kept.append(line)
    return kept


def _hosts(spec: LabSpec) -> str:
    lines = ["127.0.0.1 localhost"]
    for interface in spec.interfaces:
        suffix = "" if interface == spec.interfaces[0] else f"-{interface}"
        lines += [f"{spec.address(node, interface)} {node}{suffix}" for node in spec.all_nodes]
    return "\n".join([*lines, ""])


def _make_munge_key(key: Path) -> None:
    munge = pwd.getpwnam("munge")
    key.parent.mkdir(mode=0o700)
    os.chown(key.parent, munge.pw_uid, munge.pw_gid)
    with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "wb") as stream:
        stream.write(secrets.token_bytes(128))
    os.chown(key, munge.pw_uid, munge.pw_gid)
