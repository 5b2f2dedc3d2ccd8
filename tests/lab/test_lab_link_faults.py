"""Each link fault does what it says, to that port alone, and its heal undoes it."""

import socket
import statistics
import subprocess
import threading
import time

import pytest

from fabricctl.errors import LabError, UsageError
from fabricctl.lab.cluster import Lab
from fabricctl.lab.kernel import in_netns
from tests.support.wire import delivered, udp, warm

pytestmark = pytest.mark.lab


def carrier(lab: Lab, node: str, interface: str) -> str:
    done = lab.exec(node, ["cat", f"/sys/class/net/{interface}/carrier"])
    return done.stdout.strip()


def test_cut_takes_the_carrier_and_heal_gives_it_back(lab: Lab) -> None:
    lab.fault("cut", "n2", "r0")
    assert carrier(lab, "n2", "r0") == "0"
    assert carrier(lab, "n2", "r1") == "1"
    assert carrier(lab, "n1", "r0") == "1"
    lab.heal("cut", "n2", "r0")
    assert carrier(lab, "n2", "r0") == "1"
    warm(lab, "n1", "n2", "r0")


def test_blackhole_leaves_the_carrier_and_nothing_passes(lab: Lab) -> None:
    warm(lab, "n1", "n2", "r0")
    lab.fault("blackhole", "n2", "r0")
    assert carrier(lab, "n2", "r0") == "1"
    assert delivered(lab, "n1", "n2", "r0", count=20) == 0
    assert delivered(lab, "n2", "n1", "r0", count=20) == 0
    assert delivered(lab, "n1", "n2", "r1", count=20) == 20
    lab.heal("blackhole", "n2", "r0")
    assert delivered(lab, "n1", "n2", "r0", count=20) == 20


@pytest.mark.parametrize(("direction", "sent", "received"), [("tx", 0, 20), ("rx", 20, 0)])
def test_one_way_blackhole_stops_one_way(
    lab: Lab, direction: str, sent: int, received: int
) -> None:
    warm(lab, "n1", "n2", "r0")
    lab.fault("blackhole", "n2", "r0", direction=direction)
    assert carrier(lab, "n2", "r0") == "1"
    assert delivered(lab, "n2", "n1", "r0", count=20) == sent
    assert delivered(lab, "n1", "n2", "r0", count=20) == received
    lab.heal("blackhole", "n2", "r0")
    assert delivered(lab, "n2", "n1", "r0", count=20) == 20
    assert delivered(lab, "n1", "n2", "r0", count=20) == 20


def test_a_fault_that_drops_begins_at_one_instant(lab: Lab) -> None:
    """While a queueing discipline is attached the port stands still: then a first fault is two."""
    argv = ["nsenter", f"--net={lab.paths.switch_netns('r0')}", "tc", "qdisc"]

    def queues() -> str:
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    before = queues()
    lab.fault("blackhole", "n5", "r0", direction="rx")
    assert queues() == before


def test_loss_loses_the_share_that_was_asked_for(lab: Lab) -> None:
    warm(lab, "n1", "n2", "r0")
    lab.fault("loss", "n2", "r0", percent=25.0, direction="rx")
    got = delivered(lab, "n1", "n2", "r0", count=2000)
    # Binomial, 2000 draws of 0.75: mean 1500, sigma 19.4; 5 sigma once in two million runs.
    assert 1403 <= got <= 1597
    assert delivered(lab, "n2", "n1", "r0", count=50) == 50
    lab.heal("loss", "n2", "r0")
    assert delivered(lab, "n1", "n2", "r0", count=50) == 50


def test_large_packets_are_lost_and_small_ones_pass(lab: Lab) -> None:
    warm(lab, "n1", "n2", "r0")
    lab.fault("loss-large", "n2", "r0", above=1000)
    for source, target in (("n1", "n2"), ("n2", "n1")):
        assert delivered(lab, source, target, "r0", count=20, size=1000) == 20
        assert delivered(lab, source, target, "r0", count=20, size=1001) == 0
    lab.heal("loss-large", "n2", "r0")
    assert delivered(lab, "n1", "n2", "r0", count=20, size=1400) == 20


@pytest.mark.parametrize("kind", ["switch-dead", "switch-silent"])
def test_a_switch_takes_its_rail_from_all_nodes(lab: Lab, kind: str) -> None:
    lab.fault(kind, "r1")
    nodes = lab.spec.all_nodes
    assert {carrier(lab, node, "r1") for node in nodes} == {"0" if kind == "switch-dead" else "1"}
    assert delivered(lab, "n1", "n2", "r1", count=5) == 0
    lab.heal(kind, "r1")
    assert {carrier(lab, node, "r1") for node in nodes} == {"1"}
    warm(lab, "n1", "n2", "r1")


def throughput_bit_per_s(lab: Lab, source: str, target: str, interface: str) -> float:
    """Of one TCP connection over two seconds, from the first byte on."""
    with in_netns(lab.paths.node_netns(target)):
        listener = socket.create_server(("", 4998))
    with in_netns(lab.paths.node_netns(source)):
        sender = socket.socket()
    with listener, sender:
        sender.connect((lab.spec.address(target, interface), 4998))
        receiver, _ = listener.accept()
        for each in (sender, receiver):
            each.settimeout(10)
        stop = threading.Event()

        def send() -> None:
            while not stop.is_set():
                try:
                    sender.send(bytes(65536))
                except OSError:
                    return

        thread = threading.Thread(target=send)
        thread.start()
        got, begin_s = 0, time.monotonic()
        with receiver:
            while time.monotonic() - begin_s < 2:
                got += len(receiver.recv(1 << 20))
            took_s = time.monotonic() - begin_s
            stop.set()
            receiver.close()
        thread.join()
        return got * 8 / took_s


@pytest.mark.parametrize("direction", ["tx", "rx"])
def test_a_rate_holds_the_link_to_it_in_its_direction(lab: Lab, direction: str) -> None:
    warm(lab, "n1", "n2", "r0")
    lab.fault("rate", "n2", "r0", rate="50mbit", direction=direction)
    slow, fast = ("n2", "n1") if direction == "tx" else ("n1", "n2"), ("n1", "n2")
    measured = throughput_bit_per_s(lab, *slow, "r0")
    assert 35e6 < measured < 51e6
    if direction == "tx":
        assert throughput_bit_per_s(lab, *fast, "r0") > 200e6
    lab.heal("rate", "n2", "r0")
    assert throughput_bit_per_s(lab, *slow, "r0") > 200e6


def delay_s(lab: Lab, source: str, target: str, interface: str) -> float:
    """Median one-way delay of 100 packets; one clock here."""
    delays: list[float] = []
    with udp(lab, source, interface) as sender, udp(lab, target, interface) as receiver:
        receiver.settimeout(0.5)
        for _ in range(100):
            begin_s = time.monotonic()
            sender.sendto(b"x", (lab.spec.address(target, interface), 4999))
            try:
                receiver.recv(100)
                delays.append(time.monotonic() - begin_s)
            except TimeoutError:
                continue
            time.sleep(0.003)
    return sorted(delays)[len(delays) // 2]


def test_cross_traffic_makes_packets_wait_in_the_switch(lab: Lab) -> None:
    warm(lab, "n1", "n2", "r0")
    quiet_s = delay_s(lab, "n1", "n2", "r0")
    lab.fault("cross", "n2", "r0", rate="50mbit", load=1.1)
    time.sleep(0.5)
    assert delay_s(lab, "n1", "n2", "r0") > quiet_s + 0.002
    assert delay_s(lab, "n2", "n1", "r0") < quiet_s + 0.002
    lab.heal("cross", "n2", "r0")
    time.sleep(0.1)
    assert delay_s(lab, "n1", "n2", "r0") < quiet_s + 0.002


def test_cross_traffic_needs_a_rate_at_which_to_queue(lab: Lab) -> None:
    with pytest.raises(UsageError, match="the link has no rate"):
        lab.fault("cross", "n2", "r0")
    assert not lab.in_force()


@pytest.mark.parametrize(("kind", "shown"), [("carrier-flap", "carrier_changes"), ("flap", "")])
def test_flapping_keeps_its_period_and_logs_every_edge(lab: Lab, kind: str, shown: str) -> None:
    before = lab.exec("n2", ["cat", "/sys/class/net/r0/carrier_changes"]).stdout
    begun = lab.fault(kind, "n2", "r0", period_s=0.2, duty=0.25, for_s=1.0)
    deadline_s = time.monotonic() + 60
    while lab.in_force():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    entries = [e for e in lab.log() if e["mono_ns"] >= begun.begin_mono_ns]
    assert [e["event"] for e in entries] == ["fault", *["down", "up"] * 5, "heal"]
    downs = [e["mono_ns"] for e in entries if e["event"] == "down"]
    ups = [e["mono_ns"] for e in entries if e["event"] == "up"]
    late_ns = [down - begun.mono_ns - number * 200e6 for number, down in enumerate(downs)]
    late_ns += [up - begun.mono_ns - number * 200e6 - 50e6 for number, up in enumerate(ups)]
    # One comes late where the machine stood still, and shifts none of those after it.
    assert min(late_ns) > -5e6 and statistics.median(late_ns) < 50e6
    after = lab.exec("n2", ["cat", "/sys/class/net/r0/carrier_changes"]).stdout
    assert int(after) - int(before) == (10 if shown else 0)
    warm(lab, "n1", "n2", "r0")


def test_a_management_cut_leaves_the_rails(lab: Lab) -> None:
    lab.fault("cut", "n3", "m0")
    assert carrier(lab, "n3", "m0") == "0"
    assert delivered(lab, "n1", "n3", "r0", count=5) > 0


def test_healing_one_of_two_faults_leaves_the_other(lab: Lab) -> None:
    lab.fault("cut", "n2", "r0")
    lab.fault("blackhole", "n2", "r0")
    lab.fault("switch-dead", "r0")
    lab.heal("cut", "n2", "r0")
    assert carrier(lab, "n2", "r0") == "0"
    lab.heal("switch-dead", "r0")
    assert carrier(lab, "n2", "r0") == "1"
    assert delivered(lab, "n1", "n2", "r0", count=5) == 0
    lab.heal("blackhole", "n2", "r0")
    warm(lab, "n1", "n2", "r0")


def test_the_same_fault_twice_is_refused_and_the_first_stays(lab: Lab) -> None:
    lab.fault("cut", "n2", "r0")
    with pytest.raises(LabError, match=r"cut\.n2\.r0 is in force already"):
        lab.fault("cut", "n2", "r0")
    assert [item.fault.id for item in lab.in_force()] == ["cut.n2.r0"]


def test_healing_what_is_not_in_force_says_what_is(lab: Lab) -> None:
    lab.fault("cut", "n1", "r1")
    with pytest.raises(LabError, match=r"not in force; in force: cut\.n1\.r1"):
        lab.heal("cut", "n2", "r0")


def test_a_fault_for_a_time_heals_by_itself_in_time(lab: Lab) -> None:
    begun = lab.fault("cut", "n2", "r0", for_s=0.4)
    time.sleep(0.7)
    healed = lab.log()[-1]
    assert (healed["event"], healed["cause"]) == ("heal", "timer")
    assert 0.39e9 < healed["mono_ns"] - begun.mono_ns < 0.5e9
    assert carrier(lab, "n2", "r0") == "1"


def test_the_log_brackets_what_the_kernel_tells(lab: Lab) -> None:
    """The kernel's own message of a lost or regained carrier arrives with the stamp.

    Never before it; how long after also depends on when this test's thread gets a CPU, so the
    median of twelve counts.
    """
    told_ns: list[int] = []
    with in_netns(lab.paths.node_netns("n2")):
        monitor = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    monitor.bind((0, 1))  # RTMGRP_LINK
    monitor.settimeout(10)

    def listen() -> None:
        for _ in range(12):
            monitor.recv(65536)
            told_ns.append(time.monotonic_ns())

    thread = threading.Thread(target=listen)
    thread.start()
    stamps = []
    for _ in range(6):
        for change in (lab.fault, lab.heal):
            stamps.append(change("cut", "n2", "r0"))
            time.sleep(0.05)
    thread.join()
    monitor.close()
    late_ns = sorted(told - stamp.end_mono_ns for stamp, told in zip(stamps, told_ns, strict=True))
    assert all(told > stamp.begin_mono_ns for stamp, told in zip(stamps, told_ns, strict=True))
    assert late_ns[6] < 5e6
    assert sorted(stamp.width_ns for stamp in stamps)[6] < 5e6
