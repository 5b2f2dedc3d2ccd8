"""Sources of samples: their parsers, and how each fails alone."""

import os
import random
import struct
from pathlib import Path

import pytest

from fabricctl.errors import DataError
from fabricctl.store import schema
from fabricctl.store.schema import LinkEvent, Severity
from fabricctl.telemetry import _batch, cgroups, host, jobload, netlink, processes, rails
from fabricctl.telemetry.batch import Batch, PlainBatch
from fabricctl.telemetry.clocks import ClockSource
from fabricctl.telemetry.netlink import Link
from fabricctl.telemetry.processes import Stat, Stepd, StepdScan

TICK = host.NS_PER_TICK


class Told(list[tuple[str, str]]):
    """What a source told."""

    def __call__(self, source: str, text: str, severity: Severity = Severity.WARNING, /) -> None:
        self.append((source, text))


@pytest.fixture(params=["compiled", "plain"])
def batch(request: pytest.FixtureRequest) -> Batch:
    return _batch.Batch() if request.param == "compiled" else PlainBatch()


# The host


def make_proc(root: Path) -> Path:
    (root / "pressure").mkdir(parents=True)
    (root / "stat").write_text("cpu  10 1 5 900 3 0 2 4 7 0\ncpu0 10 1 5 900 3 0 2 4 7 0\n")
    (root / "meminfo").write_text(
        "MemTotal:       16000 kB\nMemFree:   1000 kB\nMemAvailable:    9000 kB\n"
    )
    line = "{} avg10=0.00 avg60=0.00 avg300=0.00 total={}\n"
    (root / "pressure/cpu").write_text(line.format("some", 11) + line.format("full", 0))
    (root / "pressure/memory").write_text(line.format("some", 22) + line.format("full", 33))
    (root / "pressure/io").write_text(line.format("some", 44) + line.format("full", 55))
    return root


def test_the_host_row_has_the_kernels_figures_in_our_units(tmp_path: Path, batch: Batch) -> None:
    source = host.HostSource(Told(), batch, 1, make_proc(tmp_path))
    batch.take()
    ((_, *values),) = source.rows()
    assert source.rows() == []
    ticks = [10, 1, 5, 900, 3, 0, 2, 4]
    assert values[:8] == [tick * TICK for tick in ticks]
    assert values[8:] == [16000 * 1024, 9000 * 1024, 11, 22, 33, 44, 55]
    assert len(schema.HOST.columns) == 1 + len(values)
    source.close()


def test_memory_and_pressure_are_read_ten_times_a_second_at_most(
    tmp_path: Path, batch: Batch
) -> None:
    proc = make_proc(tmp_path)
    source = host.HostSource(Told(), batch, 50, proc)
    rows = []
    for sample in range(12):
        meminfo = f"MemTotal: {sample + 100} kB\nMemAvailable: {sample} kB\n"
        (proc / "meminfo").write_text(meminfo)
        (proc / "stat").write_text(f"cpu  {sample} 1 5 900 3 0 2 4 7 0\n")
        batch.take()
        if sample in (2, 8, 11):
            rows += source.rows()
    assert [row[1] for row in rows] == [sample * TICK for sample in range(12)]
    assert [row[10] for row in rows] == [1024 * (sample // 5 * 5) for sample in range(12)]
    assert {row[11] for row in rows} == {11}
    source.close()


def test_what_is_absent_is_not_measured_and_told_once(tmp_path: Path, batch: Batch) -> None:
    proc = make_proc(tmp_path)
    (proc / "pressure/io").unlink()
    told = Told()
    source = host.HostSource(told, batch, 1, proc)
    for _ in range(3):
        batch.take()
    rows = source.rows()
    assert [row[-2:] for row in rows] == [(None, None)] * 3
    assert rows[0][1] == 10 * TICK
    assert told == [("host", "/proc/pressure/io not measured: No such file or directory")]
    source.close()


@pytest.mark.parametrize(
    "text", [b"", b"cpu", b"cpu  1 2 3\n", b"cpu  a b c d e f g h\n", b"intr 5\n"]
)
def test_a_strange_stat_file_is_not_measured(text: bytes) -> None:
    assert list(host.parse_cpu_ns(text)) == [None] * 8


@pytest.mark.parametrize("text", [b"", b"some", b"some total=\n", b"some avg10=0 total=x\n"])
def test_a_strange_pressure_file_is_not_measured(text: bytes) -> None:
    assert host.parse_pressure_us(text) == (None, None)


def test_clock_readings_belong_together() -> None:
    source = ClockSource()
    source.take()
    ((mono_ns, real_ns, raw_ns, boot_ns, width_ns),) = source.rows()
    assert None not in (mono_ns, real_ns, raw_ns, boot_ns, width_ns)
    assert boot_ns is not None and mono_ns is not None and width_ns is not None
    assert boot_ns >= mono_ns - width_ns
    assert 0 <= width_ns < 1_000_000


# Links


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def newlink(name: str = "r0", carrier: int = 1, changes: int = 2, family: int = 0) -> bytes:
    body = struct.pack("=BxHiII", family, 1, 7, 0x10043, 0)
    body += attribute(netlink.IFLA_IFNAME, name.encode() + b"\0")
    body += attribute(netlink.IFLA_CARRIER, bytes([carrier]))
    body += attribute(netlink.IFLA_CARRIER_CHANGES, struct.pack("=I", changes))
    return body + attribute(netlink.IFLA_STATS64, struct.pack("=25Q", *range(25)))


def message(body: bytes, kind: int = netlink.RTM_NEWLINK) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body


def test_a_link_message_is_read_whole() -> None:
    ((kind, body),) = netlink.messages(memoryview(message(newlink())))
    assert kind == netlink.RTM_NEWLINK
    assert netlink.link(body) == Link(0, 7, 0x10043, "r0", 1, 2, tuple(range(8)))


def test_damaged_link_messages_raise_nothing_but_data_errors() -> None:
    rng = random.Random(3)
    whole = message(newlink())
    for _ in range(4000):
        damaged = bytearray(whole[: rng.randrange(len(whole) + 1)])
        for _ in range(rng.randrange(4)):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            for _, body in netlink.messages(memoryview(damaged)):
                netlink.link(body)
        except DataError:
            continue


def test_the_kernels_own_links_can_be_read() -> None:
    links = netlink.dump()
    (loopback,) = [item for item in links if item.flags & netlink.IFF_LOOPBACK]
    assert loopback.name == "lo"
    assert loopback.counters is not None
    assert all(index > 0 for index, _ in netlink.addresses())


UP = netlink.IFF_UP


def link(name: str, index: int = 5, carrier: int = 1, changes: int = 2, flags: int = UP) -> Link:
    return Link(0, index, flags, name, carrier, changes, None)


LINKS = [
    link("lo", 1, flags=UP | netlink.IFF_LOOPBACK),
    link("eth0", 2),
    link("ib0", 3),
    link("ib1", 4),
    link("ib2", 5, flags=0),
]


@pytest.mark.parametrize(
    ("patterns", "own", "expected"),
    [
        ((), "eth0", ["ib0", "ib1"]),
        ((), None, ["eth0", "ib0", "ib1"]),
        (("ib*",), None, ["ib0", "ib1", "ib2"]),
        (("ib1", "ib*"), None, ["ib1", "ib0", "ib2"]),
        (("hsn0", "ib0"), None, ["hsn0", "ib0"]),
        (("hsn*",), None, []),
    ],
)
def test_rails_are_chosen_in_order(
    patterns: tuple[str, ...], own: str | None, expected: list[str]
) -> None:
    assert rails.choose(patterns, LINKS, own) == expected


def events(*states: Link | None) -> list[tuple[LinkEvent, int | None]]:
    tracker = rails.LinkTracker(["r0"])
    return [event for state in states for event in tracker.update(0, state)]


def test_the_first_state_is_no_event() -> None:
    assert events(link("r0", carrier=0), link("r0", carrier=0)) == []


def test_carrier_lost_and_back_is_two_events() -> None:
    states = link("r0"), link("r0", carrier=0, changes=3), link("r0", changes=4)
    assert events(*states) == [(LinkEvent.CARRIER_DOWN, 3), (LinkEvent.CARRIER_UP, 4)]


def test_a_flap_that_nobody_saw_shows_in_the_counter() -> None:
    assert events(link("r0"), link("r0", changes=4)) == [
        (LinkEvent.CARRIER_DOWN, 3),
        (LinkEvent.CARRIER_UP, 4),
    ]


def test_a_message_older_than_the_last_sample_is_no_event() -> None:
    seen = link("r0"), link("r0", changes=4), link("r0", carrier=0, changes=3)
    assert len(events(*seen)) == 2


def test_taken_down_by_hand_is_told_apart() -> None:
    down = link("r0", carrier=0, changes=3, flags=0)
    assert events(link("r0"), down) == [(LinkEvent.ADMIN_DOWN, 3), (LinkEvent.CARRIER_DOWN, 3)]


def test_an_interface_that_is_removed_and_made_again() -> None:
    assert events(link("r0"), None, None, link("r0", index=9, changes=1)) == [
        (LinkEvent.REMOVED, None),
        (LinkEvent.ADDED, 1),
    ]


# Processes


@pytest.mark.parametrize(
    ("cmdline", "expected"),
    [
        (b"slurmstepd: [5.0]\0\0\0", (5, "0")),
        (b"slurmstepd: [17.batch]", (17, "batch")),
        (b"slurmstepd: [17.extern]", (17, "extern")),
        (b"slurmstepd: [17+2.3]", (17, "3")),
        (b"/usr/sbin/slurmstepd\0", None),
        (b"slurmstepd: [0.0]", None),
        (b"xslurmstepd: [5.0]", None),
        (b"slurmstepd: [5.0", None),
    ],
)
def test_step_daemons_are_known_by_their_titles(
    cmdline: bytes, expected: tuple[int, str] | None
) -> None:
    assert processes.parse_title(cmdline) == expected


def make_process(proc: Path, pid: int, cmdline: bytes, comm: str, uid: int = 0) -> None:
    (proc / str(pid)).mkdir(exist_ok=True)
    (proc / str(pid) / "cmdline").write_bytes(cmdline)
    stat = f"{pid} ({comm}) S 1 " + " ".join(["0"] * 45)
    (proc / str(pid) / "stat").write_text(stat)
    (proc / str(pid) / "status").write_text(f"Name:\t{comm}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")


def test_a_scan_finds_step_daemons_and_forgets_them(tmp_path: Path) -> None:
    make_process(tmp_path, 10, b"slurmstepd: [5.0]", "slurmstepd")
    make_process(tmp_path, 11, b"bash", "bash")
    scan = StepdScan(tmp_path)
    assert scan.scan() == [Stepd(10, 5, "0")]
    make_process(tmp_path, 10, b"bash", "bash")  # the number was given to another process
    assert scan.scan() == []


def test_a_process_gets_its_title_after_its_first_look(tmp_path: Path) -> None:
    make_process(tmp_path, 10, b"/usr/sbin/slurmstepd", "slurmstepd")
    scan = StepdScan(tmp_path)
    assert scan.scan() == []
    make_process(tmp_path, 10, b"slurmstepd: [5.batch]", "slurmstepd")
    assert scan.scan() == [Stepd(10, 5, "batch")]


@pytest.mark.parametrize(("comm", "uid"), [("bash", 0), ("slurmstepd", 1000)])
def test_a_title_alone_makes_no_step_daemon(tmp_path: Path, comm: str, uid: int) -> None:
    make_process(tmp_path, 10, b"slurmstepd: [5.0]", comm, uid)
    assert StepdScan(tmp_path).scan() == []


def test_a_process_name_may_hold_brackets_and_blanks() -> None:
    text = b"42 (a) b (c)) R 7 " + b" ".join(b"%d" % n for n in range(5, 52))
    stat = processes.parse_stat(text)
    assert stat is not None
    assert (stat.pid, stat.comm, stat.state, stat.parent) == (42, "a) b (c)", "R", 7)
    assert (stat.own_ticks, stat.children_ticks) == (14 + 15, 16 + 17)


def test_our_own_process_is_found_in_the_real_proc() -> None:

    stat = processes.read_stat(os.getpid())
    assert stat is not None
    assert stat.parent == os.getppid()
    assert processes.start_ticks(os.getpid()) == stat.start_ticks
    assert processes.owner(os.getpid()) == os.getuid()


def stat(pid: int, parent: int, own: int = 0, children: int = 0, pages: int = 0) -> Stat:
    return Stat(pid, "x", "S", parent, own, children, 0, pages)


def test_the_tree_below_step_daemons_leaves_them_out() -> None:
    stats = [stat(1, 0), stat(5, 1), stat(6, 5), stat(7, 6), stat(8, 1)]
    assert sorted(found.pid for found in processes.tree([5], stats)) == [6, 7]


def test_the_jobs_time_never_runs_backwards() -> None:
    sums = jobload._ProcessSums()
    sums.update([stat(6, 5, own=100, children=20, pages=3), stat(7, 6, own=50)])
    assert sums.cpu_ns == 170 * TICK
    sums.update([stat(6, 5, own=110, children=75)])  # 7 ended, 6 waited for it
    assert sums.cpu_ns == 185 * TICK
    sums.update([])  # all ended
    assert sums.cpu_ns == 185 * TICK
    assert sums.memory_bytes == 0
    sums.update([stat(9, 5, own=10)])
    assert sums.cpu_ns == 195 * TICK


# Control groups

MOUNTINFO = (
    "30 25 0:26 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro\n"
    "31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct\n"
    "32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "33 30 0:29 / /sys/fs/cgroup/with\\040blank rw - cgroup2 cgroup2 rw\n"
)


def test_version_1_cgroups_of_a_job_are_found() -> None:
    mounts = cgroups.parse_mounts(MOUNTINFO)
    text = "4:cpu,cpuacct:/slurm/uid_7/job_5/step_0/task_1\n9:memory:/slurm/uid_7/job_5/step_0\n"
    paths = cgroups.parse_membership(text)
    job = cgroups.job_path(paths["cpuacct"])
    assert job == "/slurm/uid_7/job_5"
    found = cgroups.directory(mounts, "cpuacct", job)
    assert found == Path("/sys/fs/cgroup/cpu,cpuacct/slurm/uid_7/job_5")
    assert cgroups.job_path(paths["memory"]) == job


def test_version_2_cgroups_of_a_job_are_found_whatever_its_directory_is_called() -> None:
    mounts = cgroups.parse_mounts(MOUNTINFO)
    path = "/system.slice/slurmstepd.scope/sJKW9P2V1C000/step_batch/user/task_0"
    job = cgroups.job_path(cgroups.parse_membership(f"0::{path}\n")[""])
    assert job == "/system.slice/slurmstepd.scope/sJKW9P2V1C000"
    expected = Path("/sys/fs/cgroup/with blank/system.slice/slurmstepd.scope/sJKW9P2V1C000")
    assert cgroups.directory(mounts, "", job) == expected


@pytest.mark.parametrize("path", ["/", "/system.slice/slurmd.service", "/step_0", "", "/x/step_"])
def test_a_path_without_a_step_is_no_jobs(path: str) -> None:
    assert cgroups.job_path(path) is None


@pytest.mark.parametrize("text", [b"", b"nonsense", b"usage 5\n", b"usage_usec x\n"])
def test_a_strange_cpu_stat_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        jobload.parse_usage_ns(text)


def test_the_quick_way_and_the_slow_way_read_the_same(batch: Batch) -> None:
    told = Told()
    source = rails.RailSource(["lo"], told, rails.LinkTracker(["lo"]), batch)
    batch.take()
    (first,) = source.rows()  # slowly
    batch.take()
    (quick,) = source.rows()  # quickly
    source._shapes = [None]
    batch.take()
    (slow,) = source.rows()  # slowly
    assert [len(row) for row in (first, quick, slow)] == [len(schema.RAIL.columns)] * 3
    assert first[1:4] == quick[1:4] == slow[1:4]
    for before, after in ((first, quick), (quick, slow)):
        assert all((b or 0) <= (a or 0) for b, a in zip(before[4:], after[4:], strict=True))
        assert (before[0] or 0) < (after[0] or 0)
    assert source.events() == []
    assert told == []
    source.close()


def test_a_rail_that_is_not_there_is_not_measured_and_told_once(batch: Batch) -> None:
    told = Told()
    source = rails.RailSource(["none0"], told, rails.LinkTracker(["none0"]), batch)
    for _ in range(3):
        batch.take()
    assert [row[1:] for row in source.rows()] == [(0, *(None,) * 10)] * 3
    assert told == [("rails", "none0 not measured: no such interface")]
    source.close()


def test_an_interface_that_was_renamed_is_no_rail_any_more() -> None:
    tracker = rails.LinkTracker(["r0"])
    tracker.update(0, link("r0"))
    assert tracker.rail_of(link("other")) == (0, False)
    assert tracker.rail_of(link("other", index=99)) == (None, False)
    assert tracker.rail_of(link("r0", index=99)) == (0, True)
