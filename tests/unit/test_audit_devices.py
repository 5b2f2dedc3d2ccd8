"""GPUs and PCIe lanes: a node without them says nothing, a bad one is told."""

import subprocess
from pathlib import Path

import pytest

from fabricctl.fleet.audit import devices

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = ROOT / "tests" / "c" / "nvml" / "standin.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(out), str(source)], check=True)
    return str(out)


def drivers(path: Path, count: int) -> Path:
    for nth in range(count):
        (path / "gpus" / f"0000:0{nth}:00.0").mkdir(parents=True)
    return path / "gpus"


def test_a_node_without_gpus_has_no_check_of_them(tmp_path: Path) -> None:
    assert list(devices.gpus("n1", "nosuch.so", tmp_path / "gpus", tmp_path / "nvidiactl")) == []


def test_a_driver_that_does_not_answer_fails(tmp_path: Path) -> None:
    (check,) = devices.gpus("n1", "nosuch.so", drivers(tmp_path, 1))
    assert (check.name, check.status) == ("driver", "fail")


def test_a_gpu_that_fell_off_is_missed_and_each_is_looked_at(tmp_path: Path, standin: str) -> None:
    with_all = list(devices.gpus("n1", standin, drivers(tmp_path / "a", 1)))
    count = int(with_all[0].value.split()[0])
    assert count >= 1 and with_all[0].status == "ok"
    fewer = list(devices.gpus("n1", standin, drivers(tmp_path / "b", count + 1)))
    assert (fewer[0].name, fewer[0].status) == ("count", "fail")
    assert {check.name for check in with_all[1:]} <= {
        f"{nth} {what}" for nth in range(count) for what in ("memory", "clocks")
    }


@pytest.mark.parametrize(
    ("throttle", "errors", "statuses"),
    [(0, 0, ["ok", "ok"]), (0x04, 0, ["ok", "ok"]), (0x20, 0, ["ok", "warn"]),
     (0x08, 0, ["ok", "fail"]), (0x60, 2, ["fail", "fail"]), (None, None, [])],
)  # fmt: skip
def test_bad_memory_and_slowed_clocks_are_told(
    throttle: int | None, errors: int | None, statuses: list[str]
) -> None:
    readings: list[int | None] = [None] * 14
    readings[8], readings[10] = throttle, errors
    assert [check.status for check in devices._gpu("n1", 0, readings)] == statuses


def test_a_link_with_fewer_lanes_than_it_has_is_told(tmp_path: Path) -> None:
    def device(path: Path, now: str, most: str) -> None:
        path.mkdir(parents=True)
        (path / "current_link_width").write_text(now)
        (path / "max_link_width").write_text(most)

    device(tmp_path / "net" / "r0" / "device", "16\n", "16\n")
    device(tmp_path / "net" / "r1" / "device", "8\n", "16\n")
    device(tmp_path / "net" / "r2" / "device", "63\n", "255\n")  # what a virtual one says
    (tmp_path / "net" / "r3").mkdir()
    device(tmp_path / "nvidia" / "0000:17:00.0", "4", "16")
    found = devices.pcie("n1", ["r0", "r1", "r2", "r3"], tmp_path / "net", tmp_path / "nvidia")
    assert [(c.area, c.name, c.rail, c.status) for c in found] == [
        ("link", "lanes", "r0", "ok"), ("link", "lanes", "r1", "fail"),
        ("gpu", "0 lanes", "", "fail"),
    ]  # fmt: skip
