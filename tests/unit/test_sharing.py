"""Shares of the rails: what a job asks for, the site's rules, what comes of both."""

import pytest

from fabricctl import sharing
from fabricctl.errors import DataError
from fabricctl.sharing import Share


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("60", (60, 100)),
        ("60-80", (60, 80)),
        ("0-50", (0, 50)),
        ("100", (100, 100)),
        ("0", (0, 100)),
    ],
)
def test_a_share_is_a_guarantee_and_perhaps_a_ceiling(text: str, wanted: tuple[int, int]) -> None:
    assert sharing.parse_asked(text) == wanted


WRONG_SHARES = ["", "-", "60-", "-60", "80-60", "101", "0-0", "6.5", "60%", "60-101", " 60", "x\n"]


@pytest.mark.parametrize("text", WRONG_SHARES)
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="say it as 60 or 60-80"):
        sharing.parse_asked(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("qos=debug", "says none of guarantee, ceiling, class"),
        ("partitoin=x class=last", "'partitoin' is none of partition, qos, account"),
        ("qos=a qos=b class=last", "qos needs one value"),
        ("qos= class=last", "qos needs one value"),
        ("class=urgent", "class is one of first, normal, last"),
        ("guarantee=60 ceiling=50", "guarantees more than its ceiling"),
        ("ceiling=0", "ceiling=0: not a number of 1 to 100"),
        ("guarantee=a", "guarantee=a: not a number of 0 to 100"),
        ("", "says none of"),
    ],
)
def test_a_wrong_rule_names_the_word(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        sharing.parse_rule(text)


RULES = tuple(
    map(
        sharing.parse_rule,
        (
            "qos=debug partition=fast guarantee=10 class=first",
            "account=astro ceiling=50 class=last",
            "partition=fast ceiling=80",
        ),
    )
)


def test_a_job_without_option_and_rule_has_no_share() -> None:
    assert sharing.decide(None, RULES, 50, partition="slow", qos="debug") is None


def test_the_first_rule_that_says_a_thing_decides_on_it() -> None:
    found = sharing.decide(None, RULES, 50, partition="fast", qos="debug", account="astro")
    assert found == Share(10, 50, "first")
    assert sharing.decide(None, RULES, 50, partition="fast") == Share(0, 80, "normal")


def test_a_job_gets_what_it_asks_for_up_to_what_the_site_allows() -> None:
    assert sharing.decide("40-60", (), 50) == Share(40, 60, "normal")
    assert sharing.decide("90", (), 50) == Share(50, 100, "normal")
    assert sharing.decide("90", RULES, 100, account="astro") == Share(50, 50, "last")
    assert sharing.decide("5", RULES, 50, partition="fast", qos="debug") == Share(10, 80, "first")
