"""What a node finds out about itself: ``key -> value`` texts, the same each time nothing changed.

Read from sysfs and /proc as any user can; some of it (serial numbers) only root sees. What cannot
be read is absent: absent is "not known", never "not there".
"""

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

LLDP_TIMEOUT_S = 5.0
MAX_VALUE = 200
_CPU_KEYS = {"model name": "cpu.model", "microcode": "cpu.microcode", "Model Name": "cpu.model"}
_DMI = {
    "system.vendor": "sys_vendor",
    "system.product": "product_name",
    "system.serial": "product_serial",
    "board.name": "board_name",
    "board.serial": "board_serial",
    "bios.version": "bios_version",
    "bios.date": "bios_date",
}


def gather(root: Path = Path("/")) -> dict[str, str]:
    """All facts of this host; ``root`` is where its /sys and /proc lie."""
    facts: dict[str, str] = {}
    for part in (_system, _cpu, _memory, _network, _infiniband, _gpus, _disks):
        for key, value in part(root):
            clean = " ".join(value.split())[:MAX_VALUE]
            if clean and clean.isprintable():
                facts[key] = clean
    for key, value in _lldp() if root == Path("/") else ():
        facts[key] = " ".join(value.split())[:MAX_VALUE]
    return dict(sorted(facts.items()))


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None


def _system(root: Path) -> Iterator[tuple[str, str]]:
    yield "kernel.release", platform.release()
    for line in (_text(root / "etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            yield "os.name", line.partition("=")[2].strip('"')
    for key, name in _DMI.items():
        if value := _text(root / "sys/class/dmi/id" / name):
            yield key, value
    clock = root / "sys/devices/system/clocksource/clocksource0/current_clocksource"
    if value := _text(clock):
        yield "kernel.clocksource", value
    for name in ("smt/control", "cpu0/cpufreq/scaling_governor"):
        if value := _text(root / "sys/devices/system/cpu" / name):
            yield f"cpu.{name.rpartition('/')[2].replace('control', 'smt')}", value


def _cpu(root: Path) -> Iterator[tuple[str, str]]:
    text = _text(root / "proc/cpuinfo") or ""
    seen: set[str] = set()
    sockets: set[str] = set()
    count = 0
    for line in text.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        count += name == "processor"
        if name == "physical id":
            sockets.add(value)
        if name in _CPU_KEYS and _CPU_KEYS[name] not in seen:
            seen.add(_CPU_KEYS[name])
            yield _CPU_KEYS[name], value
    if count:
        yield "cpu.threads", str(count)
    if sockets:
        yield "cpu.sockets", str(len(sockets))
    nodes = list((root / "sys/devices/system/node").glob("node[0-9]*"))
    if nodes:
        yield "numa.nodes", str(len(nodes))


def _memory(root: Path) -> Iterator[tuple[str, str]]:
    text = _text(root / "proc/meminfo") or ""
    found = dict(re.findall(r"^(\w+):\s+(\d+)", text, re.MULTILINE))
    if "MemTotal" in found:
        # To a GiB: the kernel's share of it differs a little from boot to boot.
        yield "memory.gib", str(round(int(found["MemTotal"]) / (1 << 20)))
    if "HugePages_Total" in found:
        yield "memory.huge_pages", found["HugePages_Total"]
    modules = list((root / "sys/devices/system/edac/mc").glob("mc*/dimm*"))
    if modules:
        yield "memory.modules", str(len(modules))


def _network(root: Path) -> Iterator[tuple[str, str]]:
    for path in sorted((root / "sys/class/net").glob("*")):
        name = path.name
        if name == "lo" or (_text(path / "type") not in ("1", "32")):
            continue  # 1: Ethernet, 32: InfiniBand (linux/if_arp.h)
        if (path / "bridge").exists() or (path / "tun_flags").exists():
            continue
        key = f"nic.{name}"
        carrier = _text(path / "carrier")
        if not (path / "device").exists() and carrier is None:
            continue  # a spare device of the kernel's: ifb0, dummy0
        if (address := _text(path / "address")) and (path / "device").exists():
            yield f"{key}.mac", address
        if mtu := _text(path / "mtu"):
            yield f"{key}.mtu", mtu
        yield f"{key}.link", {"1": "up", "0": "down"}.get(carrier or "", "off")
        speed = _text(path / "speed")
        if carrier == "1" and speed and speed.isdecimal():
            yield f"{key}.speed_mbit", speed
        if (path / "device").exists():
            yield f"{key}.pci", (path / "device").resolve().name
        driver = path / "device/driver"
        if driver.exists():
            yield f"{key}.driver", driver.resolve().name


def _infiniband(root: Path) -> Iterator[tuple[str, str]]:
    for path in sorted((root / "sys/class/infiniband").glob("*")):
        key = f"hca.{path.name}"
        for name, file in (("firmware", "fw_ver"), ("board", "board_id"), ("type", "hca_type"),
                           ("guid", "node_guid")):  # fmt: skip
            if value := _text(path / file):
                yield f"{key}.{name}", value
        for port in sorted((path / "ports").glob("*")):
            for name in ("state", "rate"):
                if value := _text(port / name):
                    yield f"{key}.port{port.name}.{name}", value.partition(": ")[2] or value


def _gpus(root: Path) -> Iterator[tuple[str, str]]:
    """NVIDIA's by its driver's own files; no library is loaded."""
    found = sorted((root / "proc/driver/nvidia/gpus").glob("*"))
    if found:
        yield "gpu.count", str(len(found))
    for number, path in enumerate(found):
        given = dict(re.findall(r"^([\w ]+):\s+(\S.*)$", _text(path / "information") or "", re.M))
        yield f"gpu.{number}.pci", path.name
        for key, name in (("model", "Model"), ("uuid", "GPU UUID"), ("firmware", "GPU Firmware"),
                          ("vbios", "Video BIOS")):  # fmt: skip
            if name in given:
                yield f"gpu.{number}.{key}", given[name]
    if value := _text(root / "sys/module/nvidia/version"):
        yield "gpu.driver", value


def _disks(root: Path) -> Iterator[tuple[str, str]]:
    for path in sorted((root / "sys/block").glob("*")):
        if not (path / "device").exists():
            continue  # loop, dm, md
        key = f"disk.{path.name}"
        sectors = _text(path / "size")
        if sectors and sectors.isdecimal():
            yield f"{key}.gib", str(int(sectors) * 512 >> 30)
        for name, file in (("model", "model"), ("serial", "serial"), ("firmware", "firmware_rev")):
            if value := _text(path / "device" / file):
                yield f"{key}.{name}", value


def _lldp() -> Iterator[tuple[str, str]]:
    """Which port of which switch each interface is plugged into, where lldpd runs."""
    if not shutil.which("lldpcli"):
        return
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, AttributeError):
        done = subprocess.run(
            ["lldpcli", "-f", "json0", "show", "neighbors"],
            capture_output=True, text=True, timeout=LLDP_TIMEOUT_S, check=False,
            env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin"), "LC_ALL": "C"},
        )  # fmt: skip
        for top in json.loads(done.stdout or "{}").get("lldp", []):
            for each in top.get("interface", []):
                name = each.get("name", "")
                chassis = each.get("chassis", [{}])[0].get("name", [{}])[0].get("value")
                port = each.get("port", [{}])[0].get("id", [{}])[0].get("value")
                if re.fullmatch(r"[\w.-]{1,32}", name) and chassis and port:
                    yield f"nic.{name}.cable", f"{chassis}:{port}"
