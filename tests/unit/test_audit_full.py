"""The full audit: pairs kept apart, limits learned from the fleet, real streams."""

import itertools
import json
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fabricctl.errors import DataError
from fabricctl.fleet.audit import full, limits, pairwise, report
from fabricctl.fleet.audit.burnin import together
from fabricctl.fleet.audit.limits import Floors
from fabricctl.fleet.audit.model import Check
from fabricctl.fleet.audit.pairwise import Link
from fabricctl.fleet.audit.tournament import MAX_ROUNDS, partners
from fabricctl.sections import AuditConfig

NAMES = [f"n{number}" for number in range(1, 9)]
RAILS = dict.fromkeys(NAMES, ("r0", "r1"))
FLOORS = Floors(clock_ns=1e6)


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8, 15, 16])
def test_every_pair_meets_once_and_nobody_is_in_two_pairs_at_once(count: int) -> None:
    names = [f"n{number:02}" for number in range(count)]
    plans = {name: partners(name, names) for name in names}
    met = []
    for turn in range(len(plans[names[0]])):
        for name in names:
            peer = plans[name][turn]
            if peer is not None:
                assert plans[peer][turn] == name != peer
                met.append((name, peer))
    assert sorted(met) == sorted(itertools.permutations(names, 2))


def test_of_many_nodes_each_meets_fifteen_others() -> None:
    names = [f"n{number:04}" for number in range(1000)]
    plans = {name: partners(name, names) for name in names}
    for name, plan in plans.items():
        assert len(plan) == MAX_ROUNDS == len(set(plan))
        for turn, peer in enumerate(plan):
            assert peer is not None and plans[peer][turn] == name
    assert partners("n1", ["n1"]) == [None]


def mesh(seed: int = 1, change: Callable[[Link], Link] = lambda link: link) -> list[Link]:
    """Links of 10 Gbit/s on a busy machine: each stream gets a half to all of it."""
    chance = random.Random(seed)
    found = []
    for a, b in itertools.combinations(NAMES, 2):
        for rail in ("r0", "r1"):
            speed = [1.25e9 * chance.uniform(0.5, 1.0) for _ in range(2)]
            rtt = int(12_000 * chance.uniform(1.0, 2.5))
            found.append(change(Link(a, b, rail, rtt, 11_000, chance.randrange(-3000, 3000),
                                     speed[0], speed[1])))  # fmt: skip
    return found


def failed(checks: list[Check]) -> set[tuple[str, str, str]]:
    return {(check.node, check.rail, check.name) for check in checks if check.status != "ok"}


@pytest.mark.parametrize("seed", range(50))
def test_fifty_noisy_fleets_have_no_finding(seed: int) -> None:
    assert failed(limits.checks(mesh(seed), NAMES, RAILS, FLOORS)) == set()


@pytest.mark.parametrize("seed", range(10))
def test_a_slow_port_is_found_in_the_direction_in_which_it_is_slow(seed: int) -> None:
    def slow(link: Link) -> Link:
        if link.rail != "r1" or "n5" not in (link.node, link.peer):
            return link
        key = "out_bytes_per_s" if link.node == "n5" else "in_bytes_per_s"
        return replace(link, **{key: 25e6})  # type: ignore[arg-type]

    found = failed(limits.checks(mesh(seed, slow), NAMES, RAILS, FLOORS))
    assert found == {("n5", "r1", "bandwidth out")}


def test_a_floor_that_the_site_declared_holds_where_all_are_slow() -> None:
    def slow(link: Link) -> Link:
        return replace(link, out_bytes_per_s=1e8, in_bytes_per_s=1e8)

    assert failed(limits.checks(mesh(1, slow), NAMES, RAILS, FLOORS)) == set()
    found = failed(limits.checks(mesh(1, slow), NAMES, RAILS, Floors(5e8)))
    assert {name for _, _, name in found} == {"bandwidth out", "bandwidth in"}
    assert {node for node, _, _ in found} == set(NAMES)


@pytest.mark.parametrize("seed", range(10))
def test_of_three_nodes_only_one_that_is_far_below_the_others_fails(seed: int) -> None:
    """On a rail on which the other five failed before."""
    three = dict.fromkeys(("n1", "n2", "n5"), ("r0",))
    few = [link for link in mesh(seed) if {link.node, link.peer} <= set(three)]
    assert failed(limits.checks(few, three, three, FLOORS)) == set()
    slow = [replace(link, in_bytes_per_s=15e6) if link.peer == "n1" else
            replace(link, out_bytes_per_s=15e6) if link.node == "n1" else link
            for link in few if link.rail == "r0"]  # fmt: skip
    assert failed(limits.checks(slow, three, three, FLOORS)) == {("n1", "r0", "bandwidth out")}


def test_two_nodes_are_no_distribution() -> None:
    pair = [Link("n1", "n2", "r0", 12_000, 11_000, 0, 1e9, 1e6)]
    checks = limits.checks(pair, ["n1", "n2"], {"n1": ["r0"], "n2": ["r0"]}, FLOORS)
    assert failed(checks) == set()


def test_a_far_port_and_a_wrong_clock_are_found_and_a_clock_within_doubt_is_not() -> None:
    def far(link: Link) -> Link:
        if "n2" in (link.node, link.peer) and link.rail == "r0":
            return replace(link, rtt_ns=400_000, least_rtt_ns=390_000)
        return link

    assert failed(limits.checks(mesh(3, far), NAMES, RAILS, FLOORS)) == {("n2", "r0", "latency")}

    def skewed(by_ns: int) -> Callable[[Link], Link]:
        def change(link: Link) -> Link:
            sign = (link.peer == "n7") - (link.node == "n7")
            return replace(link, offset_ns=(link.offset_ns or 0) + sign * by_ns)

        return change

    found = limits.checks(mesh(3, skewed(5_000_000)), NAMES, RAILS, FLOORS)
    assert failed(found) == {("n7", "", "error")}
    assert "ahead" in next(c.value for c in found if (c.node, c.name) == ("n7", "error"))
    assert failed(limits.checks(mesh(3, skewed(1_005_000)), NAMES, RAILS, FLOORS)) == set()


def test_streams_that_break_are_the_fault_of_the_node_that_all_of_them_have() -> None:
    def broken(link: Link) -> Link:
        bad = "n4" in (link.node, link.peer) and link.rail == "r0"
        return Link(link.node, link.peer, "r0", why="stalled") if bad else link

    def late(link: Link) -> Link:
        made = link.rail == "r0" and "n4" in (link.node, link.peer) and link.peer != "n8"
        return Link(link.node, link.peer, "r0", why=pairwise.LATE) if made else link

    # Who was held up by others is not blamed for it.
    assert failed(limits.checks(mesh(1, late), NAMES, RAILS, FLOORS)) == set()
    checks = limits.checks(mesh(1, broken), NAMES, RAILS, FLOORS)
    bad = {(c.node, c.rail, c.name): c.status for c in checks if c.status != "ok"}
    assert bad[("n4", "r0", "streams")] == "fail"
    assert {node for node, _, _ in bad} == {"n4"}
    assert bad[("n4", "r0", "latency")] == "not measured"


def test_three_nodes_measure_each_other_over_real_sockets_and_strangers_get_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pairwise, "SEND_S", 0.01)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    table = {name: {"lo": f"127.0.0.{at}"} for at, name in enumerate(("n1", "n2", "n3"), 1)}
    table["n4"] = {"lo": "127.0.0.4"}  # is dead, and known to be
    dead = {(name, "n4", "lo") for name in table}
    found: dict[str, list[Link]] = {}

    def one(name: str) -> None:
        found[name] = pairwise.measure(pairwise.Where(name, table, port, b"c" * 16), dead, 20)

    threads = [threading.Thread(target=one, args=(name,)) for name in ("n1", "n2", "n3")]
    for thread in threads:
        thread.start()
    for junk in (b"", b"GET / HTTP/1.1\r\n\r\n" * 9, b"fabpairs" + b"x" * 80):
        try:
            with socket.create_connection(("127.0.0.3", port), timeout=1) as stranger:
                stranger.sendall(junk)
        except OSError:
            pass  # it does not listen yet, or no more
    for thread in threads:
        thread.join(60)
    links = [link for mine in found.values() for link in mine]
    assert {(link.node, link.peer) for link in links} == {("n1", "n2"), ("n1", "n3"), ("n2", "n3")}
    for link in links:
        assert not link.why and link.rtt_ns and link.out_bytes_per_s and link.in_bytes_per_s
        # One machine, one clock: the offset lies within its own bound.
        assert link.offset_ns is not None and link.least_rtt_ns is not None
        assert abs(link.offset_ns) <= link.least_rtt_ns / 2 + 1000


def test_a_partner_that_never_comes_costs_its_time_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pairwise, "WAIT_S", 0.2)
    monkeypatch.setattr(pairwise, "HELLO_S", 0.1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    table = {"n1": {"lo": "127.0.0.1"}, "n2": {"lo": "127.0.0.2"}}
    (link,) = pairwise.measure(pairwise.Where("n1", table, port, b"c" * 16), (), 5)
    assert link.why == pairwise.LATE and link.rtt_ns is None
    assert pairwise.measure(pairwise.Where("n2", table, port, b"c" * 16), (), 5) == []


def test_who_receives_late_does_not_make_a_slow_link_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits in a buffer is read at the speed of memory: that is not the link's."""
    monkeypatch.setattr(pairwise, "SEND_S", 0.01)
    here, there = socket.socketpair()
    until_s = time.monotonic() + 10
    said: list[float] = []
    sender = threading.Thread(
        target=lambda: said.append(pairwise._send(pairwise.Stream(here, until_s)))
    )
    with here, there:
        sender.start()
        time.sleep(0.3)
        begin_s = time.monotonic()
        got = pairwise._receive(pairwise.Stream(there, until_s))
        took_s = time.monotonic() - begin_s
        sender.join(10)
    assert said == [got]
    assert got < (1 << 24) / 0.3 and got * (took_s + 0.3) < 1 << 24


def test_a_pair_that_gets_nowhere_costs_its_time_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A byte now and then must not keep two nodes, and all that wait for them."""
    here, there = socket.socketpair()
    with here, there:
        stream = pairwise.Stream(here, time.monotonic() + 0.2)
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.02):
                there.send(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        begin_s = time.monotonic()
        with pytest.raises(TimeoutError):
            stream.read(1 << 16)
        stop.set()
        dripping.join()
    assert time.monotonic() - begin_s < 5


def test_what_a_node_says_of_other_nodes_pairs_is_not_believed() -> None:
    table = {"n1": {"r0": "10.0.0.1"}, "n2": {"r0": "10.0.0.2"}}
    good = vars(Link("n1", "n2", "r0", 1, 1, 1, 1.0, 1.0))
    assert len(full.link_answer("n1", {"links": [good]}, table)) == 1
    for wrong in ({"node": "n2"}, {"peer": "n9"}, {"rail": "r9"}, {"rtt_ns": "x"},
                  {"rtt_ns": 1e30}, {"why": "\x1b[2J"}, {"strange": 1}):  # fmt: skip
        assert full.link_answer("n1", {"links": [{**good, **wrong}]}, table) == []
    for wrong_list in (None, 3, [3], {}):
        assert full.link_answer("n1", {"links": wrong_list}, table) == []


def test_the_all_reduce_is_judged_by_its_sums() -> None:
    said = {"ranks": 2, "wrong": [], "nodes": ["n1", "n2"], "sizes": [
        {"bytes": 8, "least_s": 3e-5}, {"bytes": 1 << 20, "least_s": 1e-3}]}  # fmt: skip
    line = "srun: noise\nfabric-allreduce " + json.dumps(said)
    checks = full.judged(["n1", "n2"], line)
    assert [c.status for c in checks] == ["ok", "ok"]
    assert checks[0].number == pytest.approx((1 << 20) / 1e-3)
    bad = full.judged(["n1", "n2"], "fabric-allreduce " + json.dumps({**said, "wrong": ["n2"]}))
    assert [c.status for c in bad] == ["ok", "fail"]
    fewer = full.judged(["n1", "n2", "n3"], line)
    assert {c.status for c in fewer} == {"fail"}
    for wrong in (
        "",
        "fabric-allreduce {",
        "fabric-allreduce {}",
        'fabric-allreduce {"ranks": "x"}',
    ):
        with pytest.raises(DataError):
            full.judged(["n1"], wrong)


def test_an_all_reduce_that_hangs_is_tried_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full, "MPI_TIMEOUTS_S", (1.0, 60.0))
    said = {"ranks": 2, "wrong": [], "nodes": ["n1", "n2"], "sizes": [
        {"bytes": 8, "least_s": 3e-5}, {"bytes": 1 << 20, "least_s": 1e-3}]}  # fmt: skip
    script = tmp_path / "mpi"
    script.write_text(f"""#!/bin/sh
echo >> {tmp_path}/tries
[ $(wc -l < {tmp_path}/tries) -gt 1 ] || exec sleep 60
echo 'fabric-allreduce {json.dumps(said)}'
""")
    script.chmod(0o755)
    config = AuditConfig(mpi=str(script))
    assert {c.status for c in full.allreduce([], ["n1", "n2"], config)} == {"ok"}
    assert (tmp_path / "tries").read_text() == "\n" * 2
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(full, "MPI_TIMEOUTS_S", (0.1, 0.1))
    checks = full.allreduce([], ["n1", "n2"], config)
    assert {(c.status, c.value) for c in checks} == {
        ("fail", "did not end within 0.1 s, tried twice")
    }
    config = AuditConfig(mpi="/nowhere/mpi")
    assert {c.status for c in full.allreduce([], ["n1"], config)} == {"not measured"}


def test_a_burn_in_tells_the_worst_of_all_rounds_and_what_does_not_hold_still() -> None:
    def one(mbit: float, status: str = "ok") -> list[Check]:
        return [Check("n1", "fabric", "bandwidth in", status, f"{mbit} Mbit/s", "", "r0",  # type: ignore[arg-type]
                      mbit * 125e3, "B/s")]  # fmt: skip

    assert {c.status for c in together([one(1000 + at) for at in range(9)])} == {"ok"}
    found = together([*(one(1000) for _ in range(6)), one(50, "fail"), *(one(1000),)])
    assert [(c.name, c.status) for c in found] == [
        ("bandwidth in", "fail"), ("bandwidth in steady", "warn"),
    ]  # fmt: skip
    assert found[0].value == "50 Mbit/s (1 of 8 times)"


def test_reports_of_two_dates_are_compared_in_values_and_carry_who_signed() -> None:
    before = [Check("n1", "fabric", "bandwidth in", "ok", "1000", "", "r0", 1e9, "B/s")]
    after = [replace(before[0], number=6e8, value="600")]
    assert report.drifts(before, after) == [(before[0], after[0])]
    assert report.drifts(before, [replace(before[0], number=9e8)]) == []
    assert report.drifts(before, [replace(before[0], number=None)]) == []
    signed = {"by": "alice <b>", "at": "today", "text": "handed over"}
    given = report.document(after, ["n1"], "lab", 1, 2, signed=signed)
    assert report.read(json.dumps(given))["checks"] == after
    page = report.page(given, "today")
    assert "Signed off by alice &lt;b&gt;, today: handed over" in page
    with pytest.raises(DataError):
        report.read(json.dumps({**given, "signed_off": {**signed, "by": "bob"}}))
