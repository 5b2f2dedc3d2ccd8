"""`fabricctl path` and what health does to rails, against a control socket that answers."""

import json
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from fabricctl import fields
from fabricctl.cli.main import cli
from fabricctl.errors import FabricError, NotFoundError, SystemRefusedError, UsageError
from fabricctl.fleet.health import rails
from fabricctl.paths import addresses, clean, control
from fabricctl.paths.addresses import Rail
from fabricctl.paths.files import PathsFiles, write_off

PATH = (
    "peer=n2;rail=0;level=good;reason=none;carried_by=0;round_trip_ns=120000;jitter_ns=9000;"
    "queue_ns=0;lost=0;active=1;pinned=1;away=1"
)
SHARE = "share_rail=0;guarantee=600;ceiling=800;now=700;class=1"
MOVED = "address=10.0.0.2;peer=n2;from=1;to=0\nmoves=1"


class Pathd:
    """Listens where fabric-pathd of a job does; remembers what it was asked."""

    def __init__(
        self, files: PathsFiles, job: int, state: str = "ready", rails: Sequence[str] = ("r0", "r1")
    ) -> None:
        files.make(job)
        text = {"v": "1", "state": state, "job": str(job), "pid": "1"}
        text |= {f"rail{at}": f"{name} fab{at}" for at, name in enumerate(rails)}
        files.state(job).write_text(fields.encode(text) + "\n")
        self.asked: list[dict[str, str]] = []
        self.answers = {"show": f"summary=1\n{SHARE}\n{PATH}", "move": MOVED, "drain": "moves=0"}
        self.link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.link.bind(str(files.control(job)))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            data, sender = self.link.recvfrom(4096)
            request = fields.decode(data.decode())
            if request["do"] == "end":
                return
            self.asked.append(request)
            page = request["do"] + request.get("from", "")
            self.link.sendto(self.answers.get(page, "moves=0").encode(), sender)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"do=end", self.link.getsockname())
        self._thread.join(5)
        self.link.close()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PathsFiles:
    """A node with two rails and a configuration of its own."""
    toml = tmp_path / "fabricctl.toml"
    toml.write_text(f'[node]\nrun_dir = "{tmp_path}/run"\n[fleet]\ndir = "{tmp_path}/fleet"\n')
    monkeypatch.setenv("FABRICCTL_CONFIG", str(toml))
    (tmp_path / "fleet").mkdir()
    found = [Rail("r0", None, None), Rail("r1", None, None)]
    monkeypatch.setattr(addresses, "find", lambda *_: found)
    files = PathsFiles(tmp_path / "run")
    files.make_node()
    return files


@pytest.fixture
def pathd(node: PathsFiles) -> Iterator[Pathd]:
    made = Pathd(node, 7)
    yield made
    made.close()


def run(*argv: str, status: int = 0) -> str:
    done = CliRunner().invoke(cli, ["path", *argv])
    if isinstance(done.exception, FabricError):
        raise done.exception
    assert done.exit_code == status, done.output
    return done.output


def test_a_node_without_jobs_says_so(node: PathsFiles) -> None:
    assert run("show") == "no job with link failover on this node\n"
    with pytest.raises(NotFoundError, match="no job with link failover"):
        run("move", "n2", "0")
    with pytest.raises(NotFoundError, match="job 9: has no link failover on this node"):
        run("show", "--job", "9")


def test_paths_and_shares_are_shown_in_words(pathd: Pathd) -> None:
    text = run("show", "--peer", "n2")
    assert pathd.asked == [{"do": "show", "peer": "n2"}]
    assert "job 7: ready" in text
    assert "60 % guaranteed, at most 80 %, class normal, slowed to 70 %" in text
    assert "120 us" in text and "yes (moved by hand) (round a queue)" in text
    given = json.loads(run("show", "--json"))
    assert given["jobs"][0]["paths"][0]["peer"] == "n2"


def test_what_one_answer_does_not_hold_is_asked_for(pathd: Pathd) -> None:
    pathd.answers["show"] = f"summary=1\n{PATH}\nnext=40"
    pathd.answers["show40"] = f"summary=1\n{PATH.replace('n2', 'n40')}\nnext=80"
    pathd.answers["show80"] = f"summary=1\n{PATH.replace('n2', 'n80')}"
    paths = json.loads(run("show", "--json"))["jobs"][0]["paths"]
    assert [path["peer"] for path in paths] == ["n2", "n40", "n80"]


def test_a_peer_that_no_job_has_is_no_empty_answer(pathd: Pathd) -> None:
    pathd.answers["show"] = "error=no such peer"
    assert "job 7: ready, n9 is no other node of this job" in run("show", "--peer", "n9")


def test_who_may_not_ask_sees_what_files_tell(
    pathd: Pathd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise SystemRefusedError("control: only root may ask; use sudo")

    monkeypatch.setattr(control, "ask", refuse)
    text = run("show")
    assert "job 7: ready, control: only root may ask; use sudo" in text and "rail 1  r1" in text


def test_a_job_whose_pathd_is_gone_or_never_came_is_shown_as_such(node: PathsFiles) -> None:
    gone = Pathd(node, 7)
    gone.close()
    node.make(8)
    text = run("show")
    assert "job 7: ready, its fabric-pathd does not run; routes are as it left them" in text
    assert "job 8: unknown" in text


def test_moving_by_hand_asks_and_says_what_moved(pathd: Pathd, node: PathsFiles) -> None:
    said = run("move", "n2", "0", "--dry-run")
    assert "job 7: would move address 10.0.0.2 of n2 from rail 1 to rail 0" in said
    assert pathd.asked[-1] == {"do": "move", "peer": "n2", "rail": "0", "dry": "1"}
    assert "moved address" in run("move", "n2", "0", "--why", "cable 9")
    assert pathd.asked[-1]["why"] == "cable 9"
    assert "job 7: nothing to move" in run("unmove", "n2")
    run("move", "n2", "r1")
    assert pathd.asked[-1]["rail"] == "1"
    with pytest.raises(UsageError, match="rail r9: job 7 has 2, counted from 0: r0, r1"):
        run("move", "n2", "r9")
    pathd.answers["move"] = MOVED.replace("moves=1", "moves=3")
    assert "job 7: and 2 more" in run("move", "n2", "0")
    pathd.answers["move"] = "moves=0;stays=2"
    with pytest.raises(FabricError, match=r"rail 0 \(r0\) to n2 does not work now"):
        run("move", "n2", "0")
    Pathd(node, 8, "starting").close()
    with pytest.raises(UsageError, match="jobs 7, 8 are here: say which with --job"):
        run("unmove", "n2")


def test_a_rail_that_is_out_is_out_for_later_jobs_too(pathd: Pathd, node: PathsFiles) -> None:
    assert "rail 1 (r1) would be out" in run("drain-rail", "1", "--dry-run")
    assert node.drained() == {}
    assert "rail 1 (r1) is out for jobs that begin later" in run("drain-rail", "1", "--why", "fan")
    assert node.drained() == {"r1": f"uid {os.getuid()}: fan"}
    assert pathd.asked[-1] == {"do": "drain", "rail": "1", "why": "fan"}
    assert "r1 is out for maintenance" in run("show")
    assert json.loads(run("show", "--json"))["drained"] == node.drained()
    assert "rail 1 (r1) is in use again" in run("undrain-rail", "1")
    assert node.drained() == {}
    run("drain-rail", "0", "--job", "7")
    assert node.drained() == {}  # this job alone
    with pytest.raises(UsageError, match="rail 5: this node has 2, counted from 0: r0, r1"):
        run("drain-rail", "5")
    with pytest.raises(UsageError, match="no ';'"):
        run("drain-rail", "1", "--why", "a;b")


def test_each_job_is_asked_by_its_own_number_of_the_rail(pathd: Pathd, node: PathsFiles) -> None:
    other = Pathd(node, 6, rails=("r1", "r2", "r0"))
    Pathd(node, 5, rails=("r2", "r3")).close()  # a partition with rails of its own
    Pathd(node, 4).close()  # it died, and will find the rail drained
    try:
        with pytest.raises(FabricError, match=r"^job 4: .*no fabric-pathd listens there$"):
            run("drain-rail", "r1")
        assert other.asked[-1] == {"do": "drain", "rail": "0"}
        assert pathd.asked[-1] == {"do": "drain", "rail": "1"}
        node.remove(4)
        run("undrain-rail", "2", "--job", "6")
        assert other.asked[-1] == {"do": "undrain", "rail": "2"}
    finally:
        other.close()


def test_a_rail_that_has_to_carry_on_is_told(pathd: Pathd, node: PathsFiles) -> None:
    pathd.answers["drain"] = "moves=0;stays=2;done=1"
    for more in ([], ["--job", "7"], ["--dry-run"]):
        with pytest.raises(
            FabricError, match=r"job 7: rail 1 \(r1\) is not free: 2 addresses stay"
        ) as told:
            run("drain-rail", "1", *more)
        assert told.value.exit_status == 1
    node.make(9)
    write_off(node.state(9), 9, "the job has one node")
    with pytest.raises(NotFoundError, match="job 9: has no link failover: the job has one node"):
        run("drain-rail", "1", "--job", "9")


def test_what_was_seen_and_done_is_shown_oldest_first(pathd: Pathd, node: PathsFiles) -> None:
    node.events(7).write_text(
        "event=path;time_mono_ns=5000000000;time_real_ns=1790000000000000000;peer=n2;rail=0;"
        "level=2;began_mono_ns=4998000000\nevent=moved;time_mono_ns=5;time_real_ns=6;x=none\nhal"
    )
    lines = run("events").splitlines()
    assert len(lines) == 2 and "path" in lines[0] and "began=2 ms before" in lines[0]
    assert [json.loads(line)["event"] for line in run("events", "--json").splitlines()] == [
        "path",
        "moved",
    ]


def test_no_rail_0_and_no_lost_carrier_goes_untold(pathd: Pathd, node: PathsFiles) -> None:
    begin = "time_mono_ns=5000000000;time_real_ns=1790000000000000000"
    node.events(7).write_text(
        f"event=link;{begin};rail=0;carrier=0\n"
        f"event=request;{begin};action=unmove;rail=-1;peer=n2;uid=0;why=\n"
    )
    node.make(6)
    write_off(node.state(6), 6, "the job has one node")
    lines = run("events").splitlines()
    assert lines[0] == "job 6: no events: the job has one node"
    assert lines[1].endswith("link      rail=0 carrier=0")
    assert lines[2].endswith("request   action=unmove peer=n2 uid=0")


def test_health_excludes_a_rail_and_gives_it_back(pathd: Pathd, node: PathsFiles) -> None:
    with pytest.raises(UsageError, match="the reason must begin with"):
        rails.exclude("r1", "errors")
    why = f"{rails.PREFIX} 12 errors a minute"
    assert rails.exclude("r1", why) == "r1 is out"
    assert node.drained() == {"r1": f"uid {os.getuid()}: {why}"}
    assert pathd.asked[-1] == {"do": "drain", "rail": "1", "why": why}
    with pytest.raises(UsageError, match="r0 is the last rail that is in use"):
        rails.exclude("r0", why)
    pathd.answers["undrain"] = "error=busy"
    assert rails.include("r1") == "job 7: paths: busy"
    assert node.drained() == {}
    assert rails.include("r1").startswith("job 7")  # once more does no harm
    with pytest.raises(NotFoundError, match="r9: no rail of this node; there are r0, r1"):
        rails.exclude("r9", why)


def test_health_leaves_what_somebody_else_took_out(node: PathsFiles) -> None:
    node.set_drained({"r1": "uid 0: new cable"})
    for do in (lambda: rails.exclude("r1", f"{rails.PREFIX} x"), lambda: rails.include("r1")):
        with pytest.raises(UsageError, match="new cable"):
            do()


def test_health_says_where_there_is_no_link_failover(tmp_path: Path, node: PathsFiles) -> None:
    node.leases.rmdir()
    with pytest.raises(NotFoundError, match="no link failover here"):
        rails.exclude("r1", f"{rails.PREFIX} x")


def test_cleaning_by_hand_removes_what_no_job_holds(
    node: PathsFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    node.make(7)
    node.make(8)
    assert clean.main(["--run-dir", str(node.node.run_dir), "--keep", "8", "--stop"]) == 0
    assert node.jobs() == [8]
    assert capsys.readouterr().out == "removed=0\n"
    assert clean.main([]) == 0
    assert node.jobs() == []
