"""Rolling maintenance: what is never done, whatever happens."""

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from fabricctl.cli.main import cli
from fabricctl.errors import DataError, NotFoundError, SystemRefusedError, UsageError
from fabricctl.fleet.maintenance import commands, controller
from fabricctl.fleet.maintenance.controller import Controller
from fabricctl.fleet.maintenance.decide import Outcome, decide, ours, out
from fabricctl.fleet.maintenance.journal import Files, Journal, Standing, standings
from fabricctl.fleet.maintenance.plan import Plan, parse_budget
from fabricctl.slurm import topology
from fabricctl.slurm.model import NodeAction
from tests.support.fakeslurm import FakeSlurm, node

NAMES = tuple(f"n{number}" for number in range(1, 9))


class Killed(BaseException):
    """kill -9 of the controller, at this very point."""


def plan(**given: object) -> Plan:
    base = Plan(name="m", nodes=NAMES, command=("do", "{node}"), budget=2)
    return replace(base, **given)  # type: ignore[arg-type]


@dataclass
class World:
    """A cluster whose jobs end, commands that take turns, and a controller that may be killed."""

    plan: Plan
    directory: Path
    slurm: FakeSlurm
    fail: Sequence[str] = ()  # nodes whose command fails
    kill_at: Callable[[], bool] = lambda: False
    running: dict[Path, int] = field(default_factory=dict)  # turns until a command ends
    started: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    most_out: int = 0
    foreign: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.files = Files(self.directory, self.plan.name)
        self.files.create(self.plan)

    def start(self, path: Path, argv: Sequence[str], name: str) -> object:
        self.maybe_killed()
        assert "DRAIN" in self.slurm.the_nodes[name].flags
        assert not self.slurm.the_nodes[name].cpus_allocated, "a job would have been disturbed"
        self.started.append((name, tuple(argv)))
        self.running[path] = 3
        self.maybe_killed()
        return SimpleNamespace(poll=lambda: 0)

    def outcome(self, path: Path) -> Outcome:
        if path not in self.running:
            return "absent"
        self.running[path] -= 1
        if self.running[path] > 0:
            return "running"
        return "failed" if path.name.split(".")[0] in self.fail else "ok"

    def maybe_killed(self) -> None:
        if self.kill_at():
            raise Killed

    def turn(self, _wish: str) -> None:
        """Time passes: jobs come to their end."""
        for name, known in self.slurm.the_nodes.items():
            if known.cpus_allocated:
                left = known.cpus_allocated - 1
                changed = replace(known, cpus_allocated=left, state="MIXED" if left else "IDLE")
                self.slurm.the_nodes[name] = changed

    def set_node_state(self, names: Sequence[str], action: NodeAction, reason: str = "") -> None:
        self.maybe_killed()
        for name in names:
            known = self.slurm.the_nodes[name]
            if action == "resume":
                assert ours(self.plan, known), f"{name} was not ours to return: {known.reason}"
        FakeSlurm.set_node_state(self.slurm, names, action, reason)
        away = [n for n, known in self.slurm.the_nodes.items() if ours(self.plan, known)]
        self.most_out = max(self.most_out, len(away))
        self.maybe_killed()

    def run(self) -> str:
        """With a new controller after each kill."""
        for _ in range(500):
            try:
                return self.run_once()
            except Killed:
                continue
        raise AssertionError("it does not come to an end")

    def run_once(self) -> str:
        lock = self.files.take_lock()
        assert lock is not None
        made = Controller(self.plan, self.files, self.slurm, self.said.append, 0.1)
        try:
            write = made.journal.write

            def written(*given: str) -> None:
                self.maybe_killed()
                write(*given)  # type: ignore[arg-type]
                self.maybe_killed()

            made.journal.write = written  # type: ignore[method-assign, assignment]
            made._wait = self.turn  # type: ignore[method-assign]
            return made.run()
        finally:
            made.journal.close()
            os.close(lock)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    def make(made: Plan | None = None, **given: object) -> World:
        slurm = FakeSlurm({name: node(name) for name in NAMES})
        found = World(made or plan(), tmp_path / str(time.monotonic_ns()), slurm)
        for key, value in given.items():
            setattr(found, key, value)
        monkeypatch.setattr(slurm, "set_node_state", found.set_node_state)
        monkeypatch.setattr(commands, "start", found.start)
        monkeypatch.setattr(commands, "outcome", found.outcome)
        monkeypatch.setattr(commands, "last_words", lambda _: "status 1")
        monkeypatch.setattr(commands, "end", lambda _: None)
        monkeypatch.setattr(controller.signal, "signal", lambda *_: None)
        return found

    return make


def test_every_node_is_done_once_and_the_budget_holds(world: Callable[..., World]) -> None:
    here = world()
    assert here.run() == "done"
    assert sorted(name for name, _ in here.started) == sorted(NAMES)
    assert here.most_out == 2
    assert not any(out(known) for known in here.slurm.the_nodes.values())


@pytest.mark.parametrize("seed", range(40))
def test_killed_at_any_point_it_goes_on_and_no_node_is_left_or_done_twice(
    seed: int, world: Callable[..., World]
) -> None:
    chance = random.Random(seed)
    here = world(plan(verify=("look", "{node}")), kill_at=lambda: chance.random() < 0.15)
    for name in NAMES[:4]:
        here.slurm.the_nodes[name] = node(name, "MIXED", cpus_allocated=chance.randint(1, 6))
    assert here.run() == "done"
    work = [name for name, argv in here.started if argv[0] == "do"]
    assert sorted(work) == sorted(NAMES)
    assert here.most_out <= 2
    assert not any(out(known) for known in here.slurm.the_nodes.values())


@pytest.mark.parametrize("seed", range(20))
def test_aborted_at_any_point_everything_of_ours_is_returned(
    seed: int, world: Callable[..., World]
) -> None:
    chance = random.Random(seed)
    here = world(kill_at=lambda: chance.random() < 0.2)
    here.slurm.the_nodes["n8"] = node("n8", "IDLE", "DRAIN", reason="broken fan")
    for name in NAMES[:3]:
        here.slurm.the_nodes[name] = node(name, "MIXED", cpus_allocated=30)
    try:
        here.run_once()
    except Killed:
        here.files.ask_for("abort")
        assert here.run() == "aborted"
    states = {name for name, known in here.slurm.the_nodes.items() if out(known)}
    assert states == {"n8"}
    assert here.slurm.the_nodes["n8"].reason == "broken fan"


def test_idle_nodes_come_first_and_busy_ones_are_waited_for(world: Callable[..., World]) -> None:
    here = world()
    here.slurm.the_nodes["n1"] = node("n1", "MIXED", cpus_allocated=40)
    assert here.run() == "done"
    assert [name for name, _ in here.started][-1] == "n1"


def test_a_failure_stops_it_and_the_node_stays_out_with_the_reason(
    world: Callable[..., World],
) -> None:
    here = world(fail=("n3",))
    assert here.run() == "failed"
    failed = here.slurm.the_nodes["n3"]
    assert failed.reason == "fabric: maintenance m: failed: its command failed (status 1)"
    done = [name for name, _ in here.started]
    assert len(done) <= 4, "nodes were begun after the failure"
    rest = [n for n in NAMES if n != "n3"]
    assert not any(out(here.slurm.the_nodes[n]) for n in rest)


def test_failures_within_the_bound_use_up_budget_and_the_rest_is_done(
    world: Callable[..., World],
) -> None:
    here = world(plan(max_failures=1), fail=("n3",))
    assert here.run() == "failed"
    assert len(here.started) == 8
    assert here.most_out <= 2


def test_nodes_that_others_took_out_count_and_are_never_touched(
    world: Callable[..., World],
) -> None:
    here = world()
    here.slurm.the_nodes["n5"] = node("n5", "IDLE", "DRAIN", reason="broken fan")
    assert here.run() == "done"
    assert here.most_out == 1
    assert here.slurm.the_nodes["n5"].reason == "broken fan"
    assert all(name != "n5" for name, _, _ in here.slurm.changes)


def look(standing: Standing, known: object, outcome: Outcome | None = None, **given: object) -> str:
    steps = decide(
        plan(nodes=("n1",), budget=1, **given), {"n1": standing}, {"n1": known},  # type: ignore[dict-item]
        {} if outcome is None else {"n1": outcome}, wish="run", now_s=1000.0,
    )  # fmt: skip
    return ", ".join(f"{step.state}/{step.do}" for step in steps)


OURS = "fabric: maintenance m"


def test_a_node_that_somebody_took_over_or_returned_is_theirs() -> None:
    mine = node("n1", "IDLE", "DRAIN", reason=OURS)
    theirs = node("n1", "IDLE", "DRAIN", reason="broken fan")
    another = node("n1", "IDLE", "DRAIN", reason="fabric: maintenance m2")
    drained = Standing("draining", 990.0)
    assert look(drained, mine) == "working/work"
    assert look(drained, theirs) == "taken/none"
    assert look(drained, another) == "taken/none"
    assert look(drained, node("n1")) == "skipped/none"
    assert look(Standing("returning", 990.0), theirs) == "taken/none"
    assert look(Standing("working", 990.0, runs=1), theirs, "running") == ""


def test_what_was_begun_before_a_kill_waits_for_the_budget_again() -> None:
    made = plan(nodes=("n1", "n2", "n3"), budget=1)
    standings = {"n1": Standing("begun", 990.0), "n2": Standing(), "n3": Standing()}
    known = {name: node(name) for name in made.nodes}
    known["n2"] = node("n2", "DOWN")
    steps = decide(made, standings, known, {}, wish="run", now_s=1000.0)
    assert [(step.node, step.state, step.do) for step in steps] == [("n1", "waiting", "none")]


def test_nodes_that_failed_and_are_in_use_again_are_retried_within_the_budget(
    world: Callable[..., World],
) -> None:
    here = world()
    journal = Journal(here.files, here.plan)
    for name in NAMES[:4]:  # mended, returned by hand, and start --retry
        journal.write(name, "failed")
        journal.write(name, "begun", "again")
    journal.close()
    assert here.run() == "done"
    assert here.most_out == 2


def test_no_node_is_begun_at_the_look_that_finds_one_failed() -> None:
    made = plan(nodes=("n1", "n2"))
    known = {"n1": node("n1", "IDLE", "DRAIN", reason=OURS), "n2": node("n2")}
    standings = {"n1": Standing("working", 990.0, runs=1), "n2": Standing()}
    steps = decide(made, standings, known, {"n1": "failed"}, wish="run", now_s=1000.0)
    assert [(step.node, step.state) for step in steps] == [("n1", "failed")]


def test_whatever_keeps_jobs_from_a_node_counts() -> None:
    made = plan(nodes=("n1", "n2"), budget=1)
    waiting = {"n1": Standing(), "n2": Standing()}
    for flag in ("POWERING_DOWN", "INVALID_REG", "NOT_RESPONDING", "DRAIN"):
        known = {"n1": node("n1"), "n2": node("n2", "IDLE", flag)}
        assert decide(made, waiting, known, {}, wish="run", now_s=1000.0) == []


@pytest.mark.parametrize("taken", [True, False])
def test_what_somebody_does_between_the_look_and_the_drain_is_left_as_it_is(
    world: Callable[..., World], taken: bool
) -> None:
    """Returned or taken over just before the drain of it, or of its failure, is told to Slurm."""
    here = world(plan(budget=8), fail=("n3",))
    theirs = node("n3", "IDLE", "DRAIN", reason="broken fan") if taken else node("n3")
    nodes, write = here.slurm.nodes, Journal.write

    def acted(self: Journal, name: str, state: str, text: str = "") -> None:
        write(self, name, state, text)  # type: ignore[arg-type]
        if name == "n3" and state == ("begun" if taken else "failed"):
            here.slurm.the_nodes["n3"] = theirs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "write", acted)
        here.run()
    assert nodes()[2] == theirs


def test_a_node_is_back_when_it_answers_and_has_booted_if_it_should() -> None:
    standing = Standing("verifying", 990.0, runs=1, begun_real_s=980.0)
    silent = node("n1", "DOWN", "DRAIN", "NOT_RESPONDING", reason=OURS)
    back = node("n1", "IDLE", "DRAIN", reason=OURS, boot_real_s=970)
    assert look(standing, silent, "absent") == ""
    assert look(standing, silent, "absent", return_timeout_s=5) == "failed/none"
    assert look(standing, back, "absent") == "returning/return"
    assert look(standing, back, "absent", expect_reboot=True) == ""
    booted = replace(back, boot_real_s=985)
    assert look(standing, booted, "absent", expect_reboot=True) == "returning/return"
    assert look(standing, back, "absent", verify=("look",)) == "verifying/verify"


def test_a_command_that_left_no_result_is_run_once_more_only() -> None:
    mine = node("n1", "IDLE", "DRAIN", reason=OURS)
    assert look(Standing("working", 990.0, runs=1), mine, "lost") == "working/work"
    assert look(Standing("working", 990.0, runs=2), mine, "lost") == "failed/none"
    assert look(Standing("working", 990.0, runs=1), mine, "running", command_timeout_s=5.0) == (
        "failed/none"
    )


def test_no_more_of_a_switch_than_the_plan_allows() -> None:
    groups = {name: "s1" if name in NAMES[:4] else "s2" for name in NAMES}
    made = plan(budget=4, groups=groups, per_group=1)
    known = {name: node(name) for name in NAMES}
    waiting = {name: Standing() for name in NAMES}
    steps = decide(made, waiting, known, {}, wish="run", now_s=0.0)
    assert [groups[step.node] for step in steps] == ["s1", "s2"]
    known["n2"] = node("n2", "DOWN")
    steps = decide(made, waiting, known, {}, wish="run", now_s=0.0)
    assert [groups[step.node] for step in steps] == ["s2"]


def test_a_torn_journal_is_read_up_to_the_tear_and_written_on(tmp_path: Path) -> None:
    files = Files(tmp_path, "m")
    files.create(plan())
    journal = Journal(files, plan())
    journal.write("n1", "begun")
    journal.write("n1", "failed", "a; b\nc")
    journal.close()
    with files.journal.open("a") as stream:
        stream.write("at_real_ms=17;node=n2;sta")
    again = Journal(files, plan())
    assert again.standings["n1"].state == "failed"
    assert again.standings["n2"].state == "waiting"
    again.write("n2", "begun")
    again.close()
    found = standings(plan(), files.journal.read_text())
    assert (found["n2"].state, found["n1"].text) == ("begun", "a, b,c")


def test_without_room_for_the_journal_nothing_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(tmp_path, "m")
    files.create(plan())
    journal = Journal(files, plan())
    monkeypatch.setattr("os.write", lambda *_: 3)
    with pytest.raises(SystemRefusedError, match="nothing was done"):
        journal.write("n1", "begun")
    assert journal.standings["n1"].state == "waiting"


def wait(path: Path) -> Outcome:
    deadline = time.monotonic() + 30
    while commands.outcome(path) == "running":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return commands.outcome(path)


def test_a_command_leaves_its_result_and_its_last_words(tmp_path: Path) -> None:
    assert commands.outcome(tmp_path / "n1.1") == "absent"
    child = commands.start(tmp_path / "n1.1", ["echo", "well done, {node}"], "n1")
    assert wait(tmp_path / "n1.1") == "ok"
    assert commands.last_words(tmp_path / "n1.1") == "status 0: well done, n1"
    bad = commands.start(tmp_path / "n2.1", ["sh", "-c", "echo no; exit 3"], "n2")
    assert wait(tmp_path / "n2.1") == "failed"
    assert commands.last_words(tmp_path / "n2.1") == "status 3: no"
    child.wait(10), bad.wait(10)


def test_a_command_that_runs_is_known_and_one_that_was_killed_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "n1.1"
    child = commands.start(path, ["sleep", "60"], "n1")
    deadline = time.monotonic() + 30
    while not (path / "log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert commands.outcome(path) == "running"
    commands.end(path)
    child.wait(10)
    assert wait(path) == "lost"


@pytest.mark.parametrize(("words", "nodes"), [("3", 3), ("25%", 2), ("1%", 1), ("100%", 8)])
def test_a_budget_is_a_number_or_a_share(words: str, nodes: int) -> None:
    assert parse_budget(words, 8) == nodes


@pytest.mark.parametrize("words", ["0", "-1", "0%", "101%", "two", ""])
def test_a_wrong_budget_is_refused(words: str) -> None:
    with pytest.raises(UsageError):
        parse_budget(words, 8)


def test_a_plan_survives_its_file_and_a_damaged_one_is_said() -> None:
    made = plan(groups={"n1": "s1"}, per_group=1, verify=("x",))
    assert Plan.from_json(made.to_json()) == made
    with pytest.raises(DataError):
        Plan.from_json("{}")


def test_switches_are_read() -> None:
    text = (
        "SwitchName=leaf1 Level=0 LinkSpeed=1 Nodes=n[1-2] \n"
        "SwitchName=top Level=1 LinkSpeed=1 Nodes=n[1-4] Switches=leaf[1-2] \n"
    )
    leaf, top = topology.parse(text)
    assert (leaf.name, leaf.nodes, leaf.level) == ("leaf1", ("n1", "n2"), 0)
    assert top.switches == ("leaf1", "leaf2")
    assert topology.parse("No topology information available\n") == ()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    slurm = FakeSlurm({name: node(name, features=("rack1",)) for name in NAMES})
    monkeypatch.setattr("fabricctl.slurm.choose.open_slurm", lambda _=None: slurm)
    monkeypatch.setenv("FABRICCTL_FLEET_DIR", str(tmp_path / "fleet"))
    return slurm


WRONG = {
    "--budget 2 -- true": "--nodes or --partition",
    "--nodes n[1-2] --partition main --budget 1 -- true": "--nodes or --partition",
    "--partition no --budget 1 -- true": "there are main",
    "--nodes n[1-9] --budget 1 -- true": "nodes n9: Slurm does not know them",
    "--nodes n[1-2] --budget 3 -- true": "1 to 2",
    "--nodes n1 --budget 1 --by switch -- true": "go together",
    "--nodes n1 --budget 1 --by feature:shelf --per-group 1 -- true": "n1 belong to none",
}


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_plan_is_refused_and_leaves_nothing(words: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["maintenance", "plan", "m", *words.split()])
    assert isinstance(done.exception, UsageError | NotFoundError)
    assert WRONG[words] in str(done.exception)
    assert not (tmp_path / "fleet").exists()


def test_a_dry_run_plans_nothing_and_changes_nothing(site: FakeSlurm, tmp_path: Path) -> None:
    site.the_nodes["n2"] = node("n2", "MIXED", cpus_allocated=2)
    words = ["maintenance", "plan", "m", "--partition", "main", "--budget", "2"]
    done = CliRunner().invoke(cli, [*words, "--dry-run", "--", "true"])
    assert done.exit_code == 0
    assert "  n1: at once\n  n2: when its jobs have ended\n" in done.stdout
    assert not (tmp_path / "fleet").exists()
    assert CliRunner().invoke(cli, [*words, "--", "true"]).exit_code == 0
    done = CliRunner().invoke(cli, ["maintenance", "start", "m", "--dry-run"])
    assert done.stdout == "n1: would be begun\nn3: would be begun\n"
    assert site.changes == []
    assert "planned" in CliRunner().invoke(cli, ["maintenance", "status"]).stdout
    done = CliRunner().invoke(cli, [*words, "--", "true"])
    assert "there is one of that name" in str(done.exception)


def test_what_was_aborted_is_not_started_again(site: FakeSlurm) -> None:
    words = ["maintenance", "plan", "m", "--nodes", "n[1-2]", "--budget", "2", "--", "true"]
    assert CliRunner().invoke(cli, words).exit_code == 0
    done = CliRunner().invoke(cli, ["maintenance", "abort", "m"])
    assert done.exit_code == 0
    assert "Maintenance m is aborted" in done.stdout
    assert site.changes == []
    done = CliRunner().invoke(cli, ["maintenance", "start", "m"])
    assert "was aborted" in str(done.exception)
