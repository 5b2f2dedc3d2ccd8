"""When the nodes of a job look whether its trace can be made: all end at once."""

from pathlib import Path

import pytest

from fabricctl.agent.log import NodeLog
from fabricctl.config import Config
from fabricctl.node.sealing import NODES_PER_POLL_S, SealQueue

NODES, NOW_S = 10_000, 1_000.0
SPREAD_S = NODES / NODES_PER_POLL_S


@pytest.fixture
def queue(tmp_path: Path) -> SealQueue:
    return SealQueue(Config(), NodeLog(tmp_path / "log"))


def answered(queue: SealQueue, result: str, now_s: float) -> float:
    """When the node looks again."""
    queue._take({"spool": "7.1", "result": result}, now_s)
    due_s = queue.next_due_s()
    assert due_s is not None
    return due_s


def spool(queue: SealQueue) -> Path:
    path = queue._config.node.spool_dir / "7.1"
    queue.add(path, NODES, "", NOW_S)
    return path


def test_nodes_of_a_large_job_do_not_all_merge_at_the_deadline(queue: SealQueue) -> None:
    wait_s = queue._config.trace.collect_wait_s
    seen = []
    for _ in range(200):
        path = spool(queue)
        seen.append(answered(queue, "waiting", NOW_S) - NOW_S)
        del queue._spools[path]
    assert min(seen) >= wait_s
    assert max(seen) - min(seen) > SPREAD_S / 2


def test_nodes_of_a_large_job_that_found_the_lock_held_do_not_come_back_at_once(
    queue: SealQueue,
) -> None:
    spool(queue)
    assert answered(queue, "parted", NOW_S) >= NOW_S + 0.8 * SPREAD_S
