"""GPUs over NVML's C ABI, RDMA ports and TCP: figures, holes, and words for what is not there."""

import subprocess
from pathlib import Path

import pytest

from fabricctl.store import schema
from fabricctl.store.schema import Severity
from fabricctl.telemetry import gpu, rdma, tcp

ROOT = Path(__file__).parents[2]


class Told:
    def __init__(self) -> None:
        self.words: list[tuple[str, str, Severity]] = []

    def __call__(self, source: str, text: str, severity: Severity = Severity.WARNING, /) -> None:
        self.words.append((source, text, severity))


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = ROOT / "tests" / "c" / "nvml" / "standin.c"
    words = ["gcc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", str(out), str(source)]
    subprocess.run(words, check=True)
    return str(out)


def named(row: tuple[int | None, ...], table: schema.Table) -> dict[str, int | None]:
    return dict(zip((column.name for column in table.columns), row, strict=True))


def test_gpus_are_read_and_an_xid_is_told(standin: str) -> None:
    told = Told()
    source = gpu.GpuSource(told, standin)
    first, second = (named(row, schema.GPU) for row in source.rows())
    assert (first["gpu"], first["utilisation_percent"], first["temperature_c"]) == (0, 90, 61)
    assert (first["memory_used_bytes"], first["memory_total_bytes"]) == (10 << 30, 80 << 30)
    assert (first["sm_clock_mhz"], first["memory_clock_mhz"]) == (1410, 1593)
    assert (first["power_mw"], first["energy_mj"]) == (300_000, 301_000)
    assert (first["ecc_corrected"], first["ecc_uncorrected"], first["remapped_rows"]) == (7, 0, 3)
    assert (first["pcie_replays"], first["nvlink_errors"]) == (3, 0 + 1 + 2 + 3 + 10 + 11 + 12 + 13)
    assert (first["pcie_tx_bytes"], first["pcie_rx_bytes"]) == ((5 << 32) + 197, (5 << 32) + 198)
    assert (first["nvlink_tx_bytes"], first["nvlink_rx_bytes"]) == (138 << 10, 139 << 10)
    assert (first["remap_state"], first["processes"], first["job_processes"]) == (3, 3, None)
    assert second["pcie_rx_bytes"] is None, "32 bits of a counter wrap several times a second"
    assert second["throttle_reasons"] == 0x40
    for name in ("ecc_corrected", "remapped_rows", "nvlink_errors"):
        assert second[name] is None, "an older card does not have it"
    assert told.words == [
        ("gpu", "XID 79 on GPU 1: the GPU has fallen off the bus", Severity.ERROR)
    ]
    source.close()


def test_the_job_s_processes_on_a_gpu_are_told_apart(standin: str) -> None:
    source = gpu.GpuSource(Told(), standin, mine=lambda: frozenset({100, 102, 999}))
    first, second = (named(row, schema.GPU) for row in source.rows())
    assert (first["processes"], first["job_processes"]) == (3, 2)
    assert first["job_memory_bytes"] == (1 + 3) << 30
    assert (second["job_processes"], second["job_memory_bytes"]) == (1, None)  # not available
    source.close()


def test_a_driver_that_does_not_match_is_told(
    standin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_NVML", "broken")
    told = Told()
    source = gpu.GpuSource(told, standin)
    assert source.rows() == []
    assert "Driver/library version mismatch" in told.words[0][1]


@pytest.mark.parametrize("expected", [True, False])
def test_without_nvml_only_a_node_with_gpus_complains(expected: bool) -> None:
    told = Told()
    gpu.GpuSource(told, "libnothing-of-that-name.so.1", expected).close()
    assert bool(told.words) == expected


def test_rows_of_gpus_fit_the_journal(standin: str) -> None:
    source = gpu.GpuSource(Told(), standin)
    for row in source.rows():
        filled = [
            schema.NOT_MEASURED[column.code] if value is None else value
            for value, column in zip(row, schema.GPU.columns, strict=True)
        ]
        schema.GPU.packer.pack(*filled)


def port(folder: Path, device: str, number: int, **files: str) -> None:
    base = folder / device / "ports" / str(number)
    for name in ("counters", "hw_counters"):
        (base / name).mkdir(parents=True)
    (base / "state").write_text("4: ACTIVE\n")
    for name, text in files.items():
        (base / name.replace("__", "/")).write_text(text)


def test_rdma_ports_are_read_in_bytes_and_what_a_device_lacks_is_a_hole(tmp_path: Path) -> None:
    port(tmp_path, "mlx5_0", 1, counters__port_rcv_data="250\n", counters__symbol_error="3\n",
         hw_counters__out_of_sequence="9\n", counters__port_xmit_wait="N/A (no PMA)\n",
         counters__port_xmit_data=f"{2**64 - 1}\n")  # fmt: skip
    port(tmp_path, "mlx5_1", 1, state="1: DOWN\n")
    told = Told()
    source = rdma.RdmaSource(told, tmp_path)
    first, second = (named(row, schema.RDMA_PORT) for row in source.rows())
    assert (first["rx_bytes"], first["symbol_errors"], first["out_of_sequence"]) == (1000, 3, 9)
    assert (first["tx_wait"], first["tx_bytes"]) == (None, None)
    assert (first["active"], second["active"], second["port"]) == (1, 0, 1)
    assert told.words == []


def test_a_port_that_goes_away_is_told_once_and_its_return_too(tmp_path: Path) -> None:
    port(tmp_path, "mlx5_0", 1)
    told = Told()
    source = rdma.RdmaSource(told, tmp_path)
    state = tmp_path / "mlx5_0" / "ports" / "1" / "state"
    state.unlink()
    source.rows()
    source.rows()
    state.write_text("4: ACTIVE\n")
    source.rows()
    assert [words for _, words, _ in told.words] == [
        "port mlx5_0/1 not measured: No such file or directory",
        "port mlx5_0/1 measured again",
    ]


def test_a_node_without_rdma_has_no_rows() -> None:
    told = Told()
    source = rdma.RdmaSource(told, Path("/nowhere"))
    assert (source.rows(), told.words) == ([], [])


def test_tcp_counters_are_found_by_name_whatever_their_order() -> None:
    text = (
        b"Ip: Forwarding\nIp: 1\nTcp: MaxConn InSegs OutSegs RetransSegs\nTcp: -1 20 30 4\n"
        b"TcpExt: TCPLostRetransmit Foo TCPTimeouts\nTcpExt: 6 1 5\n"
    )
    assert tcp.parse(text) == (30, 20, 4, 5, 6)
    assert tcp.parse(b"Tcp: A B\nTcp: 1\n\xff\x00") == (None,) * 5


def test_this_machine_s_tcp_is_read() -> None:
    source = tcp.TcpSource(Told())
    (row,) = source.rows()
    assert all(value is not None for value in row)
    source.close()
