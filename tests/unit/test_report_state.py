"""Stalls and restarts in the report."""

from datetime import UTC
from pathlib import Path

from fabricctl.store.schema import CheckpointEvent, LaunchEvent, StallKind
from fabricctl_analysis.build import report_of
from fabricctl_analysis.findings import findings
from fabricctl_analysis.model import Finding
from fabricctl_analysis.when import When
from tests.support.traces import Plan, write

STALLS = (
    ("n1", 20.8, StallKind.APPLICATION, "rank 3 on n3 is in MPI_Barrier"),
    ("n1", 26.0, StallKind.NONE, "the ranks go on"),
    ("n1", 50.8, StallKind.RANK, "rank 1 on n2 is stopped by a signal"),
)
LAUNCHES = (
    ("n1", 1.0, LaunchEvent.START, "n[1-3]"),
    ("n1", 30.0, LaunchEvent.NODE_DEAD, "n3"),
    ("n1", 31.5, LaunchEvent.START, "n[1-2,4]"),
    ("n1", 55.0, LaunchEvent.RANKS_DEAD, ""),
    ("n1", 55.1, LaunchEvent.GIVE_UP, ""),
)


def told(tmp_path: Path, plan: Plan) -> dict[str, list[Finding]]:
    report = report_of(write(plan, tmp_path / "alice"))
    found: dict[str, list[Finding]] = {}
    for one in findings(report, When(report.whole, UTC)):
        found.setdefault(one.kind, []).append(one)
    return found


def test_a_stall_is_told_with_its_cause_and_its_length(tmp_path: Path) -> None:
    stalls = told(tmp_path, Plan(stalls=STALLS))["stall"]
    assert [one.severity for one in stalls] == ["error", "error"]
    texts = sorted(one.text for one in stalls)
    assert texts == [
        "4 ranks waited 10.00 s from 14:14:10.0 on and to the end (rank): "
        "rank 1 on n2 is stopped by a signal.",
        "4 ranks waited 6.00 s from 14:13:40.0 on (application): rank 3 on n3 is in MPI_Barrier.",
    ]


def test_a_death_is_told_with_the_start_that_followed(tmp_path: Path) -> None:
    found = told(tmp_path, Plan(launches=LAUNCHES))
    texts = [one.text for one in found["restart"]]
    assert (
        "Node n3 was found dead at 14:13:50.0; it was started again on n[1-2,4] 1.50 s later, "
        "without a requeue." in texts
    )
    assert "The program died on living nodes at 14:14:15.0." in texts
    (gave_up,) = found["gave_up"]
    assert gave_up.severity == "error"


def test_a_job_without_trouble_has_neither(tmp_path: Path) -> None:
    found = told(tmp_path, Plan(launches=LAUNCHES[:1]))
    assert not {"stall", "restart", "gave_up"} & set(found)


def test_checkpoints_are_told_with_what_they_cost(tmp_path: Path) -> None:
    saved = [("n1", 10.0 + n, CheckpointEvent.SAVED, 5 * n) for n in range(1, 12)]
    restored = ("n1", 21.5, CheckpointEvent.RESTORED, 55)
    (one,) = told(tmp_path, Plan(checkpoints=[*saved, restored]))["checkpoints"]
    assert one.severity == "info"
    assert one.text == (
        "11 checkpoints up to step 55, 1.0 MiB of rank 0, each usually held the ranks up for "
        "10 ms, together 1.1 % of the time; restored at step 55."
    )


def test_ettr_is_told_with_what_each_failure_cost(tmp_path: Path) -> None:
    """Saved every second; n3 dies at 30 s, the save of 29 s is restored at 33 s: 4 s are lost."""
    saved = [("n1", float(at), CheckpointEvent.SAVED, at) for at in range(2, 30)]
    after = [("n1", float(at), CheckpointEvent.SAVED, at - 4) for at in range(34, 54)]
    begun = ("n1", 1.5, CheckpointEvent.BEGUN, 0)
    restored = ("n1", 33.0, CheckpointEvent.RESTORED, 29)
    launches = (*LAUNCHES[:3], ("n1", 54.0, LaunchEvent.END, ""))
    plan = Plan(checkpoints=[begun, *saved, restored, *after], launches=launches)
    found = told(tmp_path, plan)
    (one,) = found["ettr"]
    assert one.text == (
        "ETTR 0.915: of 53.00 s from 14:13:21.0 on, checkpoints took 480 ms, 1 failure 4.00 s "
        "(16.0 rank-seconds); goodput 0.925 steps a second."
    )
    (death,) = found["restart"]
    assert death.text.endswith(
        "without a requeue; 4.00 s lost (16.0 rank-seconds), it went on from step 29, from memory."
    )


def test_ranks_that_ran_on_are_back_before_their_start_is_told(tmp_path: Path) -> None:
    """Twice: n3 dies at 30 s, the save of 29 s is there again at 31 s, which is told at 31.5 s."""
    saved = [("n1", float(at), CheckpointEvent.SAVED, at) for at in range(2, 54)]
    restored = [("n1", at + 2.0, CheckpointEvent.RESTORED, int(at)) for at in (29.0, 39.0)]
    deaths = [("n1", at, LaunchEvent.NODE_DEAD, "n3") for at in (30.0, 40.0)]
    starts = [("n1", at + 1.5, LaunchEvent.START, "n[1-2,4]") for at in (30.0, 40.0)]
    launches = (LAUNCHES[0], *deaths, *starts, ("n1", 54.0, LaunchEvent.END, ""))
    plan = Plan(
        checkpoints=sorted((*saved, *restored), key=lambda one: one[1]),
        launches=sorted(launches, key=lambda one: one[1]),
    )
    (one,) = told(tmp_path, plan)["ettr"]
    assert "2 failures 4.00 s (16.0 rank-seconds)" in one.text


def test_the_loss_of_the_job_scripts_node_is_told_by_who_had_the_job_requeued(
    tmp_path: Path,
) -> None:
    """Its own node's part of the trace is lost with it, and with that the program's starts."""
    (one,) = told(tmp_path, Plan(launches=(("n2", 50.0, LaunchEvent.SCRIPT_LOST, "n1"),)))[
        "restart"
    ]
    assert one.text.startswith("The job script's node n1 was lost (")


def test_without_a_restore_after_a_failure_ettr_is_not_known(tmp_path: Path) -> None:
    saved = [("n1", float(at), CheckpointEvent.SAVED, at) for at in range(2, 30)]
    (one,) = told(tmp_path, Plan(checkpoints=saved, launches=LAUNCHES[:3]))["ettr"]
    assert one.text.startswith("ETTR is not known: of ")
