"""Our systemd units, read as systemd would: a lab's services run with the rights that the units
leave them, so that what a unit forbids and a service needs is found by every lab test.

Capabilities, system calls and address families are those of the unit (systemd.exec(5)). What it
does with mounts (ProtectSystem= and its like) needs systemd itself: tools/try-package.
"""

import ctypes
import functools
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fabricctl.errors import LabError, SystemRefusedError
from fabricctl.lab import kernel

# linux/capability.h, by number.
_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip
_ALLOW, _REFUSE, _EPERM = 0x7FFF_0000, 0x0005_0000, 1  # seccomp.h: SCMP_ACT_ALLOW, SCMP_ACT_ERRNO
_EQUAL = 4  # SCMP_CMP_EQ
_ANALYZE_S = 20.0


@dataclass(frozen=True)
class Sandbox:
    """``capabilities``: by number. ``calls``: what may be called, empty for everything."""

    capabilities: tuple[int, ...]
    calls: tuple[str, ...] = ()
    families: tuple[int, ...] = ()

    def enter(self) -> None:
        """This process and all that it starts, for good; raises :class:`SystemRefusedError`."""
        kernel.keep_capabilities(self.capabilities)
        kernel.gain_nothing_by_exec()
        if self.calls:
            _filter(self.calls, self.families)


@dataclass(frozen=True)
class Mount:
    """One unit of the kind ``.mount``."""

    what: str
    where: str
    kind: str
    options: tuple[str, ...]

    def make(self) -> None:
        """Mounts it; raises :class:`SystemRefusedError`."""
        flags = {"nosuid": kernel.MS_NOSUID, "nodev": kernel.MS_NODEV, "noexec": kernel.MS_NOEXEC}
        Path(self.where).mkdir(mode=0o755, parents=True, exist_ok=True)
        number = sum(flags.get(word, 0) for word in self.options)
        data = ",".join(word for word in self.options if word not in flags)
        kernel.mount(self.what, self.where, self.kind, number, data)


@dataclass(frozen=True)
class Directory:
    """One line ``d`` of tmpfiles.d(5), of root."""

    path: str
    mode: int

    def make(self) -> None:
        """Raises OSError."""
        path = Path(self.path)
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(self.mode)


def find(code: Path, name: str) -> Path | None:
    """In the checkout, or where ``make install`` and the packages put it."""
    places = (
        code / "site-config/systemd" / name,
        code / "site-config/tmpfiles.d" / name,
        Path("/usr/lib/systemd/system", name),
        Path("/usr/lib/tmpfiles.d", name),
    )
    return next((path for path in places if path.is_file()), None)


def directories(conf: Path) -> tuple[Directory, ...]:
    """What a node has from its boot on, before any service; raises :class:`LabError`."""
    made = []
    for line in conf.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            found = re.fullmatch(r"d (/\S+) ([0-7]{3,4}) root root -", line.strip())
            if found is None:
                raise LabError(f"{conf}: {line!r} is no directory of root's")
            made.append(Directory(found[1], int(found[2], 8)))
    return tuple(made)


def sandbox(unit: Path) -> Sandbox:
    """Raises :class:`LabError` for what is no unit of ours."""
    given = list(_settings(unit, "Service"))
    words = [word for key, value in given if key == "CapabilityBoundingSet" for word in value]
    try:
        numbers = {_CAPABILITIES.index(word.removeprefix("CAP_")) for word in words}
        families = {
            int(getattr(socket, word))
            for key, value in given
            if key == "RestrictAddressFamilies"
            for word in value
        }
    except (ValueError, AttributeError) as error:
        raise LabError(f"{unit}: {error}") from None
    filters = [value for key, value in given if key == "SystemCallFilter"]
    return Sandbox(tuple(sorted(numbers)), _calls(filters), tuple(sorted(families)))


def mount(unit: Path) -> Mount:
    """Raises :class:`LabError` for what is no such unit."""
    given = dict(_settings(unit, "Mount"))
    try:
        (what,), (where,), (kind,) = given["What"], given["Where"], given["Type"]
    except (KeyError, ValueError):
        raise LabError(f"{unit}: not a unit of a mount") from None
    return Mount(what, where, kind, tuple(",".join(given.get("Options", ())).split(",")))


def _settings(unit: Path, section: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    within = False
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            within = line.strip() == f"[{section}]"
        elif within and "=" in line and not line.startswith(("#", ";")):
            key, _, value = line.partition("=")
            yield key.strip(), tuple(value.split())


def _calls(filters: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Empty where systemd-analyze, which knows what its sets hold, is not there."""
    sets = _call_sets()
    allowed: set[str] = set()
    for words in filters:
        names = {word for text in words for word in _expand(text.removeprefix("~"), sets)}
        allowed = allowed - names if words[0].startswith("~") else allowed | names
    return tuple(sorted(allowed)) if sets else ()


@functools.cache
def _call_sets() -> dict[str, list[str]]:
    """By name, with what each holds: calls, and names of other sets (systemd.exec(5))."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return {}
    argv = [analyze, "syscall-filter"]
    told = subprocess.run(argv, capture_output=True, text=True, timeout=_ANALYZE_S, check=False)
    sets: dict[str, list[str]] = {}
    name = ""
    for line in told.stdout.splitlines():
        if line.startswith("@"):
            name = line.strip()
            sets[name] = []
        elif found := re.fullmatch(r"\s+([@\w-]+)", line):
            sets.setdefault(name, []).append(found[1])
    return sets


def _expand(word: str, sets: dict[str, list[str]]) -> Iterator[str]:
    if not word.startswith("@"):
        yield word
    for inner in sets.get(word, ()):
        yield from _expand(inner, sets)


class _Compare(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operation", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("other", ctypes.c_uint64),
    )


def _filter(calls: Sequence[str], families: Sequence[int]) -> None:
    """Everything else fails with EPERM; without libseccomp, which systemd needs too, nothing."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_REFUSE | _EPERM)))
    for name in calls:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            continue  # not on this architecture
        cases: Sequence[int | None] = families if name == "socket" and families else (None,)
        for family in cases:
            count = 0 if family is None else 1
            compare = _Compare(0, _EQUAL, family or 0, 0)
            library.seccomp_rule_add_array(
                context, ctypes.c_uint32(_ALLOW), number, count, ctypes.byref(compare)
            )
    if library.seccomp_load(context) != 0:
        raise SystemRefusedError("seccomp_load: the filter of system calls is refused")
    library.seccomp_release(context)
