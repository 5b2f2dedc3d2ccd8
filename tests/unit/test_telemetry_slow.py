"""Sources that are read seldom, from files as the kernel writes them and from the kernel."""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabricctl.errors import DataError
from fabricctl.store.schema import Severity
from fabricctl.telemetry import ethtool, flows, kmsg, membw, netfs, numa, ras, slow
from fabricctl.telemetry.flows import Connection, FlowSource
from fabricctl.telemetry.slow import Reading, SlowSources


class Told(list):
    def __call__(self, source: str, text: str, severity: Severity = Severity.WARNING, /) -> None:
        self.append((source, text, severity))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


class Fake:
    name, period_s = "fake", 0.0

    def __init__(self, *answers: list[Reading] | Exception) -> None:
        self.answers = list(answers)

    def read(self) -> Iterator[Reading]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        yield from answer

    def close(self) -> None:
        self.answers = []


def values(found: list[slow.TextRow]) -> list[tuple]:
    return [row[1:] for row in found]


def taken(source: SlowSources, times: int) -> list[tuple]:
    for _ in range(times):
        source._next_s = 0.0
        source.take()
    return values(source.rows())


def test_a_figure_is_told_when_it_is_new_or_has_changed() -> None:
    answers = [[("mc0", "ce", 1), ("mc1", "ce", 0)], [("mc0", "ce", 1)], [("mc0", "ce", 2)]]
    source = SlowSources([Fake(*answers)], Told())
    assert taken(source, 3) == [
        ("fake", "mc0", "ce", 1),
        ("fake", "mc1", "ce", 0),
        ("fake", "mc0", "ce", 2),
    ]


def test_what_is_not_there_is_told_once_and_as_no_trouble() -> None:
    told = Told()
    gone = OSError(errno.ENOENT, "no such driver")
    taken(SlowSources([Fake(gone, gone)], told), 2)
    assert told == [("fake", "not measured: no such driver", Severity.INFO)]


def test_what_breaks_later_is_a_trouble_and_its_end_is_told() -> None:
    told = Told()
    answers = [[("a", "b", 1)], DataError("garbage"), DataError("garbage"), [("a", "b", 1)]]
    taken(SlowSources([Fake(*answers)], told), 4)
    assert [severity for _, _, severity in told] == [Severity.WARNING, Severity.INFO]
    assert "garbage" in told[0][1] and "again" in told[1][1]


def test_readers_take_turns_and_a_reader_with_too_much_is_cut() -> None:
    told = Told()
    many = [("x", f"f{n}", n) for n in range(slow.MAX_FIGURES + 5)]
    other = Fake([("y", "f", 1)])
    other.name = "other"
    source = SlowSources([Fake(many), other], told)
    found = taken(source, 2)
    assert len(found) == slow.MAX_FIGURES + 1 and found[-1][0] == "other"
    assert "figures" in told[0][1]


def test_numastat_is_read_of_each_node(tmp_path: Path) -> None:
    write(
        tmp_path / "node0" / "numastat", "numa_hit 7\nnuma_miss 5\nnuma_foreign 6\nother_node 8\n"
    )
    assert list(numa.NumaReader(tmp_path).read()) == [
        ("node0", "numa_miss", 5),
        ("node0", "numa_foreign", 6),
        ("node0", "other_node", 8),
    ]
    with pytest.raises(FileNotFoundError):
        list(numa.NumaReader(tmp_path / "none").read())


def test_edac_counts_are_read_and_their_absence_is_said(tmp_path: Path) -> None:
    write(tmp_path / ras.EDAC / "mc0" / "ce_count", "12\n")
    write(tmp_path / ras.EDAC / "mc0" / "ue_count", "0\n")
    assert list(ras.EdacReader(tmp_path).read()) == [
        ("mc0", "ce_count", 12),
        ("mc0", "ue_count", 0),
    ]
    with pytest.raises(OSError, match="EDAC"):
        list(ras.EdacReader(tmp_path / "none").read())


def test_temperatures_are_told_by_steps_and_throttling_is_summed(tmp_path: Path) -> None:
    zone = tmp_path / "class/thermal/thermal_zone0"
    write(zone / "type", "x86_pkg_temp\n")
    write(zone / "temp", "61000\n")
    for cpu in (0, 1):
        base = tmp_path / f"devices/system/cpu/cpu{cpu}/thermal_throttle"
        write(base / "core_throttle_count", f"{cpu + 1}\n")
        write(base / "package_throttle_count", "4\n")
    reader = ras.ThermalReader(tmp_path)
    assert list(reader.read()) == [
        ("thermal_zone0 x86_pkg_temp", "temperature_c", 61),
        ("cores", "throttle_count", 3),
        ("packages", "throttle_count", 4),
    ]
    write(zone / "temp", "62000\n")
    assert next(iter(reader.read()))[2] == 61
    write(zone / "temp", "63500\n")
    assert next(iter(reader.read()))[2] == 63


MOUNTSTATS = """device rootfs mounted on / with fstype rootfs
device srv:/home mounted on /home with fstype nfs4 statvers=1.1
\tbytes:\t100 200 0 0 50 60 1 2
\tper-op statistics
\t        READ: 10 12 1 800 9000 30 40 75
\t        NULL: 1 1 0 44 24 0 0 0
device tmpfs mounted on /tmp with fstype tmpfs
\tbytes:\t7 7 7 7 7 7 7 7
"""


def test_nfs_mounts_are_read_with_what_was_sent_again(tmp_path: Path) -> None:
    write(tmp_path / "self/mountstats", MOUNTSTATS)
    found = {(what, figure): value for what, figure, value in netfs.NetfsReader(tmp_path).read()}
    assert {what for what, _ in found} == {"/home"}
    assert found["/home", "read_bytes"] == 100 and found["/home", "server_write_bytes"] == 60
    assert found["/home", "read_sent_again"] == 2 and found["/home", "read_timeouts"] == 1
    assert found["/home", "read_took_ms"] == 75
    assert list(netfs.rpc("net 0 0 0 0\nrpc 31 4 0\n")) == [
        ("all mounts", "calls", 31),
        ("all mounts", "sent_again", 4),
    ]


def test_lustre_clients_are_read(tmp_path: Path) -> None:
    write(tmp_path / "self/mountstats", "")
    stats = "snapshot_time 1.5 secs.nsecs\nread_bytes 12 samples [bytes] 4096 1048576 9000\n"
    write(tmp_path / "fs/lustre/llite/scratch-ffff/stats", stats)
    assert list(netfs.NetfsReader(tmp_path).read()) == [
        ("scratch-ffff", "read_bytes_calls", 12),
        ("scratch-ffff", "read_bytes", 9000),
    ]
    with pytest.raises(OSError, match="no NFS"):
        (tmp_path / "fs/lustre/llite/scratch-ffff/stats").unlink()
        list(netfs.NetfsReader(tmp_path).read())


def test_memory_counters_are_named_and_their_absence_is_said(tmp_path: Path) -> None:
    assert membw.config("event=0x04,umask=0x03") == 0x304
    with pytest.raises(OSError, match="no counters"):
        list(membw.MembwReader(tmp_path).read())


def test_lines_of_the_kernels_log_become_notes(tmp_path: Path) -> None:
    told = Told()
    fifo = tmp_path / "kmsg"
    os.mkfifo(fifo)
    reader = kmsg.KmsgReader(told, fifo)
    reader._fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    end = os.open(fifo, os.O_WRONLY)
    os.write(end, b"3,1,5,-;Out of memory: Killed process 7 (app)\n SUBSYSTEM=x\n")
    assert list(reader.read()) == [("oom", "lines", 1)]
    assert told == [("kmsg", "oom: Out of memory: Killed process 7 (app)", Severity.ERROR)]
    os.write(end, b"6,2,6,-;eth0: link becomes ready\n")
    assert list(reader.read()) == [("oom", "lines", 1)] and len(told) == 1
    os.close(end)
    reader.close()


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus", "xid"),
        ("EDAC MC0: 1 CE memory read error on CPU_SrcID#0", "edac"),
        ("pcieport 0000:00:01.0: AER: Corrected error received", "pcie"),
        ("INFO: task python:12 blocked for more than 120 seconds.", "hung"),
        ("nfs: server srv not responding, still trying", "nfs"),
        ("mlx5_core 0000:3b:00.0: health compromised - reached miss count", "link"),
        ("nvme0: I/O 12 QID 1 timeout, aborting", "disk"),
        ("audit: type=1400 apparmor", None),
    ],
)
def test_patterns_know_their_lines(line: str, kind: str | None) -> None:
    assert kmsg.kind_of(line)[0] == kind


def test_ethtool_reads_a_real_interface_or_says_why() -> None:
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    reader = ethtool.EthtoolReader(names[:1] or ["lo"])
    try:
        found = list(reader.read())
    except OSError as error:
        assert error.errno in (errno.EOPNOTSUPP, errno.EINVAL)
    else:
        assert all(value >= 0 for _, _, value in found)
    reader.close()
    gone = ethtool.EthtoolReader(["nosuch0"])
    with pytest.raises(OSError, match="nosuch0"):
        list(gone.read())
    gone.close()


def test_a_rail_without_statistics_takes_nothing_from_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def of(reader: ethtool.EthtoolReader, rail: str) -> Iterator[Reading]:
        if rail == "ib0":
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        yield rail, "rx_errors", 7

    monkeypatch.setattr(ethtool.EthtoolReader, "_of", of)
    told = Told()
    source = SlowSources([ethtool.EthtoolReader(["ib0", "eth1"])], told)
    assert taken(source, 2) == [("ethtool", "eth1", "rx_errors", 7)]
    assert told == [("ethtool", "not measured: ib0: Operation not supported", Severity.INFO)]
    source.close()


def test_counters_of_single_queues_are_left_out() -> None:
    kept = ["rx_crc_errors_phy", "rx_pfc_prio3_pause", "tx_discards_phy", "rx_out_of_buffer"]
    gone = ["rx0_packets", "rx_queue_3_drops", "tx_bytes", "rx12_cache_reuse"]
    assert all(ethtool.WANTED.search(n) and not ethtool._QUEUE.search(n) for n in kept)
    assert not any(ethtool.WANTED.search(n) and not ethtool._QUEUE.search(n) for n in gone)


# Connections ---------------------------------------------------------------------------------


def test_the_kernel_tells_of_a_real_connection() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"x" * 10_000)
            accepted.recv(10_000)
            mine = [one for one in flows.connections() if one.peer == "127.0.0.1"]
    assert len(mine) >= 2
    assert all(one.uid >= 0 and one.retransmitted < 1000 and one.rto_ms >= 1 for one in mine)


def connection(cookie: int, again: int, peer: str = "10.78.0.12", uid: int = 7) -> Connection:
    return Connection(bytes([cookie] * 8), uid, "10.78.0.11", peer, 3, again, 500, 204, 1000)


def test_what_was_sent_again_stays_counted_when_connections_end() -> None:
    looks = [
        [connection(1, 5), connection(2, 1), connection(9, 9, uid=8)],
        [connection(1, 8)],
        [connection(3, 2), connection(4, 0, "10.79.0.13")],
        [],
    ]
    source = FlowSource(7, [], Told(), lambda: iter(looks.pop(0)))
    for _ in range(4):
        source._due_s = 0.0
        source.take()
    rows = source.rows()
    assert [(row[2], row[3], row[5]) for row in rows] == [
        ("10.78.0.12", 2, 6),
        ("10.78.0.12", 1, 9),
        ("10.78.0.12", 1, 11),
        ("10.79.0.13", 1, 0),
    ]


def test_an_answer_that_breaks_off_counts_nothing_twice() -> None:
    def breaks_off() -> Iterator[Connection]:
        yield connection(1, 30)
        raise OSError(errno.ENOBUFS, "No buffer space available")

    looks = [iter([connection(1, 10)]), breaks_off(), iter([connection(1, 30)])]
    source = FlowSource(7, [], Told(), lambda: looks.pop(0))
    for _ in range(3):
        source._due_s = 0.0
        source.take()
    assert [row[5] for row in source.rows()] == [10, 30]


def test_an_answer_that_is_cut_is_refused_and_one_without_tcp_info_left_out() -> None:
    with pytest.raises(DataError):
        flows.parse(memoryview(bytes(20)))
    assert flows.parse(memoryview(bytes(72))) is None


def test_sources_that_fail_are_told_and_the_others_go_on() -> None:
    def broken() -> Iterator[Connection]:
        raise OSError(errno.EPERM, "Operation not permitted")
        yield

    told = Told()
    source = FlowSource(7, [], told, broken)
    source.take()
    assert told == [
        ("flows", "connections not measured: Operation not permitted", Severity.WARNING)
    ]
    assert source.rows() == []


def test_a_mapped_address_is_the_ipv4_one() -> None:
    raw = b"\0" * 10 + b"\xff\xff" + struct.pack("4B", 10, 78, 0, 11)
    assert flows._text(socket.AF_INET6, raw) == "10.78.0.11"
