"""Stamps of NICs: their clock's readings as lines, and a stand-in NIC under the whole engine."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import standin_nic
from tests.support.standin_nic import FILTER_PTP, Nic

pytest.importorskip("fabricctl.clock._engine", reason="built without a C compiler")

CSRC = Path(__file__).parents[2] / "fabricctl" / "clock" / "csrc"
TICK_NS = 20_000_000
PHC_NS = 1_800_000_037_000_000_000
RAW_NS = 10**12
READ_ERROR_NS = 500
ERROR_MAX_NS = 10_000  # PHC_ERROR_MAX_NS
BUSY_NS = 3_000  # what the least delays of loopback are apart, both ways, where others run


class Phc(ctypes.Structure):
    """struct phc of csrc/phc.h; only what the tests look at by name."""

    _fields_ = [
        ("fd", ctypes.c_int),
        ("way", ctypes.c_int),
        ("known", ctypes.c_uint),
        ("rest", ctypes.c_int64 * 16),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    made = tmp_path_factory.mktemp("phc") / "phc.so"
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    sources = [str(CSRC / name) for name in ("phc.c", "stamps.c")]
    argv = [os.environ.get("CC", "gcc"), *flags, "-o", str(made), *sources, "-lm"]
    subprocess.run(argv, check=True, timeout=60)
    return ctypes.CDLL(str(made))


class Line:
    """A NIC's clock that is read every tick."""

    def __init__(self, library: ctypes.CDLL, drift_ppm: float = 30.0) -> None:
        self._library, self._phc = library, Phc()
        self._rate = 1 + drift_ppm * 1e-6
        self.raw_ns, self.step_ns = RAW_NS, 0

    def shows(self, raw_ns: int) -> int:
        return PHC_NS + self.step_ns + round((raw_ns - RAW_NS) * self._rate)

    def read(self, off_ns: int = 0, error_ns: int = READ_ERROR_NS) -> None:
        """``off_ns``: by how much the reading errs."""
        self.raw_ns += TICK_NS
        shown = ctypes.c_int64(self.shows(self.raw_ns) + off_ns)
        raw, error = ctypes.c_int64(self.raw_ns), ctypes.c_int64(error_ns)
        self._library.phc_take(ctypes.byref(self._phc), raw, shown, error)

    def convert(self, phc_ns: int) -> tuple[int, int] | None:
        """Raw time and its error."""
        raw, error = ctypes.c_int64(), ctypes.c_int64()
        self._library.phc_convert.restype = ctypes.c_bool
        found = self._library.phc_convert(
            ctypes.byref(self._phc), ctypes.c_int64(phc_ns), ctypes.byref(raw), ctypes.byref(error)
        )
        return (raw.value, error.value) if found else None


@pytest.mark.parametrize("drift_ppm", [0.0, 30.0, -500.0])
def test_a_nics_stamps_become_raw_time_whatever_its_offset_and_drift(
    library: ctypes.CDLL, drift_ppm: float
) -> None:
    line = Line(library, drift_ppm)
    for off_ns in (0, 300, -400, 200):
        line.read(off_ns)
    for back_ns in (0, TICK_NS // 3, TICK_NS, TICK_NS + TICK_NS // 2):
        true_ns = line.raw_ns - back_ns
        found = line.convert(line.shows(true_ns))
        assert found is not None
        assert abs(found[0] - true_ns) <= found[1]
        assert READ_ERROR_NS <= found[1] < 10 * READ_ERROR_NS


def test_nothing_is_converted_before_it_is_known_how_fast_the_clock_runs(
    library: ctypes.CDLL,
) -> None:
    line = Line(library)
    for _ in range(2):
        line.read()
        assert line.convert(line.shows(line.raw_ns)) is None
    line.read()
    assert line.convert(line.shows(line.raw_ns)) is not None


@pytest.mark.parametrize("step_ns", [5_000_000, -5_000_000, 50_000])
def test_stamps_around_a_step_of_the_nics_clock_are_refused(
    library: ctypes.CDLL, step_ns: int
) -> None:
    line = Line(library)
    for _ in range(4):
        line.read()
    old = line.shows(line.raw_ns + TICK_NS // 2)
    line.step_ns = step_ns
    for _ in range(2):
        line.read()
        assert line.convert(old) is None
        assert line.convert(line.shows(line.raw_ns - TICK_NS // 2)) is None
    line.read()
    found = line.convert(line.shows(line.raw_ns - TICK_NS // 2))
    assert found is not None
    assert abs(found[0] - (line.raw_ns - TICK_NS // 2)) <= found[1]


def test_a_step_too_small_to_be_told_widens_the_error(library: ctypes.CDLL) -> None:
    line = Line(library)
    for _ in range(4):
        line.read()
    true_ns = line.raw_ns + TICK_NS // 2
    line.step_ns = 3_000
    shown = line.shows(true_ns)
    line.read()
    found = line.convert(shown)
    assert found is not None
    assert abs(found[0] - true_ns) <= found[1]
    assert found[1] >= 3_000


def test_readings_worse_than_the_kernels_own_stamps_are_not_used(library: ctypes.CDLL) -> None:
    line = Line(library)
    for _ in range(4):
        line.read(error_ns=12_000)
    assert line.convert(line.shows(line.raw_ns)) is None


# The stand-in: what real drivers answer, and two engines that probe each other over it.


@pytest.fixture(scope="module")
def preload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standin_nic.build(tmp_path_factory.mktemp("nic"))


@pytest.fixture
def nic(tmp_path: Path) -> Iterator[Nic]:
    made = Nic(tmp_path / "nic")
    made.begin()
    return made


def test_a_nic_loses_stamps_is_stepped_refuses_and_comes_back(preload: Path, nic: Nic) -> None:
    found = standin_nic.run(preload, nic, "life")
    by_nic = {name: told for name, told in found.items() if name != "refuses"}
    assert set(by_nic) == {"works", "loses", "stepped", "again"}
    for told in by_nic.values():
        assert isinstance(told, dict)
        # Read in 4 us and latched after a third of it: off by 667 ns, known to 2,000 (and to what
        # the readings of a busy machine's own clocks are off by).
        assert abs(told["hardware_ahead_ns"]) < told["stamps"][1] + BUSY_NS
        assert 2_000 <= told["stamps"][1] <= ERROR_MAX_NS
        assert told["stamps"][0] == 4
    assert found["loses"]["software"] > 0  # type: ignore[index]
    refused = found["refuses"]
    assert isinstance(refused, dict)
    assert (refused["stamps"], refused["error_ns"]) == ([3, 0], 0)
    assert abs(refused["software_ahead_ns"]) < BUSY_NS


@pytest.mark.parametrize(("best", "error_ns"), [(0, 100), (2, 2_000), (3, 2_000)])
def test_the_best_way_that_a_driver_has_to_read_its_clock_is_found(
    preload: Path, nic: Nic, best: int, error_ns: int
) -> None:
    nic.set(best=best)
    told = standin_nic.run(preload, nic, "works")["works"]
    assert isinstance(told, dict)
    assert error_ns <= told["stamps"][1] <= ERROR_MAX_NS
    assert abs(told["hardware_ahead_ns"]) < told["stamps"][1] + BUSY_NS


@pytest.mark.parametrize(
    ("state", "enabled", "used", "why"),
    [
        ({}, "", True, ""),
        ({"tx_type": 0, "rx_filter": 0}, "switched on", True, ""),
        ({"tx_type": 0, "rx_filter": 0, "refuse_set": 1}, "not permitted", False, "hwstamp_ctl"),
        ({"rx_filter": FILTER_PTP}, "left alone", False, "hwstamp_ctl"),
        ({"filters": 1 << FILTER_PTP}, "", False, ""),
    ],
)
def test_stamps_are_switched_on_only_where_nobody_has_set_them(
    preload: Path, nic: Nic, state: dict[str, int], enabled: str, used: bool, why: str
) -> None:
    nic.set(**state)
    found = standin_nic.run(preload, nic, "offered")
    assert enabled in str(found["enabled"])
    assert bool(enabled) == bool(found["enabled"])
    assert (found["used"], why in str(found["why"])) == (used, True)
    assert nic.get("sets") == (enabled == "switched on")


@pytest.mark.parametrize(
    ("key", "on", "used", "told", "log"),
    [
        ("found", 1, True, "", ""),
        ("found", 0, False, "lo: stamps of the NIC are not used", ""),
        ("enable", 0, True, "", "switched on"),
        ("off", 1, False, "", ""),
    ],
)
def test_a_jobs_agent_gets_the_nics_clock_as_the_site_wants_it(
    preload: Path, nic: Nic, key: str, on: int, used: bool, told: str, log: str
) -> None:
    nic.set(tx_type=on, rx_filter=on)
    found = standin_nic.run(preload, nic, "agent", key)
    assert found["used"] == used
    assert told in str(found["told"])
    assert bool(told) == bool(found["told"])
    assert log in str(found["log"])
    assert bool(log) == bool(found["log"])


def test_an_interface_without_a_clock_is_left_to_the_kernel() -> None:
    from fabricctl.clock import nics

    assert nics.clock_of("lo") is None
    assert nics.choose("lo", {}) == nics.Choice()
    assert nics.choose("none", {}) == nics.Choice()
    assert nics.open_clocks(["lo", "none"]) == {}
