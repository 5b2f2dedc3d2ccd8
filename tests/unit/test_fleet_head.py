"""fabricd: reports over real sockets, what is refused, who sees what; and `top` upon it."""

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from fabricctl import config, fields, wire
from fabricctl.cli.main import cli
from fabricctl.cli.top_app import Rows, Top
from fabricctl.cli.top_model import Screen
from fabricctl.config import Config
from fabricctl.errors import DataError, SystemRefusedError
from fabricctl.fleet import access
from fabricctl.fleet.access import Who
from fabricctl.fleet.head import push, service, views
from fabricctl.fleet.head.message import (
    JobReport,
    NodeReport,
    RailReport,
    decode,
    encode,
)
from fabricctl.fleet.head.table import Table
from fabricctl.sections import AccessConfig
from fabricctl.slurm import text
from fabricctl.slurm.model import Rights
from tests.support.fakeslurm import FakeSlurm, job, node

KEY = b"k" * 64
RAILS = (RailReport("r0", "up", 10**9, 5, 0), RailReport("r1", "no carrier", 0, 0, 3))
REPORT = NodeReport(1.25, 8, 16000, 8000, RAILS, (JobReport(17, "running", 2, 2),))
ROOT = Who("root", "admin")
ALL = AccessConfig()


def message(name: str, seq: int = 1, life: int = 1, report: NodeReport = REPORT) -> dict[str, str]:
    head = {"kind": "report", "node": name, "life": str(life), "seq": str(seq)}
    return {**head, **encode(report)}


def filled(count: int = 3) -> tuple[Table, views.SlurmView]:
    table = Table(5, 2000)
    for at in range(1, count + 1):
        table.take(message(f"n{at}"), 100.0)
    slurm = FakeSlurm({f"n{at}": node(f"n{at}") for at in range(1, count + 2)}, [
        job(17, nodes="n[1-2]", user="alice", account="physics"),
        job(18, nodes="n3", user="bob", account="chem"),
        job(19, "PENDING", user="bob", account="chem", reason="Resources"),
    ])  # fmt: skip
    return table, views.SlurmView(slurm.nodes(), slurm.jobs(), "lab", 100.0)


def test_a_report_survives_its_way() -> None:
    assert decode(encode(REPORT)) == REPORT
    most = replace(REPORT, rails=REPORT.rails * 40, jobs=REPORT.jobs * 90)
    assert len(decode(encode(most)).rails) == 32
    assert len(wire.seal(message("n1", report=most), KEY)) < wire.MAX_BYTES


@pytest.mark.parametrize(
    ("key", "value"),
    [("rails", "r0 x 1 1 1"), ("rails", "r0 u 1 1"), ("rails", "r0 u 1 1 -1"), ("load_m", "1.5"),
     ("rails", "r\x1b u 1 1 1"), ("rails", "|".join(["r0 u 1 1 1"] * 33)), ("jobs", "x run 1 1"),
     ("jobs", "1 run;x 1 1"), ("cpus", "9" * 30), ("cpus", "\u0663")],
)  # fmt: skip
def test_a_report_that_is_not_one_is_refused(key: str, value: str) -> None:
    with pytest.raises(DataError):
        decode({**encode(REPORT), key: value})
    with pytest.raises(DataError):
        decode({k: v for k, v in encode(REPORT).items() if k != key})


def test_old_copies_strangers_and_wrong_names_are_refused() -> None:
    table = Table(5, 2000)
    assert table.take(message("n1", 5), 1.0) == ("n1", 5)
    for wrong in (message("n1", 5), message("n1", 4), message("n1", 9, life=0),
                  message("../n1"), message(""), {**message("n2"), "kind": "ack"}):  # fmt: skip
        with pytest.raises(DataError):
            table.take(wrong, 2.0)
    assert list(table.rows) == ["n1"]
    table.take(message("n1", 1, life=2), 3.0)  # the pusher was started again


def test_many_nodes_are_told_to_report_more_seldom() -> None:
    table = Table(5, 100)
    assert table.wanted_s() == 5
    for at in range(1000):
        table.take(message(f"n{at}"), 0.0)
    assert table.wanted_s() == 10


def test_while_nobody_answers_a_node_tries_more_and_more_seldom_with_jitter() -> None:
    pace = push.Pace(5, lambda: 0.5)
    waits = []
    for _ in range(12):
        pace.sent()
        waits.append(pace.next_s())
    assert waits[:3] == [5, 5, 10] and waits[-1] == 60 and waits == sorted(waits)
    pace.answered(8)
    assert pace.next_s() == 8
    spread = {round(push.Pace(5).next_s(), 3) for _ in range(50)}
    assert len(spread) > 25 and min(spread) >= 4 and max(spread) <= 6


def test_a_node_that_falls_silent_is_not_fine() -> None:
    table, slurm = filled()
    rows = {row[0]: row for row in views.node_rows(table, slurm, 101.0)}
    assert rows["n1"][7] == 1 and rows["n1"][4] == 1.25  # one rail is down
    assert rows["n4"][4] is None  # Slurm knows it, it never reported
    later = {row[0]: row for row in views.node_rows(table, slurm, 200.0)}
    assert later["n1"][4:10] == [None] * 6 and later["n1"][10] == 100.0
    kinds = {f.kind: f.text for f in views.link_findings(table, 200.0)}
    assert kinds == {"node_silent": "n[1-3] stopped to report, up to 1 min 40 s ago"}
    assert [f.text for f in views.link_findings(table, 101.0)] == [
        "rail r1 has no carrier on n[1-3]"
    ]


@pytest.mark.parametrize(
    ("caller", "jobs"),
    [
        (Who("alice", "user"), {17}),
        (Who("carol", "user"), set()),
        (Who("carol", "user", frozenset({"chem"})), {18, 19}),
        (Who("carol", "operator"), {17, 18, 19}),
        (ROOT, {17, 18, 19}),
    ],
)
def test_users_see_their_jobs_coordinators_their_accounts_operators_all(
    caller: Who, jobs: set[int]
) -> None:
    table, slurm = filled()
    found = views.snapshot(table, slurm, caller, ALL, 101.0)
    assert {row[0] for row in found["jobs"]} == jobs  # type: ignore[attr-defined]
    everybody = replace(ALL, jobs_of_others=True)
    assert len(views.snapshot(table, slurm, caller, everybody, 101.0)["jobs"]) == 3  # type: ignore[arg-type]
    assert len(found["nodes"]) == 4  # type: ignore[arg-type]


def test_rights_come_from_slurm_s_accounting_and_from_groups() -> None:
    rights = text.rights("root|Administrator|\nnobody|None|chem,bio\ndaemon|Operator|\nodd|x\n")
    assert rights["nobody"] == Rights("user", ("chem", "bio")) and "odd" not in rights
    given = AccessConfig(admins=("wheel",), operators=("ops",))
    nobody, daemon = (__import__("pwd").getpwnam(name).pw_uid for name in ("nobody", "daemon"))
    caller = access.who(nobody, rights, given, groups=())
    assert (caller.role, caller.accounts) == ("user", {"chem", "bio"})
    assert access.who(daemon, rights, given, groups=()).role == "operator"
    assert access.who(nobody, rights, given, groups=("ops",)).role == "operator"
    assert access.who(nobody, rights, given, groups=("wheel", "ops")).role == "admin"
    assert access.who(daemon, rights, given, groups=("wheel",)).role == "admin"
    assert access.who(0, {}, given).role == "admin"
    assert access.who(nobody, rights, given, "nobody").role == "admin"  # SlurmUser
    stranger = access.who(3_999_999_999, {"3999999999": Rights("admin")}, given)
    assert stranger.role == "user"
    with pytest.raises(SystemRefusedError, match="is not an operator"):
        access.demand_operator(caller, "maintenance start")
    access.demand_operator(Who("x", "operator"), "maintenance start")


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[service.Head, Config]]:
    settings = config.load(environ={})
    mine = replace(settings.head, port=0, socket=tmp_path / "query", address="127.0.0.1")
    mine = replace(mine, slurm_s=3600.0)  # asked once: what a test says of Slurm stays
    settings = replace(settings, head=mine)
    _, view = filled()
    slurm = FakeSlurm({n.name: n for n in view.nodes}, list(view.jobs))
    made = service.Head(settings, KEY, lambda: slurm)
    thread = threading.Thread(target=made.run)
    thread.start()
    until(lambda: not made._view.trouble)
    yield made, replace(settings, head=replace(mine, port=made.port))
    made.stop()
    thread.join()
    assert not (tmp_path / "query").exists()


def until(what: object) -> None:
    deadline = time.monotonic() + 60
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_real_node_reports_is_answered_and_seen(head: tuple[service.Head, Config]) -> None:
    made, settings = head
    pusher = push.Pusher(settings, "n2", KEY)
    try:
        pusher.turn()
        until(lambda: made.table.taken == 1)
        until(lambda: pusher.wait(0.05) or not pusher.pace._silent)  # the head has answered
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for junk in (b"", b"x" * 999, wire.seal(message("n9"), b"another key" * 9)):
                stranger.sendto(junk, ("127.0.0.1", made.port))
        until(lambda: made.table.refused >= 2)
    finally:
        pusher.close()
    given = json.loads(service.ask(settings.head.socket, "snapshot"))
    rows = {row[0]: row for row in given["nodes"]}
    assert rows["n2"][3] == os.cpu_count() and rows["n2"][5] > 0
    assert given["role"] == "admin" and len(given["jobs"]) == 3
    text_ = service.ask(settings.head.socket, "metrics").decode()
    assert 'fabricctl_node_reports{state="fresh"} 1\n' in text_
    assert 'fabricctl_node_reports{state="never"} 3\n' in text_
    assert "n2" not in text_ and text_.endswith("# EOF\n")


def test_status_shows_what_the_head_knows_and_else_asks_slurm(
    head: tuple[service.Head, Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made, settings = head
    asked = []

    def own(_: str | None = None) -> FakeSlurm:
        asked.append(1)
        return FakeSlurm({"n1": node("n1")})

    monkeypatch.setattr("fabricctl.slurm.choose.open_slurm", own)
    monkeypatch.setenv("FABRICCTL_HEAD_SOCKET", str(settings.head.socket))
    made.table.take(message("n1"), time.monotonic())

    def status(*words: str) -> str:
        return CliRunner().invoke(cli, ["status", *words]).stdout

    said = json.loads(status("--json"))
    assert said["rails"] == {"up": 1, "no carrier": 1, "off": 0, "gone": 0}
    assert (said["worst"], said["reports"]["fresh"], said["slurm"]) == ("error", 1, "22.05.8")
    assert {f["kind"] for f in said["findings"]} == {"rail_down"}
    text_ = status()
    assert "Rails  1 up, 1 no carrier; 1 nodes report" in text_
    assert "!! rail r1 has no carrier on n1" in text_ and not asked
    # Its Slurm is away: asked here, where it may be there.
    made._view = replace(made._view, trouble="no route")
    time.sleep(service.CACHE_S)
    assert json.loads(status("--json"))["rails"] is None and asked
    (tmp_path / "left").touch()
    monkeypatch.setenv("FABRICCTL_HEAD_SOCKET", str(tmp_path / "left"))
    assert "nothing is open" in status() and "Rails" not in status()


def test_an_answer_that_is_not_sealed_or_of_another_time_slows_nobody_down(
    head: tuple[service.Head, Config],
) -> None:
    _, settings = head
    pusher = push.Pusher(settings, "n2", KEY)
    try:
        for wrong in (b"junk", wire.seal({"kind": "ack", "node": "n2", "to": "0",
                                          "interval_ms": "600000"}, b"another" * 9),
                      wire.seal({"kind": "ack", "node": "n1", "to": "0", "interval_ms": "1"}, KEY),
                      wire.seal({"kind": "ack", "node": "n2", "to": "77", "interval_ms": "1"},
                                KEY)):  # fmt: skip
            pusher._answer(wrong)
        assert pusher.pace._asked_s == settings.head.interval_s
    finally:
        pusher.close()


def test_clients_that_say_nothing_or_nonsense_hold_nobody_up(
    head: tuple[service.Head, Config], tmp_path: Path
) -> None:
    _, settings = head
    silent = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(5)]
    for each in silent:
        each.connect(str(settings.head.socket))
    silent[0].sendall(b"\xff\x00nonsense")
    assert json.loads(service.ask(settings.head.socket, "snapshot"))["cluster"] == "fake"
    assert "not known" in service.ask(settings.head.socket, "everything").decode()
    for each in silent:
        each.close()
    with pytest.raises(SystemRefusedError, match="another fabricd"):
        service.Head(replace(settings, head=replace(settings.head, port=0)), KEY, FakeSlurm)
    with pytest.raises(SystemRefusedError, match="no fabricd answers"):
        service.ask(tmp_path / "nosuch", "snapshot")


def test_while_slurm_is_away_the_last_view_stays_and_says_so() -> None:
    table, slurm = filled()
    away = replace(slurm, trouble="Unable to contact slurm controller")
    found = views.snapshot(table, away, ROOT, ALL, 101.0)
    assert len(found["nodes"]) == 4  # type: ignore[arg-type]
    assert "Slurm does not answer: Unable" in json.dumps(found["findings"])


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(SystemRefusedError, match="fabricctl head key"):
        push.read_key(path)
    path.write_text("k" * 64 + "\n")
    path.chmod(0o644)
    with pytest.raises(SystemRefusedError, match="others can read it"):
        push.read_key(path)
    path.chmod(0o640)
    assert push.read_key(path) == KEY
    path.write_text("short")
    with pytest.raises(SystemRefusedError, match="shorter than"):
        push.read_key(path)
    assert len(CliRunner().invoke(cli, ["head", "key"]).stdout.strip()) == 64


def snapshot() -> dict[str, object]:
    table, slurm = filled()
    made: dict[str, object] = json.loads(json.dumps(views.snapshot(table, slurm, ROOT, ALL, 101.0)))
    return made


def test_rows_are_filtered_sorted_and_looked_into() -> None:
    screen = Screen("jobs", by="cpus")
    screen.take(snapshot())
    assert len(screen.rows) == 3
    screen.wanted = "bob pend"
    screen.arrange()
    assert [row[0] for row in screen.rows] == [19]
    screen.wanted = "alice"
    screen.arrange()
    assert screen.enter() and screen.view == "nodes"
    assert [row[0] for row in screen.rows] == ["n1", "n2"]
    screen.at = 1
    assert screen.enter() and screen.view == "links"
    assert [(row[0], row[1]) for row in screen.rows] == [("n2", "r0"), ("n2", "r1")]
    assert not screen.enter()
    screen.back()
    assert screen.view == "nodes" and len(screen.rows) == 4
    screen.by = "load"
    screen.arrange()
    assert screen.rows[-1][0] == "n4"  # what is not known comes last, whichever way
    screen.turn_around()
    assert screen.rows[-1][0] == "n4"
    screen.at = 2
    marked = screen.rows[2][0]
    screen.take(snapshot())
    assert screen.rows[screen.at][0] == marked


def test_a_job_s_name_moves_no_cursor() -> None:
    given = snapshot()
    given["jobs"][0][3] = "x\n\x1b[2J\x07"  # type: ignore[index]
    screen = Screen("jobs")
    screen.take(given)
    assert screen.line(screen.rows[0]).isprintable()
    assert " x??[2J? " in screen.line(screen.rows[0])


def test_a_line_fits_its_columns_and_says_what_is_not_known() -> None:
    screen = Screen("links")
    screen.take(snapshot())
    assert screen.titles().split() == ["NODE", "RAIL", "STATE", "RECEIVED", "SENT", "ERRORS", "AGE"]
    assert screen.lines(0, 1)[0].split() == [
        "n1",
        "r0",
        "up",
        "8",
        "Gbit/s",
        "40",
        "bit/s",
        "0",
        "1s",
    ]
    assert [screen.weight(row) for row in screen.rows[:2]] == ["", "bad"]
    screen.show("nodes")
    assert screen.line(screen.rows[3]).split() == ["n4", "idle", "0", "4"] + ["-"] * 7


def test_the_terminal_shows_sorts_filters_and_ends() -> None:
    async def use() -> None:
        app = Top(Screen("jobs"), snapshot, 3600)
        async with app.run_test(size=(160, 30)) as pilot:
            until_rows = time.monotonic() + 60
            while not app._model.rows:
                assert time.monotonic() < until_rows
                await pilot.pause(0.02)
            rows = app.query_one(Rows)
            assert "alice" in rows.render_line(0).text
            await pilot.press("2")
            assert app._model.view == "nodes" and "n1" in rows.render_line(0).text
            await pilot.press("slash", "n", "3", "enter")
            assert [row[0] for row in app._model.rows] == ["n3"]
            await pilot.press("enter")
            assert app._model.view == "links" and len(app._model.rows) == 2
            await pilot.press("escape", "down", "s")
            assert app._model.by == "node"
            await pilot.press("f", "escape", "q")

    asyncio.run(use())


def test_without_a_head_top_asks_slurm_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, view = filled()
    slurm = FakeSlurm({n.name: n for n in view.nodes}, list(view.jobs))
    monkeypatch.setattr("fabricctl.slurm.choose.open_slurm", lambda _=None: slurm)
    monkeypatch.setenv("FABRICCTL_HEAD_SOCKET", str(tmp_path / "query"))
    done = CliRunner().invoke(cli, ["top", "--once", "--view", "nodes"])
    assert done.exit_code == 0, done.output
    assert "no fabricd: as Slurm sees it" in done.stdout and "n4" in done.stdout
    done = CliRunner().invoke(cli, ["top", "--once", "--sort", "nosuch"])
    assert "user, account" in str(done.exception)
    assert fields.encode({"ask": "snapshot"}) == "ask=snapshot"
