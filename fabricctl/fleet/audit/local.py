"""What a node finds out about itself in two seconds, without any other node."""

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from fabricctl import layout
from fabricctl.config import Config
from fabricctl.errors import FabricError
from fabricctl.fleet.audit import devices
from fabricctl.fleet.audit.model import Check, Status
from fabricctl.telemetry import interfaces, netlink
from fabricctl.telemetry.rails import choose

WATCH_S = 1.0  # links are watched so long for changes and errors
SPOOL_FLOOR = 32 << 20  # a trace of a day needs some ten MB a node (docs/data-format.md)
DISK_FLOOR = 64 << 20  # Slurm and logs
SHARED_FLOOR = 256 << 20
MEMORY_FLOOR = 0.05  # of the whole, available
# Those that do not stop or jump when the kernel finds the TSC unstable.
_GOOD_CLOCKS = frozenset({"tsc", "kvm-clock", "arch_sys_counter", "timebase", "tod"})
_DAEMONS = ("slurmd", "munged", "fabricctl")  # that must not stand still
_SHARED_BYTES = 1 << 20
_SHARED_LIMIT_S = 5.0


def own_rails(config: Config) -> list[str]:
    """Names of the rails, as agents choose them."""
    links = netlink.dump()
    own = interfaces.own_interface(os.uname().nodename.partition(".")[0], 2.0)
    return choose(config.rails.interfaces, links, own)


def rail_addresses(config: Config) -> dict[str, str]:
    """Rail -> its first IPv4 address, of those that have one."""
    by_index: dict[int, str] = {}
    for index, address in netlink.addresses():
        if "." in address:
            by_index.setdefault(index, address)
    found = {}
    for rail in own_rails(config):
        with contextlib.suppress(OSError, KeyError):
            found[rail] = by_index[socket.if_nametoindex(rail)]
    return found


def checks(node: str, config: Config) -> list[Check]:
    """All of them."""
    found: list[Check] = []
    for part in (_links, _devices, _host, _daemons, _slurm, _storage):
        try:
            found += part(node, config)
        except (OSError, FabricError, subprocess.SubprocessError) as error:
            area = part.__name__.strip("_")
            found.append(Check(node, area, area, "not measured", str(error)[:150]))
    return found


def _verdict(good: bool, bad: Status = "fail") -> Status:
    return "ok" if good else bad


def _links(node: str, config: Config) -> Iterator[Check]:
    rails = own_rails(config)
    if not rails:
        yield Check(node, "link", "rails", "fail", "no rail is there", "at least one")
        return
    before = {rail: _counters(rail) for rail in rails}
    time.sleep(WATCH_S)
    for rail in rails:
        old, new = before[rail], _counters(rail)
        if new is None or old is None:
            yield Check(node, "link", "present", "fail", "no such interface", "there", rail)
            continue
        yield Check(node, "link", "present", "ok", "there", "there", rail)
        state = {"1": "up", "0": "no carrier"}.get(new["carrier"], "switched off")
        yield Check(node, "link", "carrier", _verdict(state == "up"), state, "up", rail)
        changes = int(new["carrier_changes"]) - int(old["carrier_changes"])
        said = f"{changes} changes in {WATCH_S:g} s"
        yield Check(node, "link", "steady", _verdict(changes == 0), said, "none", rail)
        wrong = sum(int(new[key]) - int(old[key]) for key in ("rx_errors", "tx_errors"))
        said = f"{wrong} errors in {WATCH_S:g} s"
        yield Check(node, "link", "errors", _verdict(wrong == 0), said, "none", rail)


def _devices(node: str, config: Config) -> Iterator[Check]:
    yield from devices.gpus(node)
    yield from devices.pcie(node, own_rails(config))


def _counters(rail: str) -> dict[str, str] | None:
    base = Path("/sys/class/net") / rail
    try:
        found = {"carrier_changes": (base / "carrier_changes").read_text().strip()}
        for key in ("rx_errors", "tx_errors"):
            found[key] = (base / "statistics" / key).read_text().strip()
    except OSError:
        return None
    try:
        found["carrier"] = (base / "carrier").read_text().strip()
    except OSError:
        found["carrier"] = ""  # administratively down
    return found


def _host(node: str, config: Config) -> Iterator[Check]:
    for name, path, floor in (
        ("spool", config.node.spool_dir, SPOOL_FLOOR), ("disk", Path("/var"), DISK_FLOOR),
    ):  # fmt: skip
        free = shutil.disk_usage(path).free
        yield Check(node, "host", name, _verdict(free >= floor), f"{free >> 20} MiB free in {path}",
                    f"at least {floor >> 20} MiB")  # fmt: skip
    memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free_kb = (int(memory[k].split()[0]) for k in ("MemTotal", "MemAvailable"))
    share = free_kb / total
    said, limit = f"{100 * share:.0f} % available", f"at least {100 * MEMORY_FLOOR:.0f} %"
    yield Check(node, "host", "memory", _verdict(share >= MEMORY_FLOOR, "warn"), said, limit)
    source = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    name = source.read_text().strip()
    yield Check(node, "clock", "source", _verdict(name in _GOOD_CLOCKS, "warn"), name,
                "one that does not stop: tsc")  # fmt: skip


def _daemons(node: str, _: Config) -> Iterator[Check]:
    """Daemons that stand still (SIGSTOP, a debugger) or wait for a disk that does not answer."""
    still = []
    for path in Path("/proc").iterdir():
        if not path.name.isdecimal():
            continue
        try:
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, IndexError):
            continue
        if state in "Tt" and any(name in words for name in _DAEMONS):
            still.append(words.split()[0].rpartition("/")[2] if words.split() else path.name)
    said = f"stopped: {', '.join(sorted(still))}" if still else "none stands still"
    yield Check(node, "host", "daemons", _verdict(not still), said, "none")


def _slurm(node: str, config: Config) -> Iterator[Check]:
    made = subprocess.run(["munge", "-n"], capture_output=True, timeout=5, check=False)
    opened = subprocess.run(["unmunge", "-o", "/dev/null"], input=made.stdout,
                            capture_output=True, timeout=5, check=False)  # fmt: skip
    good = not made.returncode and not opened.returncode
    said = "a credential was made and opened" if good else "no credential can be made and opened"
    yield Check(node, "slurm", "munge", _verdict(good), said, "works")
    lock = layout.NodeFiles(config.node.run_dir).lock
    try:
        with lock.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        said = "nobody holds its lock: it is dead"
    except BlockingIOError:
        said = "it lives"
    except PermissionError:
        yield Check(node, "slurm", "service", "not measured", "only root may look", "it lives")
        return
    except OSError as error:
        said = f"{lock}: {error.strerror}"
    yield Check(node, "slurm", "service", _verdict(said == "it lives"), said, "it lives")


def _storage(node: str, config: Config) -> Iterator[Check]:
    """The shared directory takes a file, in time; who may write there is `site check`'s."""
    where = config.trace.dir
    free = shutil.disk_usage(where).free
    said, floor = f"{free >> 20} MiB free in {where}", f"at least {SHARED_FLOOR >> 20} MiB"
    yield Check(node, "storage", "room", _verdict(free >= SHARED_FLOOR), said, floor)
    path = where / f".fabricctl-audit.{node}.{os.getpid()}"
    begin_s = time.monotonic()
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            written = os.write(fd, b"\xa5" * _SHARED_BYTES)
            os.fsync(fd)
            same = written == _SHARED_BYTES == len(os.pread(fd, _SHARED_BYTES, 0))
        finally:
            os.close(fd)
            path.unlink()
    except PermissionError:
        yield Check(node, "storage", "write", "not measured", f"{where} is not ours to write to")
        return
    except OSError as error:
        yield Check(node, "storage", "write", "fail", f"{where}: {error.strerror}", "works")
        return
    took_s = time.monotonic() - begin_s
    good = same and took_s <= _SHARED_LIMIT_S
    yield Check(node, "storage", "write", _verdict(good),
                f"1 MiB written and read in {'time' if good else f'{took_s:.1f} s'}",
                f"at most {_SHARED_LIMIT_S:g} s")  # fmt: skip
