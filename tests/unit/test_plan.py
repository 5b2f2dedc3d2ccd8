"""The model of failures, against what simulated jobs go through."""

import json
import math
import random

import pytest
from click.testing import CliRunner

from fabricctl.cli.plan import command
from fabricctl_analysis.plan_model import (
    PUBLISHED,
    Job,
    Rate,
    best_interval_s,
    expected,
    poisson_cdf,
    poisson_quantile,
    wall_time_s,
)


def simulated_s(job: Job, mtbf_s: float, interval_s: float, chance: random.Random) -> float:
    """One job: work in intervals, each repeated from its begin after a failure."""
    wall, done, recovering = 0.0, 0.0, False
    while done < job.work_s:
        piece = min(interval_s, job.work_s - done)
        needed = (job.restart_s if recovering else 0.0) + piece + job.checkpoint_s
        failure = chance.expovariate(1 / mtbf_s)
        if failure < needed:
            wall, recovering = wall + failure, True
            continue
        wall, done, recovering = wall + needed, done + piece, False
    return wall


def test_the_expected_time_is_what_simulated_jobs_take() -> None:
    job, mtbf = Job(1, 500_000, 60, 300), 5_000.0
    interval = best_interval_s(job.checkpoint_s, mtbf)
    chance = random.Random(1)
    mean = sum(simulated_s(job, mtbf, interval, chance) for _ in range(200)) / 200
    assert wall_time_s(job, mtbf, interval) == pytest.approx(mean, rel=0.02)


@pytest.mark.parametrize("checkpoint_s", [1, 30, 600])
def test_no_other_interval_is_better(checkpoint_s: float) -> None:
    job, mtbf = Job(1, 1e6, checkpoint_s, 100), 10_000.0
    best = best_interval_s(checkpoint_s, mtbf)
    least = wall_time_s(job, mtbf, best)
    for factor in (0.5, 0.8, 1.25, 2):
        assert wall_time_s(job, mtbf, best * factor) > least


def test_the_rate_s_interval_is_garwood_s() -> None:
    low, high = Rate("x", 10, 1.0, "").bounds()
    assert (low, high) == (pytest.approx(4.795, abs=1e-3), pytest.approx(18.39, abs=1e-2))
    assert Rate("x", 0, 1.0, "").bounds() == (0.0, pytest.approx(3.689, abs=1e-3))


def test_poisson() -> None:
    assert poisson_cdf(3, 2.0) == pytest.approx(0.857123, abs=1e-6)
    assert poisson_quantile(0.95, 2.0) == 5
    assert poisson_quantile(0.95, 0.0) == 0


def test_llama_3_had_an_interruption_every_three_hours() -> None:
    made = expected(Job(2048, 54 * 86_400, 60, 600), PUBLISHED[0].per_node_hour)
    assert made.mtbf_s / 3600 == pytest.approx(3.09, abs=0.01)


def test_a_job_that_can_never_end_is_said_to() -> None:
    made = expected(Job(10**6, 1e9, 1e6, 1e6), 1.0)
    assert math.isinf(made.wall_s) and made.goodput(Job(1, 1, 1, 1)) == 0
    done = CliRunner().invoke(command, ["--nodes", "1000000", "--hours", "1000000", "--failures",
                                        "1000", "--node-hours", "1"])  # fmt: skip
    assert done.exit_code == 0 and "never" in done.output


def test_the_command_prints_both_ways_and_json_has_the_same() -> None:
    words = ["--nodes", "1024", "--hours", "240"]
    text = CliRunner().invoke(command, words).output
    assert "419 unexpected interruptions" in text and "Saved: " in text
    made = json.loads(CliRunner().invoke(command, [*words, "--json"]).output)
    slow, fast = made["plans"]["requeued"], made["plans"]["in the allocation"]
    assert slow["goodput"][0] < fast["goodput"][0] < 100
    assert slow["goodput"][1] < slow["goodput"][0] < slow["goodput"][2]


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--failures", "3"], "go together"), (["--rate", "x"], "llama3, llama3-hardware")],
)
def test_wrong_words_are_told(words: list[str], said: str) -> None:
    done = CliRunner().invoke(command, ["--nodes", "1", "--hours", "1", *words])
    assert said in str(done.exception)
