"""Kernel stamps (CLOCK_REALTIME) become raw time, whatever the site's own time service does."""

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "fabricctl" / "clock" / "csrc"
TICK_NS = 20_000_000


class Anchor(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("raw_ns", "real_ns", "mono_ns", "width_ns")]


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("stamps") / "stamps.so"
    compiler = os.environ.get("CC", "gcc")
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(
        [compiler, *flags, "-o", str(library), str(CSRC / "stamps.c"), "-lm"],
        check=True,
        timeout=60,
    )
    return ctypes.CDLL(str(library))


def convert(stamps: ctypes.CDLL, before: Anchor, now: Anchor, real_ns: int) -> int | None:
    unused = (ctypes.c_byte * 4096)()  # struct virtual_clock: none
    raw = ctypes.c_int64()
    stamps.anchor_convert.restype = ctypes.c_bool
    known = stamps.anchor_convert(
        ctypes.byref(before),
        ctypes.byref(now),
        unused,
        ctypes.c_int64(real_ns),
        ctypes.byref(raw),
    )
    return raw.value if known else None


def pair(real_rate: float, step_ns: int = 0) -> tuple[Anchor, Anchor]:
    """Two readings a tick apart, while CLOCK_REALTIME runs ``real_rate`` fast."""
    first = Anchor(10**12, 1_800 * 10**15, 10**12, 100)
    passed = TICK_NS + round(TICK_NS * real_rate)  # of CLOCK_MONOTONIC, which is slewed with it
    return first, Anchor(
        first.raw_ns + TICK_NS, first.real_ns + passed + step_ns, first.mono_ns + passed, 100
    )


@pytest.mark.parametrize("slew_ppm", [0.0, 0.1, 5.0, -5.0, 500.0])
def test_a_slewed_system_clock_does_not_move_the_stamps(
    stamps: ctypes.CDLL, slew_ppm: float
) -> None:
    before, now = pair(slew_ppm * 1e-6)
    for share in (0.0, 0.3, 1.0, -3.0):  # of the tick; before it: read late
        true_ns = before.raw_ns + round(share * TICK_NS)
        real_ns = before.real_ns + round(share * TICK_NS * (1 + slew_ppm * 1e-6))
        got = convert(stamps, before, now, real_ns)
        assert got is not None
        assert abs(got - true_ns) <= 2


@pytest.mark.parametrize("step_ns", [5_000_000, -5_000_000, 100_000, 20_000, -1_000])
def test_stamps_across_a_step_of_the_system_clock_are_refused(
    stamps: ctypes.CDLL, step_ns: int
) -> None:
    before, now = pair(0.0, step_ns)
    assert convert(stamps, before, now, before.real_ns + TICK_NS // 2) is None


def test_a_stamp_from_far_ahead_is_refused(stamps: ctypes.CDLL) -> None:
    before, now = pair(0.0)
    assert convert(stamps, before, now, now.real_ns + 2 * TICK_NS) is None
