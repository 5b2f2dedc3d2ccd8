"""GPUs and PCIe links of a node, as the driver and the kernel tell of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from fabricctl.errors import SystemRefusedError
from fabricctl.fleet.audit.model import Check, Status
from fabricctl.telemetry import nvml
from fabricctl.telemetry.gpu import DEVICE_FILE

# nvmlClocksEventReasons (nvml.h): what no healthy GPU shows, and what a warm room does.
_HARDWARE = {0x08: "hardware slowdown", 0x40: "thermal slowdown by hardware", 0x80: "power brake"}
_SOFTWARE = {0x20: "thermal slowdown by software"}
_THROTTLE, _UNCORRECTED = 8, 10  # places in Nvml.readings


def gpus(
    node: str,
    library: str = nvml.LIBRARY,
    drivers: Path = Path("/proc/driver/nvidia/gpus"),
    device_file: Path = Path(DEVICE_FILE),
) -> Iterator[Check]:
    """Nothing on a node without GPUs."""
    expected = len(list(drivers.iterdir())) if drivers.is_dir() else 0
    if not expected and not device_file.exists():
        return
    try:
        found = nvml.Nvml(library)
    except SystemRefusedError as error:
        yield Check(node, "gpu", "driver", "fail", str(error)[:150], "answers")
        return
    try:
        said = f"{found.count} answer, the driver has {expected}"
        good = 0 < found.count >= expected
        yield Check(node, "gpu", "count", "ok" if good else "fail", said, "all answer")
        for nth in range(found.count):
            yield from _gpu(node, nth, found.readings(nth))
    finally:
        found.close()


def _gpu(node: str, nth: int, readings: Sequence[int | None]) -> Iterator[Check]:
    wrong = readings[_UNCORRECTED]
    if wrong is not None:
        said = f"{wrong} uncorrected since the driver was loaded"
        yield Check(node, "gpu", f"{nth} memory", "fail" if wrong else "ok", said, "none")
    why = readings[_THROTTLE]
    if why is not None:
        hard = [words for bit, words in _HARDWARE.items() if why & bit]
        soft = [words for bit, words in _SOFTWARE.items() if why & bit]
        status: Status = "fail" if hard else "warn" if soft else "ok"
        said = ", ".join([*hard, *soft]) or "not slowed down"
        yield Check(node, "gpu", f"{nth} clocks", status, said, "not slowed down")


def pcie(
    node: str,
    rails: Sequence[str],
    net: Path = Path("/sys/class/net"),
    nvidia: Path = Path("/sys/bus/pci/drivers/nvidia"),
) -> Iterator[Check]:
    """Links that were trained with fewer lanes than both ends have: a bad seat or riser.

    Not their speed: idle GPUs lower it.
    """
    for rail in rails:
        yield from _lanes(node, net / rail / "device", "link", "lanes", rail)
    devices = sorted(nvidia.glob("*:*:*.*")) if nvidia.is_dir() else []
    for nth, device in enumerate(devices):
        yield from _lanes(node, device, "gpu", f"{nth} lanes", "")


def _lanes(node: str, device: Path, area: str, name: str, rail: str) -> Iterator[Check]:
    try:
        now, most = (int((device / f"{which}_link_width").read_text())
                     for which in ("current", "max"))  # fmt: skip
    except (OSError, ValueError):
        return  # not a PCIe device, or a virtual one that has none
    if 0 < most <= 32 and now > 0:
        status: Status = "ok" if now >= most else "fail"
        yield Check(node, area, name, status, f"{now} lanes", f"{most}", rail)
