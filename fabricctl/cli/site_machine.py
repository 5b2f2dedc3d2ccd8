"""What ``fabricctl site check`` tries on the machine itself: its kernel, ports, MPI libraries."""

import ctypes.util
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fabricctl.cli.site_place import Check, Place
from fabricctl.config import Config

TRY_TIMEOUT_S = 10.0
PROC = Path("/proc")
LOADER_NAMES = ("mpi", "mpich", "mpi_cray")
# In a process of its own: loading somebody's library may do anything.
_ASK_MPI = """
import ctypes, sys
size, text = ctypes.c_int(), ctypes.create_string_buffer(8192)
ctypes.CDLL(sys.argv[1]).MPI_Get_library_version(text, ctypes.byref(size))
print(text.value.decode(errors="replace").split(",")[0].splitlines()[0])
"""


@dataclass(frozen=True)
class Feature:
    """Something of the kernel: a batch of ip or tc that needs it, what does not work without it."""

    name: str
    tool: str
    batch: str
    without: str


# Each in a network namespace that lives as long as the command: nothing of the host is touched.
FEATURES = (
    Feature("nexthop objects", "ip", "link set lo up\nnexthop add id 1 blackhole", "link failover"),
    Feature("policy routing", "ip", "rule add pref 1 lookup 1", "link failover"),
    Feature("HTB", "tc", "qdisc add dev lo root handle 1: htb", "--fabric-share and pacing"),
)


def kernel(place: Place, proc: Path = PROC) -> Iterator[Check]:
    """Tried, not looked up: what a kernel's version says is not what a site built."""
    if not place.is_node and place.slurm is not None:
        return
    missing = {
        feature.name: (why, feature.without) for feature in FEATURES if (why := _refused(feature))
    }
    if not (proc / "pressure/cpu").exists():
        missing["PSI"] = ("no /proc/pressure", "pressure of CPU, memory and disk in reports")
    release = platform.release()
    if not missing:
        names = ", ".join([*(feature.name for feature in FEATURES), "PSI"])
        yield Check("kernel", "ok", f"{release}: {names}")
    for name, (why, without) in missing.items():
        todo = f"a kernel with it; without: no {without}"
        if "permitted" in why:
            yield Check("kernel", "warn", f"{name} cannot be tried: {why}", "run this as root")
            return
        yield Check("kernel", "warn", f"{release}: no {name} ({why})", todo)


def _refused(feature: Feature) -> str:
    """Why the kernel did not take it, "" when it did."""
    try:
        done = subprocess.run(
            ["unshare", "--net", feature.tool, "-batch", "-"],
            input=feature.batch.encode(), capture_output=True, timeout=TRY_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return "" if done.returncode == 0 else (lines or [f"exit status {done.returncode}"])[0]


def port_ranges(config: Config) -> dict[str, range]:
    """What listens where, of configuration."""
    return {
        name: range(given.port_first, given.port_first + given.port_count)
        for name, given in (
            ("agents UDP", config.agent),
            ("clock UDP", config.clock),
            ("probes UDP", config.paths),
            ("keepers TCP", config.state),
        )
    }


def ports(place: Place, proc: Path = PROC) -> Iterator[Check]:
    """Ranges that overlap, that the kernel gives to anybody, or that others sit in."""
    ranges = port_ranges(place.config)
    said = ", ".join(f"{name} {each[0]}-{each[-1]}" for name, each in ranges.items())
    found = list(_wrong_ports(ranges, proc))
    for text, todo in found:
        yield Check("ports", "warn", text, todo)
    if not found:
        yield Check("ports", "ok", f"{said}; between nodes these must pass")


def _wrong_ports(ranges: dict[str, range], proc: Path) -> Iterator[tuple[str, str]]:
    try:
        given = (proc / "sys/net/ipv4/ip_local_port_range").read_text().split()
    except OSError as error:
        yield f"the kernel's own ports are not known: {error.strerror}", "mount /proc/sys"
        return
    ephemeral = range(int(given[0]), int(given[1]) + 1)
    for name, each in ranges.items():
        if _overlap(each, ephemeral):
            text = f"{name} {each[0]}-{each[-1]}: the kernel gives ports of it to any program"
            yield text, f"port_first below {ephemeral[0]}, or net.ipv4.ip_local_reserved_ports"
    names = list(ranges)
    for at, one in enumerate(names):
        for other in names[at + 1 :]:
            same_kind = one.split()[1] == other.split()[1]
            if same_kind and _overlap(ranges[one], ranges[other]):
                yield f"{one} and {other} overlap", "give each a range of its own"


def _overlap(one: range, other: range) -> bool:
    return max(one[0], other[0]) <= min(one[-1], other[-1])


def mpi(_place: Place) -> Iterator[Check]:
    """MPI libraries that the loader finds; those of modules are seen inside jobs alone."""
    found = [name for each in LOADER_NAMES if (name := ctypes.util.find_library(each)) is not None]
    if not found:
        said = "none where the loader looks; one of a module is taken as jobs bring it"
        yield Check("mpi", "ok", said)
    for name in found:
        argv = [sys.executable, "-I", "-c", _ASK_MPI, name]
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=TRY_TIMEOUT_S,
                check=True,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            yield Check("mpi", "warn", f"{name} does not say what it is", "see docs/paths.md")
            continue
        version = " ".join(done.stdout.decode(errors="replace").split())
        yield Check("mpi", "ok", f"{version} ({name})")
