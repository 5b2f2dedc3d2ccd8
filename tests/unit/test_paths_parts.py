"""Link failover's pure parts in Python: configuration, addresses, steering, events."""

import fcntl
import ipaddress
import os
import socket
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fabricctl.config import Config
from fabricctl.errors import ConfigError, DataError, NotFoundError, UsageError
from fabricctl.paths import (
    addresses,
    configure,
    congestion,
    control,
    groups,
    launch,
    steering,
    verbs,
)
from fabricctl.paths.addresses import Address, Rail
from fabricctl.paths.events import Follower, row
from fabricctl.paths.files import PathsFiles, read_state, write_off
from fabricctl.paths.keeper import PathsKeeper
from fabricctl.records import Envelope, JobStart
from fabricctl.sections import AgentConfig, NodeConfig, PathsConfig, RailsConfig, ShareConfig
from fabricctl.store import schema
from fabricctl.store.journal import JournalWriter
from fabricctl.store.schema import Severity
from fabricctl.telemetry.cgroups import Mount

KEY = bytes(range(32))
START = JobStart(
    job=7,
    uid=1000,
    user="alice",
    nodes=("n1", "n2"),
    node="n2",
    cluster="c",
    envelope=Envelope(mode="on", key=KEY),
)
RAILS = [
    Rail("r0", ipaddress.IPv4Interface("10.78.0.12/16"), ipaddress.IPv6Address("fe80::1")),
    Rail("r1", ipaddress.IPv4Interface("10.79.0.12/16"), None),
]
PLACES = configure.Places(Path("/run/f/paths/7"), Path("/run/f/paths"), Path("/run/f/jobs/7"))


def lines(**changes: str) -> list[str]:
    given = {"n1": "10.77.0.11", "n2": "10.77.0.12"}
    return configure.text(START, PathsConfig(), RAILS, given, PLACES, **changes).splitlines()


def test_the_configuration_names_everything_that_pathd_needs() -> None:
    text = lines()
    assert text[0] == "job 7" and text[-1] == "end"
    assert "self 1" in text and "manage 10.77.0.12" in text
    assert "node n1 10.77.0.11" in text and "node n2 10.77.0.12" in text
    assert "rail r0 fab0 10.78.0.12/16 fe80::1" in text
    assert "rail r1 fab1 10.79.0.12/16 -" in text
    assert "hold_ms 700" in text and "hold_max_ms 60000" in text


@pytest.mark.parametrize(
    ("own", "available", "given", "asked"),
    [
        ("bbr", "reno bbr cubic", "auto", ["congestion cubic"]),
        ("bbr3", "reno bbr3", "auto", ["congestion reno"]),
        ("bbr", "reno bbr cubic", "host", []),
        ("cubic", "reno cubic", "auto", []),
        ("dctcp", "reno cubic dctcp", "auto", []),  # the site's choice, and no pacing of its own
    ],
)
def test_a_congestion_control_that_stands_still_after_a_move_is_not_asked_for(
    tmp_path: Path, own: str, available: str, given: str, asked: list[str]
) -> None:
    (tmp_path / "tcp_congestion_control").write_text(own + "\n")
    (tmp_path / "tcp_available_congestion_control").write_text(available + "\n")
    assert congestion.line(given, tmp_path) == asked
    assert congestion.line(given, tmp_path / "none") == []


def test_own_addresses_need_the_users_number_and_no_pool() -> None:
    text = lines()
    assert "own 1000" in text
    assert not [line for line in text if line.startswith("pool")]
    assert configure.devices(PathsConfig(), RAILS) == ["r0", "r1"]


def test_fabric_addresses_need_pools_and_are_the_ranks_devices() -> None:
    given = PathsConfig(addresses="fabric")
    addresses_of = {"n1": "10.77.0.11", "n2": "10.77.0.12"}
    text = configure.text(START, given, RAILS, addresses_of, PLACES).splitlines()
    assert "pool4 100.64.0.0/10" in text and "pool6 fd66:6162:7269::/48" in text
    assert "own 1000" not in text
    assert configure.devices(given, RAILS) == ["fab0", "fab1"]


def test_the_jobs_key_itself_is_not_in_the_configuration() -> None:
    text = "\n".join(lines())
    assert KEY.hex() not in text
    assert f"key {configure.probe_key(KEY).hex()}" in text


def test_different_jobs_keys_give_different_probe_keys() -> None:
    assert configure.probe_key(KEY) != configure.probe_key(KEY[:-1] + b"\0")
    assert len(configure.probe_key(KEY)) == 16


def test_a_share_comes_with_the_rates_of_the_rails() -> None:
    asked = replace(START, qos="debug", envelope=replace(START.envelope, share="30-80"))
    given = ShareConfig(rules=("qos=debug class=first",), pace_us=100)
    text = configure.share_lines(asked, given, RAILS, {"r0": 1000, "r1": 0})
    assert text == ["pace_us 100", "reroute_us 2000", "rate r0 1000000", "share 1000 300 800 0"]
    assert not [line for line in configure.share_lines(START, given, RAILS, {}) if "share" in line]


def test_a_jobs_group_is_named_where_slurm_keeps_its_scope(tmp_path: Path) -> None:
    version1 = Mount(tmp_path / "cpu", "/", frozenset({"cpu"}))
    whole = Mount(tmp_path / "v2", "/", frozenset())
    assert groups.line([version1, whole], "n2", 7) == []
    (tmp_path / "v2" / "system.slice" / "slurmstepd.scope").mkdir(parents=True)
    path = tmp_path / "v2" / "system.slice"
    assert groups.line([version1, whole], "n2", 7) == [f"group 3 {path}/slurmstepd.scope/job_7"]
    (path / "n2_slurmstepd.scope").mkdir()
    below = replace(whole, root="/nodes/n2")  # as a container sees it: levels count from the root
    assert groups.line([below], "n2", 7) == [f"group 5 {path}/n2_slurmstepd.scope/job_7"]


def test_a_node_that_cannot_take_part_says_why_in_one_word() -> None:
    assert "off no_rails_here" in lines(off="no rails here")


def test_a_node_without_an_address_is_marked() -> None:
    text = configure.text(START, PathsConfig(), RAILS, {"n1": None, "n2": "1.2.3.4"}, PLACES)
    assert "node n1 -" in text


@pytest.mark.parametrize("job", [1, 7, 400, 4_294_967_295])
def test_candidate_ports_are_four_different_ones_of_the_range(job: int) -> None:
    for count in (4, 5, 400):
        found = configure.ports(job, 20500, count)
        assert len(set(found)) == 4
        assert all(20500 <= port < 20500 + count for port in found)
    assert configure.ports(job, 20500, 400) == configure.ports(job, 20500, 400)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool4": "10.0.0.0"}, "paths.pool4: 10.0.0.0: the prefix length must be /4 to /20"),
        ({"pool4": "10.0.0.1/8"}, "paths.pool4: 10.0.0.1/8 has host bits set"),
        ({"pool4": "10.0.0.0/24"}, "paths.pool4: 10.0.0.0/24: the prefix length must be /4 to /20"),
        ({"pool6": "fd00::/64"}, "paths.pool6: fd00::/64: the prefix length must be /48"),
        (
            {"pool4": "", "pool6": ""},
            "paths.pool4 and paths.pool6 are both empty: give one of them",
        ),
    ],
)
def test_a_pool_that_cannot_hold_addresses_is_refused(
    changes: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        configure.check_pools(replace(PathsConfig(addresses="both"), **changes))
    assert str(caught.value) == message


def test_the_defaults_are_possible() -> None:
    configure.check_pools(PathsConfig())


def newaddr(family: int, bits: int, flags: int, index: int, ip: str) -> memoryview:
    raw = ipaddress.ip_address(ip).packed
    body = struct.pack("=BBBBI", family, bits, flags, 0, index)
    return memoryview(body + struct.pack("=HH", 4 + len(raw), 2) + raw)


def test_addresses_are_read_with_their_prefix_length() -> None:
    found = addresses.parse(newaddr(socket.AF_INET, 16, 0, 3, "10.78.0.12"))
    assert found == [Address(3, ipaddress.IPv4Interface("10.78.0.12/16"))]


def test_a_tentative_address_is_not_used() -> None:
    assert addresses.parse(newaddr(socket.AF_INET6, 64, 0x40, 3, "fd00::1")) == []


def test_a_cut_message_has_no_address() -> None:
    assert addresses.parse(memoryview(b"\x02")) == []


def test_a_sites_ipv6_address_comes_before_a_link_local_one() -> None:
    index = socket.if_nametoindex("lo")
    found = [
        Address(index, ipaddress.IPv6Interface("fe80::1/64")),
        Address(index, ipaddress.IPv6Interface("fd00::1/64")),
    ]
    rails = addresses.of_rails(["lo", "no-such-interface"], found)
    assert rails == [Rail("lo", None, ipaddress.IPv6Address("fd00::1"))]


def test_an_interface_without_address_is_no_rail() -> None:
    assert addresses.of_rails(["lo"], []) == []


def test_every_library_gets_its_devices() -> None:
    env = steering.environment(["fab0", "fab1"], rdma=False)
    assert env["OMPI_MCA_btl_tcp_if_include"] == "fab0,fab1"
    assert env["UCX_NET_DEVICES"] == "fab0,fab1"
    assert env["FI_TCP_IFACE"] == "fab0"
    assert env["NCCL_SOCKET_IFNAME"] == "=fab0,fab1"
    assert env["GLOO_SOCKET_IFNAME"] == "fab0,fab1"


def test_rdma_is_never_taken_from_a_library() -> None:
    assert "UCX_NET_DEVICES" not in steering.environment(["fab0", "fab1"], rdma=True)


def test_the_env_file_is_one_assignment_a_line() -> None:
    assert steering.text({"A": "b,c", "D": "=e"}) == "A=b,c\nD==e\n"


EVENT = (
    "event=path;time_mono_ns=30;time_real_ns=40;peer=n2;rail=1;level=dead;reason=silent;"
    "peer_reason=none;begin_mono_ns=20;moved_mono_ns=25;moved=2;lost=0;seen=9"
)


def test_an_event_becomes_a_row_of_the_schema(tmp_path: Path) -> None:
    names = [column.name for column in schema.PATH_EVENT.columns]
    found = dict(zip(names, row(EVENT), strict=True))
    assert found["peer"] == "n2" and found["rail"] == 1
    assert found["event"] == schema.PathEvent.PATH
    assert found["level"] == schema.PathLevel.DEAD
    assert found["reason"] == schema.PathReason.SILENT
    assert (found["begin_mono_ns"], found["moved_mono_ns"]) == (20, 25)
    JournalWriter(tmp_path / "0.journal", {}).append(schema.PATH_EVENT, *row(EVENT))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "x",
        "event=nothing;time_mono_ns=1",
        "event=path;time_mono_ns=-1",
        "event=path;event=path",
    ],
)
def test_what_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(DataError):
        row(line)


def test_every_event_and_reason_of_the_c_side_is_in_the_schema() -> None:
    source = Path(__file__).parents[2] / "fabricctl" / "paths" / "pathd"
    import re

    text = "".join(path.read_text() for path in sorted(source.glob("*.c")))
    events = set(re.findall(r'event_write\(\s*&?\w+(?:->\w+)*(?:\.\w+)?,\s*"(\w+)"', text))
    events |= {"stalled", "back", "met", "met_again"}  # chosen by a condition there
    events |= {"port"}  # the node service writes it (keeper.py)
    assert events == {item.name.lower() for item in schema.PathEvent}
    names = re.search(r"REASON_NAMES\[REASONS\] = \{(.*?)\};", text, re.DOTALL)
    assert names is not None
    reasons = re.findall(r'"(\w+)"', names.group(1))
    assert reasons == [item.name.lower() for item in schema.PathReason]


def test_a_follower_reads_each_line_once_and_waits_for_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "events"
    follower = Follower(path)
    assert follower.rows() == []
    path.write_text(EVENT + "\n" + EVENT[:20])
    assert len(follower.rows()) == 1
    with path.open("a") as stream:
        stream.write(EVENT[20:] + "\nnonsense\n")
    assert len(follower.rows()) == 1
    assert follower.broken_lines == 1
    assert follower.rows() == []


def test_a_follower_does_not_go_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(EVENT + "\n")
    (tmp_path / "events").symlink_to(tmp_path / "secret")
    assert Follower(tmp_path / "events").rows() == []


def test_the_state_of_a_job_without_pathd_says_why(tmp_path: Path) -> None:
    files = PathsFiles(tmp_path)
    files.make(7)
    write_off(files.state(7), 7, "no rails")
    assert read_state(files.state(7))["why"] == "no rails"
    assert files.jobs() == [7]
    files.remove(7)
    assert files.jobs() == []
    with pytest.raises(NotFoundError):
        read_state(files.state(7))


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        (tuple(f"n{i}" for i in range(8_001)), "the job has 8001 nodes"),
        (("n1", "n" * 64), "names of 63 characters"),
    ],
)
def test_a_job_that_pathd_cannot_take_is_off_and_says_why(
    nodes: tuple[str, ...], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "_exit", lambda status: None)
    monkeypatch.setattr(launch, "_become", lambda *args: pytest.fail("it was started"))
    config = Config(node=NodeConfig(run_dir=tmp_path))
    launch.become_pathd(replace(START, nodes=nodes, node=nodes[0]), config, [])
    state = read_state(PathsFiles(tmp_path).state(7))
    assert state["state"] == "off"
    assert why in state["why"]


def test_what_pathd_cannot_take_is_what_its_headers_say() -> None:
    pathd = Path(launch.__file__).parent / "pathd"
    assert f"#define MAX_PEERS {launch.MOST_NODES} " in (pathd / "mover.h").read_text()
    assert f"#define CONF_NAME {launch.LONGEST_NAME + 1}\n" in (pathd / "conf.h").read_text()


def test_a_request_to_nobody_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no fabric-pathd listens there"):
        control.ask(tmp_path / "control", {"do": "show"})


def test_a_reason_that_would_break_the_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at most 200 characters"):
        control.ask(tmp_path / "control", {"do": "drain", "why": "a;event=x"})


def test_an_answer_is_read_line_by_line(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "control"))
        server.settimeout(5)
        if os.fork() == 0:
            data, sender = server.recvfrom(1000)
            server.sendto(b"a=1;b=2\nc=3\n" if data == b"do=show" else b"error=no", sender)
            os._exit(0)
        assert control.ask(tmp_path / "control", {"do": "show"}) == [
            {"a": "1", "b": "2"},
            {"c": "3"},
        ]
        os.wait()


def test_libraries_are_led_onto_named_rails_only() -> None:
    named = Config(rails=RailsConfig(interfaces=("r*",)))
    found = Config()
    assert launch.steered(named, RAILS, ())["OMPI_MCA_btl_tcp_if_include"] == "r0,r1"
    assert launch.steered(found, RAILS, ()) == {}
    fabric = Config(paths=PathsConfig(addresses="fabric"))
    assert launch.steered(fabric, RAILS, ())["FI_TCP_IFACE"] == "fab0"


def test_tasks_without_protection_are_led_as_the_jobs_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "find_rails", lambda _config, _node: (RAILS, ""))
    monkeypatch.setattr(verbs, "look", tuple)
    rails = RailsConfig(interfaces=("r*",))
    assert "OMPI_MCA_btl_tcp_if_include=r0,r1\n" in launch.node_env(Config(rails=rails))
    for other in (
        Config(),
        Config(rails=rails, paths=PathsConfig(addresses="fabric")),
        Config(rails=rails, paths=PathsConfig(enabled=False)),
        Config(rails=rails, agent=AgentConfig(max_mode="observe")),
    ):
        assert launch.node_env(other) == ""
    monkeypatch.setattr(launch, "find_rails", lambda _config, _node: (RAILS[:1], "one rail"))
    assert launch.node_env(Config(rails=rails)) == ""


def test_what_tasks_without_protection_are_told_goes_with_link_failover(tmp_path: Path) -> None:
    files = PathsFiles(tmp_path)
    files.make_node()
    files.set_node_env("A=1\n")
    assert (files.leases / "env").read_text() == "A=1\n" and files.jobs() == []
    files.remove_node()
    assert not files.leases.exists()


class Heard:
    def __init__(self) -> None:
        self.words: list[str] = []

    def write(self, who: str, text: str, severity: Severity = Severity.INFO) -> None:
        self.words.append(text)


def ib_port(root: Path, device: str, state: str) -> None:
    folder = root / device / "ports" / "1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state").write_text(state)


def test_libraries_are_kept_off_ports_that_are_down(tmp_path: Path) -> None:
    for number in range(3):
        ib_port(tmp_path, f"mlx5_{number}", "4: ACTIVE\n")
    assert verbs.environment(verbs.look(tmp_path)) == {}
    ib_port(tmp_path, "mlx5_1", "1: DOWN\n")
    ports = verbs.look(tmp_path)
    named = Config(rails=RailsConfig(interfaces=("r*",)))
    for config in (named, Config()):  # wherever the rails' names come from
        env = launch.steered(config, RAILS, ports)
        assert env["NCCL_IB_HCA"] == "=mlx5_0:1,mlx5_2:1"
        assert env["UCX_NET_DEVICES"] == "mlx5_0:1,mlx5_2:1,r0,r1"
    for number in (0, 2):
        ib_port(tmp_path, f"mlx5_{number}", "2: INIT\n")
    assert verbs.environment(verbs.look(tmp_path)) == {}  # nothing to choose from
    assert verbs.look(tmp_path / "nowhere") == ()


def test_a_port_that_is_lost_is_told_and_later_steps_keep_off_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sys_folder = tmp_path / "infiniband"
    for number in range(2):
        ib_port(sys_folder, f"mlx5_{number}", "4: ACTIVE\n")
    config = Config(node=NodeConfig(run_dir=tmp_path))
    log = Heard()
    keeper = PathsKeeper(config, log)
    monkeypatch.setattr(keeper, "_ports", verbs.Watch(sys_folder))
    monkeypatch.setattr(keeper, "_launch", lambda running, now_s: None)
    files = PathsFiles(tmp_path)
    files.make(7)
    keeper.start(START, 0.0)
    files.state(7).write_text("v=1\nstate=ready\nrail0=r0 fab0\nrail1=r1 fab1\n")
    files.env(7).write_text("FI_TCP_IFACE=r0\n")
    files.events(7).touch()
    keeper.turn(1.0)
    assert log.words == []
    ib_port(sys_folder, "mlx5_1", "1: DOWN\n")
    keeper.turn(2.0)
    assert files.env(7).read_text() == (
        "FI_TCP_IFACE=r0\nNCCL_IB_HCA==mlx5_0:1\nUCX_NET_DEVICES=mlx5_0:1,r0,r1\n"
    )
    ib_port(sys_folder, "mlx5_1", "4: ACTIVE\n")
    keeper.turn(3.0)
    assert files.env(7).read_text() == "FI_TCP_IFACE=r0\n"
    told = [row(line) for line in files.events(7).read_text().splitlines()]
    assert [one[2] for one in told] == [schema.PathEvent.PORT] * 2
    assert [one[-1] for one in told] == log.words
    assert log.words[0] == (
        "InfiniBand or RoCE port mlx5_1:1 is lost: what uses it must start again"
    )


def test_one_that_an_earlier_service_left_is_followed_when_it_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is started beside it ends at once: the job has one already."""
    launched = []

    def launch_another(running: Any, now_s: float) -> None:
        running.restart_s = None
        running.attempts += 1
        launched.append(now_s)
        running.pid = os.spawnlp(os.P_NOWAIT, "true", "true")
        os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)

    keeper = PathsKeeper(Config(node=NodeConfig(run_dir=tmp_path)), Heard())
    monkeypatch.setattr(keeper, "_launch", launch_another)
    files = PathsFiles(tmp_path)
    files.make(7)
    files.state(7).write_text("v=1\nstate=ready\n")
    with (files.leases / "0.lease").open("w+") as lease:
        lease.write("job=7\npid=1\n")
        lease.flush()
        fcntl.flock(lease, fcntl.LOCK_EX)
        keeper.start(START, 0.0)
        for now_s in range(1, 60):
            keeper.turn(now_s)
        assert launched == [0.0]
        assert keeper.next_due_s() is not None
    for now_s in range(60, 70):
        keeper.turn(now_s)
    assert launched[1:] and launched[1] < 65
    keeper.stop(7, 70.0)
    keeper.turn(71.0)


def test_bridges_and_virtual_devices_are_no_rails_unless_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, part in (("eth1", "device"), ("bond0", "bonding"), ("docker0", "bridge")):
        (tmp_path / name / part).mkdir(parents=True)
    monkeypatch.setattr(addresses, "SYS_NET", tmp_path)
    assert [name for name in ("eth1", "bond0", "docker0", "veth7") if addresses.is_port(name)] == [
        "eth1",
        "bond0",
    ]


def test_a_drained_rail_is_kept_for_jobs_that_begin_later(tmp_path: Path) -> None:
    files = PathsFiles(tmp_path)
    assert files.drained() == {}
    files.make_node()
    files.set_drained({"r0": "uid 0: new cable", "r1": "uid 0"})
    assert files.drained() == {"r0": "uid 0: new cable", "r1": "uid 0"}
    assert (files.leases / "drained").stat().st_mode & 0o777 == 0o644
    files.set_drained({})
    assert files.drained() == {}
