"""Fault plans: read, checked, and the same for the same seed."""

from pathlib import Path

import pytest

from fabricctl.errors import ConfigError, UsageError
from fabricctl.lab import plan
from fabricctl.lab.spec import LabSpec

SPEC = LabSpec()


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "plan.toml"
    file.write_text(text)
    return file


def test_a_plan_reads_like_its_sentences(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
        [[fault]]
        kind = "loss"
        target = ["n2", "r0"]
        options = { percent = 1.5 }
        at_s = 4
        for_s = 2
        [[fault]]
        kind = "cut"
        target = ["n1", "r1"]
        at_s = 1.0
        for_s = 0.5
        """,
    )
    steps = plan.expand(plan.load(file), SPEC, 1)
    assert [step.sentence for step in steps] == [
        "at 1.000 s for 0.500 s: cut n1 r1",
        "at 4.000 s for 2.000 s: loss n2 r0 percent=1.5 direction=both",
    ]


CAMPAIGN = [
    {
        "kind": "cut",
        "target": ["n*", "r*"],
        "at_s": [1, 100],
        "for_s": [0.1, 2],
        "times": 50,
    }
]


def test_the_same_seed_gives_the_same_campaign() -> None:
    assert plan.expand(CAMPAIGN, SPEC, 7) == plan.expand(CAMPAIGN, SPEC, 7)
    assert plan.expand(CAMPAIGN, SPEC, 7) != plan.expand(CAMPAIGN, SPEC, 8)


def test_choices_stay_within_their_bounds() -> None:
    steps = plan.expand(CAMPAIGN, SPEC, 7)
    assert len(steps) == 50
    assert [step.at_s for step in steps] == sorted(step.at_s for step in steps)
    assert all(1 <= step.at_s <= 100 and 0.1 <= step.for_s <= 2 for step in steps)
    assert {step.fault.target[0] for step in steps} == set(SPEC.compute_nodes)
    assert {step.fault.target[1] for step in steps} == {"r0", "r1"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "cutt"}, "plan, fault 1: no fault 'cutt'; known are: cut, blackhole"),
        ({"target": ["n9", "r0"]}, "plan, fault 1: fault cut: no node 'n9'; there are: ctl, n1"),
        ({"target": ["x*", "r0"]}, "plan, fault 1: no node fits 'x*'; there are: n1, n2"),
        ({"target": ["n1"]}, "plan, fault 1: fault cut: 1 targets given; it is: cut NODE INTERF"),
        ({"target": "n1"}, "plan, fault 1: target is a list of words"),
        ({"for_s": None}, "plan, fault 1: for_s None is not a number of seconds or [from, to]"),
        ({"for_s": [2, 1]}, "plan, fault 1: for_s [2, 1] is not a number of seconds"),
        ({"at_s": -1}, "plan, fault 1: at_s -1 is not a number of seconds"),
        ({"at_s": True}, "plan, fault 1: at_s True is not a number of seconds"),
        ({"times": 0}, "plan, fault 1: times 0 is not a number from 1 to 100000"),
        ({"options": 3}, "plan, fault 1: options is a table"),
        ({"options": {"x": 3}}, "plan, fault 1: fault cut: no option 'x'; known are: "),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_is_done(
    table: dict[str, object], message: str
) -> None:
    whole = {"kind": "cut", "target": ["n1", "r0"], "at_s": 1, "for_s": 1, **table}
    with pytest.raises(UsageError) as caught:
        plan.expand([whole], SPEC, 1)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "plan.toml: Expected '=' after a key"),
        ("", "plan.toml: a plan holds [[fault]] tables and nothing else"),
        ("fault = 3", "plan.toml: a plan holds [[fault]] tables and nothing else"),
        ("[[fault]]\nknd = 'cut'", "plan.toml: fault 1: unknown key 'knd'; known are: at_s, for_s"),
    ],
)
def test_a_file_that_is_no_plan_says_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan.load(written(tmp_path, text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3.0), ("3s", 3.0), ("200ms", 0.2), ("1.5min", 90.0), (None, None)]
)
def test_times_are_read(text: str | None, value: float | None) -> None:
    assert plan.seconds(text) == value


@pytest.mark.parametrize("text", ["", "s", "3h", "-1", "nan", "inf", "1e99"])
def test_times_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="say it as 3s, 200ms or 1min"):
        plan.seconds(text)
