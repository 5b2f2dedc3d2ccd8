"""The audit: whose fault a bad path is, reports that repeat, and probes over real sockets."""

import json
import random
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from fabricctl.cli.main import cli
from fabricctl.errors import DataError, SystemRefusedError
from fabricctl.fleet.audit import fabric, probes, reach, report, run
from fabricctl.fleet.audit.model import Check, worst
from fabricctl.fleet.audit.probes import COUNT, Pair, chosen_peers
from fabricctl.sections import AuditConfig
from tests.support.fakeslurm import FakeSlurm, node

NAMES = [f"n{number}" for number in range(1, 9)]
RAILS = dict.fromkeys(NAMES, ("r0", "r1"))


def mesh(change: Callable[[Pair], Pair] = lambda pair: pair) -> list[Pair]:
    return [
        change(Pair(a, b, rail, COUNT, COUNT, COUNT, COUNT, 100_000))
        for a in NAMES for b in NAMES if a != b for rail in ("r0", "r1")
    ]  # fmt: skip


def at(bad: str, rail: str, pair: Pair) -> bool:
    return pair.rail == rail and bad in (pair.node, pair.peer)


def failed(checks: Iterable[Check]) -> set[tuple[str, str, str]]:
    return {(check.node, check.rail, check.name) for check in checks if check.status == "fail"}


def test_a_clean_fabric_has_no_finding() -> None:
    assert failed(fabric.checks(mesh(), NAMES, RAILS)) == set()


def test_a_dead_rail_is_its_node_s_fault_and_nobody_else_s() -> None:
    def dead(pair: Pair) -> Pair:
        silent = replace(pair, small_answered=0, large_answered=0, rtt_ns=None)
        return silent if at("n3", "r1", pair) else pair

    assert failed(fabric.checks(mesh(dead), NAMES, RAILS)) == {("n3", "r1", "reach")}


def test_two_dead_rails_are_two_findings() -> None:
    def dead(pair: Pair) -> Pair:
        silent = replace(pair, small_answered=0, large_answered=0, rtt_ns=None)
        return silent if at("n3", "r1", pair) or at("n5", "r1", pair) else pair

    found = failed(fabric.checks(mesh(dead), NAMES, RAILS))
    assert found == {("n3", "r1", "reach"), ("n5", "r1", "reach")}


@pytest.mark.parametrize("seed", range(20))
def test_loss_of_a_few_percent_is_laid_at_the_right_door(seed: int) -> None:
    chance = random.Random(seed)

    def lossy(pair: Pair) -> Pair:
        if not at("n2", "r0", pair):
            return pair
        answered = sum(chance.random() > 0.08 for _ in range(COUNT))
        large = sum(chance.random() > 0.08 for _ in range(COUNT))
        return replace(pair, small_answered=answered, large_answered=large)

    found = failed(fabric.checks(mesh(lossy), NAMES, RAILS))
    assert found == {("n2", "r0", "loss")}


@pytest.mark.parametrize("seed", range(20))
def test_a_stray_loss_here_and_there_is_no_finding(seed: int) -> None:
    chance = random.Random(seed)

    def stray(pair: Pair) -> Pair:
        return replace(pair, small_answered=COUNT - (chance.random() < 0.03))

    assert failed(fabric.checks(mesh(stray), NAMES, RAILS)) == set()


@pytest.mark.parametrize("seed", range(20))
def test_who_is_among_bad_ones_and_lost_a_packet_elsewhere_is_not_one_of_them(seed: int) -> None:
    """Three of eight lose a quarter; the others a packet here and there, as on a busy machine."""
    chance = random.Random(seed)

    def lossy(pair: Pair) -> Pair:
        share = 0.25 if any(at(bad, "r0", pair) for bad in ("n2", "n6", "n8")) else 0.005
        answered = sum(chance.random() > share for _ in range(COUNT))
        return replace(pair, small_answered=answered, large_answered=answered)

    found = failed(fabric.checks(mesh(lossy), NAMES, RAILS))
    assert found == {(name, "r0", "loss") for name in ("n2", "n6", "n8")}


def test_large_packets_alone_and_slow_paths_are_told_as_such() -> None:
    def large(pair: Pair) -> Pair:
        return replace(pair, large_answered=0) if at("n4", "r0", pair) else pair

    assert failed(fabric.checks(mesh(large), NAMES, RAILS)) == {("n4", "r0", "large")}

    def slow(pair: Pair) -> Pair:
        return replace(pair, rtt_ns=9_000_000) if at("n6", "r1", pair) else pair

    assert failed(fabric.checks(mesh(slow), NAMES, RAILS)) == {("n6", "r1", "round trip")}


def test_a_single_dead_path_names_both_ends() -> None:
    def cut(pair: Pair) -> Pair:
        here = pair.rail == "r0" and {pair.node, pair.peer} == {"n1", "n2"}
        return replace(pair, small_answered=0, large_answered=0, rtt_ns=None) if here else pair

    found = failed(fabric.checks(mesh(cut), NAMES, RAILS))
    assert found == {("n1", "r0", "reach"), ("n2", "r0", "reach")}


def test_a_rail_that_flaps_and_answers_one_peer_not_at_all_is_the_only_one_at_fault() -> None:
    def flaps(pair: Pair) -> Pair:
        if not at("n1", "r1", pair):
            return pair
        silent = {pair.node, pair.peer} == {"n1", "n6"}
        answered = 0 if silent else COUNT // 2
        return replace(pair, small_answered=answered, large_answered=answered,
                       rtt_ns=None if silent else 100_000)  # fmt: skip

    found = failed(fabric.checks(mesh(flaps), NAMES, RAILS))
    assert found == {("n1", "r1", "loss")}


def test_of_many_nodes_each_asks_sixteen_and_each_is_asked() -> None:
    names = [f"n{number:04}" for number in range(1000)]
    asked: dict[str, int] = dict.fromkeys(names, 0)
    for name in names:
        peers = chosen_peers(name, names)
        assert len(peers) == len(set(peers)) == 16 and name not in peers
        for peer in peers:
            asked[peer] += 1
    assert min(asked.values()) >= 8
    assert chosen_peers("n0001", names[:3]) == ["n0000", "n0002"]


def test_probes_over_real_sockets_and_strangers_are_not_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "SEND_S", 0.3)
    monkeypatch.setattr(probes, "LINGER_S", 0.5)
    monkeypatch.setattr(probes, "GATHER_S", 5.0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    table = {name: {"lo": f"127.0.0.{at}"} for at, name in enumerate(("n1", "n2", "n3"), 1)}
    found: dict[str, list[Pair]] = {}

    def one(name: str) -> None:
        found[name] = probes.measure(name, table, port, b"c" * 16)

    threads = [threading.Thread(target=one, args=(name,)) for name in table]
    for thread in threads:
        thread.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.settimeout(1.0)
        for junk in (b"", b"fabaudit" + b"x" * 80, b"x" * 1400):
            stranger.sendto(junk, ("127.0.0.1", port))
        with pytest.raises(TimeoutError):
            stranger.recv(2000)
    for thread in threads:
        thread.join(60)
    assert {name: [pair.peer for pair in pairs] for name, pairs in found.items()} == {
        "n1": ["n2", "n3"], "n2": ["n1", "n3"], "n3": ["n1", "n2"],
    }  # fmt: skip
    assert all(
        p.small_answered and p.large_answered and p.rtt_ns for v in found.values() for p in v
    )


def test_a_second_audit_at_the_same_time_is_refused() -> None:
    """It would read the first one's probes, and both would find losses."""
    first = probes._alone(20980, "127.0.0.9")
    with first, pytest.raises(SystemRefusedError, match="another audit"):
        probes.measure("n1", {"n1": {"lo": "127.0.0.9"}}, 20980, b"c" * 16)
    probes._alone(20980, "127.0.0.9").close()


def test_probes_that_wait_for_a_dead_peer_do_not_keep_others_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A socket whose buffer is full of what waits for a MAC address refuses what is for others."""
    for name, value in (("SEND_S", 0.3), ("LINGER_S", 0.3), ("GATHER_S", 0.5)):
        monkeypatch.setattr(probes, name, value)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    table = {name: {"lo": f"127.0.0.{at}"} for at, name in enumerate(("n1", "n2", "n3"), 1)}
    true_send, full = probes._Run._send, set[int]()

    def send(run: probes._Run, at: int, rail: str, size: int, number: int) -> None:
        if run._peers[at] == "n3":
            full.add(run._sockets[rail, "n3"].fileno())
        assert run._sockets[rail, run._peers[at]].fileno() not in full or run._peers[at] == "n3"
        true_send(run, at, rail, size, number)

    monkeypatch.setattr(probes._Run, "_send", send)
    found: list[Pair] = []
    threads = [
        threading.Thread(target=lambda name=name: found.extend(
            probes.measure(name, table, port, b"c" * 16)))
        for name in ("n1", "n2")
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    lost = {(p.node, p.peer): p.small_sent - p.small_answered for p in found}
    assert lost["n1", "n2"] < COUNT and lost["n2", "n1"] < COUNT
    assert lost["n1", "n3"] == lost["n2", "n3"] == COUNT


GOOD = {"area": "link", "name": "carrier", "status": "ok", "value": "up", "limit": "up",
        "rail": "r0", "node": "n1"}  # fmt: skip


def test_what_a_node_says_of_another_or_in_control_characters_is_not_believed() -> None:
    checks, rails = run.own_answer("n1", {"checks": [GOOD], "rails": {"r0": "10.0.0.1"}})
    assert (checks[0].node, rails) == ("n1", {"r0": "10.0.0.1"})
    checks, _ = run.own_answer("n2", {"checks": [GOOD], "rails": {}})
    assert checks[0].node == "n2"
    for wrong in (
        {"rails": {}},
        {"checks": [{**GOOD, "status": "fine"}], "rails": {}},
        {"checks": [{**GOOD, "value": "\x1b[2J"}], "rails": {}},
        {"checks": [GOOD], "rails": {"r0": 7}},
        {"checks": [{"node": "n1"}], "rails": {}},
    ):
        with pytest.raises(DataError):
            run.own_answer("n1", wrong)
    assert run.pair_answer("n1", {"pairs": [{"node": "n2"}]}) == []


def test_few_partitions_hold_all_nodes() -> None:
    nodes = [node("n1", partitions=("a", "all")), node("n2", partitions=("all",)),
             node("n3", partitions=("b",))]  # fmt: skip
    assert reach.partitions_of(nodes) == {"all": ["n1", "n2"], "b": ["n3"]}


def test_not_measured_is_never_fine() -> None:
    ok, unknown = Check("n1", "a", "b", "ok", ""), Check("n1", "a", "c", "not measured", "")
    assert worst([ok, unknown]) == "not measured"
    assert worst([]) == "not measured"


def test_a_report_knows_whether_it_was_changed_and_two_alike_have_one_verdict() -> None:
    checks = [Check(**GOOD), Check("n2", "link", "carrier", "fail", "no carrier", "up", "r0")]  # type: ignore[arg-type]
    first = report.document(checks, ["n1", "n2"], "lab", 10, 20)
    second = report.document([replace(c, value="x") for c in checks], ["n1", "n2"], "lab", 30, 40)
    assert first["nodes"] == {"n1": "ok", "n2": "fail"}
    assert first["verdict_sha256"] == second["verdict_sha256"]
    assert first["sha256"] != second["sha256"]
    assert report.read(json.dumps(first))["checks"] == checks
    with pytest.raises(DataError, match="was changed"):
        report.read(json.dumps(first).replace("no carrier", "up"))
    healed = [checks[0], replace(checks[1], status="ok")]
    assert [(was and was.status, now.status) for was, now in report.changes(checks, healed)] == [
        ("fail", "ok")
    ]
    assert "<td>no carrier</td>" in report.page(first, "today")


def test_probes_that_do_not_come_back_are_not_measured_and_not_fine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask(_: object, words: Sequence[str], __: str) -> dict[str, reach.Record]:
        own = {"checks": [GOOD], "rails": {"r0": "10.0.0.1"}}
        return dict.fromkeys(("n1", "n2"), own) if words == ["audit-self"] else {}

    monkeypatch.setattr(run, "open_way", lambda *_: nullcontext(reach.Way(ask)))
    checks = run.audit([node("n1"), node("n2")], 20980, AuditConfig())
    assert {(c.node, c.name) for c in checks if c.status == "not measured"} == {
        ("n1", "probes"), ("n2", "probes"),
    }  # fmt: skip


def test_the_command_says_what_failed_and_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = FakeSlurm({name: node(name) for name in ("n1", "n2")})
    monkeypatch.setattr("fabricctl.slurm.choose.open_slurm", lambda _=None: slurm)
    state = {"n2": "ok"}

    def ask(_: object, words: Sequence[str], __: str) -> dict[str, reach.Record]:
        if words == ["audit-self"]:
            return {name: {"checks": [{**GOOD, "status": state.get(name, "ok")}],
                           "rails": {"r0": "10.0.0.1"}} for name in ("n1", "n2")}  # fmt: skip
        ends = (("n1", "n2"), ("n2", "n1"))
        return {a: {"pairs": [vars(Pair(a, b, "r0", 9, 9, 9, 9, 1000))]} for a, b in ends}

    monkeypatch.setattr(run, "open_way", lambda *_: nullcontext(reach.Way(ask)))
    done = CliRunner().invoke(cli, ["audit", "n[1-2]", "--json"])
    assert done.exit_code == 0, done.output
    (tmp_path / "before.json").write_text(done.stdout)
    state["n2"] = "fail"
    words = ["audit", "n[1-2]", "--against", str(tmp_path / "before.json")]
    done = CliRunner().invoke(cli, [*words, "--html", str(tmp_path / "a.html")])
    assert done.exit_code == 1
    assert "!! n2 r0        link carrier: up (wanted: up)" in done.stdout
    assert "1 of 2 nodes fit: n1;" in done.stdout
    assert "changed: n2 link carrier r0: ok to fail" in done.stderr
    assert (tmp_path / "a.html").stat().st_mode & 0o777 == 0o600
    done = CliRunner().invoke(cli, ["audit", "n[1-2]", "--dry-run"])
    assert done.stdout == "would be audited: n[1-2]\n"
