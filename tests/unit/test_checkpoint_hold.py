"""Keepers of a job that ended before its program did: what they hold, for how long, for whom."""

from pathlib import Path

from tests.support.keepers import KeeperSet
from tests.support.ranks import expected, program, run


def test_the_job_scripts_node_is_lost_and_the_requeue_goes_on_from_memory(tmp_path: Path) -> None:
    """With it go rank 0 and `fabricctl run`; all others end, and Slurm ends the job. It begins
    again on another list of nodes, as a first start: nobody says any more who died."""
    with KeeperSet(tmp_path, hold_s=600) as keepers:
        assert run(keepers, program(10), every_steps=1) == expected(10, 0)
        keepers.kill("n0")
        keepers.end_job()
        keepers.requeue(["n1", "n2", "n3"])
        assert run(keepers, program(15), every_steps=1) == expected(15, 10)
        keepers.kill("n1")  # what was saved after it is safe against the next one, too
        keepers.end_job()
        keepers.requeue(["n2", "n3", "n4"])
        assert run(keepers, program(18), every_steps=1) == expected(18, 15)


def test_what_nobody_came_back_for_is_held_no_longer_than_it_may(tmp_path: Path) -> None:
    with KeeperSet(tmp_path, hold_s=0.1) as keepers:
        run(keepers, program(10), every_steps=1)
        keepers.end_job()
        for process in keepers.processes.values():
            assert process.wait(180) == 0


def test_keepers_of_a_program_that_ended_well_go_with_the_job(tmp_path: Path) -> None:
    with KeeperSet(tmp_path, hold_s=600) as keepers:
        run(keepers, program(10, done=True), every_steps=1)
        keepers.end_job()
        for process in keepers.processes.values():
            assert process.wait(180) == 0
