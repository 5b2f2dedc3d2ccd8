"""Everything fails at once, at random, under jobs whose results are known: the fault campaign.

FABRIC_STORM_S and FABRIC_SEED choose the length (12 s) and the dice (1); with FABRIC_TOLD, a file,
what was harmed and how the jobs ended is added to it.
"""

import json
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fabricctl.lab.cluster import Lab
from fabricctl.lab.spec import LabSpec
from tests.support.campaign import quiet, settled, what_was_said
from tests.support.storm import AT_ONCE, Storm

pytestmark = pytest.mark.lab

LENGTH_S = float(os.environ.get("FABRIC_STORM_S", "12"))
SEED = int(os.environ.get("FABRIC_SEED", "1"))
WAIT_S = float(os.environ.get("FABRIC_STORM_WAIT_S", "300"))  # for the last jobs
CANCEL_S = 60.0
ROOT = Path(__file__).parents[2]


@pytest.fixture
def storm() -> Iterator[Storm]:
    """In a lab of its own: a slurmctld that was killed may take up a job again that had ended."""
    subprocess.run(["make", "-s", "-C", str(ROOT / "fabricctl" / "state")], check=True)
    name = f"{os.environ.get('FABRICCTL_LAB', 'pytest')}-storm"
    lab = Lab(LabSpec(name=name))
    lab.down()  # a run that was killed may have left one
    with lab:
        yield Storm(lab, random.Random(SEED))


def test_results_are_right_and_nothing_is_left_whatever_fails(storm: Storm) -> None:
    lab = storm.lab
    storm.learn()
    before = {node: settled(lab, node) for node in lab.spec.compute_nodes}
    end_s = time.monotonic() + LENGTH_S
    harm_s = submit_s = resume_s = 0.0
    while time.monotonic() < end_s:
        if time.monotonic() >= submit_s and len(storm.active()) < AT_ONCE:
            storm.submit()
            submit_s = time.monotonic() + storm.rng.uniform(0, 3)
        if time.monotonic() >= harm_s:
            storm.harm()
            harm_s = time.monotonic() + storm.rng.uniform(0.3, 2.5)
        if time.monotonic() >= resume_s:
            storm.resume()
            resume_s = time.monotonic() + 5
        storm.turn()
        storm.look()
        time.sleep(0.1)
    while lab.in_force() or storm.later:
        storm.turn()
        time.sleep(0.1)
    storm.read_log()
    storm.resume()
    lab.up()
    give_up_s = time.monotonic() + WAIT_S
    deadline_s = give_up_s + CANCEL_S
    while storm.active():
        storm.look()
        if time.monotonic() >= give_up_s:
            give_up_s = float("inf")
            storm.give_up()
        assert time.monotonic() < deadline_s, "\n".join(map(storm.stuck, storm.active()))
        time.sleep(0.3)

    storm.resume()
    left = leftovers(lab, before)
    told = [*storm.problems(), *(f"{what_was_said(lab, new)}\n{node}: {new}" for node, new in left)]
    tell(storm)
    assert not told, "\n\n".join([*told, storm.jobs_told()])


def leftovers(
    lab: Lab, before: dict[str, dict[str, set[str]]]
) -> list[tuple[str, dict[str, set[str]]]]:
    """What is new on which node, after a while. One that has booted may have less than before."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        left = []
        for node, had in before.items():
            now = quiet(lab, node)
            if new := {key: now[key] - had[key] for key in now if now[key] - had[key]}:
                left.append((node, new))
        if not left or time.monotonic() >= deadline_s:
            return left
        time.sleep(1)


def tell(storm: Storm) -> None:
    path = os.environ.get("FABRIC_TOLD")
    if not path:
        return
    file = Path(path)
    told: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"seconds": 0}
    told["seconds"] += LENGTH_S
    for key, counts in storm.tally().items():
        told[key] = dict(Counter(told.get(key, {})) + Counter(counts))
    file.write_text(json.dumps(told, indent=1))
