"""`fabricctl run --live` with real processes, connections and keepers; srun and torch played."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fabricctl import fields
from fabricctl.errors import FabricError, UsageError
from fabricctl.launch import roster
from fabricctl.launch.live import LiveStep
from fabricctl.launch.placement import Placement
from fabricctl.launch.roster import Tell
from fabricctl.state import replacement
from fabricctl.state.ckpt.link import Link
from fabricctl.state.replacement import _Seat
from fabricctl.state.sockets import Sockets
from fabricctl.store.schema import LaunchEvent
from tests.support.keepers import KeeperSet

ROOT = Path(__file__).parents[2]
NODES = ["n0", "n1", "n2", "n3"]
KEY = b"k" * 32

SRUN = f"""#!{sys.executable}
import os, subprocess, sys
node = next(word.partition("=")[2] for word in sys.argv if word.startswith("--nodelist="))
count = int(next(word.partition("=")[2] for word in sys.argv if word.startswith("--ntasks=")))
program = sys.argv[sys.argv.index("--") + 1:]
where = os.environ["TEST_WHERE"]
made = [subprocess.Popen(program, env={{**os.environ, "SLURM_LOCALID": str(i), "TEST_NODE": node,
        "FABRIC_KEEPER": where + "/keepers/" + node}}) for i in range(count)]
sys.exit(max(one.wait() for one in made) and 1)
"""

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
import torch.distributed as dist
from fabricctl import state
where, steps = Path(os.environ["TEST_WHERE"]), int(sys.argv[1])
if {"early", "never"} & set(sys.argv[2:]):
    sys.exit(3 if "early" in sys.argv else 0)

def asked(what):
    try:
        (where / what).unlink()
    except OSError:
        return False
    return True

def train(checkpoint):
    total = {"sum": 0}
    checkpoint.protect(total=total)
    rank = dist.get_rank()
    begin = checkpoint.restore()
    fresh = where / f"new.{rank}"  # read while it is written it would be empty
    fresh.write_text(str(begin))
    fresh.rename(where / f"begun.{rank}.{os.environ['FABRIC_LAUNCH']}")
    for n in range(begin, steps):
        told = [None] * dist.get_world_size()
        dist.all_gather_object(told, (rank + 1) * n * n)
        total["sum"] += sum(told)
        checkpoint.step(n + 1)
        if checkpoint.ending:
            break
        if asked(f"die.{rank}.{n + 1}"):
            os.kill(os.getpid(), signal.SIGKILL)
        if asked(f"fail.{rank}.{n + 1}"):
            raise ValueError("its own")
        if asked(f"stop.{rank}.{n + 1}"):  # no word from it any more, as from a node without power
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.001)
        while (where / "pause").exists():
            time.sleep(0.01)
    if asked(f"die.{rank}.last"):
        os.kill(os.getpid(), signal.SIGKILL)
    return rank, total["sum"]

rank, total = state.live(train, every_steps=1)
if asked(f"late.{rank}"):
    time.sleep(0.5)
while (where / f"hold.{rank}").exists():
    time.sleep(0.01)
(where / f"result.{rank}").write_text(str(total))
"""


class World:
    """Three ranks on n0 to n2, a spare on n3."""

    keepers: KeeperSet

    def __init__(self, where: Path) -> None:
        self.where = where
        self.told: list[tuple[LaunchEvent, str]] = []
        self.step: LiveStep | None = None

    def ask(self, *what: str) -> None:
        for one in what:
            (self.where / one).touch()

    def start(
        self,
        *more: str,
        steps: int = 40,
        hosts: tuple[str, ...] = ("n0", "n1", "n2"),
        spares: tuple[str, ...] = ("n3",),
    ) -> LiveStep:
        given = {**os.environ, "PYTHONPATH": f"{ROOT}/tests/support/faketorch:{ROOT}"}
        job_dir = self.where / "jobs" / "7"
        given |= {"TEST_WHERE": str(self.where), "FABRIC_JOB_DIR": str(job_dir)}
        given |= {"FAKETORCH_HOST": "127.0.0.1"}
        argv = ["--", sys.executable, "-c", PROGRAM, str(steps), *more]
        self.step = LiveStep(
            7, 3, Placement(hosts, spares), argv, environment=given, key=KEY,
            address="127.0.0.1", ports=range(29_000 + os.getpid() % 900, 30_900),
            deaths_most=5, tell=self.tell,
        )  # fmt: skip
        return self.step

    def end(self) -> None:
        if self.step is not None:
            for srun in self.step._sruns:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(srun.process.pid, signal.SIGKILL)
            self.step.abandon()

    def tell(self, said: Tell, _generation: int) -> None:
        self.told.append((said.event, said.node))

    def wait(self, good: Callable[[], object] | None = None, timeout_s: float = 180) -> int | None:
        """Until that holds, or the end; the status."""
        assert self.step is not None
        end_s = time.monotonic() + timeout_s
        while (status := self.step.poll()) is None and not (good and good()):
            assert time.monotonic() < end_s, (
                self.told,
                sorted(p.name for p in self.where.iterdir()),
            )
            time.sleep(0.01)
        return status

    def results(self) -> list[int]:
        return [int((self.where / f"result.{rank}").read_text()) for rank in range(3)]

    def begun(self, generation: int) -> list[int]:
        files = [self.where / f"begun.{rank}.{generation}" for rank in range(3)]
        return [int(file.read_text()) for file in files if file.exists()]


def expected(steps: int = 40) -> list[int]:
    return [6 * sum(n * n for n in range(steps))] * 3


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    subprocess.run(["make", "-s", "-C", str(ROOT / "fabricctl" / "state")], check=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text(SRUN)
    (tmp_path / "bin" / "srun").chmod(0o755)
    job = tmp_path / "jobs" / "7"
    job.mkdir(parents=True)
    given = {"key": KEY.hex(), "nodes": "n[0-3]", "node": "n0", "spares": "1"}
    (job / "envelope").write_text(fields.encode(given))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    made = World(tmp_path)
    yield made
    made.end()


@pytest.fixture
def kept(world: World) -> Iterator[World]:
    """With keepers, so that ranks go on from what they had saved."""
    where = world.where / "keepers"
    where.mkdir()
    with KeeperSet(where, 4) as world.keepers:
        yield world


def test_an_order_to_save_ends_nobody_who_only_begins(world: World) -> None:
    """By a signal a process that imports, in the place of a dead one, would be ended."""
    step = world.start(steps=100_000)
    assert step.cancel("USR1")
    assert world.wait() == 0
    assert world.told == [] and world.results() != []


def test_a_killed_rank_is_replaced_and_the_result_is_the_unbroken_runs(kept: World) -> None:
    kept.ask("die.1.10", "die.2.25")
    kept.start()
    assert kept.wait() == 0
    assert kept.results() == expected()
    assert kept.told[0] == (LaunchEvent.RANKS_DEAD, "n1")
    assert [event for event, _ in kept.told].count(LaunchEvent.START) == 2
    for generation, least in ((4, 9), (5, 24)):
        begins = kept.begun(generation)
        assert len(begins) == 3 and len(set(begins)) == 1 and least <= begins[0] <= least + 1


def test_a_node_without_a_word_is_replaced_and_its_memory_comes_from_the_partner(
    kept: World,
) -> None:
    """Rank 0's own: the others wait in a collective that nothing but our cut ends."""
    kept.ask("stop.0.12")
    step = kept.start()
    kept.wait(lambda: not (kept.where / "stop.0.12").exists())
    kept.keepers.kill("n0")
    step.lost({"n0"})
    assert kept.wait() == 0
    assert kept.results() == expected()
    assert step.placement == Placement(("n3", "n1", "n2"), ())
    assert kept.begun(4)[0] >= 11


def test_ranks_leave_a_node_and_no_step_is_lost(kept: World) -> None:
    kept.ask("pause")  # the spare may come after a thousand steps
    step = kept.start(steps=300)
    assert kept.wait(lambda: step.leave("n1", "n3")) is None
    (kept.where / "pause").unlink()
    assert kept.wait() == 0
    assert kept.results() == expected(300)
    assert step.placement.hosts == ("n0", "n3", "n2")
    assert [event for event, _ in kept.told] == [LaunchEvent.START]
    assert len(kept.begun(4)) == 3 and len(set(kept.begun(4))) == 1


def test_one_that_dies_at_the_very_end_is_replaced(kept: World) -> None:
    kept.ask("die.1.last")
    kept.start()
    assert kept.wait() == 0
    assert kept.results() == expected()
    assert kept.begun(4) == [40, 40, 40]


def test_what_follows_the_last_step_is_waited_for_where_somebody_died(kept: World) -> None:
    """Ranks 0 and 1 are of one srun, which says nothing any more when one of them has died."""
    kept.ask("die.1.10", "late.0")
    kept.start(hosts=("n0", "n0", "n1"))
    assert kept.wait() == 0
    assert kept.results() == expected()


@pytest.mark.parametrize("done", [False, True])
def test_a_node_that_dies_after_the_last_step_ends_the_run(
    kept: World, capfd: pytest.CaptureFixture[str], done: bool
) -> None:
    """There is nothing to start again from: the status tells whether its program had ended."""
    kept.ask("hold.2", "hold.0")
    step = kept.start()
    kept.wait(lambda: step.finished)
    if done:
        (kept.where / "hold.2").unlink()
        kept.wait(lambda: not step._roster.has_rank("n2"))
    step.lost({"n2"})
    (kept.where / "hold.0").unlink()
    assert kept.wait() == (0 if done else 1)
    assert step.carries and step.finished
    said = "node n2 died when all steps were done, but its program had not ended"
    assert (said in capfd.readouterr().err) is not done


def test_no_copy_comes_after_keepers_were_told_to_forget(world: World) -> None:
    """What was saved last is on its way to another node when all ranks have ended."""
    where = world.where / "keepers"
    where.mkdir()
    with KeeperSet(where, 4, copy_s=0.5) as keepers:
        world.start(steps=2)
        assert world.wait() == 0
        end_s = time.monotonic() + 60
        while len(list(where.glob("held.*"))) < 6:  # three ranks, two steps
            assert time.monotonic() < end_s
            time.sleep(0.01)
        for node in keepers.nodes:
            assert keepers.found(node) == []


def test_an_error_of_the_program_is_its_end(
    world: World, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "FAILED_S", 0.2)
    world.ask("fail.2.5")
    world.start()
    assert world.wait() == 1
    assert world.step is not None and not world.step.carries
    said = capfd.readouterr().err
    assert "not live any more: rank 2 failed: ValueError: its own" in said


def test_a_program_that_ends_before_it_joins_ends_all(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    step = world.start("early")
    assert world.wait() == 1 and not step.unused
    assert "it ended before state.live" in capfd.readouterr().err


def test_a_program_that_never_joins_is_known_for_that(world: World) -> None:
    step = world.start("never")
    assert world.wait() == 1 and step.unused


def test_an_srun_that_ends_while_it_is_looked_at_is_looked_at_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end counts when the roster knows of it: a program that never joined would be well."""
    step = world.start("never")
    looks = {id(srun.process): iter([None]) for srun in step._sruns}
    for srun in step._sruns:
        srun.process.wait()
    ended = subprocess.Popen.poll
    monkeypatch.setattr(
        subprocess.Popen, "poll", lambda made: next(looks.get(id(made), iter([])), ended(made))
    )
    assert step.poll() is None
    assert step.poll() == 1 and step.unused


def test_one_that_was_killed_as_it_joined_is_counted_once(world: World) -> None:
    """What it sent may be read after its srun's end was seen."""
    step = world.start("never")
    assert world.wait() == 1
    link = Link.call(("127.0.0.1", step._listener.getsockname()[1]), KEY, 60, 60)
    with contextlib.closing(link):
        link.send({"kind": "join", "step": "0", "local": "0"})
        with pytest.raises((OSError, FabricError)):
            link.receive()
    assert step.unused


def test_a_group_that_is_broken_before_it_was_entered_is_left_alone() -> None:
    ours, theirs = (Link.local(made) for made in socket.socketpair())
    seat = _Seat(theirs)
    form = {"kind": "form", "generation": "4", "rank": "1", "ranks": "3", "host": "n0"}
    form |= {"port": "5", "dead": ""}
    ours.send({"kind": "broken"})  # rank 0 had not opened the store
    assert ours.receive()["kind"] == "ready"
    ours.send(form)
    ours.send({"kind": "broken"})
    assert ours.receive()["kind"] == "ready"
    ours.send({**form, "generation": "5"})
    assert seat.wait_form().generation == 5
    seat.close()
    ours.close()


def test_an_order_to_move_that_comes_before_the_group_is_entered_holds() -> None:
    """It was forgotten with what was said of the group before: nobody left the node."""
    ours, theirs = (Link.local(made) for made in socket.socketpair())
    seat = _Seat(theirs)
    form = {"kind": "form", "generation": "4", "rank": "0", "ranks": "3", "host": "n0"}
    ours.send({**form, "port": "0", "dead": ""})
    ours.send({"kind": "move"})
    end_s = time.monotonic() + 60
    while not seat.moving:
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert seat.wait_form().generation == 4 and seat.moving
    ours.send({**form, "generation": "5", "port": "0", "dead": ""})
    assert seat.wait_form().generation == 5 and not seat.moving
    seat.close()
    ours.close()


def test_before_the_first_group_no_connection_of_the_program_is_cut() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
        with ours, theirs:
            sockets = Sockets()
            assert sockets.cut() == 0
            ours.send(b"x")
            assert theirs.recv(1) == b"x"
            sockets.begin()
            late = socket.create_connection(server.getsockname())
            end, _ = server.accept()
            with late, end:
                assert sockets.cut() == 2
                assert end.recv(1) == b""
            assert ours.send(b"y") == 1


def test_a_file_in_the_place_of_a_closed_connection_is_left_alone() -> None:
    """The group is cut again and again, until the program has come out of it."""
    sockets = Sockets()
    sockets.begin()
    ours, theirs = socket.socketpair()
    sockets.made(SimpleNamespace(new_group=None))
    number = ours.fileno()
    ours.close()
    theirs.close()
    source, to = os.pipe()
    assert number in (source, to)
    sockets.cut()
    os.close(to)
    os.set_blocking(source, False)  # as long as another has it open it is not at its end
    assert os.read(source, 1) == b""
    os.close(source)


def test_processes_that_lose_the_launcher_end(world: World) -> None:
    """As when the job script's node dies: nobody computes on, or waits, for ever."""
    step = world.start(steps=100_000)
    world.wait(lambda: len(world.begun(3)) == 3)
    step._roster.over = True
    for link in list(step._links.values()):
        link.socket.shutdown(socket.SHUT_RDWR)
    end_s = time.monotonic() + 30
    while any(one.process.poll() is None for one in step._sruns):
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert [one.process.returncode for one in step._sruns] == [1, 1, 1, 1]


def test_who_has_not_the_key_is_nobody(world: World) -> None:
    step = world.start()
    with contextlib.ExitStack() as stack:
        for _ in range(80):  # more than are listened to at once
            made = socket.create_connection(step._listener.getsockname()[:2])
            stack.enter_context(made).sendall(b"\0\0\0\4evil")
        assert world.wait() == 0
    assert world.results() == expected()


def test_a_lack_of_descriptors_passes(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as first:
        step = world.start()
        os.close(free := os.dup(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            first.connect(("127.0.0.1", step._listener.getsockname()[1]))
            end_s = time.monotonic() + 60
            while "cannot join: Too many open files" not in capfd.readouterr().err:
                assert time.monotonic() < end_s
                time.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert world.wait() == 0
    assert world.results() == expected()


def test_a_start_that_is_over_leaves_its_port(world: World) -> None:
    """There are eight for a job, and it may be started again twenty times."""
    port = world.start()._listener.getsockname()[1]
    world.end()
    world.step = None
    end_s = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            break
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_processes_that_cannot_find_each_other_do_not_train_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By plain srun each would be a whole program of one rank."""
    nobody = SimpleNamespace(is_initialized=lambda: False)
    monkeypatch.setitem(sys.modules, "torch.distributed", nobody)
    for name in ("FABRIC_LIVE", "MASTER_ADDR", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(UsageError, match="one of 4 processes, and no MASTER_ADDR"):
        replacement.live(lambda _: None)


def test_a_group_that_broke_while_it_was_made_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch names groups by their number: the one that comes instead has counted none."""
    names: list[int] = []
    counted = SimpleNamespace(group_count=0)
    broken = True

    def init(*_: object, **__: object) -> None:
        names.append(counted.group_count)
        counted.group_count += 1
        if broken:
            raise ConnectionError("one died meanwhile")

    stub = SimpleNamespace(
        TCPStore=lambda *_, **__: SimpleNamespace(port=1), PrefixStore=lambda *_: None,
        init_process_group=init, new_group=lambda: None, get_rank=lambda: 1,
        get_world_size=lambda: 2,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "torch.distributed", stub)
    private = SimpleNamespace(_world=counted)
    monkeypatch.setitem(sys.modules, "torch.distributed.distributed_c10d", private)
    ours, theirs = (Link.local(made) for made in socket.socketpair())
    seat = _Seat(theirs)
    form = replacement._Form(4, 1, 2, "n0", 1, "")
    with monkeypatch.context() as environment:
        for name in ("FABRIC_LAUNCH", "FABRIC_DEAD_NODES", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
            environment.setenv(name, "")
        with pytest.raises(ConnectionError):
            replacement._meet(seat, form, "gloo")
        broken = False
        replacement._meet(seat, form, "gloo")
    assert names == [0, 0]
    ours.close()
    seat.close()
