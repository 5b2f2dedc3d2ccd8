"""Memory errors by EDAC (Documentation/admin-guide/ras.rst) and machine checks that were counted,
temperatures, and how often a core or package was held down by heat."""

import errno
from collections.abc import Iterator
from pathlib import Path

from fabricctl.telemetry.slow import Reading
from fabricctl.telemetry.sysfiles import number, words

SYS = Path("/sys")
EDAC = "devices/system/edac/mc"
_EDAC_FIGURES = ("ce_count", "ue_count", "ce_noinfo_count", "ue_noinfo_count")
_THROTTLE = "thermal_throttle/core_throttle_count"
_PACKAGE = "thermal_throttle/package_throttle_count"
HOTTER_C = 2  # a temperature is told anew when it changed by so much


class EdacReader:
    """Corrected and uncorrected errors of each memory controller."""

    name, period_s = "edac", 10.0

    def __init__(self, folder: Path = SYS) -> None:
        self._folder = folder / EDAC

    def read(self) -> Iterator[Reading]:
        controllers = sorted(self._folder.glob("mc[0-9]*"))
        if not controllers:
            raise OSError(errno.ENOENT, "no memory controller has an EDAC driver")
        for controller in controllers:
            for figure in _EDAC_FIGURES:
                value = number(controller / figure)
                if value is not None:
                    yield controller.name, figure, value

    def close(self) -> None:
        """Nothing is kept open."""


class ThermalReader:
    """Temperatures of the thermal zones, and throttling of cores, summed, and of packages."""

    name, period_s = "thermal", 10.0

    def __init__(self, folder: Path = SYS) -> None:
        self._zones = {
            zone: _kind(zone) for zone in sorted(folder.glob("class/thermal/thermal_zone[0-9]*"))
        }
        self._cores = sorted(folder.glob(f"devices/system/cpu/cpu[0-9]*/{_THROTTLE}"))
        self._packages = sorted(folder.glob(f"devices/system/cpu/cpu[0-9]*/{_PACKAGE}"))
        self._told: dict[Path, int] = {}

    def read(self) -> Iterator[Reading]:
        if not self._zones and not self._cores:
            raise OSError(errno.ENOENT, "no thermal zone and no counter of throttling")
        for zone, kind in self._zones.items():
            milli = number(zone / "temp")
            if milli is None:
                continue
            celsius = milli // 1000
            if abs(celsius - self._told.get(zone, -HOTTER_C)) >= HOTTER_C:
                self._told[zone] = celsius
            yield f"{zone.name} {kind}", "temperature_c", self._told[zone]
        for what, files in (("cores", self._cores), ("packages", self._packages)):
            known = [value for value in map(number, files) if value is not None]
            if known:  # each core of a package has the package's count
                total = sum(known) if what == "cores" else max(known)
                yield what, "throttle_count", total

    def close(self) -> None:
        """Nothing is kept open."""


def _kind(zone: Path) -> str:
    try:
        return words(zone / "type").strip()[:16]
    except OSError:
        return ""
