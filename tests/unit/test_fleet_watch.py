"""``fabricctl events``: what is told, once, and in order."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from fabricctl.cli.main import cli
from fabricctl.fleet import watch
from tests.support.fakeslurm import NOW_S, FakeSlurm, job, node, use


def texts(events: object) -> list[str]:
    return [event.text for event in events]  # type: ignore[attr-defined]


def test_a_node_that_goes_out_and_comes_back_is_told_once_each() -> None:
    fit, busy = {"n1": node("n1")}, {"n1": node("n1", "MIXED", cpus_allocated=2)}
    drained = {"n1": node("n1", "IDLE", "DRAIN", reason="fan", reason_user="root")}
    again = {"n1": replace(drained["n1"], reason="fan and disk")}
    assert texts(watch.node_changes(fit, busy, NOW_S)) == []
    assert texts(watch.node_changes(fit, drained, NOW_S)) == ["n1 is drained: fan (root)"]
    assert texts(watch.node_changes(drained, drained, NOW_S)) == []
    assert texts(watch.node_changes(drained, again, NOW_S)) == [
        "n1 is drained: fan and disk (root)"
    ]
    assert texts(watch.node_changes(again, busy, NOW_S)) == ["n1 takes jobs again"]
    assert texts(watch.node_changes(fit, {}, NOW_S)) == ["n1 is gone from Slurm"]


def test_a_boot_is_told_with_its_own_time() -> None:
    before = {"n1": node("n1", boot_real_s=NOW_S - 1000)}
    (event,) = watch.node_changes(before, {"n1": node("n1", boot_real_s=NOW_S - 5)}, NOW_S)
    assert (event.text, event.at_real_s) == ("n1 has booted", NOW_S - 5)
    assert not list(watch.node_changes(before, {"n1": node("n1", boot_real_s=NOW_S - 999)}, NOW_S))


def test_a_job_begins_is_requeued_and_ends() -> None:
    waits = {7: job(7, "PENDING", start_real_s=None)}
    runs = {7: job(7, nodes="n[1-2]")}
    requeued = {7: job(7, "PENDING", start_real_s=None, restarts=1)}
    ended = {7: job(7, "NODE_FAIL", "n[1-2]", end_real_s=NOW_S)}
    quick = {7: job(7, "COMPLETED", "n1", end_real_s=NOW_S)}
    assert texts(watch.job_changes({}, waits, NOW_S)) == []
    assert texts(watch.job_changes(waits, runs, NOW_S)) == ["job 7 of alice began on n[1-2]"]
    assert texts(watch.job_changes(runs, requeued, NOW_S)) == ["job 7 of alice was requeued (1)"]
    (event,) = watch.job_changes(runs, ended, NOW_S)
    assert (event.text, event.severity) == ("job 7 of alice ended: node fail", "error")
    assert texts(watch.job_changes(waits, quick, NOW_S)) == [
        "job 7 of alice began on n1", "job 7 of alice ended: completed",
    ]  # fmt: skip
    assert texts(watch.job_changes(ended, ended, NOW_S)) == []


def test_while_slurm_is_away_that_is_told_once_and_nothing_is_lost() -> None:
    slurm = FakeSlurm({"n1": node("n1")})
    turns = iter(["away", "away", "back", "end"])

    def sleep(_: float) -> None:
        turn = next(turns)
        slurm.broken = turn == "away"
        if turn == "back":
            slurm.the_nodes["n1"] = node("n1", "DOWN", reason="Not responding")
        if turn == "end":
            raise KeyboardInterrupt

    seen = []
    with pytest.raises(KeyboardInterrupt):
        for event in watch.follow(slurm, 1.0, sleep=sleep, now=lambda: NOW_S):
            seen.append(event.text)
    assert seen == [
        "Slurm does not answer: scontrol show node: Unable to contact slurm controller",
        "Slurm answers again",
        "n1 is down: Not responding",
    ]


def test_the_past_from_accounting_and_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = FakeSlurm(
        {"n2": node("n2", "IDLE", "DRAIN", reason="fan", reason_real_s=NOW_S + 50)},
        the_usage=[use(1, NOW_S - 9, NOW_S + 20, state="FAILED"), use(2, NOW_S + 30, None)],
    )
    monkeypatch.setattr("fabricctl.slurm.choose.open_slurm", lambda: slurm)
    words = ["events", "--from", f"{NOW_S_TEXT}", "--json"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == [
        "job 1 of alice ended: failed",
        "job 2 of alice began on n1",
        "n2 is drained: fan",
    ]
    done = CliRunner().invoke(cli, [*words, "--kind", "job", "--least", "warning"])
    assert len(done.stdout.splitlines()) == 1


NOW_S_TEXT = "2026-09-21T14:13:20Z"
