"""A job whose script died with its node: who finds that, and what Slurm is asked for."""

import itertools
from collections.abc import Collection, Mapping, Sequence

import pytest

from fabricctl.node.script import LOOK_S, Door, Lost, ScriptWatch, judge
from fabricctl.slurm.run import Answer

NODES = ["n1", "n2", "n3", "n4"]


class Job:
    """Nodes of a job, each with its watch, and what of them is lost."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.silent: set[str] = set()
        self.doors: dict[str, Door] = {}
        self.asked: list[tuple[str, frozenset[str]]] = []
        self.watches = {own: self._watch(own) for own in NODES}

    def _watch(self, own: str) -> ScriptWatch:
        def ask(nodes: Collection[str]) -> Mapping[str, Sequence[str]]:
            self.asked.append((own, frozenset(nodes)))
            return {node: [f"10.0.0.{node[1:]}"] for node in nodes if node not in self.silent}

        def knock(node: str, rails: Sequence[str]) -> Door:
            assert list(rails) == [f"10.0.0.{node[1:]}"]
            return self.doors.get(node, Door.SILENT if node in self.silent else Door.OURS)

        return ScriptWatch(60.0, ask, knock)

    def run(self, seconds: float) -> dict[str, Lost]:
        """Who says what at the end of so many seconds, of those that live."""
        found: dict[str, Lost | None] = {}
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += LOOK_S
            for own, watch in self.watches.items():
                if own not in self.silent:
                    found[own] = watch.look(NODES, own, self.now_s)
        return {own: lost for own, lost in found.items() if lost is not None}


def test_each_node_asks_the_one_before_it_and_the_first_one_once() -> None:
    job = Job()
    job.run(LOOK_S)
    assert job.asked == [
        ("n2", frozenset({"n1"})),
        ("n3", frozenset({"n1", "n2"})),
        ("n4", frozenset({"n1", "n3"})),
    ]
    job.asked.clear()
    assert job.run(LOOK_S) == {}
    assert job.asked == [(own, frozenset({last})) for last, own in itertools.pairwise(NODES)]


def test_the_first_living_node_alone_finds_the_scripts_node_lost() -> None:
    job = Job()
    job.run(10)
    job.silent = {"n1"}
    assert job.run(60) == {}
    assert job.run(5) == {"n2": Lost("n1", 60.0, mute=False)}
    job.silent = {"n1", "n2"}
    assert job.run(60) == {}
    assert set(job.run(5)) == {"n3"}


def test_one_that_comes_back_is_not_lost_and_its_silence_is_forgotten() -> None:
    job = Job()
    job.run(10)
    job.silent = {"n1"}
    job.run(60)
    job.silent = set()
    job.run(5)
    job.silent = {"n1"}
    assert job.run(60) == {}


def test_a_node_that_is_heard_over_a_rail_alone_lives() -> None:
    """Its management network is out, or its agent has died: its keeper takes connections."""
    job = Job()
    job.run(10)
    job.silent, job.doors = {"n1"}, {"n1": Door.OURS}
    assert job.run(600) == {}
    job.doors = {"n1": Door.MUTE}  # the machine answers: Slurm has to say more
    assert job.run(65) == {"n2": Lost("n1", 60.0, mute=True)}


def test_one_that_was_never_heard_is_not_missed() -> None:
    """It has no agent, or nobody here knows its rails."""
    job = Job()
    job.silent = {"n1"}
    assert job.run(600) == {}


def test_time_in_which_the_watch_stood_still_is_nobodys_silence() -> None:
    job = Job()
    job.run(10)
    job.silent = {"n1"}
    job.run(5)
    job.now_s += 3600
    assert job.run(30) == {}


def test_a_node_that_left_the_job_watches_nobody() -> None:
    job = Job()
    assert job.watches["n4"].look(["n1", "n2", "n3"], "n4", job.now_s) is None
    assert job.watches["n1"].look(NODES, "n1", job.now_s) is None
    assert job.asked == []


JOB = "7 RUNNING    7    N/A    1   1   N/A    n1    n[1-4]"
TASKS = "8 RUNNING 7 1 1 1 N/A n3 n[3-4]\n" + JOB.replace("N/A    1", "2    1") + "\n"
STEPS = """\
StepId=7.0 UserId=6001 StartTime=5 State=RUNNING Name=fabric-run-0 Network=(null) SrunHost:Pid=n1:77
StepId=7.batch UserId=6001 StartTime=5 State=RUNNING Name=batch Network=(null) SrunHost:Pid=(null):0
"""


class Slurm:
    """Its commands, by what they would say."""

    def __init__(self, job: str = JOB, node: str = "mixed*", steps: str = STEPS) -> None:
        self.says = {"squeue": job, "sinfo": node, "scontrol": steps}

    def __call__(self, argv: Sequence[str]) -> Answer:
        return Answer(0, self.says[argv[0]], "")


LOST = Lost("n1", 60.0, mute=False)
REBOOTED = Lost("n1", 60.0, mute=True)


@pytest.mark.parametrize(
    ("slurm", "lost", "argv"),
    [
        (Slurm(), LOST, ("scontrol", "requeue", "7")),
        (Slurm(node="down"), LOST, ("scontrol", "requeue", "7")),
        (Slurm(JOB.replace("1   1", "1   0")), LOST, ("scancel", "7")),
        # Slurm has taken the node out of the job; it may be back meanwhile.
        (Slurm(JOB.replace("n[1-4]", "n[2-4]"), "idle"), LOST, ("scontrol", "requeue", "7")),
        (Slurm(JOB.replace("n[1-4]", "n[2-4]"), "idle"), REBOOTED, ("scontrol", "requeue", "7")),
        (Slurm(steps=STEPS.replace("=n1:77", "=n1.site:77")), LOST, ("scontrol", "requeue", "7")),
        # The task that an array's own number means, too.
        (Slurm(TASKS), LOST, ("scontrol", "requeue", "7_2")),
    ],
)
def test_slurm_is_asked_to_requeue_or_to_end_the_job(
    slurm: Slurm, lost: Lost, argv: tuple[str, ...]
) -> None:
    assert judge(lost, 7, slurm).argv == argv


@pytest.mark.parametrize(
    ("slurm", "lost", "why"),
    [
        (Slurm(JOB.replace("RUNNING", "COMPLETING")), LOST, "the job is COMPLETING"),
        (Slurm("7 PENDING 7 N/A 1 1 N/A"), LOST, "the job is PENDING"),
        (Slurm(""), LOST, "the job is not shown"),
        (Slurm(node="mixed"), LOST, "Slurm says that n1 is mixed"),
        (Slurm(node=""), LOST, "Slurm says that n1 is hidden"),
        (Slurm(), REBOOTED, "n1 answers"),
        (
            Slurm(JOB.replace("1   1", "0   1")),
            LOST,
            "n1 has no job script",
        ),
        (Slurm(JOB.replace(" n1 ", " n2 ")), LOST, "n1 has no job script"),
        (
            Slurm(JOB.replace("N/A    n1", "6    n1")),
            LOST,
            "n1 has no job script, or a heterogeneous job's",
        ),
        (Slurm(steps=STEPS.replace("=n1:77", "=login:77")), LOST, "step 7.0 was started on login"),
    ],
)
def test_nothing_is_done_to_a_job_that_may_go_on(slurm: Slurm, lost: Lost, why: str) -> None:
    verdict = judge(lost, 7, slurm)
    assert verdict.argv == () and verdict.why.startswith(why)
