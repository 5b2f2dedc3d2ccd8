"""The few system calls that the standard library of Python 3.11 lacks: namespaces and mounts."""

import ctypes
import fcntl
import os
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from fabricctl.errors import SystemRefusedError

# linux/sched.h
CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x0200_0000, 0x0400_0000, 0x0800_0000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x1000_0000, 0x2000_0000, 0x4000_0000

# linux/mount.h
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2

_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY = 1
# asm-generic/unistd.h: numbers from 424 on are the same on every architecture.
_SYS_MOUNT_SETATTR = 442

# linux/nsfs.h: _IOR(0xb7, 5, __u64)
_NS_GET_MNTNS_ID = 0x8008_B705

# linux/prctl.h, linux/capability.h
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _CAP_SYS_TIME = 23, 24, 38, 25

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        raise SystemRefusedError(f"{what}: {os.strerror(ctypes.get_errno())}")


def unshare(flags: int) -> None:
    """unshare(2) of the calling thread."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """setns(2) of the calling thread."""
    _check(_libc.setns(fd, kind), "setns")


def never_set_clocks() -> None:
    """What this process starts cannot set the machine's clocks, root or not (capabilities(7))."""
    _check(_libc.prctl(_PR_CAPBSET_DROP, _CAP_SYS_TIME, 0, 0, 0), "PR_CAPBSET_DROP")


def keep_capabilities(numbers: Collection[int]) -> None:
    """What this process execs has these at most (capabilities(7), bounding set)."""
    number = 0
    while (there := _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0)) >= 0:
        if there and number not in numbers:
            _check(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), "PR_CAPBSET_DROP")
        number += 1


def gain_nothing_by_exec() -> None:
    """No set-user-ID program gives more rights (prctl(2), PR_SET_NO_NEW_PRIVS)."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")


def unshare_mounts() -> None:
    """A new mount namespace, older by its number than all that will be made inside it.

    A namespace's file can only be bound where the mount namespace has a smaller number. Linux
    6.18 hands these numbers out in blocks per CPU, so that a later namespace may have a smaller
    one: Slurm's job_container/tmpfs then fails now and then ("Invalid argument"). What is made on
    the CPU whose numbers are lowest at this moment is safe.
    """
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    cpus = os.sched_getaffinity(0)
    try:
        if release >= (6, 18):
            numbers = {_mount_number_on(cpu): cpu for cpu in sorted(cpus)}
            os.sched_setaffinity(0, {numbers[min(numbers)]})
        unshare(CLONE_NEWNS)
    finally:
        os.sched_setaffinity(0, cpus)


def _mount_number_on(cpu: int) -> int:
    os.sched_setaffinity(0, {cpu})
    unshare(CLONE_NEWNS)
    answer = bytearray(8)
    with Path("/proc/thread-self/ns/mnt").open("rb") as namespace:
        fcntl.ioctl(namespace, _NS_GET_MNTNS_ID, answer)
    return int.from_bytes(answer, sys.byteorder)


def mount(source: str, target: str | Path, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    done = _libc.mount(
        source.encode(),
        os.fsencode(target),
        kind.encode(),
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    _check(done, f"mount {kind or 'bind'} {source} on {target}")


def bind(source: str | Path, target: str | Path, *, recursive: bool = False) -> None:
    """Shows ``source`` at ``target`` too; the target must exist."""
    mount(str(source), target, "", MS_BIND | (MS_REC if recursive else 0))


def read_only(target: str | Path) -> None:
    """Makes a mount and those below it read-only (mount_setattr(2), Linux 5.12)."""

    class MountAttr(ctypes.Structure):
        _fields_ = (
            ("attr_set", ctypes.c_uint64),
            ("attr_clr", ctypes.c_uint64),
            ("propagation", ctypes.c_uint64),
            ("userns_fd", ctypes.c_uint64),
        )

    attr = MountAttr(_MOUNT_ATTR_RDONLY, 0, 0, 0)
    done = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        os.fsencode(target),
        ctypes.c_uint(_AT_RECURSIVE),
        ctypes.byref(attr),
        ctypes.c_size_t(ctypes.sizeof(attr)),
    )
    _check(done, f"make {target} read-only")


def unmount(target: str | Path) -> None:
    """Takes a mount and all below it away at once, whoever still uses it (MNT_DETACH)."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"unmount {target}")


def become_root(new_root: str | Path) -> None:
    """Makes ``new_root`` the root of this mount namespace and drops the old one."""
    os.chdir(new_root)
    # Both arguments alike stacks the old root over the new one: pivot_root(2), "NOTES".
    done = _libc.syscall(ctypes.c_long(_sys_pivot_root()), b".", b".")
    _check(done, f"pivot_root {new_root}")
    unmount(".")
    os.chdir("/")


def _sys_pivot_root() -> int:
    numbers = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
    machine = os.uname().machine
    if machine not in numbers:
        raise SystemRefusedError(f"pivot_root: system call number on {machine} is not known")
    return numbers[machine]


def is_mount(path: Path) -> bool:
    """Whether something is mounted exactly at ``path``."""
    wanted = str(path)
    with Path("/proc/self/mountinfo").open() as lines:
        return any(line.split()[4] == wanted for line in lines)


@contextmanager
def in_netns(path: Path) -> Iterator[None]:
    """Runs the block inside the network namespace pinned at ``path``.

    Sockets opened there stay there. Only for single-threaded callers: a namespace belongs to a
    thread.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(there, CLONE_NEWNET)
        finally:
            os.close(there)
        try:
            yield
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(home)


def pin_new_netns(path: Path) -> None:
    """Makes a network namespace that lives for as long as the bind mount at ``path``."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        path.touch()
        unshare(CLONE_NEWNET)
        try:
            bind("/proc/thread-self/ns/net", path)
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(home)
